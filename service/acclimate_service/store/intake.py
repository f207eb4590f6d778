"""Examples coming in: which are taken, for what, and which are refused and why.

What an image may be used for is decided here, under a lock, against every image there
is: one that is held out anywhere is trained on nowhere, and the reverse.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from acclimate_service.domain.errors import (
    BlobNotFound,
    HoldoutLeak,
    LabelConflict,
    ServiceError,
    UnknownLabel,
    UploadIncomplete,
)
from acclimate_service.domain.examples import Role, Split, split_of
from acclimate_service.domain.names import BatchName
from acclimate_service.store import audit, batches, schema
from acclimate_service.store.engine import Transaction, line


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why an example was not taken: a stable reason and a message."""

    reason: str
    message: str

    @classmethod
    def of(cls, error: ServiceError) -> Refusal:
        """The refusal that *error* means."""
        return cls(reason=error.reason, message=line(str(error)))


@dataclass(frozen=True, kw_only=True)
class Received:
    """One example as it arrived, decoded and digested. ``index`` counts from 0 in its batch.

    ``content``, ``blob`` and ``phash`` are as in ``Example``; empty if the image was
    refused before (``refusal``). ``chain`` is the batch's running digest after it.
    """

    index: int
    id: str
    label: str
    chain: str
    content: str = ""
    blob: str = ""
    phash: str = ""
    tags: tuple[str, ...] = ()
    refusal: Refusal | None = None


class Answer(enum.Enum):
    """What became of an example."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"  # the domain holds it already, with the same label and use
    REJECTED = "REJECTED"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer to one example. ``split`` is None unless it was accepted."""

    index: int
    id: str
    answer: Answer
    split: Split | None = None
    refusal: Refusal | None = None


def add(
    tx: Transaction,
    name: BatchName,
    received: Sequence[Received],
    is_stored: Callable[[str], bool],
) -> list[Outcome]:
    """Answer a group of examples and store the accepted ones, in one transaction.

    Examples that were answered before (their index is below the batch's ``received``)
    get the same answer again and change nothing. *is_stored* says of a blob whether it is.

    Raises:
        BlobNotFound: somebody erased one of the images after its file was stored; store
            the files again.
        NotFound: there is no such batch; it may have expired.
        UploadIncomplete: examples are missing before this group, or the batch is
            committed and this group goes beyond it.
    """
    if not received:
        return []
    tx.serialize(batches.LOCK)
    _check_erased(tx, received, is_stored)
    batch = batches.find(tx, name, lock=True)
    old = [item for item in received if item.index < batch.received]
    new = received[len(old) :]
    if [item.index for item in new] != list(range(batch.received, batch.received + len(new))):
        raise UploadIncomplete(
            f"{name} goes on at example {batch.received}, not {received[0].index}",
            received=batch.received,
        )
    outcomes = _earlier(tx, name, old)
    if new and batch.committed:
        raise UploadIncomplete(f"{name} is committed; begin another batch")
    if new:
        outcomes += _store(tx, batch, new)
    return outcomes


def _check_erased(
    tx: Transaction, received: Sequence[Received], is_stored: Callable[[str], bool]
) -> None:
    """See that the files of images that were ever erased are there; others nobody takes away."""
    files: dict[str, set[str]] = {}  # several of one image, if it was encoded anew
    for item in received:
        if item.blob:
            files.setdefault(audit.image(item.content), set()).add(item.blob)
    table = schema.audit
    erased = sa.select(table.c.subject).where(
        table.c.action == audit.ERASED, table.c.subject.in_(files)
    )
    for row in tx.rows(erased.distinct()):
        for blob in sorted(files[row.subject]):
            if not is_stored(blob):
                raise BlobNotFound(blob)


def _store(tx: Transaction, batch: Any, received: Sequence[Received]) -> list[Outcome]:
    """Answer and store examples that follow on what the batch holds."""
    role = Role(batch.role)
    labels = set(
        tx.scalar(sa.select(schema.domains.c.labels).where(schema.domains.c.id == batch.domain))
    )
    known = _known(tx, {item.content for item in received if item.content})
    outcomes: list[Outcome] = []
    rows: list[dict[str, Any]] = []
    for item in received:
        refusal = item.refusal
        try:
            answer, split = _judge(item, batch, role, labels, known.setdefault(item.content, []))
        except ServiceError as error:
            answer, split, refusal = Answer.REJECTED, None, Refusal.of(error)
        outcomes.append(
            Outcome(index=item.index, id=item.id, answer=answer, split=split, refusal=refusal)
        )
        if split is not None:
            known[item.content].append(_Known(batch.domain, batch.id, False, item.label, split))
            rows.append(_example_row(batch, item, role, split))
    if rows:
        tx.run(sa.insert(schema.examples), rows)
    refused = [
        {
            "batch": batch.id,
            "position": outcome.index,
            "id": line(outcome.id, 200),
            "reason": outcome.refusal.reason,
            "message": outcome.refusal.message,
        }
        for outcome in outcomes
        if outcome.refusal is not None
    ]
    if refused:
        tx.run(sa.insert(schema.refusals), refused)
    table = schema.batches
    tx.run(
        sa.update(table)
        .where(table.c.id == batch.id)
        .values(
            received=table.c.received + len(outcomes),
            accepted=table.c.accepted + len(rows),
            duplicates=table.c.duplicates + len(outcomes) - len(rows) - len(refused),
            rejected=table.c.rejected + len(refused),
            chain=received[-1].chain,
            touched_at=tx.now,
        )
    )
    return outcomes


