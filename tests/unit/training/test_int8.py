from __future__ import annotations

import functools
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from tests.unit.training import tiny

from acclimate_service.domain.errors import VariantUnsuitable
from acclimate_service.imaging import prepare
from acclimate_service.training.export import trace
from acclimate_service.training.fp16 import fp16
from acclimate_service.training.int8 import BINS, LEVELS, Calibrated, calibrate, finest

LABELS = [str(label) for label in range(tiny.LABELS)]


def images(count: int, seed: int) -> NDArray[np.uint8]:
    """Pictures as the network takes them."""
    found = tiny.Pictures([count] * tiny.LABELS, seed=seed)
    taken = tiny.network().preprocessing
    return np.stack([prepare(found.read(i), taken) for i in range(len(found))])


@functools.cache
def file() -> bytes:
    return trace(tiny.incumbent(), LABELS)


@functools.cache
def calibrated() -> Calibrated:
    return calibrate(file(), images(6, seed=1), step=lambda: None)


def logits(content: bytes, shown: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["logits"], {"images": shown})[0]
    return found


def share_of_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def test_the_int8_file_answers_nearly_as_the_fp32_file_does() -> None:
    shown = images(20, seed=9)
    wanted, found = logits(file(), shown), logits(calibrated().int8(), shown)
    assert np.mean(found.argmax(axis=1) == wanted.argmax(axis=1)) >= 0.95
    assert 0 < share_of_error(found, wanted) < 0.02


def test_the_same_images_make_the_same_file_to_the_bit() -> None:
    again = calibrate(file(), images(6, seed=1), step=lambda: None)
    assert again.int8() == calibrated().int8()


def test_the_first_and_the_last_layer_stay_in_float32() -> None:
    graph = onnx.load_model_from_string(calibrated().int8()).graph
    rounded = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    kinds = {slot.name: slot.data_type for slot in graph.initializer}
    weights = {name: kinds[name] for name in rounded if name in kinds}
    assert list(weights.values()).count(onnx.TensorProto.INT8) == len(calibrated().layers) - 2


def test_a_layer_that_is_kept_apart_makes_the_answers_closer() -> None:
    shown = images(20, seed=9)
    wanted = logits(file(), shown)
    more = calibrated().int8(apart=calibrated().layers[1:2])
    assert len(calibrated().layers) == 4
    assert share_of_error(logits(more, shown), wanted) < share_of_error(
        logits(calibrated().int8(), shown), wanted
    )


def test_where_nothing_is_left_to_be_made_int8_that_is_said() -> None:
    with pytest.raises(VariantUnsuitable, match="none is left"):
        calibrated().int8(apart=calibrated().layers)


def test_every_image_is_a_sign_of_life() -> None:
    steps: list[None] = []
    calibrate(file(), images(2, seed=1), step=lambda: steps.append(None))
    assert len(steps) >= 2 * tiny.LABELS


def test_the_quantiser_says_nothing_and_leaves_the_log_as_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = list(logging.getLogger().handlers)
    calibrated().int8()
    assert caplog.records == []
    assert logging.getLogger().handlers == handlers
    logging.getLogger("after").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def histogram(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.int64]:
    places = ((values - low) / (high - low) * (BINS - 1)).astype(int)
    return np.bincount(places, minlength=BINS).astype(np.int64)


def test_one_far_value_does_not_make_all_others_coarse() -> None:
    values = np.append(np.random.default_rng(0).normal(0, 1, 100_000).clip(-4, 4), 12.0)
    low, high = finest(histogram(values, -4.0, 12.0), -4.0, 12.0)
    assert high < 12
    assert -4 <= low < 0 < high


def test_values_that_fill_their_range_keep_it() -> None:
    values = np.random.default_rng(0).uniform(0, 6, 100_000)
    low, high = finest(histogram(values, 0.0, 6.0), 0.0, 6.0)
    assert low == 0
    assert high > 6 - 3 * 6 / LEVELS


def test_a_tensor_that_is_always_zero_has_the_range_of_zero() -> None:
    assert finest(np.zeros(BINS, np.int64), 0.0, 0.0) == (0.0, 0.0)


def test_the_fp16_file_has_half_the_bytes_and_answers_in_float32() -> None:
    shown = images(20, seed=9)
    made = fp16(file())
    wanted, found = logits(file(), shown), logits(made, shown)
    assert found.dtype == np.float32
    assert 0 < share_of_error(found, wanted) < 1e-4
    kinds = [slot.data_type for slot in onnx.load_model_from_string(made).graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) > kinds.count(onnx.TensorProto.FLOAT)
