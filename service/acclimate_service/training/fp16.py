"""A version's file in float16, for GPUs: half the bytes, and products on tensor cores."""

from __future__ import annotations

from typing import Any

import onnx
from onnxruntime.transformers import float16

from acclimate_service.domain.errors import VariantUnsuitable

# What sums or raises over many values, where 5 bits of exponent and 10 of fraction are
# too few: pixels of up to 255 before they are normalised, and the answer itself.
_WIDE = ("Softmax", "ReduceMean", "GlobalAveragePool", "LayerNormalization")


def fp16(content: bytes) -> bytes:
    """The file of an fp32 one with weights and products in float16; inputs and outputs stay.

    Raises:
        VariantUnsuitable: onnxruntime cannot convert this graph.
    """
    model = onnx.load_model_from_string(content)
    try:
        converted: Any = float16.convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_WIDE],
        )
        made: bytes = converted.SerializeToString(deterministic=True)
    # A graph that it was not written for fails in any way; the job must not.
    except Exception as error:
        raise VariantUnsuitable(
            f"onnxruntime cannot convert this graph: {type(error).__name__}: {error}"
        ) from error
    return made
