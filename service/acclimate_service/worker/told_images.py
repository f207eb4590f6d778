"""What a report document says of the images to learn from: suspects, and near-copies."""

from __future__ import annotations

from typing import Literal

from acclimate_service.worker.printable import Name, Part


class Suspect(Part):
    """An image whose label the screening does not believe."""

    id: Name
    blob: str
    split: Literal["TRAIN", "SELECT", "VERIFY"] = "TRAIN"
    label: Name
    suggested: Name
    confidence: float


class Asked(Part):
    """How many labels were screened, and found suspect."""

    images: int
    suspects: int


class ScreeningTold(Part):
    """What screening the labels came to; see ``worker.suspects.Screened``."""

    agreement: float | None
    left_out: bool
    train: Asked
    select: Asked
    verify: Asked


class CopyTold(Part):
    """An image that was left out, and the held-out one that it shows."""

    id: Name
    blob: str
    domain: Name
    of_id: Name
    of_blob: str
    of_domain: Name


class CopiesTold(Part):
    """How many images were left out as near-copies, and some of them."""

    images: int = 0
    listed: tuple[CopyTold, ...] = ()
