"""A small graph in two halves, made without a training framework."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from acclimate_service.inference.execution import Execution
from acclimate_service.inference.trunks import Tailed, Trunk

SIZE = 8
LABELS = 4


def _file(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    **weights: object,
) -> bytes:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "half", inputs, outputs, tensors)
    model: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _value(name: str, width: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])


def trunk_file(scale: float = 1.0, *, size: int = SIZE) -> bytes:
    """Images -> activations [N, 3]: the mean colour times *scale*."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "sides"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["activations"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, 3])
    return _file(
        nodes,
        [images],
        [_value("activations", 3)],
        sides=np.array([1, 2], np.int64),
        scale=np.array(scale, np.float32),
    )


def tail_file(seed: int = 0, *, width: int = 3, labels: int = LABELS) -> bytes:
    """Activations [N, width] -> a linear layer of *seed*'s weights -> softmax."""
    matrix = np.random.default_rng(seed).standard_normal((width, labels)).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["activations"], ["embeddings"]),
        helper.make_node("MatMul", ["activations", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    widths = {"probabilities": labels, "logits": labels, "embeddings": width}
    outputs = [_value(name, wide) for name, wide in widths.items()]
    return _file(nodes, [_value("activations", width)], outputs, matrix=matrix * 0.01)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def trunk(execution: Execution | None = None, *, scale: float = 1.0) -> Trunk:
    content = trunk_file(scale)
    return Trunk.open(
        content, digest=sha256(content), size=SIZE, execution=execution or Execution()
    )


def tailed(on: Trunk, seed: int = 0) -> Tailed:
    content = tail_file(seed)
    return Tailed.on(on, content, digest=sha256(content), labels=LABELS, whole=sha256(content))
