"""A running job's story: what it writes to the store while it holds its lease."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import safetensors.torch
import structlog

from acclimate_service.domain.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from acclimate_service.domain.job import EventKind, Lease, Phase
from acclimate_service.domain.names import DomainName
from acclimate_service.store import Checkpoint, Look, Store
from acclimate_service.tracing import Phases
from acclimate_service.training.auto import Summary
from acclimate_service.training.optimiser import State
from acclimate_service.training.run import Facts

log = structlog.get_logger(__name__)

_AGAIN: Final[Summary] = {"done_again": True}  # in the record of a step that had to be
_RETRY_SECONDS = 2.0
_TRIES = 10

T = TypeVar("T")


@dataclass
class Story:
    """Writes phases, events and checkpoints under one lease; keeps time.

    Every write raises ``LeaseLost`` once another worker holds the job. A store that is
    out of reach for a moment is waited for.
    """

    store: Store
    lease: Lease
    sign_of_life: Callable[[], object]
    spans: Phases
    phase: Phase | None = None
    rests_on: str = ""  # a digest over the images that finished steps rest on
    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Begin a phase, or say what the present one turns to; close the time of the one before."""
        self.close()
        if phase is not self.phase:
            self.phase = phase
            structlog.contextvars.bind_contextvars(phase=phase.value)
            self.spans.enter(phase.value)
            self.patiently(lambda: self.store.jobs.enter(self.lease, phase))
        if detail:
            self.tell(EventKind.PHASE, f"{phase.value.lower()}: {detail}", {"detail": detail})

    def close(self) -> None:
        """Count the seconds of the phase that ends here."""
        now = time.monotonic()
        if self.phase is not None:
            spent = self.seconds.get(self.phase.value, 0.0)
            self.seconds[self.phase.value] = round(spent + now - self._since, 3)
        self._since = now

    def tell(self, kind: EventKind, message: str, facts: Facts) -> None:
        """Record one event."""
        self.sign_of_life()
        log.info(message, kind=kind.value)
        if kind is not EventKind.EPOCH:
            self.spans.tell(message)
        self.patiently(lambda: self.store.jobs.event(self.lease, kind, self.phase, message, facts))

    def step(self) -> bool:
        """A sign of life between two steps; never a wish to stop: the parent kills for that."""
        self.sign_of_life()
        return False

    def look(self, domains: Sequence[DomainName], asked: str) -> Look:
        """Take the job's look at these domains' verify images, before anything is seen of them."""
        jobs = self.store.jobs
        return self.patiently(lambda: jobs.look(self.lease, domains, asked=asked))

    # ── checkpoints ──────────────────────────────────────────────────────────

    def rest_on(self, digests: Mapping[str, str]) -> None:
        """Take up what was finished on these images (a digest for each domain), and no other.

        What an earlier attempt learned from fewer would be told as learned from all.
        """
        told = "".join(f"{domain} {digest}\n" for domain, digest in sorted(digests.items()))
        self.rests_on = hashlib.sha256(told.encode()).hexdigest()[:12]
        kept = self.patiently(lambda: self.store.jobs.checkpoints(self.lease.job))
        if kept and not any(key.endswith(self._key("")) for key in kept):
            self.tell(
                EventKind.WARNING,
                "what an earlier attempt finished does not rest on the images that there are "
                "now, so the job begins anew",
                {"steps": len(kept)},
            )

    def kept(self, key: str) -> Checkpoint | None:
        """What an earlier attempt kept under this key, if it got so far."""
        found = self._row(key)
        if found is None or found.record == _AGAIN:
            return None
        record = {name: value for name, value in found.record.items() if name not in _AGAIN}
        return replace(found, record=record)

    def kept_whole(self, key: str) -> Checkpoint | None:
        """As :meth:`kept`, if all its files are there and are what they were; else None.

        That is told, and the step is to be done again: once, since a place that loses
        files, or changes them, may well lose what is made anew.

        Raises:
            BlobNotFound: a file is gone of a step that was done again before.
            BlobCorrupt: a file has rotted of a step that was done again before.
        """
        found = self.kept(key)
        for digest in () if found is None else found.blobs.values():
            try:
                self.patiently(functools.partial(self.store.blobs.verify, digest))
            except (BlobCorrupt, BlobNotFound) as error:
                if self._was_done_again(key):
                    raise
                self._give_up(key, error)
                return None
        return found

    def keep(self, key: str, record: Summary, files: dict[str, bytes]) -> dict[str, str]:
        """Keep a finished step: its files first, then the row that names them.

        Returns:
            The files' digests.
        """

        def write() -> dict[str, str]:
            blobs = {role: self.store.blobs.put(content) for role, content in files.items()}
            mark = _AGAIN if self._was_done_again(key) else {}
            self.store.jobs.checkpoint(self.lease, self._key(key), {**record, **mark}, blobs)
            return blobs

        return self.patiently(write)

    def _give_up(self, key: str, error: BlobCorrupt | BlobNotFound) -> None:
        """Let go of a kept step that cannot be read."""
        self.tell(
            EventKind.WARNING,
            f"what was kept of {key} cannot be read any more ({error}), so it is done again",
            {"step": key, "reason": error.reason, **error.metadata},
        )
        # In the row's own place, so that an attempt that dies here has not used it up.
        self.patiently(lambda: self.store.jobs.checkpoint(self.lease, self._key(key), _AGAIN))

    def _was_done_again(self, key: str) -> bool:
        found = self._row(key)
        return found is not None and _AGAIN.keys() <= found.record.keys()

    def _row(self, key: str) -> Checkpoint | None:
        return self.patiently(lambda: self.store.jobs.checkpoints(self.lease.job)).get(
            self._key(key)
        )

    def _key(self, key: str) -> str:
        return f"{key}@{self.rests_on}"

    def load(self, key: str) -> tuple[Summary, State] | None:
        """As the engine's ``Checkpoints`` wants it: summary and tensors."""
        found = self.kept_whole(key)
        if found is None:
            return None
        content = self.patiently(lambda: self.store.blobs.get(found.blobs["state"]))
        return found.record, safetensors.torch.load(content)

    def save(self, key: str, summary: Summary, state: State) -> None:
        """As the engine's ``Checkpoints`` wants it: tensors as safetensors."""
        self.keep(key, summary, {"state": safetensors.torch.save(state)})

    def patiently(self, write: Callable[[], T]) -> T:
        """The answer of *write*, asked again while the store is out of reach.

        Raises:
            StoreUnavailable: it stayed so.
        """
        for attempt in range(_TRIES):
            try:
                return write()
            except StoreUnavailable as error:
                if attempt == _TRIES - 1:
                    raise
                log.warning("store unavailable, waiting", error=str(error))
                self.sign_of_life()
                time.sleep(_RETRY_SECONDS)
        raise AssertionError("unreachable")
