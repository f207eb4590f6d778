"""Cutting a library's classifier into stages: which modules run, in what order.

Among torchvision's classifiers there is no common structure, so each family is
read by its attributes. timm has one (``forward_features``, ``forward_head``,
``get_classifier``), so there any model is cut whose features are a chain of
modules. Whether a cut is right is not believed but measured: see ``network.build``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm.models
import torch
import torchvision.models as tv
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from acclimate_service.domain.errors import UnsupportedArchitecture

# No stage is deeper than this many blocks, so that a strategy can move part of a
# library stage that holds most of the network (ConvNeXt's and Swin's third).
MAX_DEPTH = 4

# timm's names for what holds the blocks: containers of stages, and stages themselves.
_STAGES = re.compile("blocks|stages|layers")
_BODY = re.compile(_STAGES.pattern + r"|layer\d|s\d")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A classifier's modules in forward order; each inner list of ``blocks`` is one stage."""

    stem: Sequence[nn.Module]
    blocks: Sequence[Sequence[nn.Module]]
    neck: Sequence[nn.Module]
    head_name: str


# ── torchvision ──────────────────────────────────────────────────────────────


def cut_torchvision(model: Any) -> Cut:
    """Cut a torchvision classifier.

    Raises:
        UnsupportedArchitecture: it is of no family known here.
    """
    flatten = nn.Flatten(1)
    match model:
        case tv.ResNet():
            stem = [model.conv1, model.bn1, model.relu, model.maxpool]
            blocks = [
                list(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)
            ]
            neck = [model.avgpool, flatten]
        case tv.RegNet():
            stem, blocks = [model.stem], [list(stage) for stage in model.trunk_output]
            neck = [model.avgpool, flatten]
        case tv.MobileNetV3() | tv.EfficientNet():
            first, *middle, last = model.features
            stem, blocks = [first], [list(_chain(stage)) for stage in middle]
            neck = [last, model.avgpool, flatten, *model.classifier[:-1]]
        case tv.ConvNeXt():
            stem, blocks = _pyramid(model.features)
            neck = [model.avgpool, *model.classifier[:-1]]
        case tv.SwinTransformer():
            stem, blocks = _pyramid(model.features)
            neck = [model.norm, model.permute, model.avgpool, model.flatten]
        case TorchvisionViT():
            encoder = model.encoder
            stem, blocks = [_TorchvisionTokens(model)], [[layer] for layer in encoder.layers]
            neck = [encoder.ln, _FirstToken(), *list(model.heads)[:-1]]
        case _:
            raise UnsupportedArchitecture(
                f"a torchvision {type(model).__name__} has no known cut into stages"
            )
    *_, head_name = (name for name, child in model.named_modules() if isinstance(child, nn.Linear))
    return Cut(stem=stem, blocks=list(_shallow(blocks)), neck=neck, head_name=head_name)


def _pyramid(features: Iterable[Any]) -> tuple[list[nn.Module], list[list[nn.Module]]]:
    """Stem and stages of ConvNeXt and Swin, where stages and downsampling layers alternate.

    A downsampling layer closes the stage before it: what is cached at the
    boundary is then half as large.
    """
    stem, *rest = features
    pairs = itertools.zip_longest(rest[::2], rest[1::2])
    return [stem], [[*stage, down] if down is not None else [*stage] for stage, down in pairs]


class _TorchvisionTokens(nn.Module):
    """A torchvision ViT's patch embedding, class token and positions."""

    _model: TorchvisionViT

    def __init__(self, model: TorchvisionViT) -> None:
        super().__init__()
        self.conv_proj, self.dropout = model.conv_proj, model.encoder.dropout
        self.class_token, self.pos_embedding = model.class_token, model.encoder.pos_embedding
        # Past nn.Module.__setattr__: the model is borrowed, not a part of this step.
        object.__setattr__(self, "_model", model)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, 1 + patches, F] of images [N, 3, S, S]."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)  # [N, patches, F]
        # Read from the model: while it is exported, its parameters are not these but stand-ins.
        first = self._model.class_token.expand(x.shape[0], -1, -1)
        positions = self._model.encoder.pos_embedding
        tokens: Tensor = self.dropout(torch.cat([first, patches], dim=1) + positions)
        return tokens


class _FirstToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        """The class token [N, F] of tokens [N, T, F]."""
        return tokens[:, 0]


