"""The service as its users run it, over a store that the scenario can look into."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from tests.acceptance.processes import Service
from tests.chaos import pictures
from tests.contract.postgres import Postgresql, postgresql

from acclimate import Client
from acclimate_service.domain.job import Job, JobState
from acclimate_service.store import Store, open_store, schema
from acclimate_service.store.engine import Transaction
from acclimate_service.store.pages import Page

T = TypeVar("T")

ENGINES = ("sqlite", "postgresql")
QUIET_SECONDS = 180.0  # without an event of any job, when some are waited for
# Short, so that a scenario sees leases end; two attempts more than a fault may cost.
WORK: dict[str, Any] = {
    "idle_priority": False, "lease_seconds": 4, "poll_seconds": 0.1, "threads": 1, "device": "cpu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a scenario works, from which seed, and a place for what several share."""

    folder: Path
    seed: int = 20261125
    say: Callable[[str], None] = field(default=lambda text: None)
    until: float = math.inf  # by the monotonic clock: the last moment for a round to begin

    @property
    def weights(self) -> Path:
        """The tiny network's weights."""
        return pictures.weights(self.folder)

    def rounds(self, times: int) -> Rounds:
        """The numbers of *times* rounds, or of as many as begin in time; one at least."""
        return Rounds(times, self.until)


class Rounds:
    """Numbers from 0 on, one for each round of a scenario; ``done`` says how many there were."""

    def __init__(self, times: int, until: float) -> None:
        self._times = times
        self._until = until
        self.done = 0

    def __iter__(self) -> Iterator[int]:
        while self.done < self._times and not (self.done and time.monotonic() > self._until):
            self.done += 1
            yield self.done - 1


def whole(listing: Callable[..., Page[T]], *of: object, **which: object) -> list[T]:
    """Every page of a listing."""
    found: list[T] = []
    token = ""
    while True:
        page = listing(*of, page_size=1000, page_token=token, **which)
        found += page.items
        token = page.next_token
        if not token:
            return found


class World:
    """``serve`` and ``work`` over one store, and that store, opened by the scenario too."""

    def __init__(
        self,
        home: Path,
        *,
        database: Postgresql | None = None,
        serve: Mapping[str, object] | None = None,
        work: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.database = database
        self.url = f"sqlite:///{home / 'acclimate.db'}" if database is None else database.url
        place = {"database_url": self.url}
        self.service = Service(
            home,
            serve={**place, **(serve or {})},
            work={**place, **WORK, **(work or {})},
            environment=environment,
        )
        self.store: Store = open_store(self.url, home / "blobs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.service.stop()
        self.store.close()

    def furnish(self, plan: Plan, *, first_version: bool) -> None:
        """Start the server, give it the pictures and the model; and the model a version."""
        self.service.serve.start()
        with self.service.client() as client:
            pictures.furnish(client, plan.weights)
            if first_version:
                self.service.work.start()
                # Enough to beat guessing, without which there is no first version.
                enough = {**QUICK, "epochs": 20}
                job = client.adapt("bars", "bright", promote_to="production", **enough)
                self.wait_for(lambda: job.refresh().state.ended, "the first version")
                assert job.state.value == "SUCCEEDED", job.snapshot

    def other_home(self) -> Path:
        """A home whose device is another, as on another machine, over the same blobs."""
        home = self.home.with_name("elsewhere")
        home.mkdir()
        (home / "blobs").symlink_to(self.home / "blobs")
        return home

    def jobs(self, *states: JobState) -> list[Job]:
        """All jobs, or those in one of *states*, newest first."""
        return whole(self.store.jobs.list, states=states)

    def workers(self) -> list[str]:
        """The workers that hold a job now."""
        held = sa.select(schema.jobs.c.worker).where(schema.jobs.c.state == JobState.RUNNING.value)
        return [row.worker for row in self.store.database.read(Transaction.rows, held)]

    def settle(self) -> bool:
        """Wait for every job's end, undisturbed; whether all came."""
        return self.comes(lambda: not self.jobs(JobState.QUEUED, JobState.RUNNING), "the end")

    def comes(self, condition: Callable[[], object], what: str = "it") -> bool:
        """Whether *condition* comes true, see :meth:`wait_for`."""
        with contextlib.suppress(AssertionError):
            self.wait_for(condition, what)
            return True
        return False

    def wait_for(self, condition: Callable[[], T | None], what: str, *, every: float = 0.05) -> T:
        """The first truthy answer of *condition*, waited for as long as jobs go on.

        How long a job takes is the machine's affair; that nothing more happens is ours.
        """
        heard, since = self._events(), time.monotonic()
        while not (answer := condition()):
            if (now := self._events()) != heard:
                heard, since = now, time.monotonic()
            silent = time.monotonic() - since
            assert silent < QUIET_SECONDS, f"{what} did not come, nor an event in {silent:.0f} s"
            time.sleep(every)
        return answer

    def _events(self) -> int:
        """How many events all jobs have had."""
        told = sa.select(sa.func.sum(schema.jobs.c.events))
        return int(self.store.database.read(Transaction.scalar, told) or 0)

    def ask(self, client: Client, number: int, **spec: Any) -> str:
        """Ask for an adaptation of "bars" to the darker domain; the job's name."""
        asked = {**QUICK, "seed": number, "promote_to": "production", **spec}
        return client.adapt("bars", "dark", request_id=f"job-{number}", **asked).name


# A strategy that takes a second, under a guard that lets most of it through.
QUICK: Mapping[str, Any] = {
    "strategy": "head", "epochs": 1, "views": 1, "guard_preset": "exploratory",
    "guard": {
        "source_drop_limit": 0.5, "source_margin": 0.9, "target_margin": 0.9, "class_drop_limit": 1,
        "earlier_drop_limit": 0.5, "earlier_margin": 0.9, "nll_rise_limit": 50, "ece_rise_limit": 1,
        "latency_ratio_limit": 100, "reason": "chaos makes versions, not good ones",
    },
}  # fmt: skip


@contextlib.contextmanager
def place(engine: str, name: str) -> Iterator[tuple[Path, Postgresql | None]]:
    """A home folder in memory where that can be, and a database where *engine* is a server's."""
    memory = Path("/dev/shm")  # noqa: S108 - the name below it is made up
    root = memory if memory.is_dir() else None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"chaos-{name}-", dir=root))
        home = Path(folder) / "home"
        home.mkdir()
        if engine == "sqlite":
            yield home, None
            return
        # Its files are another user's, who must be able to come by.
        Path(folder).chmod(0o755)
        yield home, stack.enter_context(postgresql(_folder(Path(folder) / "postgres")))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


class Repeated:
    """A piece of work that a thread does again and again until the block ends.

    What it raises ends the thread, and is raised by the block's end.
    """

    def __init__(self, work: Callable[[int], None], *, name: str) -> None:
        self._work = work
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether the block has ended."""
        return self._stop.is_set()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                self._work(number)
                number += 1
        except BaseException as error:  # noqa: BLE001 - told by the scenario's own thread
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(180)
        if error is None and self._error is not None:
            raise self._error
        assert not self._thread.is_alive(), f"{self._thread.name} does not end"
