"""An exported graph cut in two at a stage boundary, so that versions can share what lies below.

The trunk takes ``images`` as the whole graph does, and gives ``activations``; the tail
takes these and gives the whole graph's outputs. Together they hold its nodes and weights
as they are, and nothing else. The trunk's bytes follow from these alone: two versions whose
weights are equal up to the boundary have the same trunk, whatever lies above it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto

from acclimate_service.domain.model import ACTIVATIONS
from acclimate_service.training.export import PREFIX
from acclimate_service.training.network import Network

INPUT = "images"
BRIDGE = "bridge"
# What a tensor depends on, where that is no image: nothing, or the number of images.
_CONSTANT, _COUNT = -2, -1


class Uncut(Exception):  # no error to anybody: the version is served whole
    """The graph cannot be cut there; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Two ONNX files that follow one another."""

    trunk: bytes
    tail: bytes


def boundary(content: bytes, parent: bytes | None, network: Network) -> int:
    """The index of the first stage whose weights in *content* are not those in *parent*.

    Found in the files, since that is what is shared: not by what a strategy meant to
    train. Without a parent, or with equal weights, the boundary before the head.
    """
    head = len(network.stages)
    if parent is None:
        return head
    depths = network.depths()
    ours, theirs = _weights(content), _weights(parent)
    changed = [
        depths.get(name.removeprefix(PREFIX), 0)
        for name, tensor in ours.items()
        if name in theirs and theirs[name] != tensor
    ]
    return min([head, *changed])


def cut(content: bytes, network: Network, boundary: int, *, bridged: bool = False) -> Halves:
    """The file *content*, an export of *network*, cut before the stage of index *boundary*.

    A tail that is *bridged* begins with a maximum over one pixel, which changes nothing.
    But onnxruntime keeps its output in the layout of its convolutions, and so fuses a
    residual sum into the convolution before it, as it does in the whole graph.

    Raises:
        Uncut: nothing lies below, or more than one tensor crosses the boundary.
    """
    if boundary < 1:
        raise Uncut("its first stage differs from its parent's")
    model = onnx.load_model_from_string(content)
    depths = {PREFIX + name: depth for name, depth in network.depths().items()}
    graph = _Graph(model.graph, depths)
    crossing = graph.crossing(boundary)
    tail = _tail(model, graph, crossing)
    if bridged:
        _bridge(tail)
    return Halves(
        trunk=_trunk(model, graph, crossing).SerializeToString(deterministic=True),
        tail=tail.SerializeToString(deterministic=True),
    )


class _Graph:
    """A graph, and how deep in the network each of its tensors lies."""

    def __init__(self, graph: GraphProto, stage_of: Mapping[str, int]) -> None:
        self.nodes = list(graph.node)
        self.place = {out: i for i, node in enumerate(self.nodes) for out in node.output}
        self.outputs = [value.name for value in graph.output]
        self._stage_of = stage_of
        self.depth = {slot.name: _CONSTANT for slot in graph.initializer} | {INPUT: 0}
        for node in self.nodes:
            self.depth |= dict.fromkeys(node.output, self._depth_of(node))

    def _depth_of(self, node: NodeProto) -> int:
        inputs = [name for name in node.input if name]
        if _counts(node):
            return _COUNT
        found = [self.depth[name] for name in inputs]
        if max(found, default=_CONSTANT) < 0:
            return max(found, default=_CONSTANT)
        return max(*found, *(self._stage_of.get(name, 0) for name in inputs))

    def crossing(self, boundary: int) -> str:
        """The one tensor that carries images over the boundary.

        Where several do, what no weight made is computed above the boundary instead.

        Raises:
            Uncut: several do all the same.
        """
        above = {i for i, node in enumerate(self.nodes) if self.depth[node.output[0]] >= boundary}
        while True:
            taken = {name for i in above for name in self.nodes[i].input if name}
            taken.update(name for name in self.outputs if self.place[name] not in above)
            open_ = {
                name for name in taken
                if self.depth[name] >= 0 and self.place.get(name, -1) not in above
            }  # fmt: skip
            if len(open_) == 1:
                return open_.pop()
            last = max(self.place.get(name, -1) for name in open_)
            if last < 0 or any(name in self._stage_of for name in self.nodes[last].input):
                raise Uncut(f"{len(open_)} tensors cross the boundary: {', '.join(sorted(open_))}")
            above.add(last)

    def needed(self, wanted: Iterable[str], given: Collection[str]) -> list[NodeProto]:
        """The nodes that make *wanted* out of *given*, in order."""
        found: set[int] = set()
        waiting = list(wanted)
        while waiting:
            name = waiting.pop()
            place = self.place.get(name)
            if name in given or place is None or place in found:
                continue
            found.add(place)
            if not _counts(self.nodes[place]):
                waiting += [name for name in self.nodes[place].input if name]
        return [self.nodes[place] for place in sorted(found)]


def _trunk(model: ModelProto, graph: _Graph, crossing: str) -> ModelProto:
    part = _part(model, graph.needed([crossing], ()), renamed={crossing: ACTIVATIONS})
    part.graph.input.add().CopyFrom(model.graph.input[0])
    part.graph.output.add().CopyFrom(_activations(model, crossing))
    return part


def _tail(model: ModelProto, graph: _Graph, crossing: str) -> ModelProto:
    # The number of images is that of activations, too.
    renamed = {crossing: ACTIVATIONS, INPUT: ACTIVATIONS}
    wanted = [name for name in graph.outputs if name != crossing]
    part = _part(model, graph.needed(wanted, [crossing]), renamed=renamed)
    if crossing in graph.outputs:
        part.graph.node.append(onnx.helper.make_node("Identity", [ACTIVATIONS], [crossing]))
    part.graph.input.add().CopyFrom(_activations(model, crossing))
    part.graph.output.extend(model.graph.output)
    return part


def _bridge(tail: ModelProto) -> None:
    """Put a maximum over one pixel between the activations and what reads them.

    Raises:
        Uncut: they have no pixels.
    """
    given = tail.graph.input[0]
    if len(given.type.tensor_type.shape.dim) != 4:
        raise Uncut("the activations are no feature map")
    for node in tail.graph.node:
        node.input[:] = [BRIDGE if name == ACTIVATIONS else name for name in node.input]
    pool = onnx.helper.make_node("MaxPool", [ACTIVATIONS], [BRIDGE], kernel_shape=[1, 1])
    tail.graph.node.insert(0, pool)
    tail.graph.value_info.add().CopyFrom(given)
    tail.graph.value_info[-1].name = BRIDGE


def _part(model: ModelProto, nodes: Iterable[NodeProto], *, renamed: dict[str, str]) -> ModelProto:
    """A model of some of a model's nodes and of the weights that these read."""
    part = ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = "part"
    for node in nodes:
        copy = part.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
    read = {name for node in part.graph.node for name in node.input}
    part.graph.initializer.extend(slot for slot in model.graph.initializer if slot.name in read)
    # onnxruntime fuses by the shapes that are stated; without them the halves would
    # answer otherwise than the whole in the last bits.
    made = {name for node in part.graph.node for name in node.output}
    part.graph.value_info.extend(value for value in model.graph.value_info if value.name in made)
    return part


def _activations(model: ModelProto, crossing: str) -> onnx.ValueInfoProto:
    values = (*model.graph.value_info, *model.graph.output)
    found = next((value for value in values if value.name == crossing), None)
    if found is None or not found.type.tensor_type.shape.dim:
        raise Uncut(f"the graph does not say what {crossing} is")
    first = found.type.tensor_type.shape.dim[0]
    if first.dim_param != model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise Uncut(f"{crossing} has not one row an image")
    value = onnx.ValueInfoProto()
    value.CopyFrom(found)
    value.name = ACTIVATIONS
    return value


def _counts(node: NodeProto) -> bool:
    """Whether the node gives the number of images."""
    if node.op_type != "Shape" or list(node.input) != [INPUT]:
        return False
    return {a.name: a.i for a in node.attribute} == {"start": 0, "end": 1}


def _weights(content: bytes) -> dict[str, bytes]:
    graph = onnx.load_model_from_string(content).graph
    return {slot.name: slot.SerializeToString(deterministic=True) for slot in graph.initializer}
