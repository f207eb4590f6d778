"""What the guard could say at best, asked before anything is trained.

With too few images held out it can only be undecided, however good the candidate. Whoever
asked for the job then learns it at once, and not after hours of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate_service.domain.evidence import Evidence, Paired
from acclimate_service.domain.guard import judge, judge_first
from acclimate_service.domain.job import EventKind, Job
from acclimate_service.domain.model import Manifest
from acclimate_service.domain.names import DomainName, ModelName, VersionName
from acclimate_service.domain.verdict import Decision, Verdict
from acclimate_service.domain.wording import points, some
from acclimate_service.worker.evaluate import VerifySet
from acclimate_service.worker.stock import JobImages
from acclimate_service.worker.story import Story

Looks: TypeAlias = Callable[[ModelName, DomainName], int]  # candidates for a target before


def foretell(story: Story, job: Job, images: JobImages, labels: Sequence[str], known: int) -> None:
    """Warn if a candidate that loses nothing, and gains all there is to gain, is undecided.

    Args:
        story: Where to say it.
        job: An adaptation or a bootstrap.
        images: What it may touch.
        labels: The candidate's label space.
        known: How many of them the incumbent has; 0 if there is none.
    """
    verdict = at_best(job, images, tuple(labels), known, looks=story.store.jobs.looks)
    if verdict.decision is not Decision.ACCEPT:
        story.tell(
            EventKind.WARNING,
            "few images are held out: of a version that answers as the incumbent on what that "
            f"knows, and is right about all else, the guard would say: {verdict.summary}",
            {"needed": verdict.needed},
        )


def tell_creep(
    story: Story, job: Job, incumbent: Manifest, standards: Mapping[DomainName, VersionName]
) -> None:
    """Warn where the versions since a standard leave less to lose than one step may.

    As the incumbent's own verdict told it; one that is itself the standard begins anew.
    """
    policy, near = job.draft.spec.guard, []
    for domain, version in standards.items():
        if domain == job.draft.target or str(version) == incumbent.version:
            continue
        source = domain == job.draft.source
        limits = policy.creep("source" if source else "earlier")
        step = policy.source_drop_limit if source else policy.earlier_drop_limit
        lost = _crept(incumbent, None if source else domain)
        if limits is not None and lost is not None and lost + step > limits[0]:
            room = points(max(0.0, limits[0] - lost))
            near.append(f"{domain} ({points(lost)} lost since {version}, {room} left)")
    if near:
        story.tell(
            EventKind.WARNING,
            "the versions before this one have together forgotten nearly as much as they may of "
            f"{some(near)}; with --base an earlier version is adapted",
            {"domains": len(near)},
        )


def _crept(manifest: Manifest, domain: DomainName | None) -> float | None:
    """What a version's verdict says was lost of the source, or of a *domain*, since its standard.

    None if that was not asked.
    """
    checks, rows = manifest.verdict.get("checks"), manifest.verdict.get("earlier")
    name = "source creep" if domain is None else f"earlier {domain} creep"
    found = [c for c in checks if isinstance(c, dict)] if isinstance(checks, list) else []
    told = [check.get("observed") for check in found if check.get("name") == name]
    if isinstance(rows, dict) and isinstance(row := rows.get(str(domain)), dict):
        told.append(row.get("creep"))
    return next((lost for lost in told if isinstance(lost, float)), None)


def at_best(
    job: Job, images: JobImages, labels: tuple[str, ...], known: int, *, looks: Looks
) -> Verdict:
    """The verdict on a candidate that is right about every verify image.

    The incumbent is taken to be right on what it knows, where there is nothing to gain
    then, and wrong on the target, where all is to be gained. (A candidate that happens to
    be better than the incumbent on the source needs fewer images there.)
    """
    draft, every = job.draft, len(labels)
    policy = draft.spec.guard
    if draft.target is None:
        right = _answers(images.target.labels, every)
        return judge_first(policy, labels=images.target.labels, probabilities=right, names=labels)
    target = _paired(images.target, (images.target.labels + 1) % known, known, every)
    sets = {v.name: _paired(v, v.labels, known, every) for v in images.known}
    source = target if draft.source == draft.target else sets.pop(str(draft.source), None)
    evidence = Evidence(
        source=source,
        target=target,
        earlier=tuple(sets.values()),
        looks=looks(draft.model, draft.target),
        labels=labels,
    )
    return judge(policy, evidence)


def _paired(verify: VerifySet, before: npt.NDArray[np.int64], known: int, every: int) -> Paired:
    """A set on which the incumbent answered *before*, and the candidate what is right."""
    return Paired(
        name=verify.name,
        labels=verify.labels,
        incumbent=_answers(before, known),
        candidate=_answers(verify.labels, every),
    )


def _answers(classes: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float32]:
    """[N, count]: all of the probability on one of each image's classes."""
    found = np.zeros((len(classes), count), dtype=np.float32)
    found[np.arange(len(classes)), np.minimum(classes, count - 1)] = 1.0
    return found
