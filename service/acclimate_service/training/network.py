"""A backbone as an ordered list of stages and a head.

Notation used for tensor shapes: N images, S pixels a side, F features, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acclimate_service.domain.errors import InvalidSpec, UnsupportedArchitecture
from acclimate_service.domain.model import Architecture, Preprocessing
from acclimate_service.training import families
from acclimate_service.training.depthwise import band
from acclimate_service.training.folding import fold


class Stage(nn.Module):
    """A run of the backbone's own modules, one after the other.

    Its modules *are* the library model's, not copies: what is trained or frozen
    here is trained or frozen there.
    """

    def __init__(self, name: str, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> Tensor:
        """The activations after this stage, from those before it."""
        for step in self.steps:
            x = step(x)
        return x


class Network(nn.Module):
    """A library's image classifier, seen as stages and a head.

    ``stages`` run from the pixels to the pooled features: ``stem``, ``block0``, ...,
    and ``neck``, which holds everything between the last block and the final linear
    layer (last convolution, norm, pooling). ``head`` is that linear layer. A stage
    boundary is written as an index: boundary 0 lies before the stem, boundary
    ``len(stages)`` between neck and head. ``known`` counts the labels that it has been
    taught: the head's rows after those were grown and mean nothing yet.

    ``state_dict`` and ``load_state_dict`` use the library's own tensor names. In
    ``named_parameters`` the same names carry the prefix ``model.``, in an exported graph
    ``network.model.``.
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        model: nn.Module,
        stages: list[Stage],
        head_name: str,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.model = model
        # A tuple is not registered by torch, so each tensor has one name: the library's.
        self.stages = tuple(stages)
        self.preprocessing = preprocessing
        self.frozen_below = 0
        self.batchnorm_updates = False
        self._head_name = head_name
        self.known = self.labels

    # ── structure ────────────────────────────────────────────────────────────

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The names of the stages, in forward order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def head(self) -> nn.Linear:
        """The final linear layer, from features [N, F] to logits [N, C]."""
        head = self.model.get_submodule(self._head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def head_name(self) -> str:
        """The library's name of the final linear layer, such as ``fc``."""
        return self._head_name

    @property
    def features(self) -> int:
        """F, the width of the embeddings."""
        return self.head.in_features

    @property
    def labels(self) -> int:
        """C, the number of labels."""
        return self.head.out_features

    def boundary(self, stage: str) -> int:
        """The index of the boundary before the stage of this name; ``head`` is the last one.

        Raises:
            InvalidSpec: no stage has this name.
        """
        names = (*self.stage_names, "head")
        if stage not in names:
            raise InvalidSpec(
                f"{self.architecture} has no stage {stage!r}, only {', '.join(names)}", stage=stage
            )
        return names.index(stage)

    def depths(self) -> dict[str, int]:
        """For each tensor of the state dict, its stage's index; the head's is ``len(stages)``."""
        places = {id(tensor): len(self.stages) for tensor in _tensors(self.head)}
        for index, stage in enumerate(self.stages):
            places |= {id(tensor): index for tensor in _tensors(stage)}
        return {
            name: places[id(tensor)] for name, tensor in self.state_dict(keep_vars=True).items()
        }

    # ── running ──────────────────────────────────────────────────────────────

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, C] of normalised images [N, 3, S, S]."""
        logits: Tensor = self.head(self.embed(x))
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features [N, F] of normalised images [N, 3, S, S]."""
        return self.forward_until(len(self.stages), x)

    def forward_until(self, boundary: int, x: Tensor) -> Tensor:
        """The activations at a stage boundary: what the stages below it make of *x*."""
        for stage in self.stages[:boundary]:
            x = stage(x)
        return x

    def forward_from(self, boundary: int, activations: Tensor) -> Tensor:
        """Logits [N, C] from the activations at a stage boundary."""
        for stage in self.stages[boundary:]:
            activations = stage(activations)
        logits: Tensor = self.head(activations)
        return logits

    # ── training ─────────────────────────────────────────────────────────────

    def freeze_below(self, boundary: int, *, batchnorm_updates: bool = False) -> None:
        """Train what lies above a stage boundary, and nothing below it.

        ``freeze_below(len(stages))`` leaves only the head to train. With
        ``batchnorm_updates`` the statistics of the *trained* stages' BatchNorm
        layers follow the new images; otherwise they stay everywhere.
        """
        if not 0 <= boundary <= len(self.stages):
            raise InvalidSpec(f"boundary {boundary} is not in 0..{len(self.stages)}")
        self.frozen_below = boundary
        self.batchnorm_updates = batchnorm_updates
        for index, stage in enumerate(self.stages):
            stage.requires_grad_(index >= boundary)
        self.head.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Enter training mode above the frozen boundary; what is frozen stays in eval mode."""
        super().train(mode)
        # Not only requires_grad: a BatchNorm left in train mode moves its running
        # statistics to the new domain, and forgets without a gradient; a frozen
        # stage's dropout would make the cached trunk a lie.
        for index, stage in enumerate(self.stages):
            stage.train(mode and index >= self.frozen_below)
        if not self.batchnorm_updates:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def stage_parameters(self, index: int) -> Iterator[nn.Parameter]:
        """The parameters of one stage; those of the head at ``len(stages)``."""
        return (
            self.head.parameters() if index == len(self.stages) else self.stages[index].parameters()
        )

    def replace_head(self, labels: int, *, generator: torch.Generator | None = None) -> None:
        """Give the network a new label space: a fresh head of small random weights."""
        self._set_head(_linear(self.head, labels))
        self.known = labels
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def grow_head(self, added: int, *, generator: torch.Generator | None = None) -> None:
        """Add labels after the present ones, whose rows stay as they are.

        A new row is the mean of the old rows, plus a tenth of their spread as noise:
        a new label starts as likely as an average one, neither stealing images from
        the old labels nor out of reach.
        """
        old = self.head
        new = _linear(old, old.out_features + added)
        with torch.no_grad():
            mean, spread = old.weight.mean(dim=0), old.weight.std()
            noise = torch.randn(added, old.in_features, generator=generator).to(old.weight)
            new.weight.copy_(torch.cat([old.weight, mean + 0.1 * spread * noise]))
            new.bias.copy_(torch.cat([old.bias, old.bias.mean().expand(added)]))
        self._set_head(new)

    def _set_head(self, head: nn.Linear) -> None:
        parent, _, leaf = self._head_name.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, head)

    # ── weights, under the library's names ───────────────────────────────────

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The library model's state dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy tensors into the library model; ``assign`` would part it from its stages."""
        if assign:
            raise ValueError("assign=True would replace tensors that the stages share")
        return self.model.load_state_dict(state_dict, strict=strict)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Network input [N, 3, S, S] from uint8 RGB images [N, S, S, 3]."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(1, 3, 1, 1)
    x = images.permute(0, 3, 1, 2).float() / 255  # [N, 3, S, S] in [0, 1]
    return (x - mean) / std


