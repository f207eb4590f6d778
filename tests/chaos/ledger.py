"""What the service acknowledged, written down by its clients, and the account against its store."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.chaos.row import Tally
from tests.chaos.world import World, whole

from acclimate import AcclimateError
from acclimate_service.domain.errors import ServiceError
from acclimate_service.domain.examples import LabeledBatch, Split
from acclimate_service.domain.job import EventKind, Job, JobState
from acclimate_service.domain.names import BatchName
from acclimate_service.imaging import content_digest, decode


@dataclass
class Ledger:
    """What was acknowledged. Threads may share it.

    ``uploads``: by request_id, the images answered as taken, by index; ``committed``: the
    request_ids whose batch was acknowledged as whole; ``broken_off``: those whose client never
    committed; ``jobs``: names by request_id; ``cancelled``: jobs whose cancellation was granted;
    ``refusals``: how often clients gave up, by the reason that they were told.
    """

    uploads: dict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    committed: set[str] = field(default_factory=set)
    broken_off: set[str] = field(default_factory=set)
    jobs: dict[str, str] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def job(self, request_id: str, name: str) -> None:
        """A job was acknowledged, for the first time or again."""
        with self.lock:
            self.doubled += self.jobs.setdefault(request_id, name) != name

    def refused(self, error: Exception) -> None:
        """A client gave up."""
        if isinstance(error, AcclimateError):
            with self.lock:
                self.refusals[error.reason] += 1

    @property
    def examples(self) -> int:
        """How many examples were acknowledged."""
        return sum(map(len, self.uploads.values()))


ZEROS = (
    "acknowledged examples lost",
    "partial batches committed",
    "jobs lost",
    "jobs doubled",
    "jobs without one end",
    "cancellations lost",
    "digests differ",
    "named files missing",
)


def account(world: World, ledger: Ledger) -> Tally:
    """Compare everything that was acknowledged with what is there."""
    tally = Tally(*ZEROS)
    _account_for_examples(world, ledger, tally)
    _account_for_jobs(world, ledger, tally)
    _account_for_versions(world, tally)
    tally["named files missing"] += len(world.store.reconcile().missing)
    return tally


def _account_for_examples(world: World, ledger: Ledger, tally: Tally) -> None:
    batches, kept = _kept(world, tally)
    for request_id, images in ledger.uploads.items():
        found = batches.get(request_id)
        if found is None:
            tally["acknowledged examples lost"] += len(images)
            continue
        # What is not committed is kept for the upload to go on, and no job sees it.
        tally["acknowledged examples lost"] += sum(index >= found.received for index in images)
        if request_id in ledger.committed:
            contents = kept[found.name]
            missing = [i for i in images.values() if content_digest(decode(i)) not in contents]
            tally["acknowledged examples lost"] += len(missing)
            tally["acknowledged examples lost"] += len(images) * (not found.committed)
        if request_id in ledger.broken_off:
            tally.note("partial batches committed", wrong=found.committed or bool(kept[found.name]))
    for batch in batches.values():
        if batch.committed:
            complete = batch.accepted + batch.duplicates + batch.rejected == batch.received
            tally.note(
                "partial batches committed",
                wrong=not complete or len(kept[batch.name]) != batch.accepted,
            )


def _kept(world: World, tally: Tally) -> tuple[dict[str, LabeledBatch], dict[BatchName, set[str]]]:
    """The batches by request_id, and the contents that jobs can see, by batch; files verified."""
    store = world.store
    batches: dict[str, LabeledBatch] = {}
    kept: dict[BatchName, set[str]] = defaultdict(set)
    for domain in whole(store.domains.list):
        for batch in whole(store.domains.list_batches, domain.name):
            batches[batch.request_id] = batch
        for example in store.domains.examples(domain.name, splits=list(Split)):
            kept[example.batch].add(example.content)
            tally.note("acknowledged examples lost", wrong=not _is_whole(world, example.blob))
    return batches, kept


def _is_whole(world: World, digest: str) -> bool:
    """Whether the blob is there and is what it is named by."""
    try:
        world.store.blobs.verify(digest)
    except ServiceError:
        return False
    return True


def _account_for_jobs(world: World, ledger: Ledger, tally: Tally) -> None:
    jobs = world.jobs()
    by_name = {str(job.name): job for job in jobs}
    requests = [job.request_id for job in jobs if job.request_id]
    tally["jobs doubled"] += ledger.doubled + len(requests) - len(set(requests))
    tally["jobs lost"] += sum(name not in by_name for name in ledger.jobs.values())
    for job in jobs:
        tally.note("jobs without one end", wrong=_ends(world, job) != [job.state.value])
    for name in ledger.cancelled:
        tally.note("cancellations lost", wrong=by_name[name].state is not JobState.CANCELLED)


def _ends(world: World, job: Job) -> list[object]:
    """The ends that the job's story tells of: one, if all is well."""
    return [
        event.facts["state"]
        for event in world.store.jobs.events(job.name, limit=100_000)
        if event.kind is EventKind.STATE and JobState(event.facts["state"]).ended
    ]


def _account_for_versions(world: World, tally: Tally) -> None:
    """Every version is one successful job's, and its files are what its manifest says."""
    store = world.store
    made = []
    for model in whole(store.registry.list_models):
        for version in whole(store.registry.list_versions, model.name):
            made.append(version.job)
            for digest in (version.manifest.artifacts.onnx, version.manifest.artifacts.weights):
                tally.note("digests differ", wrong=not _is_whole(world, digest))
    succeeded = [job.name for job in world.jobs(JobState.SUCCEEDED)]
    tally["jobs doubled"] += len(made) - len(set(made))
    tally["jobs lost"] += len(set(succeeded) ^ set(made))
