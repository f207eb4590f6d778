"""One job, told from top to bottom.

    ADAPT      open the incumbent -> adapt -> export -> judge beside the incumbent
    BOOTSTRAP  open a backbone -> give it the source's labels -> adapt -> export -> judge
    REGISTER   open somebody's weights -> export -> measure

What is accepted may get variants, each judged beside it. Every job ends in one
transaction that writes the end state, and with it the version, the verdict and the
alias. What a finished step made is kept in checkpoints, so another attempt goes on from
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from opentelemetry.trace import Tracer

from acclimate_service.domain.errors import (
    LeaseLost,
    NoIncumbent,
    ServiceError,
    StoreUnavailable,
)
from acclimate_service.domain.job import EventKind, Failure, Job, JobKind, Lease, Phase
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import DomainName
from acclimate_service.store import Bucket, Store, open_store
from acclimate_service.tracing import Phases
from acclimate_service.training import weights
from acclimate_service.training.augment import GENTLE
from acclimate_service.training.auto import Outcome, adapt
from acclimate_service.training.cache import Cache
from acclimate_service.training.finetune import Effort
from acclimate_service.training.interpolate import Tolerance
from acclimate_service.training.network import Network, build
from acclimate_service.training.run import Run
from acclimate_service.training.trunk import Trunk
from acclimate_service.worker import judgement
from acclimate_service.worker.ending import conclude, fail
from acclimate_service.worker.images import stored_images
from acclimate_service.worker.judgement import Judgement
from acclimate_service.worker.outlook import foretell, tell_creep
from acclimate_service.worker.publish import Candidate, export_candidate
from acclimate_service.worker.result import Result
from acclimate_service.worker.stock import JobImages, images_of, verify_images
from acclimate_service.worker.story import Story
from acclimate_service.worker.suspects import TOLD, LabelScreen
from acclimate_service.worker.variants import Bench, TriedVariant, try_variants, with_variants

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a recipe works with: the job, the store, the job's story, the device."""

    job: Job
    store: Store
    story: Story
    device: torch.device
    threads: int
    cache: Cache


def run_job(
    lease: Lease,
    *,
    store_url: str,
    blob_root: Path | Bucket,
    cache: Cache,
    device: torch.device,
    threads: int,
    sign_of_life: Callable[[], object],
    tracer: Tracer | None = None,
) -> None:
    """Work on the leased job until it has its end.

    Raises:
        StoreUnavailable: the store stayed out of reach; the job is as it was.
    """
    store = open_store(store_url, blob_root)
    job = store.jobs.get(lease.job)
    structlog.contextvars.bind_contextvars(job=str(job.name), attempt=lease.attempt)
    (accepted,) = store.jobs.events(job.name, limit=1)
    spans = Phases(
        tracer, accepted.facts, job=str(job.name), kind=job.draft.kind.value, attempt=lease.attempt
    )
    story = Story(store=store, lease=lease, sign_of_life=sign_of_life, spans=spans)
    desk = Desk(job=job, store=store, story=story, device=device, threads=threads, cache=cache)
    try:
        conclude(job, story, RECIPES[job.draft.kind](desk))
    except LeaseLost as error:
        log.warning("stopped: the job is not ours any more", error=str(error))
    except StoreUnavailable:
        raise
    except ServiceError as error:
        log.warning("job failed", reason=error.reason, error=str(error))
        fail(story, Failure(reason=error.reason, message=str(error)))
    finally:
        spans.end()


# ── the three recipes ────────────────────────────────────────────────────────


def adapt_job(desk: Desk) -> Result:
    """An incumbent and a target domain -> the next version, if the guard accepts."""
    draft, story = desk.job.draft, desk.story
    if draft.incumbent is None or draft.target is None:
        raise NoIncumbent(f"{desk.job.name} has nothing to adapt")
    story.enter(Phase.PREPARING)
    incumbent = desk.store.registry.get_version(draft.incumbent)
    space = _label_space(desk, incumbent)
    network = _open_version(desk, incumbent, labels=len(space))
    images = images_of(
        desk.store,
        target=draft.target,
        known=_known(desk),
        space=space,
        replay_per_class=draft.spec.replay_per_class,
        up_to=desk.job.reads_up_to,
        step=story.step,
    )
    _announce(story, images, f"adapting {incumbent.name} to {draft.target}")
    foretell(story, desk.job, images, space, known=len(incumbent.manifest.labels))
    standards = desk.store.registry.standards(incumbent.name)
    tell_creep(story, desk.job, incumbent.manifest, standards)
    screen = _screen(desk, images, space, known=len(incumbent.manifest.labels))
    outcome = _learn(desk, network, images, screen, bootstrap=False)
    candidate = export_candidate(
        story,
        network,
        space,
        images.stock.train,
        like=incumbent.manifest.artifacts.onnx,
        below=_cut_of(desk, incumbent),
    )
    judged = judgement.judge_adapted(
        story,
        desk.job,
        incumbent,
        candidate,
        images,
        standards=standards,
        screened=screen.found,
        threads=desk.threads,
    )
    tried = _variants(desk, candidate, images, judged)
    return Result(
        candidate=with_variants(candidate, tried),
        judged=judged,
        variants=tried,
        outcome=outcome,
        screened=screen.found,
        near_copies=images.near_copies,
        parent=incumbent.name,
        digests=images.digests,
    )


