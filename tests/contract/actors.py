"""What real processes do to a store: work, and die when they are told to.

Each says over its pipe what was acknowledged to it, as soon as it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.contract.builders import (
    PRODUCTION,
    TARGET,
    chain_of,
    draft,
    new_version,
    pictures,
    received,
)
from tests.contract.builders import upload as upload_whole

from acclimate_service.domain.errors import LeaseLost
from acclimate_service.domain.examples import Role, Split
from acclimate_service.domain.job import EventKind, JobState, Lease
from acclimate_service.domain.model import Manifest
from acclimate_service.domain.names import VersionName
from acclimate_service.store import NewVersion, Store, open_store

Say = Callable[[object], None]


def die() -> None:
    """As a power cut does it: no ``finally``, no exit handler, no rollback."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def claim(store: Store, say: Say, worker: str) -> None:
    """Claim until nothing is left."""
    while (taken := store.jobs.claim(worker, lease_seconds=60, max_attempts=3)) is not None:
        say(taken[0].name.job)


def upload(store: Store, say: Say, group: int, count: int) -> None:
    """Upload *count* pictures by groups, from wherever the batch is; do not commit."""
    pics = pictures(count)
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    while batch.received < len(pics):
        some = pics[batch.received : batch.received + group]
        items = received(store, some, start=batch.received, chain=batch.chain)
        store.domains.add(batch.name, items)
        batch = store.domains.get_batch(batch.name)
        say(batch.received)
    assert batch.chain == chain_of(pics)


def finish_and_die(store: Store, say: Say) -> None:
    """Claim the job and die in the middle of the transaction that ends it."""
    taken = store.jobs.claim("doomed", lease_seconds=30, max_attempts=3)
    assert taken is not None
    job, lease = taken
    whole = new_version(store, job)

    def manifest(name: VersionName) -> Manifest:
        say(str(name))
        die()
        return whole.manifest(name)

    store.jobs.finish(
        lease,
        state=JobState.SUCCEEDED,
        summary={},
        version=NewVersion(parent=None, origin=whole.origin, manifest=manifest),
        promote=PRODUCTION,
    )


def die_before_rename(store: Store, say: Say) -> None:
    """Die when the blob's bytes are on disk and its name is not."""

    def rename(_path: Path, _target: object) -> Path:
        say("written")
        die()
        raise AssertionError

    Path.rename = rename  # type: ignore[method-assign,assignment]  # the process dies by it
    store.blobs.put(b"half a blob")


def live(store: Store, say: Say, seed: int) -> None:
    """Upload batches and see jobs through, for as long as it is let.

    Says ``(what, name)`` of everything that was acknowledged.
    """
    for number in range(1000):
        request = f"{seed} {number}"
        pics = pictures(12, prefix=request)
        batch = upload_whole(store, pics, Role.TRAIN, request=request)
        say(("batch", request))
        store.jobs.enqueue(draft(seed=number), request_id=request)
        say(("job", request))
        taken = store.jobs.claim(f"worker-{seed}", lease_seconds=0.05, max_attempts=10_000)
        if taken is None:
            continue
        job, lease = taken
        with contextlib.suppress(LeaseLost):
            store.jobs.event(lease, EventKind.EPOCH, None, f"{batch.name}")
            ended = store.jobs.finish(
                lease, state=JobState.SUCCEEDED, summary={}, version=new_version(store, job)
            )
            say(("version", str(ended.version)))


def train(store: Store, say: Say, worker: str, content: str) -> None:
    """See jobs through until none is left; of each, say whether it was given the image."""
    while (taken := store.jobs.claim(worker, lease_seconds=60, max_attempts=3)) is not None:
        job, lease = taken
        assert job.draft.source is not None
        read = store.domains.examples(job.draft.source, splits=tuple(Split), up_to=job.reads_up_to)
        say((job.name.job, content in {example.content for example in read}))
        cancelled = any(beat(store, lease) for _ in range(5))
        store.jobs.finish(
            lease,
            state=JobState.CANCELLED if cancelled else JobState.SUCCEEDED,
            summary={},
            version=None if cancelled else new_version(store, job),
        )


def beat(store: Store, lease: Lease) -> bool:
    """Work for a moment; whether the job is to be cancelled."""
    time.sleep(0.01)
    return store.jobs.heartbeat(lease, 60).cancel_requested


ACTORS: dict[str, Callable[..., None]] = {
    "claim": claim,
    "train": train,
    "live": live,
    "upload": upload,
    "finish_and_die": finish_and_die,
    "die_before_rename": die_before_rename,
}


def act(line: Connection, name: str, url: str, blobs: Path, arguments: tuple[Any, ...]) -> None:
    """Open the store, wait for a word so that several start as one, and act."""
    store = open_store(url, blobs)
    line.send("open")
    line.recv()
    ACTORS[name](store, line.send, *arguments)
    store.close()