@dataclass(frozen=True)
class _Known:
    """One place where a content is held already."""

    domain: str
    batch: str
    committed: bool
    label: str
    split: Split


def _known(tx: Transaction, contents: Collection[str]) -> dict[str, list[_Known]]:
    """Where each of *contents* is held, in every domain, in open batches too."""
    table = schema.examples
    rows = tx.rows(
        sa.select(
            table.c.content,
            table.c.domain,
            table.c.batch,
            table.c.committed,
            table.c.label,
            table.c.split,
        ).where(table.c.content.in_(contents))
    )
    known: dict[str, list[_Known]] = {}
    for content, domain, batch, committed, label, split in rows:
        where = _Known(domain, batch, committed, label, Split(split))
        known.setdefault(content, []).append(where)
    return known


def _judge(
    item: Received, batch: Any, role: Role, labels: Collection[str], known: Sequence[_Known]
) -> tuple[Answer, Split | None]:
    """Whether an example may come in, and for what.

    Raises:
        UnknownLabel: its label is none of the domain's.
        LabelConflict: the domain holds the content under another label.
        HoldoutLeak: it is to be trained on and held out somewhere, or the reverse.
    """
    if item.refusal is not None:
        return Answer.REJECTED, None
    if item.label not in labels:
        raise UnknownLabel(item.label, f"domains/{batch.domain}")
    here = [other for other in known if other.domain == batch.domain]
    if any(other.label != item.label for other in here):
        raise LabelConflict(
            f"this image is in domains/{batch.domain} under the label {here[0].label!r}",
            label=here[0].label,
        )
    # Another open batch does not make it a duplicate: that one may never be committed.
    held = any(other.committed or other.batch == batch.id for other in here)
    if held and role is Role.AUTO:  # it asks for no particular use, and has one
        return Answer.DUPLICATE, None
    split = split_of(item.content, role)
    trained = split is Split.TRAIN
    for other in known:
        if (other.split is Split.TRAIN) != trained:
            raise HoldoutLeak(
                f"this image is {'held out' if trained else 'trained on'} in"
                f" domains/{other.domain}; it cannot be used for both",
                domain=f"domains/{other.domain}",
            )
    return (Answer.DUPLICATE, None) if held else (Answer.ACCEPTED, split)


def _example_row(batch: Any, item: Received, role: Role, split: Split) -> dict[str, Any]:
    return {
        "domain": batch.domain,
        "batch": batch.id,
        "position": item.index,
        "id": item.id,
        "content": item.content,
        "blob": item.blob,
        "phash": item.phash,
        "label": item.label,
        "role": role.value,
        "split": split.value,
        "tags": list(item.tags),
        "committed": False,
    }


def _earlier(tx: Transaction, name: BatchName, items: Sequence[Received]) -> list[Outcome]:
    """The answers that *items* got before."""
    if not items:
        return []
    span = (items[0].index, items[-1].index)
    examples, refused = schema.examples, schema.refusals
    accepted: dict[int, str] = {
        row.position: row.split
        for row in tx.rows(
            sa.select(examples.c.position, examples.c.split).where(
                examples.c.batch == name.batch, examples.c.position.between(*span)
            )
        )
    }
    rejected = {
        row.position: Refusal(reason=row.reason, message=row.message)
        for row in tx.rows(
            sa.select(refused).where(
                refused.c.batch == name.batch, refused.c.position.between(*span)
            )
        )
    }
    outcomes = []
    for item in items:
        answer, split = Answer.DUPLICATE, None
        if item.index in accepted:
            answer, split = Answer.ACCEPTED, Split(accepted[item.index])
        elif item.index in rejected:
            answer = Answer.REJECTED
        outcomes.append(
            Outcome(
                index=item.index,
                id=item.id,
                answer=answer,
                split=split,
                refusal=rejected.get(item.index),
            )
        )
    return outcomes


def refusals(tx: Transaction, name: BatchName, after: int, limit: int) -> list[Outcome]:
    """What the batch refused, beyond index *after* (-1 for all), in order.

    Raises:
        NotFound: there is no such batch.
    """
    batches.find(tx, name)
    table = schema.refusals
    rows = tx.rows(
        sa.select(table)
        .where(table.c.batch == name.batch, table.c.position > after)
        .order_by(table.c.position)
        .limit(limit)
    )
    return [
        Outcome(
            index=row.position,
            id=row.id,
            answer=Answer.REJECTED,
            refusal=Refusal(reason=row.reason, message=row.message),
        )
        for row in rows
    ]