def bootstrap_job(desk: Desk) -> Result:
    """A backbone and a labelled source domain -> the first version, if it beats guessing."""
    draft, story = desk.job.draft, desk.story
    if draft.source is None:
        raise NoIncumbent(f"{desk.job.name} has no source domain to learn")
    story.enter(Phase.PREPARING)
    space = desk.store.domains.get(draft.source).labels
    network = _open_registered(desk, labels=len(space), backbone_only=True)
    images = images_of(
        desk.store,
        target=draft.source,
        known=(),
        space=space,
        replay_per_class=0,
        up_to=desk.job.reads_up_to,
        step=story.step,
    )
    _announce(story, images, f"bootstrapping {network.architecture} on {draft.source}")
    foretell(story, desk.job, images, space, known=0)
    screen = _screen(desk, images, space, known=0)
    outcome = _learn(desk, network, images, screen, bootstrap=True)
    candidate = export_candidate(story, network, space, images.stock.train, like=None)
    judged = judgement.judge_bootstrapped(
        story, desk.job, candidate, images, screened=screen.found, threads=desk.threads
    )
    tried = _variants(desk, candidate, images, judged)
    return Result(
        candidate=with_variants(candidate, tried),
        judged=judged,
        variants=tried,
        outcome=outcome,
        screened=screen.found,
        near_copies=images.near_copies,
        digests=images.digests,
    )


def register_job(desk: Desk) -> Result:
    """Somebody's own weights, which came with their labels -> the first version, as it is."""
    draft, story = desk.job.draft, desk.story
    story.enter(Phase.PREPARING)
    space = desk.store.registry.get_model(draft.model).labels
    network = _open_registered(desk, labels=len(space), backbone_only=False)
    verify = None
    if draft.source is not None:
        verify = verify_images(desk.store, draft.source, space, up_to=desk.job.reads_up_to)
    images = None if verify is None else stored_images(verify.examples, space, desk.store.blobs.get)
    candidate = export_candidate(story, network, space, images, like=None)
    judged = judgement.measure(story, candidate, verify, threads=desk.threads)
    return Result(candidate=candidate, judged=judged)


RECIPES: dict[JobKind, Callable[[Desk], Result]] = {
    JobKind.ADAPT: adapt_job,
    JobKind.BOOTSTRAP: bootstrap_job,
    JobKind.REGISTER: register_job,
}


# ── their steps ──────────────────────────────────────────────────────────────


def _known(desk: Desk) -> list[DomainName]:
    """The domains not to be forgotten: the source, then those accepted since, less the target."""
    draft = desk.job.draft
    assert draft.incumbent is not None
    accepted = desk.store.registry.accepted_domains(draft.incumbent)
    domains = dict.fromkeys([draft.source, *accepted])
    return [domain for domain in domains if domain is not None and domain != draft.target]


def _label_space(desk: Desk, incumbent: ModelVersion) -> tuple[str, ...]:
    """The incumbent's labels; the target's new ones after them, if the job asked for that."""
    labels = incumbent.manifest.labels
    if not desk.job.draft.spec.extend_labels or desk.job.draft.target is None:
        return labels
    offered = desk.store.domains.get(desk.job.draft.target).labels
    return labels + tuple(label for label in offered if label not in labels)


def _cut_of(desk: Desk, incumbent: ModelVersion) -> str | None:
    """Where the incumbent is cut, if it was adapted to the same domain.

    Adapted once more, it goes on sharing a trunk with the other domains' versions, where
    a cut of its own, further up, would leave it alone on one.
    """
    parts = incumbent.manifest.artifacts.parts
    made_for = desk.store.jobs.get(incumbent.job).draft.target
    return None if parts is None or made_for != desk.job.draft.target else parts.stage