# ── timm ─────────────────────────────────────────────────────────────────────


def cut_timm(model: Any, size: int) -> Cut:
    """Cut a timm classifier, by running its features on an image of *size* pixels a side.

    Raises:
        UnsupportedArchitecture: its features are not a chain with a body of blocks, or
            it does not end in a linear layer.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UnsupportedArchitecture(
            f"a timm {type(model).__name__} ending in a {type(classifier).__name__}, not in a "
            "linear layer, cannot be cut into stages"
        )
    names = {id(child): name for name, child in model.named_modules()}
    stem: list[nn.Module] = []
    blocks: list[list[nn.Module]] = []
    after: list[nn.Module] = []
    for child in _feature_chain(model, size):
        if not _BODY.fullmatch(names[id(child)]):
            (after if blocks else stem).append(child)
            continue
        for stage in child.children() if _STAGES.fullmatch(names[id(child)]) else [child]:
            down = getattr(stage, "downsample", None)
            if isinstance(down, nn.Module) and isinstance(
                getattr(stage, "blocks", None), nn.Sequential
            ):
                (blocks[-1] if blocks else stem).append(down)  # as in _pyramid
            blocks.append(list(_chain(stage)))
    if not blocks:
        raise UnsupportedArchitecture(
            f"a timm {type(model).__name__} has no sequence of blocks to cut into stages"
        )
    if isinstance(model, timm.models.VisionTransformer):
        stem.insert(stem.index(model.patch_embed) + 1, _TimmPositions(model))
    owned = [*stem, *itertools.chain(*blocks), *after]
    return Cut(
        stem=stem,
        blocks=list(_shallow(blocks)),
        neck=[*after, _TimmPooling(model, classifier, owned)],
        head_name=names[id(classifier)],
    )


def _feature_chain(model: Any, size: int) -> list[nn.Module]:
    """The children that ``forward_features`` runs, in the order it runs them."""
    order: list[nn.Module] = []
    hooks = [
        child.register_forward_pre_hook(lambda module, _: order.append(module))
        for child in model.children()
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval().forward_features(torch.zeros(1, 3, size, size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return order


class _TimmPositions(nn.Module):
    """A timm ViT's class token and positions, added by the model's own method."""

    _model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.pos_drop = model.pos_drop
        # Past nn.Module.__setattr__: the model is borrowed, not a part of this step.
        object.__setattr__(self, "_model", model)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens [N, T, F] of embedded patches."""
        tokens: Tensor = self._model._pos_embed(patches)  # noqa: SLF001 - timm's only name for it
        return tokens


class _TimmPooling(nn.Module):
    """What a timm model does between its features and its classifier, by its own method."""

    _model: Any

    def __init__(self, model: Any, classifier: nn.Module, owned: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_without(model, classifier, owned))
        object.__setattr__(self, "_model", model)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [N, F] of the last feature map."""
        pooled: Tensor = self._model.forward_head(x, pre_logits=True)
        return pooled


def _without(
    module: nn.Module, classifier: nn.Module, owned: Sequence[nn.Module]
) -> Iterator[nn.Module]:
    """The largest parts of *module* that hold neither the classifier nor what is *owned*."""
    taken = {id(part) for other in (classifier, *owned) for part in other.modules()}
    for child in module.children():
        inside = {id(part) for part in child.modules()}
        if not inside & taken:
            yield child
        elif id(child) not in taken:
            yield from _without(child, classifier, owned)


# ── both ─────────────────────────────────────────────────────────────────────


def _chain(stage: Any) -> Iterator[nn.Module]:
    """The blocks of a library stage, in order; a module of unknown kind is one block."""
    if type(stage) in (nn.Sequential, RegStage):  # a subclass may run its children otherwise
        yield from stage.children()
    elif isinstance(getattr(stage, "blocks", None), nn.Sequential):
        yield from stage.blocks
    else:
        yield stage


def _shallow(stages: Iterable[Sequence[nn.Module]]) -> Iterator[Sequence[nn.Module]]:
    """The same blocks in stages of at most ``MAX_DEPTH``, cut as evenly as can be."""
    for stage in stages:
        pieces = -(-len(stage) // MAX_DEPTH)
        edges = [round(piece * len(stage) / pieces) for piece in range(pieces + 1)]
        yield from (stage[low:high] for low, high in itertools.pairwise(edges))
