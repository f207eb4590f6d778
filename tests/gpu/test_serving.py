"""Sessions on a CUDA device: what differs there from the CPU."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest
from tests.integration.rpc_server import SIZE, classifier

from acclimate_service.inference.batcher import Batcher, Batching
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.probe import probe
from acclimate_service.inference.sessions import OUTPUTS
from acclimate_service.training.fp16 import fp16

pytestmark = pytest.mark.gpu

IMAGES = np.random.default_rng(3).integers(0, 256, (32, SIZE, SIZE, 3), np.uint8)


def opened(execution: Execution) -> Classifier:
    file = classifier(7)
    digest = hashlib.sha256(file).hexdigest()
    return Classifier.open(file, digest=digest, labels=3, size=SIZE, execution=execution)


def test_the_device_answers_as_the_cpu_does_in_every_bucket() -> None:
    probe(Execution.for_gpu())
    here, there = opened(Execution()), opened(Execution.for_gpu())
    there.warm(Batching().buckets)
    for count in Batching().buckets:
        wanted, found = (one.run(IMAGES[:count], OUTPUTS) for one in (here, there))
        for name in OUTPUTS:
            assert np.allclose(found[name], wanted[name], atol=1e-4), (name, count)


def test_float16_answers_as_float32_does_but_for_rounding() -> None:
    whole = classifier(7)
    half = fp16(whole)
    there = Classifier.open(
        half, digest=hashlib.sha256(half).hexdigest(), labels=3, size=SIZE,
        execution=Execution.for_gpu(), precision="fp16",
    )  # fmt: skip
    there.warm(Batching().buckets)
    wanted, found = (one.run(IMAGES, OUTPUTS) for one in (opened(Execution()), there))
    assert np.allclose(found["probabilities"], wanted["probabilities"], atol=0.02)
    assert not np.array_equal(found["logits"], wanted["logits"])  # it did run in float16


def test_requests_that_run_together_get_their_own_answers() -> None:
    there = opened(Execution.for_gpu())

    async def test() -> None:
        batcher = Batcher(threads=2, batching=Batching())
        answers = await asyncio.gather(
            *(batcher.submit(there, IMAGES[n : n + 1], ("logits",)) for n in range(32))
        )
        alone = opened(Execution()).run(IMAGES, ("logits",))["logits"]
        found = np.concatenate([answer.outputs["logits"] for answer in answers])
        assert np.allclose(found, alone, atol=1e-4)
        assert sum(len(answer.timings.runs) for answer in answers) < 32
        await batcher.close()

    asyncio.run(test())
