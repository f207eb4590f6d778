"""Which classifiers each library offers, how they are made, and how their images are prepared."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import timm
import timm.models
import torchvision.models as tv
from timm.data.config import resolve_data_config
from torch import nn

from acclimate_service.domain.errors import InvalidSpec, UnsupportedArchitecture
from acclimate_service.domain.model import Architecture, Preprocessing
from acclimate_service.training.cuts import Cut, cut_timm, cut_torchvision


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
        return model, cut_torchvision(model), prepared
    model = _make_timm(architecture, labels=labels, size=size)
    return model, cut_timm(model, prepared.size), prepared


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


def _unknown(architecture: Architecture, why: str, known: Sequence[str]) -> UnsupportedArchitecture:
    near = difflib.get_close_matches(architecture.name, known, n=3)
    return _refuse(architecture, f"{why}; near it are {', '.join(near)}" if near else why)


def wrong_size(architecture: Architecture, size: int, why: str) -> InvalidSpec:
    """The refusal of images of *size* pixels a side."""
    return InvalidSpec(
        f"{architecture} cannot take images of {size} pixels a side: {why}",
        architecture=architecture,
        size=size,
    )


# ── torchvision ──────────────────────────────────────────────────────────────


def _make_torchvision(architecture: Architecture, *, labels: int, size: int | None) -> nn.Module:
    if architecture.name not in tv.list_models(module=tv):
        raise _unknown(
            architecture, "is no image classifier of torchvision", tv.list_models(module=tv)
        )
    options: dict[str, Any] = {"num_classes": labels}
    if size is not None and architecture.name.startswith("vit_"):
        patch = int(architecture.name.rsplit("_", 1)[1])
        if size % patch:
            raise wrong_size(architecture, size, f"it must be a multiple of its patch, {patch}")
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
    """What torchvision has for the weights of this *tag*; nothing is fetched.

    Raises:
        UnsupportedArchitecture: there is no such entry; the message lists those there are.
    """
    if architecture.name not in tv.list_models(module=tv):
        raise _unknown(
            architecture, "is no image classifier of torchvision", tv.list_models(module=tv)
        )
    known = tv.get_model_weights(architecture.name)
    if tag and tag not in known.__members__:
        raise _refuse(architecture, f"has no weights {tag!r}, only {', '.join(known.__members__)}")
    entry: tv.WeightsEnum = known[tag or "DEFAULT"]
    return entry


# ── timm ─────────────────────────────────────────────────────────────────────


def _make_timm(architecture: Architecture, *, labels: int, size: int | None) -> nn.Module:
    options: dict[str, Any] = {}
    if size is not None and timm_config(architecture, "")["fixed_input_size"]:
        options["img_size"] = size
    try:
        model: nn.Module = timm.create_model(architecture.name, num_classes=labels, **options)
    except (AssertionError, TypeError, ValueError) as error:
        if not options:
            raise
        raise wrong_size(architecture, options["img_size"], str(error)) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))[0]
    if size is not None and size % patch:  # timm would drop the pixels that are over
        raise wrong_size(architecture, size, f"it must be a multiple of its patch, {patch}")
    return model


def timm_config(architecture: Architecture, tag: str) -> dict[str, Any]:
    """What timm has for the weights of this *tag* (or the name's own, or the default).

    Raises:
        UnsupportedArchitecture: there is no such entry; the message lists those there are.
    """
    name, _, own_tag = architecture.name.partition(".")
    if not timm.is_model(name):
        raise _unknown(architecture, "is no model of timm", timm.list_models())
    default = timm.get_pretrained_cfg(name)
    wanted = tag or own_tag or (default.tag if default is not None else "")
    known = timm.models.get_arch_pretrained_cfgs(name)
    full = f"{name}.{wanted}" if wanted else name
    if full not in known:
        raise _refuse(architecture, f"has no weights {wanted!r}, only {', '.join(known)}")
    return asdict(known[full])


def _timm_preprocessing(architecture: Architecture, tag: str) -> Preprocessing:
    found: dict[str, Any] = resolve_data_config(pretrained_cfg=timm_config(architecture, tag))
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