def _open_version(desk: Desk, version: ModelVersion, *, labels: int) -> Network:
    """The network of a version, its head grown to so many labels."""
    found = version.manifest
    network = build(found.architecture, labels=len(found.labels), size=found.preprocessing.size)
    weights.restore(network, desk.store.blobs.get(found.artifacts.weights))
    network.preprocessing = found.preprocessing
    if labels > network.labels:
        generator = torch.Generator().manual_seed(desk.job.draft.spec.seed)
        network.grow_head(labels - network.labels, generator=generator)
    return network.to(desk.device)


def _open_registered(desk: Desk, *, labels: int, backbone_only: bool) -> Network:
    """The network of a model that has no version yet, with the weights it was registered with."""
    model = desk.store.registry.get_model(desk.job.draft.model)
    given = model.preprocessing
    network = build(model.architecture, labels=labels, size=None if given is None else given.size)
    weights.load(network, model.weights, desk.store.blobs, backbone_only=backbone_only)
    if given is not None:
        # Hub and package weights know the mean and std that they were trained with.
        kept = {} if model.weights.kind == "FILE" else {
            "mean": network.preprocessing.mean, "std": network.preprocessing.std
        }  # fmt: skip
        network.preprocessing = given.model_copy(update=kept)
    network.preprocessing = network.preprocessing.model_copy(update={"decoding": model.decoding})
    if backbone_only:
        generator = torch.Generator().manual_seed(desk.job.draft.spec.seed)
        network.replace_head(labels, generator=generator)
    return network.to(desk.device)


def _screen(desk: Desk, images: JobImages, space: Sequence[str], *, known: int) -> LabelScreen:
    """Who looks for wrong labels; the network has learned *known* of them before."""
    return LabelScreen(
        story=desk.story,
        images=images,
        space=space,
        known=known,
        leave_out=desk.job.draft.spec.guard.label_suspects_use == "leave_out",
    )


def _learn(
    desk: Desk, network: Network, images: JobImages, screen: LabelScreen, *, bootstrap: bool
) -> Outcome:
    """Train by the job's spec; the network is left at the chosen weights."""
    spec, story = desk.job.draft.spec, desk.story
    deadline = None if spec.budget_seconds is None else time.monotonic() + spec.budget_seconds
    run = Run(
        clock=time.monotonic,
        seed=spec.seed,
        device=desk.device,
        readers=desk.threads,
        deadline=deadline,
        on_event=story.tell,
        cancelled=story.step,
    )
    trunk = Trunk(network, desk.cache, augmentation=GENTLE, views=spec.views, run=run)
    return adapt(
        network,
        stock=images.stock,
        trunk=trunk,
        strategy=spec.strategy,
        effort=Effort(epochs=spec.epochs, batch_size=spec.batch_size),
        tolerance=Tolerance(drop=spec.guard.source_drop_limit),
        run=run,
        bootstrap=bootstrap,
        checkpoints=story,
        enter=story.enter,
        screen=screen,
    )


def _variants(
    desk: Desk, candidate: Candidate, images: JobImages, judged: Judgement
) -> tuple[TriedVariant, ...]:
    """What the job asks for beside the fp32 file, each judged by itself."""
    bench = Bench(
        story=desk.story,
        job=desk.job,
        candidate=candidate,
        stock=images.stock,
        judged=judged,
        device=desk.device,
        threads=desk.threads,
    )
    return try_variants(bench, desk.job.draft.spec.variants)


def _announce(story: Story, images: JobImages, what: str) -> None:
    """Say on how many images a job rests; what was finished on others counts no more."""
    story.rest_on(images.digests)
    stock = images.stock
    counts = {
        "train": len(stock.train),
        "select": 0 if stock.select is None else len(stock.select),
        "replay": 0 if stock.replay is None else len(stock.replay),
        "source_select": 0 if stock.source_select is None else len(stock.source_select),
        "verify": len(images.target),
        "known_verify": sum(len(verify) for verify in images.known),
    }
    told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    story.tell(EventKind.DECISION, f"{what}: {told} images", dict(counts))
    if copies := images.near_copies:
        story.tell(
            EventKind.WARNING,
            f"left {len(copies)} images out: near-copies of held-out ones, such as "
            f"{copies[0].example.id or copies[0].example.content[:12]} of "
            f"{copies[0].of.id or copies[0].of.content[:12]}",
            {"near_copies": len(copies), "listed": [one.to_json() for one in copies[:TOLD]]},
        )
