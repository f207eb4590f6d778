"""Small ONNX graphs that keep the contract, made without a training framework."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution

SIZE = 8
LABELS = 4


class Graph(Protocol):
    def __call__(self, seed: int = 0, **changes: object) -> bytes: ...


def _graph(
    seed: int = 0,
    *,
    labels: int = LABELS,
    size: int = SIZE,
    batch: str | int = "N",
    dtype: int = TensorProto.UINT8,
    name: str = "images",
    outputs: tuple[str, ...] = ("probabilities", "logits", "embeddings"),
    weight: float = 0.01,
    ballast: int = 0,
) -> bytes:
    """Mean colour -> linear -> softmax; the weights are *seed*'s.

    ``ballast`` adds that many float32 weights, for tests of memory.
    """
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((3, labels)) * weight).astype(np.float32)
    bias = rng.standard_normal(labels).astype(np.float32)
    heavy = np.zeros((max(ballast // labels, 1), labels), np.float32)
    nodes = [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["embeddings"], keepdims=0),
        helper.make_node("MatMul", ["embeddings", "matrix"], ["products"]),
        # A row that follows from the images, or onnxruntime would fold the weights away.
        helper.make_node("Shape", [name], ["count"], start=0, end=1),
        helper.make_node("Mul", ["count", "none"], ["row"]),
        helper.make_node("Gather", ["heavy", "row"], ["nothing"]),
        helper.make_node("Add", ["products", "nothing"], ["sums"]),
        helper.make_node("Add", ["sums", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    widths = {"probabilities": labels, "logits": labels, "embeddings": 3}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, [batch, size, size, 3])],
        [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, widths[output]])
            for output in outputs
        ],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(heavy, "heavy"),
            numpy_helper.from_array(np.array([0], np.int64), "none"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def graph() -> Graph:
    return _graph  # type: ignore[return-value]


@pytest.fixture(scope="session")
def classifier() -> Callable[..., Classifier]:
    """Opens the graph of a seed."""

    def opened(
        seed: int = 0, *, execution: Execution | None = None, ballast: int = 0
    ) -> Classifier:
        file = _graph(seed, ballast=ballast)
        return Classifier.open(
            file,
            digest=hashlib.sha256(file).hexdigest(),
            labels=LABELS,
            size=SIZE,
            execution=execution or Execution(),
        )

    return opened


@pytest.fixture
def images() -> np.ndarray:
    """Five different images, uint8 [5, SIZE, SIZE, 3]."""
    return np.random.default_rng(5).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
