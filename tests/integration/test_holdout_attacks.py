"""Uploads that contain what is held out: exactly, or changed a little. None is learned from."""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tests.integration.workbench import Bench, Shot
from tests.unit.imaging.test_likeness import CHANGES, scene

from acclimate_service.domain.errors import NotEnoughExamples
from acclimate_service.domain.examples import Example, Role, Split
from acclimate_service.domain.names import DomainName
from acclimate_service.store import data_digest
from acclimate_service.store.intake import Answer
from acclimate_service.worker.stock import JobImages, images_of

LABELS = ("cat", "dog")
STUDIO, YARD = DomainName("studio"), DomainName("yard")


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def shot(seed: int, change: Callable[[Image.Image], Image.Image] = lambda i: i) -> Shot:
    """Picture number *seed*, perhaps changed."""
    image = change(Image.fromarray(scene(seed)))
    return Shot(image=png(image), label=LABELS[seed % 2], id=f"{seed}.png")


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with pictures 0-19 held out and 20-39 to learn, and a target with 40-59."""
    bench = Bench(tmp_path_factory.mktemp("furnished"))
    bench.domain("studio", LABELS)
    bench.domain("yard", LABELS)
    bench.upload("studio", map(shot, range(20)), Role.HOLDOUT)
    bench.upload("studio", map(shot, range(20, 40)))
    bench.upload("yard", map(shot, range(40, 60)))
    bench.store.close()
    return bench.home


@pytest.fixture
def bench(furnished: Path, tmp_path: Path) -> Bench:
    """The same of a test's own: to copy files is faster than to upload them."""
    return Bench(shutil.copytree(furnished, tmp_path / "home"))


def gathered(bench: Bench) -> JobImages:
    return images_of(bench.store, target=YARD, known=[STUDIO], space=LABELS, replay_per_class=20)


def learned(images: JobImages) -> set[str]:
    """The contents of everything that moves weights."""
    assert images.stock.replay is not None
    return {*images.stock.train.contents, *images.stock.replay.contents}


def test_without_an_attack_nothing_is_left_out(bench: Bench) -> None:
    images = gathered(bench)
    assert images.near_copies == ()
    assert len(images.stock.train) + len(images.stock.select or ()) == 20


def test_an_exact_holdout_image_is_refused_at_the_upload_in_any_file_format(bench: Bench) -> None:
    file = io.BytesIO()
    Image.fromarray(scene(4)).save(file, "WEBP", lossless=True)
    again = Shot(image=file.getvalue(), label="cat", id="innocent.webp")
    _, outcomes = bench.upload("yard", [shot(3), again, shot(80)])
    assert [outcome.answer for outcome in outcomes] == [
        Answer.REJECTED,
        Answer.REJECTED,
        Answer.ACCEPTED,
    ]
    refusals = [outcome.refusal for outcome in outcomes[:2]]
    assert all(refusal and refusal.reason == "HOLDOUT_LEAK" for refusal in refusals)
    assert all(refusal and "domains/studio" in refusal.message for refusal in refusals)


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "nothing"])
def test_changed_copies_of_the_sources_holdout_are_not_learned_from(
    bench: Bench, change: str
) -> None:
    batch, outcomes = bench.upload("yard", [shot(seed, CHANGES[change]) for seed in range(20)])
    assert batch.accepted == 20, outcomes  # by content they are new pictures
    images = gathered(bench)
    found = {copy.example.id: copy.of.id for copy in images.near_copies}
    assert len(found) >= 18
    assert all(copy == of for copy, of in found.items())
    assert {copy.of.domain for copy in images.near_copies} == {STUDIO}
    left_out = {copy.example.content for copy in images.near_copies}
    assert not left_out & learned(images)


def test_copies_within_a_domain_count_too_and_verify_comes_before_select(bench: Bench) -> None:
    """Brighter copies of the target's own holdout: in training, and in the other half of it."""
    brighter = ImageEnhance.Brightness
    bench.upload("yard", map(shot, range(100, 140)), Role.HOLDOUT)
    copies = [shot(seed, lambda i: brighter(i).enhance(0.8)) for seed in range(100, 140)]
    bench.upload("yard", copies[:20])
    bench.upload("yard", copies[20:], Role.HOLDOUT)
    images = gathered(bench)
    trained = [copy for copy in images.near_copies if copy.example.split is Split.TRAIN]
    chosen = [copy for copy in images.near_copies if copy.example.split is Split.SELECT]
    assert len(trained) >= 18
    assert chosen
    assert all(copy.of.split is Split.VERIFY for copy in chosen)
    assert images.stock.select is not None
    gone = {copy.example.content for copy in chosen}
    assert not gone & set(images.stock.select.contents)
    verify = {example.content for example in images.target.examples}
    assert not verify & gone


def test_a_target_of_nothing_but_copies_has_nothing_to_learn_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.domain("studio", LABELS)
    bench.domain("yard", LABELS)
    bench.upload("studio", map(shot, range(10)), Role.HOLDOUT)
    bench.upload("yard", [shot(seed, CHANGES["jpeg"]) for seed in range(10)])
    with pytest.raises(NotEnoughExamples, match="near-copies of held-out ones"):
        gathered(bench)


def test_photographs_of_the_source_that_were_changed_are_not_learned_from(
    photos: Path, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    files = sorted((photos / "amazon").glob("*/*.jpg"))[::12]
    labels = sorted({file.parent.name for file in files})
    bench.domain("amazon", labels)
    bench.domain("webcam", labels)
    whole = [Shot(image=f.read_bytes(), label=f.parent.name, id=f.name) for f in files]
    bench.upload("amazon", whole, Role.HOLDOUT)
    new = sorted((photos / "webcam").glob("*/*.jpg"))[::6]
    bench.upload(
        "webcam", [Shot(image=f.read_bytes(), label=f.parent.name, id=f.name) for f in new]
    )
    stolen = []
    for place, file in enumerate(files):
        change = list(CHANGES.values())[1 + place % (len(CHANGES) - 1)]
        image = change(Image.open(file).convert("RGB"))
        stolen.append(Shot(image=png(image), label=file.parent.name, id=f"stolen {file.name}"))
    bench.upload("webcam", stolen)
    images = images_of(
        bench.store,
        target=DomainName("webcam"),
        known=[DomainName("amazon")],
        space=labels,
        replay_per_class=20,
    )
    caught = [copy.example.id.startswith("stolen ") for copy in images.near_copies]
    assert np.sum(caught) >= 0.9 * len(stolen)
    assert len(caught) - np.sum(caught) <= 1  # an innocent photograph


def test_what_is_uploaded_while_a_job_gathers_is_neither_used_nor_in_its_digest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, late = bench.store.domains.examples, itertools.count(200)

    def read_and_uploaded_to(domain: DomainName, **asked: Any) -> list[Example]:
        found = read(domain, **asked)
        bench.upload("yard", [shot(next(late))], Role.HOLDOUT)
        return found

    monkeypatch.setattr(bench.store.domains, "examples", read_and_uploaded_to)
    images = gathered(bench)
    used = [*learned_of_yard(images), *(e.content for e in images.target.examples)]
    assert images.digests["domains/yard"] == data_digest(used)


def learned_of_yard(images: JobImages) -> list[str]:
    """The contents that move weights or make choices for the target."""
    sources = (images.stock.train, images.stock.select)
    return [content for source in sources if source is not None for content in source.contents]
