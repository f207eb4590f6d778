"""From a network to the ONNX file that is served, and the proof that both answer alike.

The graph takes uint8 images [N, S, S, 3] (``images``), so that no client can
normalise wrongly, and gives ``probabilities`` and ``logits`` [N, C] and
``embeddings`` [N, F], float32, for any N. It is one file without external data.

Nothing in it is folded or fused: every weight is an initializer under its library
name. So the next version of the same graph is made by putting its weights into the
old file, in a fraction of a second, and optimising is left to onnxruntime.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from acclimate_service.domain.errors import ExportMismatch, UnsupportedArchitecture
from acclimate_service.training.folding import unfold
from acclimate_service.training.network import Network

_log = logging.getLogger(__name__)

OPSET = 20
LAYOUT = "2"  # of the graph; an older one is exported afresh instead of patched
PREFIX = "network.model."  # of the library's tensor names, in the graph
MAX_BYTES = 2**31 - 2**24  # what protobuf can hold, less 16 MiB for the graph itself
TOLERANCE = 1e-3  # of the largest logit; float32 sums in another order stay below 1e-4


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an ONNX file's answers are from its network's.

    ``max_abs_logit`` is the largest difference of a logit over ``images`` images,
    ``allowed`` what it may be: ``TOLERANCE`` times the largest logit, or times 1 if
    all are smaller. ``agreement`` is the fraction, in [0, 1], with the same top label.
    """

    images: int
    max_abs_logit: float
    allowed: float
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Export:
    """An ONNX file that answers as its network does. ``patched`` if an old graph was reused."""

    onnx: bytes
    parity: Parity
    patched: bool


def export(
    network: Network,
    labels: Sequence[str],
    images: npt.NDArray[np.uint8],
    *,
    like: bytes | None = None,
) -> Export:
    """The ONNX file for *network*, checked on real *images*, uint8 [N, S, S, 3].

    ``like``, an earlier export (the incumbent's), is reused if it is of the same
    graph. The network itself is left as it is.

    Raises:
        ExportMismatch: the file does not answer as the network does.
        UnsupportedArchitecture: the weights do not fit into one file.
    """
    if len(labels) != network.labels:
        raise ValueError(f"{len(labels)} labels for a head of {network.labels}")
    patched = None if like is None else patch(like, network, labels)
    if patched is not None:
        try:
            return Export(onnx=patched, parity=check_parity(patched, network, images), patched=True)
        except ExportMismatch as error:
            # A library that computes the same weights otherwise than it did then.
            _log.warning("the old graph no longer fits, exporting afresh: %s", error)
    fresh = trace(network, labels)
    return Export(onnx=fresh, parity=check_parity(fresh, network, images), patched=False)


def trace(network: Network, labels: Sequence[str]) -> bytes:
    """The ONNX file for *network*, from a run of it through ``torch.export``.

    Raises:
        UnsupportedArchitecture: the weights do not fit into one file.
    """
    weight = sum(tensor.nbytes for tensor in network.state_dict().values())
    if weight > MAX_BYTES:
        raise UnsupportedArchitecture(
            f"{network.architecture} has {weight / 2**30:.1f} GiB of weights; "
            "one ONNX file holds less than 2 GiB"
        )
    size = network.preprocessing.size
    served = _Served(_at_rest(network)).eval()
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            served,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            input_names=["images"],
            output_names=["probabilities", "logits", "embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # it would fold BatchNorm away, and with it the weights' names
            verbose=False,
        )
    assert program is not None  # only with dynamo=False or a file name
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    _untie_constants(model)
    onnx.helper.set_model_props(model, {**_graph_facts(network), "labels": json.dumps([*labels])})
    return model.SerializeToString(deterministic=True)


