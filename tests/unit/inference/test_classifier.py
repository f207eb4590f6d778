"""A session is what its digest says, keeps the contract, and never falls back in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from acclimate_service.domain.errors import (
    BlobCorrupt,
    InputMismatch,
    Overloaded,
    ProviderUnavailable,
    VersionUnloadable,
)
from acclimate_service.inference import sessions
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.sessions import OUTPUTS, Sessions

Opened = Callable[..., Classifier]
Graph = Callable[..., bytes]


def opened(file: bytes, *, labels: int = 4, size: int = 8) -> Classifier:
    digest = hashlib.sha256(file).hexdigest()
    return Classifier.open(file, digest=digest, labels=labels, size=size, execution=Execution())


def test_it_answers_as_the_formula_does(graph: Graph, images: np.ndarray) -> None:
    model = onnx.load_from_string(graph(3))
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    answers = opened(graph(3)).run(images, OUTPUTS)
    embeddings = images.astype(np.float32).mean(axis=(1, 2))
    logits = embeddings @ weights["matrix"] + weights["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answers["embeddings"], embeddings, rtol=1e-5)
    np.testing.assert_allclose(answers["logits"], logits, rtol=1e-4, atol=1e-4)
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-5)
    assert all(answer.dtype == np.float32 for answer in answers.values())


def test_only_the_outputs_asked_for_come_back(classifier: Opened, images: np.ndarray) -> None:
    assert list(classifier().run(images)) == ["probabilities"]
    assert list(classifier().run(images, ("embeddings", "logits"))) == ["embeddings", "logits"]


def test_only_batches_of_the_given_sizes_reach_a_session_and_padding_changes_no_answer(
    classifier: Opened, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    of = Sessions.of

    def spied(self: Sessions, count: int) -> onnxruntime.InferenceSession:
        seen.append(count)
        return of(self, count)

    monkeypatch.setattr(Sessions, "of", spied)
    version = classifier(execution=Execution(chunk=3, sizes=(1, 3)))
    found = version.run(images, OUTPUTS)  # of five images
    assert seen == [3, 3]
    version.run(images[:1])
    assert seen[2:] == [1]
    for name, rows in classifier().run(images, OUTPUTS).items():
        np.testing.assert_array_equal(found[name], rows)


@pytest.mark.parametrize("chunk", [0, 1, 2, 5, 9])
def test_an_answer_is_the_same_to_the_bit_whatever_came_beside_it(
    chunk: int, classifier: Opened, images: np.ndarray
) -> None:
    whole = classifier(execution=Execution(chunk=chunk)).run(images, OUTPUTS)
    alone = classifier()
    for index in range(len(images)):
        for name, rows in alone.run(images[index : index + 1], OUTPUTS).items():
            assert np.array_equal(whole[name][index], rows[0]), name


def test_one_session_serves_many_threads(classifier: Opened, images: np.ndarray) -> None:
    shared = classifier()
    expected = shared.run(images)["probabilities"]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: shared.run(images)["probabilities"], range(200)))
    assert all(np.array_equal(answer, expected) for answer in found)


def test_an_array_of_any_memory_order_is_taken(classifier: Opened, images: np.ndarray) -> None:
    expected = classifier().run(images[::-1].copy())["probabilities"]
    assert np.array_equal(classifier().run(images[::-1])["probabilities"], expected)
    turned = np.asfortranarray(images[::-1])
    assert np.array_equal(classifier().run(turned)["probabilities"], expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 3), np.int8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 9, 3), np.uint8),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_another_shape_or_type_is_refused(wrong: np.ndarray, classifier: Opened) -> None:
    with pytest.raises(InputMismatch):
        classifier().run(wrong)


@pytest.mark.parametrize("outputs", [(), ("labels",), ("probabilities", "")])
def test_an_output_that_does_not_exist_is_refused(
    outputs: tuple[str, ...], classifier: Opened, images: np.ndarray
) -> None:
    with pytest.raises(InputMismatch):
        classifier().run(images, outputs)


def test_bytes_with_another_digest_are_never_loaded(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # so that loading would fail
    file = graph()
    for at in range(0, len(file), 37):
        damaged = file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :]
        with pytest.raises(BlobCorrupt):
            Classifier.open(
                damaged,
                digest=hashlib.sha256(file).hexdigest(),
                labels=4,
                size=8,
                execution=Execution(),
            )


@pytest.mark.parametrize("file", [b"", b"no model", bytes(1000), b"\x80\x04\x95pickle"])
def test_what_is_no_model_is_refused(file: bytes) -> None:
    with pytest.raises(VersionUnloadable):
        opened(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": 5},
        {"size": 9},
        {"batch": 1},
        {"dtype": TensorProto.FLOAT},
        {"name": "x"},
        {"outputs": ("probabilities", "logits")},
    ],
    ids=str,
)
def test_a_graph_with_another_contract_is_refused(changes: dict[str, object], graph: Graph) -> None:
    with pytest.raises(VersionUnloadable):
        opened(graph(**changes))


def test_a_graph_that_reaches_for_other_files_is_refused(graph: Graph) -> None:
    model = onnx.load_from_string(graph())
    for weight in model.graph.initializer:
        if weight.name == "matrix":
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value="../../../../etc/passwd")
    with pytest.raises(VersionUnloadable):
        opened(model.SerializeToString())


def test_a_model_that_answers_nan_is_refused_when_it_is_warmed(graph: Graph) -> None:
    broken = opened(graph(weight=float("nan")))
    with pytest.raises(VersionUnloadable):
        broken.warm()


def test_warming_takes_every_batch_size(classifier: Opened) -> None:
    classifier(execution=Execution(chunk=0)).warm((1, 2, 7))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_an_absent_provider_is_an_error_and_not_a_slower_answer(
    provider: str, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen(onnxruntime.InferenceSession):  # type: ignore[misc]
        """What onnxruntime does where a GPU's libraries are missing."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    file = graph()
    with pytest.raises(ProviderUnavailable) as refused:
        Classifier.open(
            file,
            digest=hashlib.sha256(file).hexdigest(),
            labels=4,
            size=8,
            execution=Execution(provider=provider),  # type: ignore[arg-type]
        )
    assert refused.value.metadata["provider"] == provider


@pytest.mark.parametrize(
    "said",
    [
        "Failed to allocate memory for requested buffer of size 411041792",
        "Available memory of 1024 is smaller than requested bytes of 4096",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_memory_that_runs_out_is_not_told_as_a_broken_version(said: str) -> None:
    assert isinstance(sessions.unloadable("no model", RuntimeError(said)), Overloaded)
    broken = sessions.unloadable("no model", RuntimeError("No Op registered for Foo"))
    assert isinstance(broken, VersionUnloadable)
    assert "no model: No Op registered for Foo" in str(broken)


def test_a_session_on_a_gpu_may_take_no_more_than_it_is_given() -> None:
    given = replace(Execution.for_gpu(), most_bytes=123)
    (_, options), _ = sessions._providers(given)
    assert options["gpu_mem_limit"] == 123
    assert "gpu_mem_limit" not in dict(sessions._providers(Execution.for_gpu())[0][1])
