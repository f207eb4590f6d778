"""The same job asked for twice: the same file, the same verdict, and one look at the holdouts."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image, ImageOps
from tests.integration.test_label_screening import shots
from tests.integration.workbench import MODEL, Bench, Shot

from acclimate.demo import digits
from acclimate_service.domain.examples import Role
from acclimate_service.domain.job import Job
from acclimate_service.domain.names import DomainName

CHEAP: dict[str, Any] = {"epochs": 1, "views": 1, "strategy": "head"}
NIGHT = DomainName("night")


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model with a first version, and a domain to adapt it to."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    for name, seed in (("bright", 0), (NIGHT.domain, 1)):
        pictures = digits.uci(train=100, holdout=100, seed=seed)
        bench.domain(name, digits.LABELS)
        bench.upload(name, shots(pictures.train, dark=seed > 0))
        bench.upload(name, shots(pictures.holdout, dark=seed > 0), Role.HOLDOUT)
    bench.register("bright", size=32)
    bench.job("bright", **CHEAP)
    return bench


def mirrored(shot: Shot) -> Shot:
    """A picture that no domain has yet."""
    encoded = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(shot.image))).save(encoded, "PNG")
    return replace(shot, image=encoded.getvalue())


def file_of(bench: Bench, job: Job) -> str:
    """The digest of the file that a job made, accepted or not."""
    made = bench.store.registry.version_of_job(job.name)
    if made is not None:
        return made.manifest.artifacts.onnx
    return str(job.summary["manifest"]["artifacts"]["onnx"])  # type: ignore[index,call-overload]


def repeated(bench: Bench, job: Job) -> list[str]:
    """Which jobs' judgement it says that it repeats."""
    events = bench.store.jobs.events(job.name)
    return [str(event.facts["same_as"]) for event in events if "same_as" in event.facts]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_job_asked_for_again_spends_no_look_and_says_so(bench: Bench) -> None:
    first = bench.job(NIGHT.domain, **CHEAP)
    again = bench.job(NIGHT.domain, **CHEAP)
    assert file_of(bench, again) == file_of(bench, first)
    assert again.state is first.state
    assert repeated(bench, again) == [str(first.name)]
    assert str(first.name) in bench.report(again).decode()
    assert bench.store.jobs.looks(MODEL, NIGHT) == 1

    other = bench.job(NIGHT.domain, seed=7, **CHEAP)
    assert file_of(bench, other) != file_of(bench, first)
    assert repeated(bench, other) == []
    assert bench.store.jobs.looks(MODEL, NIGHT) == 2

    more = map(mirrored, shots(digits.uci(train=0, holdout=50, seed=1).holdout, dark=True))
    bench.upload(NIGHT.domain, more, Role.HOLDOUT)
    later = bench.job(NIGHT.domain, **CHEAP)
    assert repeated(bench, later) == []
    assert bench.store.jobs.looks(MODEL, NIGHT) == 3
