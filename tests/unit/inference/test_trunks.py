"""Versions on one trunk answer each for itself, in less memory and fewer runs."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import numpy as np
import pytest
from tests.unit.inference.halves import LABELS, SIZE, sha256, tail_file, tailed, trunk, trunk_file

from acclimate_service.domain.errors import BlobCorrupt, VersionUnloadable
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.batcher import Batcher, Batching
from acclimate_service.inference.classifier import Pixels
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.sessions import OUTPUTS
from acclimate_service.inference.trunks import Tailed, Trunk, Trunks

TOGETHER = Execution(chunk=0)  # as on a GPU: a batch goes through at once


def test_a_trunk_is_opened_once_for_all_that_use_it_and_let_go_after_the_last() -> None:
    file, read = trunk_file(), []

    def reading(digest: str) -> bytes:
        read.append(digest)
        return file

    trunks = Trunks()
    asked: dict[str, Any] = {"size": SIZE, "execution": Execution()}
    digest = sha256(file)
    versions = [tailed(trunks.get(digest, reading, **asked), seed) for seed in range(3)]
    assert len({id(version.first) for version in versions}) == 1
    assert (read, len(trunks)) == ([digest], 1)
    del versions[1:]
    gc.collect()
    assert len(trunks) == 1
    versions.clear()
    gc.collect()
    assert len(trunks) == 0
    trunks.get(digest, reading, **asked)
    assert read == [digest, digest]


def test_trunks_that_differ_in_a_weight_are_not_shared() -> None:
    trunks = Trunks()
    files = {sha256(file): file for file in (trunk_file(1.0), trunk_file(1.0000001))}
    assert len(files) == 2
    found = [
        trunks.get(digest, files.__getitem__, size=SIZE, execution=Execution()) for digest in files
    ]
    assert found[0] is not found[1]


def test_each_tail_answers_with_its_own_weights(images: Pixels) -> None:
    on = trunk()
    activations = on.run(images)
    for seed in range(3):
        answers = tailed(on, seed).run(images, OUTPUTS)
        weights = np.random.default_rng(seed).standard_normal((3, LABELS)).astype(np.float32)
        np.testing.assert_allclose(answers["logits"], activations @ (weights * 0.01), rtol=1e-5)
        np.testing.assert_array_equal(answers["embeddings"], activations)


@pytest.mark.parametrize(
    ("content", "digest", "error"),
    [
        (tail_file(), "0" * 64, BlobCorrupt),
        (tail_file(width=5), None, VersionUnloadable),
        (trunk_file(), None, VersionUnloadable),
        (b"no model", None, VersionUnloadable),
    ],
    ids=["damaged", "for another trunk", "a trunk", "no model"],
)
def test_what_is_no_tail_of_the_trunk_is_refused(
    content: bytes, digest: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Tailed.on(trunk(), content, digest=digest or sha256(content), labels=LABELS, whole="")


def test_what_is_no_trunk_is_refused() -> None:
    content = tail_file()
    with pytest.raises(VersionUnloadable):
        Trunk.open(content, digest=sha256(content), size=SIZE, execution=Execution())


class Counted(Trunk):
    """Counts its runs, and the images in them."""

    runs: list[int]
    through: threading.Event

    def run(self, images: Pixels) -> Any:
        self.runs.append(len(images))
        assert self.through.wait(30)
        return super().run(images)


def counted() -> Counted:
    content = trunk_file()
    made = Counted.open(content, digest=sha256(content), size=SIZE, execution=TOGETHER)
    made.runs, made.through = [], threading.Event()
    made.through.set()
    return made


def test_a_batch_that_mixes_versions_runs_their_trunk_once_and_mixes_no_answer() -> None:
    generator = np.random.default_rng(0)
    on = counted()
    versions = [tailed(on, seed) for seed in range(5)]
    held = counted()  # another, though an equal one
    held.through.clear()
    alone = tailed(held, 9)
    sent = [
        (version, generator.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))
        for count in (1, 2, 1)
        for version in (*versions, alone)
    ]

    async def ask() -> list[Answer]:
        batcher = Batcher(threads=1, batching=Batching())
        first = asyncio.create_task(batcher.submit(alone, sent[0][1], OUTPUTS))
        while not held.runs:  # noqa: ASYNC110  # it happens on another thread
            await asyncio.sleep(0.001)
        waiting = [
            asyncio.create_task(batcher.submit(version, images, OUTPUTS))
            for version, images in sent
        ]
        await asyncio.sleep(0.05)
        held.through.set()
        try:
            await first
            return await asyncio.gather(*waiting)
        finally:
            await batcher.close()

    answers = asyncio.run(ask())
    # 20 images of five versions in one run, padded to 32; the other version's apart.
    assert on.runs == [32]
    for (version, images), answer in zip(sent, answers, strict=True):
        expected = version.run(images, OUTPUTS)
        for name in OUTPUTS:
            np.testing.assert_array_equal(answer.outputs[name], expected[name])
    # Four images each, counted as one run of each version's.
    runs = [run for answer in answers for run in answer.timings.runs]
    assert runs == [4] * 6
