"""From trained weights to the files of a version: exported, proven equal, on disk."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pydantic

from acclimate_service.domain.job import EventKind, Phase
from acclimate_service.domain.model import (
    Architecture,
    Artifacts,
    Manifest,
    Origin,
    Parts,
    Preprocessing,
    manifest_format,
)
from acclimate_service.domain.names import JobName, VersionName
from acclimate_service.domain.verdict import Verdict
from acclimate_service.imaging import prepare
from acclimate_service.store import Checkpoint, Store
from acclimate_service.training import weights
from acclimate_service.training.dataset import ImageSource
from acclimate_service.training.export import export
from acclimate_service.training.network import Network
from acclimate_service.training.run import numpy_rng
from acclimate_service.worker.parting import Parting, part
from acclimate_service.worker.story import Story

PARITY_IMAGES = 16
_KEY = "EXPORTED"
_LIBRARIES = frozenset(
    {"acclimate", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pillow", "simplejpeg"}
    | {"timm", "torch", "torchvision"}
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A network as it would be served, under the digests of its files."""

    architecture: Architecture
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    artifacts: Artifacts
    onnx: bytes
    parity: dict[str, pydantic.JsonValue]


def export_candidate(
    story: Story,
    network: Network,
    labels: Sequence[str],
    images: ImageSource | None,
    *,
    like: str | None,
    below: str | None = None,
) -> Candidate:
    """Export *network*, prove on real *images* that the file answers as it does, keep both.

    Args:
        like: the digest of the ONNX file that it was adapted from: its graph may be reused,
            and its trunk shared.
        below: the stage above which its trunk must not reach.

    Raises:
        ExportMismatch: the file does not answer as the network does.
    """
    story.enter(Phase.EXPORTING)
    kept = story.kept_whole(_KEY)
    if kept is None:
        network.eval()
        parity_images = _parity_images(network, images)
        old = None if like is None else story.store.blobs.get(like)
        made = export(network, labels, parity_images, like=old)
        parity = asdict(made.parity) | {"patched": made.patched, "real": images is not None}
        story.tell(
            EventKind.DECISION,
            f"the ONNX file answers as the network does on {made.parity.images} images: "
            f"logits within {made.parity.max_abs_logit:.1e}",
            parity,
        )
        parting = part(made.onnx, network, parity_images, parent=old, below=below)
        story.keep(
            _KEY,
            parity | {"stage": parting.stage},
            {"onnx": made.onnx, "weights": weights.save(network), **_halves(story, parting)},
        )
        kept = story.kept(_KEY)
        assert kept is not None
    blobs = story.store.blobs
    onnx = blobs.get(kept.blobs["onnx"])
    return Candidate(
        architecture=network.architecture,
        preprocessing=network.preprocessing,
        labels=tuple(labels),
        artifacts=Artifacts(
            onnx=kept.blobs["onnx"],
            weights=kept.blobs["weights"],
            onnx_bytes=len(onnx),
            weights_bytes=blobs.size(kept.blobs["weights"]),
            parts=_parts(story.store, kept),
        ),
        onnx=onnx,
        parity={key: value for key, value in kept.record.items() if key != "stage"},
    )


def _halves(story: Story, parting: Parting) -> dict[str, bytes]:
    """The files of trunk and tail, if there are any, and a word on it in the story."""
    if parting.halves is None:
        story.tell(EventKind.DECISION, f"the version shares no trunk: {parting.why}", {})
        return {}
    trunk, tail = parting.halves.trunk, parting.halves.tail
    story.tell(
        EventKind.DECISION,
        f"cut before {parting.stage}: a tail of {len(tail) / 1e6:.1f} MB on a trunk that other "
        "versions may share, which together answer as the whole file does, to the bit",
        {"stage": parting.stage, "trunk_bytes": len(trunk), "tail_bytes": len(tail)},
    )
    return {"trunk": trunk, "tail": tail}


def _parts(store: Store, kept: Checkpoint) -> Parts | None:
    if "trunk" not in kept.blobs:
        return None
    return Parts(
        stage=str(kept.record["stage"]),
        trunk=kept.blobs["trunk"],
        tail=kept.blobs["tail"],
        trunk_bytes=store.blobs.size(kept.blobs["trunk"]),
        tail_bytes=store.blobs.size(kept.blobs["tail"]),
    )


def manifest(
    candidate: Candidate,
    *,
    name: VersionName,
    parent: VersionName | None,
    job: JobName,
    origin: Origin,
    created_at: dt.datetime,
    stages_trained: Sequence[str] = (),
    strategy: str = "",
    blend: float = 1.0,
    seed: int = 0,
    domains: dict[str, str] | None = None,
    verdict: Verdict | None = None,
    whole: str | None = None,
) -> Manifest:
    """The manifest of *candidate* as the version *name*; the *whole* verdict is a file's digest."""
    return Manifest(
        format=manifest_format(candidate.preprocessing),
        version=str(name),
        parent=None if parent is None else str(parent),
        job=str(job),
        origin=origin,
        architecture=candidate.architecture,
        preprocessing=candidate.preprocessing,
        labels=candidate.labels,
        artifacts=candidate.artifacts.model_copy(update={"verdict": whole}),
        stages_trained=tuple(stages_trained),
        strategy=strategy,
        blend=blend,
        seed=seed,
        domains=domains or {},
        verdict={} if verdict is None else verdict.brief(),
        libraries=libraries(),
        created_at=created_at,
    )


def libraries() -> dict[str, str]:
    """The versions of what made a version, for its manifest."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in sorted(_LIBRARIES & installed.keys())}


def _parity_images(network: Network, images: ImageSource | None) -> npt.NDArray[np.uint8]:
    """Some real images as the network takes them, uint8 [N, S, S, 3]; noise if there are none."""
    if images is None or len(images) == 0:
        size = network.preprocessing.size
        noise = numpy_rng("parity").integers(0, 256, (PARITY_IMAGES, size, size, 3))
        return noise.astype(np.uint8)
    some = np.linspace(0, len(images) - 1, min(PARITY_IMAGES, len(images))).astype(int)
    return np.stack([prepare(images.read(int(i)), network.preprocessing) for i in some])
