"""How each library's classifiers are made, prepared for, and cut into stages.

torchvision has no common structure, so each family is read by its attributes.
timm has one (``forward_features``, ``forward_head``, ``get_classifier``), so there
any model is cut whose features are a chain of modules. Whether a cut is right is
not believed but measured, see ``network.build``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import timm.data
import timm.models
import torch
import torchvision.models as tv
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from acclimate_service.domain.errors import InvalidSpec, UnsupportedArchitecture
from acclimate_service.domain.model import Architecture, Preprocessing

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


def make(
    architecture: Architecture, *, labels: int, size: int | None
) -> tuple[nn.Module, Cut, Preprocessing]:
    """The library's classifier with random weights, its cut, and its preprocessing.

    Raises:
        UnsupportedArchitecture: unknown to the library, or of no known structure.
        InvalidSpec: it cannot take images of *size* pixels a side.
    """
    prepared = preprocessing(architecture, size=size)
    if architecture.library == "torchvision":
        model = _make_torchvision(architecture, labels=labels, size=size)
        return model, _cut_torchvision(architecture, model), prepared
    model = _make_timm(architecture, labels=labels, size=size)
    return model, _cut_timm(architecture, model, prepared.size), prepared


def preprocessing(
    architecture: Architecture, *, tag: str = "", size: int | None = None
) -> Preprocessing:
    """The library's own preprocessing for the weights of this *tag* (its default if empty).

    Raises:
        UnsupportedArchitecture: the library has no such classifier or no such weights.
    """
    if architecture.library == "torchvision":
        found = _torchvision_preprocessing(architecture, tag)
    else:
        found = _timm_preprocessing(architecture, tag)
    return found if size is None else found.model_copy(update={"size": size})


def _refuse(architecture: Architecture, why: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(f"{architecture} {why}", architecture=architecture)


# ── torchvision ──────────────────────────────────────────────────────────────


def _make_torchvision(architecture: Architecture, *, labels: int, size: int | None) -> nn.Module:
    if architecture.name not in tv.list_models(module=tv):
        raise _refuse(architecture, "is no image classifier of torchvision")
    options: dict[str, Any] = {"num_classes": labels}
    if size is not None and architecture.name.startswith("vit_"):
        patch = int(architecture.name.rsplit("_", 1)[1])
        if size % patch:
            raise _wrong_size(architecture, size, f"a multiple of its patch, {patch}")
        options["image_size"] = size
    model: nn.Module = tv.get_model(architecture.name, weights=None, **options)
    return model


def _torchvision_preprocessing(architecture: Architecture, tag: str) -> Preprocessing:
    weights = torchvision_weights(architecture, tag)
    preset: Any = weights.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        size=crop,
        crop=min(1.0, crop / resize),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def torchvision_weights(architecture: Architecture, tag: str) -> tv.WeightsEnum:
    """torchvision's entry for the weights of this *tag*; nothing is fetched.

    Raises:
        UnsupportedArchitecture: there is no such entry; the message lists those there are.
    """
    if architecture.name not in tv.list_models(module=tv):
        raise _refuse(architecture, "is no image classifier of torchvision")
    known = tv.get_model_weights(architecture.name)
    if tag and tag not in known.__members__:
        raise _refuse(architecture, f"has no weights {tag!r}, only {', '.join(known.__members__)}")
    entry: tv.WeightsEnum = known[tag or "DEFAULT"]
    return entry


def _cut_torchvision(architecture: Architecture, model: Any) -> Cut:
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
            raise _refuse(
                architecture, f"is a {type(model).__name__}, which has no cut into stages"
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

    def __init__(self, model: TorchvisionViT) -> None:
        super().__init__()
        self.conv_proj, self.dropout = model.conv_proj, model.encoder.dropout
        self.class_token, self.pos_embedding = model.class_token, model.encoder.pos_embedding

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, 1 + patches, F] of images [N, 3, S, S]."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)  # [N, patches, F]
        first = self.class_token.expand(len(x), -1, -1)
        tokens: Tensor = self.dropout(torch.cat([first, patches], dim=1) + self.pos_embedding)
        return tokens


class _FirstToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        """The class token [N, F] of tokens [N, T, F]."""
        return tokens[:, 0]


# ── timm ─────────────────────────────────────────────────────────────────────


def _make_timm(architecture: Architecture, *, labels: int, size: int | None) -> nn.Module:
    fixed = _timm_config(architecture, "")["fixed_input_size"]
    options = {"img_size": size} if size is not None and fixed else {}
    try:
        model: nn.Module = timm.create_model(
            architecture.name, pretrained=False, num_classes=labels, **options
        )
    except (TypeError, AssertionError, ValueError) as error:
        if not options:
            raise
        raise _wrong_size(architecture, options["img_size"], f"other ({error})") from error
    return model


def _timm_config(architecture: Architecture, tag: str) -> dict[str, Any]:
    name = architecture.name.split(".")[0]
    full = f"{name}.{tag}" if tag else architecture.name
    if not timm.is_model(name):
        raise _refuse(architecture, "is no model of timm")
    config = timm.get_pretrained_cfg(full, allow_unregistered=False)
    if config is None:
        raise _refuse(architecture, f"has no weights {tag!r}")
    return config.to_dict()


def _timm_preprocessing(architecture: Architecture, tag: str) -> Preprocessing:
    found = timm.data.resolve_data_config({}, pretrained_cfg=_timm_config(architecture, tag))
    channels, height, width = found["input_size"]
    if channels != 3 or height != width:
        raise _refuse(architecture, f"takes {channels} x {height} x {width}, not square RGB images")
    return Preprocessing(
        size=height,
        crop=found["crop_pct"],
        interpolation=found["interpolation"],
        mean=found["mean"],
        std=found["std"],
    )


def _cut_timm(architecture: Architecture, model: Any, size: int) -> Cut:
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise _refuse(architecture, f"ends in a {type(classifier).__name__}, not a linear layer")
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
        raise _refuse(architecture, "has no sequence of blocks that could be cut into stages")
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

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.pos_drop = model.pos_drop
        # Past nn.Module.__setattr__: the model is borrowed, not a part of this step.
        object.__setattr__(self, "_model", model)

    def forward(self, patches: Tensor) -> Tensor:
        """Tokens [N, T, F] of embedded patches."""
        tokens: Tensor = self._model._pos_embed(patches)
        return tokens


class _TimmPooling(nn.Module):
    """What a timm model does between its features and its classifier, by its own method."""

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


def _wrong_size(architecture: Architecture, size: int, wanted: str) -> InvalidSpec:
    return InvalidSpec(
        f"{architecture} cannot take images of {size} pixels a side: it must be {wanted}",
        architecture=architecture,
        size=size,
    )
