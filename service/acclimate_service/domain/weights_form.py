"""What a weights file is by its first bytes; the rest is examined where it is opened."""

from __future__ import annotations

import enum
import struct
from typing import Final

from acclimate_service.domain.errors import WeightsMismatch

HEAD_BYTES: Final = 16  # enough to tell
HEADER_BYTES: Final = 4 * 2**20  # of a safetensors file, which is some 150 a tensor

_LEGACY: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9"  # a pickle of torch's own number
# An ONNX file is a protobuf whose first field is the version of its format.
_AFTER_IR_VERSION: Final = (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
_ADVICE: Final = "write one with safetensors.torch.save_file(model.state_dict(), path)"


class WeightsForm(enum.Enum):
    """The forms that are taken."""

    SAFETENSORS = "safetensors"
    ARCHIVE = "what torch.save writes"  # a zip archive with one pickle and a file a tensor
    LEGACY = "what torch.save wrote before 1.6"  # a row of pickles, then the tensors


def form_of(head: bytes) -> WeightsForm:
    """The form of a file that begins with *head*, which has ``HEAD_BYTES`` unless the file ends.

    Raises:
        WeightsMismatch: it is of none that is taken.
    """
    # First, since the length that a safetensors file begins with may look like anything.
    if head[8:9] == b"{":
        (length,) = struct.unpack_from("<Q", head)
        if length > HEADER_BYTES:
            raise unreadable(
                f"claims a safetensors header of {length} bytes; at most {HEADER_BYTES} are taken"
            )
        return WeightsForm.SAFETENSORS
    if head.startswith(b"PK"):
        return WeightsForm.ARCHIVE
    if head.startswith(_LEGACY):
        return WeightsForm.LEGACY
    if head[:1] == b"\x80":
        raise unreadable("is a bare pickle, which could run code when it is opened")
    if head[:1] == b"\x08" and head[2:3] in _AFTER_IR_VERSION:
        raise unreadable("looks like an ONNX file, which cannot be trained on")
    raise unreadable("is neither safetensors nor a PyTorch state dict")


def unreadable(why: str) -> WeightsMismatch:
    """The refusal of a file that cannot be opened, and what to send in its place."""
    return WeightsMismatch(f"the weights file {why}; {_ADVICE}")