def build(architecture: Architecture, *, labels: int, size: int | None = None) -> Network:
    """A network with random weights, cut into stages.

    *size* overrides the side of the input in pixels that the library would use.

    Raises:
        UnsupportedArchitecture: the library has no classifier of this name, or it
            cannot be cut into stages.
        InvalidSpec: the architecture cannot take images of *size*.
    """
    try:
        return _build(architecture, labels=labels, size=size)
    except RuntimeError as error:  # how torch says that a feature map became too small
        if size is None:
            raise
        raise families.wrong_size(architecture, size, str(error)) from error


def _build(architecture: Architecture, *, labels: int, size: int | None) -> Network:
    model, cut, preprocessing = families.make(architecture, labels=labels, size=size)
    blocks = [Stage(f"block{index}", steps) for index, steps in enumerate(cut.blocks)]
    network = Network(
        architecture=architecture,
        model=model,
        stages=[Stage("stem", cut.stem), *blocks, Stage("neck", cut.neck)],
        head_name=cut.head_name,
        preprocessing=preprocessing,
    )
    if dict(network.head.named_parameters()).keys() != {"weight", "bias"}:
        raise _uncuttable(network, "its last layer has no bias")
    # Some libraries begin with a head of zeros, before which every cut looks right.
    network.replace_head(labels)
    size = network.preprocessing.size
    probe = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    network.eval()
    _check_cut(network, probe)
    band(network)
    fold(network, probe)
    network.train()
    return network


def _check_cut(network: Network, probe: Tensor) -> None:
    """See that the stages cover the model, run it in order, and compute what it computes.

    Raises:
        UnsupportedArchitecture: they do not.
    """
    owned = [id(t) for part in (*network.stages, network.head) for t in _tensors(part)]
    if sorted(owned) != sorted(id(tensor) for tensor in _tensors(network.model)):
        raise _uncuttable(network, "its stages would not cover every tensor exactly once")
    parts = {id(m) for part in (*network.stages, network.head) for m in part.modules()}
    layers = [
        layer
        for layer in network.model.modules()
        if id(layer) in parts and any(True for _ in layer.parameters(recurse=False))
    ]
    expected, model_order = _run(network.model, probe, layers)
    found, stage_order = _run(network, probe, layers)
    if model_order != stage_order:
        raise _uncuttable(network, "its stages would run its layers in another order")
    # Relative to the largest logit, since random weights give logits of any scale.
    if not (expected - found).abs().max() <= 1e-4 * expected.abs().max() > 0:
        raise _uncuttable(network, "its stages, run one after another, do not equal the model")


def _run(runner: nn.Module, x: Tensor, layers: list[nn.Module]) -> tuple[Tensor, list[int]]:
    """What *runner* makes of *x*, and the order in which it ran these layers."""
    order: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: order.append(id(layer)))
        for layer in layers
    ]
    try:
        with torch.no_grad():
            return runner(x), order
    finally:
        for hook in hooks:
            hook.remove()


def _uncuttable(network: Network, why: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{network.architecture} cannot be cut: {why}", architecture=network.architecture
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _linear(like: nn.Linear, labels: int) -> nn.Linear:
    return nn.Linear(like.in_features, labels, device=like.weight.device, dtype=like.weight.dtype)
