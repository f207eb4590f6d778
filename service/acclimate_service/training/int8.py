"""A version's file in 8-bit integers: static quantisation, calibrated on real images.

Weights are rounded by output channel, activations to a range that was measured before,
so that a request costs integer products and nothing is measured while it waits. The
range of a tensor is the one that loses least over the calibration images: what few
pixels reach is cut off where that makes all others finer.

What is rounded is chosen by measurement on this project's backbones: the products, and
what stands between them (sums, activations, pooling), so that a block stays in integers
throughout. The first and the last layer stay in float32: their share of the work is
small, of the error large.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from acclimate_service.domain.errors import VariantUnsuitable

Images = npt.NDArray[np.uint8]
Ranges = Mapping[str, tuple[float, float]]

LAYERS = ("Conv", "Gemm", "MatMul")  # what multiplies by weights
BETWEEN = ("Add", "Clip", "Pad")
BINS = 2048  # of a tensor's histogram
LEVELS = 255
_SHRINK = np.linspace(0.3, 1.0, 36)  # the ranges tried, as shares of the widest one


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibrated:
    """A folded graph, its layers in order, and the range of every tensor between them."""

    model: onnx.ModelProto
    layers: tuple[str, ...]
    ranges: Ranges

    def int8(self, *, apart: Sequence[str] = ()) -> bytes:
        """The file with every layer in integers but the first, the last, and those *apart*.

        Raises:
            VariantUnsuitable: onnxruntime cannot quantise this graph.
        """
        exempt = {self.layers[0], self.layers[-1], *apart}
        if exempt >= set(self.layers):
            raise VariantUnsuitable(
                f"of the graph's {len(self.layers)} layers none is left to be made int8"
            )
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        ranges = {name: (np.float32(a), np.float32(b)) for name, (a, b) in self.ranges.items()}
        with _quiet():
            try:
                quantizer: Any = QDQQuantizer(
                    model,
                    per_channel=True,
                    reduce_range=False,
                    weight_qType=QuantType.QInt8,
                    activation_qType=QuantType.QUInt8,
                    tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
                    nodes_to_quantize=[],
                    nodes_to_exclude=sorted(exempt),
                    op_types_to_quantize=[*LAYERS, *BETWEEN],
                    extra_options={"MatMulConstBOnly": True},
                )
                quantizer.quantize_model()
            # A graph that it was not written for fails in any way; the job must not.
            except Exception as error:
                raise VariantUnsuitable(
                    f"onnxruntime cannot quantise this graph: {type(error).__name__}: {error}"
                ) from error
        content: bytes = quantizer.model.model.SerializeToString(deterministic=True)
        return content


def calibrate(content: bytes, images: Images, *, step: Callable[[], object]) -> Calibrated:
    """Measure on *images*, uint8 [N, S, S, 3], what an fp32 file's tensors hold.

    *step* is called between images.

    Raises:
        VariantUnsuitable: the graph has too few layers for any to be made int8.
    """
    if not len(images):
        raise ValueError("calibration needs at least one image")
    model = _folded(content)
    weights = {slot.name for slot in model.graph.initializer}
    layers = tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS and any(name in weights for name in node.input)
    )
    if len(layers) < 3:
        raise VariantUnsuitable(
            f"the graph has {len(layers)} layers; the first and the last stay in float32, "
            "so none is left to be made int8"
        )
    ranges = _ranges(model, _between(model, weights), images, step)
    return Calibrated(model=model, layers=layers, ranges=ranges)


def _folded(content: bytes) -> onnx.ModelProto:
    """The graph as onnxruntime simplifies it for any machine: BatchNorm within its layer."""
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.shape_inference.infer_shapes(onnx.load_model(path))


def _between(model: onnx.ModelProto, weights: set[str]) -> list[str]:
    """The float32 tensors that a layer, or what stands between layers, takes or gives."""
    known = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in known}
    return list(
        dict.fromkeys(
            name
            for node in model.graph.node
            if node.op_type in (*LAYERS, *BETWEEN)
            for name in (*node.input, *node.output)
            if name not in weights and kinds.get(name) == onnx.TensorProto.FLOAT
        )
    )


def _ranges(
    model: onnx.ModelProto, names: Sequence[str], images: Images, step: Callable[[], object]
) -> Ranges:
    """Two passes over *images*: how far each tensor reaches, then how its values lie."""
    told = onnx.ModelProto()
    told.CopyFrom(model)
    have = {output.name for output in told.graph.output}
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    session = onnxruntime.InferenceSession(
        told.SerializeToString(), _options(), providers=["CPUExecutionProvider"]
    )

    def tensors() -> Iterator[Iterator[tuple[str, npt.NDArray[np.float32]]]]:
        for index in range(len(images)):
            step()
            yield zip(names, session.run(names, {"images": images[index : index + 1]}), strict=True)

    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for found in tensors():
        for name, values in found:
            low[name] = min(low[name], float(values.min()))
            high[name] = max(high[name], float(values.max()))
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for found in tensors():
        for name, values in found:
            width = max(high[name] - low[name], 1e-12) / (BINS - 1)
            places = ((values.ravel() - low[name]) / width).astype(np.int32)
            counts[name] += np.bincount(places, minlength=BINS)
    return {name: finest(counts[name], low[name], high[name]) for name in names}


def finest(counts: npt.NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """The range of 8-bit values that loses least of a histogram over [*low*, *high*].

    ``counts``: [BINS]. The loss is the squared difference between a value and what it is
    rounded or cut to, summed over all. Zero lies in every range, and is met exactly.
    """
    if high <= low:
        return low, high
    values = low + (np.arange(BINS) + 0.5) * (high - low) / (BINS - 1)
    best, least = (low, high), np.inf
    for share in _SHRINK:
        bottom, top = share * low, share * high
        scale = (top - bottom) / LEVELS
        zero = np.round(-bottom / scale)
        rounded = (np.clip(np.round(values / scale) + zero, 0, LEVELS) - zero) * scale
        loss = float((counts * (rounded - values) ** 2).sum())
        if loss < least:
            best, least = (float(bottom), float(top)), loss
    return best


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return options


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what onnxruntime's quantiser says to the root logger out of the log."""
    root, silent = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    root.addHandler(silent)  # or the first warning would set up handlers of its own
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)