def patch(like: bytes, network: Network, labels: Sequence[str]) -> bytes | None:
    """An earlier export with the weights of *network* in it; None if the graph is another."""
    model = onnx.load_model_from_string(like)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if any(facts.get(key) != value for key, value in _graph_facts(network).items()):
        return None
    served = _Served(network)
    wanted = {"pixel_mean": served.pixel_mean, "pixel_std": served.pixel_std}
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # which inference does not read
            wanted[PREFIX + name] = tensor
    slots = {slot.name: slot for slot in model.graph.initializer}
    for name, tensor in wanted.items():
        slot = slots.get(name)
        if slot is None or tuple(slot.dims) != tuple(tensor.shape):
            return None
        values = onnx.numpy_helper.from_array(tensor.detach().cpu().numpy(), name)
        if values.data_type != slot.data_type:
            return None
        slot.CopyFrom(values)
    onnx.helper.set_model_props(model, {**_graph_facts(network), "labels": json.dumps([*labels])})
    return model.SerializeToString(deterministic=True)


def check_parity(
    content: bytes, network: Network, images: npt.NDArray[np.uint8], *, batch_size: int = 32
) -> Parity:
    """Compare an ONNX file with its network on *images*, uint8 [N, S, S, 3], both on the CPU.

    Raises:
        ExportMismatch: a logit differs by more than is allowed, or is not a number.
    """
    if len(images) == 0:
        raise ValueError("parity needs at least one image")
    # On the CPU, in float32: a GPU's TF32 would differ more than an export may.
    ours = _Served(_at_rest(network)).eval()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected, found = [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with torch.no_grad():
            expected.append(ours(torch.from_numpy(batch))[1].numpy())
        found.append(session.run(["logits"], {"images": batch})[0])
    return _compare(np.concatenate(expected), np.concatenate(found))


def _compare(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> Parity:
    """Parity of logits [N, C]."""
    parity = Parity(
        images=len(expected),
        max_abs_logit=float(np.abs(expected - found).max()),
        allowed=TOLERANCE * max(1.0, float(np.abs(expected).max())),
        agreement=float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
    )
    if not parity.max_abs_logit <= parity.allowed:  # so written, NaN is a mismatch too
        raise ExportMismatch(
            f"the exported file's logits differ from the network's by {parity.max_abs_logit:.2g} "
            f"({parity.allowed:.2g} is allowed) on {parity.images} images; "
            f"{parity.agreement:.1%} have the same top label",
            max_abs_logit=parity.max_abs_logit,
            agreement=parity.agreement,
        )
    return parity


class _Served(nn.Module):
    """The network as it is served: normalisation before it, softmax after it."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        # Not called mean and std: names of BatchNorm's own would clash in the graph.
        mean, std = network.preprocessing.mean, network.preprocessing.std
        self.register_buffer("pixel_mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, logits and embeddings of uint8 images [N, S, S, 3]."""
        x = images.permute(0, 3, 1, 2).float() / 255  # [N, 3, S, S] in [0, 1]
        embeddings = self.network.embed((x - self.pixel_mean) / self.pixel_std)
        logits: Tensor = self.network.head(embeddings)
        return logits.softmax(dim=1), logits, embeddings


def _at_rest(network: Network) -> Network:
    """A copy on the CPU in eval mode, whose graph has the library's own tensors."""
    resting = copy.deepcopy(network).cpu().eval()
    unfold(resting)
    return resting


def _graph_facts(network: Network) -> dict[str, str]:
    """What decides the shape of the graph: two exports that share these differ in weights only."""
    return {
        "architecture": str(network.architecture),
        "size": str(network.preprocessing.size),
        "label_count": str(network.labels),
        "layout": LAYOUT,
    }


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about its own run, such as paths of source files."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for entry in part:
            entry.ClearField("doc_string")
            entry.ClearField("metadata_props")


def _untie_constants(model: onnx.ModelProto) -> None:
    """Say the type of a constant outright instead of "as that activation's" (``CastLike``).

    The zero bias of every convolution is written so. To onnxruntime it then depends on
    the image, so it folds no BatchNorm into a convolution: measured on EfficientNet-Lite0,
    25 ms an image instead of 6 (benchmarks/serving.py).
    """
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    for node in model.graph.node:
        if node.op_type == "CastLike" and node.input[1] in types:
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", types[node.input[1]]))
            del node.input[1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what torch.onnx prints and warns of to the log."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        yield
    for line in (*printed.getvalue().splitlines(), *(str(w.message) for w in caught)):
        _log.debug("torch.onnx: %s", line)
