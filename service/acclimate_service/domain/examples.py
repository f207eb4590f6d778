"""Labelled images, and which of them may be used for what.

Three splits: *train* moves weights, *select* makes choices (early stopping, the
stage set, the blend), *verify* is only ever judged on. An image's split follows
from its content alone, so no later job and no second upload can move it.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
from dataclasses import dataclass

from acclimate_service.domain.names import BatchName, DomainName


class Role(enum.Enum):
    """What an uploader gives an image for."""

    TRAIN = "TRAIN"  # to learn from
    HOLDOUT = "HOLDOUT"  # never trained on
    REPLAY = "REPLAY"  # source images that may be shown again, against forgetting
    AUTO = "AUTO"  # let the content decide: AUTO_HOLDOUT of the images are held out


class Split(enum.Enum):
    """What an image is used for."""

    TRAIN = "TRAIN"
    SELECT = "SELECT"
    VERIFY = "VERIFY"


SELECT_SHARE = 0.4  # of the holdout; verify keeps the larger part, for the guard's power
AUTO_HOLDOUT = 0.4  # of images uploaded with the role AUTO


def split_of(content: str, role: Role) -> Split:
    """The split of an image, by the hex sha256 of its decoded pixels.

    Two independent uniform numbers in [0, 1) are read from the digest: one says
    whether an AUTO image is held out, the other whether a held-out image is for
    selecting or for verifying.
    """
    if role in (Role.TRAIN, Role.REPLAY):
        return Split.TRAIN
    held_out = int(content[:8], 16) / 16**8
    selects = int(content[8:16], 16) / 16**8
    if role is Role.AUTO and held_out >= AUTO_HOLDOUT:
        return Split.TRAIN
    return Split.SELECT if selects < SELECT_SHARE else Split.VERIFY


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A place images come from, with the labels its images may carry, in order."""

    name: DomainName
    labels: tuple[str, ...]
    description: str
    created_at: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Example:
    """One labelled image of a domain.

    ``content`` is the hex sha256 of the upright RGB pixels (shape and bytes), so
    that the same picture in another file format is the same example; ``blob`` is
    the sha256 of the file as uploaded. ``tags`` name slices (``camera=3``). ``phash``
    is the perceptual hash, 16 hex digits, by which near-copies are found.
    """

    domain: DomainName
    batch: BatchName
    content: str
    blob: str
    label: str
    role: Role
    split: Split
    id: str
    tags: tuple[str, ...] = ()
    phash: str = ""


@dataclass(frozen=True, kw_only=True)
class LabeledBatch:
    """One upload: immutable once committed, invisible to every job before."""

    name: BatchName
    role: Role
    request_id: str
    committed: bool
    received: int  # examples answered so far, accepted or not: where an upload resumes
    chain: str  # the running digest over what was received, see chain_digest
    accepted: int
    duplicates: int
    rejected: int
    created_at: dt.datetime


EMPTY_CHAIN = "0" * 64


def chain_digest(previous: str, image: bytes, label: str) -> str:
    """The digest over an upload so far: sha256(previous || sha256(image) || label), in hex.

    Both ends keep it, so a commit proves that the same images arrived in the same
    order, and a resumed upload can be checked without sending anything twice.
    """
    inner = hashlib.sha256(image).digest()
    return hashlib.sha256(bytes.fromhex(previous) + inner + label.encode()).hexdigest()
