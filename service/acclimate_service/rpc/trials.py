"""Rollouts on this server: which version answers a request, and what is seen of both.

A canary's requests are told apart by a hash of their key, so the same key is always
answered by the same version. A shadow answers after the incumbent's reply is on its
way, behind every other request, a few at a time. No prediction fails because of a
rollout: what the candidate cannot answer, the incumbent answers.

What was seen is added to the store every time that the server looks there; a killed
server loses what it saw since.

Between requests nothing holds a candidate in memory. What answers live requests comes
first there: a candidate makes room for it, and puts none of it out, so that the two never
reload each other by turns. While there is no room for it the rollout stands still: nothing
is asked of the candidate, which is counted as dropped, and the store is told why.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from acclimate_service.domain.errors import (
    BadImage,
    DeadlineTooShort,
    InputMismatch,
    InvalidSpec,
    NotReady,
    Overloaded,
    ServerStopping,
    ServiceError,
    StoreUnavailable,
)
from acclimate_service.domain.model import ModelVersion
from acclimate_service.domain.names import ModelName, RolloutName, VersionName
from acclimate_service.domain.rollout import Counts, Rollout, RolloutMode, RolloutState
from acclimate_service.inference.answer import Answer
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.pool import Pool
from acclimate_service.rpc.bounds import Lane
from acclimate_service.store import Store

T = TypeVar("T")

SHADOWS = 4  # at work at once; more are dropped, and counted
# The caller's own doing, or the whole server's: they say nothing of the candidate.
_NOT_ITS_OWN = (
    BadImage,
    DeadlineTooShort,
    InputMismatch,
    InvalidSpec,
    Overloaded,
    ServerStopping,
)

TAKE_UP_SECONDS = 2.0  # for which a new rollout's candidate is waited for
CANARY_SECONDS = 0.3  # for which a caller waits for one that is not in memory,
CANARY_SHARE = 0.1  # and of the time that it has left: the rest is the incumbent's
SHADOW_SECONDS = 30.0  # nobody waits for a shadow
PAUSE_SECONDS = 5.0  # between two looks for memory that there was none of
NO_ROOM = (
    "a server has no memory for the candidate beside what answers live requests there "
    "(ACCLIMATE_RESIDENT_MIB), and does not ask it"
)

Hold = Handle[ModelVersion]
Observe = Callable[[str, Answer], None]


class Load(Protocol):
    """Brings a version into memory and holds it; see ``Pool.ensure``."""

    async def __call__(self, name: VersionName, /, *, modest: bool) -> Hold: ...


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[T]):
    """One request, as a version is asked it. ``ask`` is given whether it may wait for all others.

    ``write`` makes the reply; the bytes of ``key`` decide which version answers. At
    ``deadline``, of ``time.monotonic``, the caller stops waiting; None for never.
    """

    key: Callable[[], bytes]
    deadline: float | None
    ask: Callable[[Hold, bool], Awaitable[Answer]]
    write: Callable[[Hold, Answer], T]


@dataclass
class _Trial:
    """A rollout that runs here, and what was seen of it since the store was told."""

    rollout: Rollout
    coming: asyncio.Task[None] | None = None  # while it is being loaded
    broken: bool = False  # it would not load
    paused: float | None = None  # there was no room for it, and when to look for some again
    resumed: bool = False  # there is again, which the store was not told yet
    seen: Counts = field(default_factory=Counts)
    shadows: set[asyncio.Task[None]] = field(default_factory=set)

    def count(self, **more: float) -> None:
        self.seen = self.seen + replace(Counts(), **more)  # type: ignore[arg-type]  # ints stay ints

    def news(self) -> str | None:
        """Why it stands still here, or "" for no more, where the store says otherwise."""
        if self.paused is not None:
            return None if self.rollout.reason == NO_ROOM else NO_ROOM
        return "" if self.resumed and self.rollout.reason else None


class Trials:
    """The rollouts that run on this server. Belongs to one event loop.

    *load* brings a version into *pool* and holds it; *observe* is told whose answer is given.
    """

    def __init__(
        self, store: Store, pool: Pool[ModelVersion], *, lane: Lane, load: Load, observe: Observe
    ) -> None:
        self._store = store
        self._pool = pool
        self._lane = lane
        self._load = load
        self._observe = observe
        self._trials: dict[str, _Trial] = {}  # by the alias's name
        self._catching_up = asyncio.Lock()
        self._telling: asyncio.Task[Rollout] | None = None
        self._bringing: asyncio.Task[None] | None = None

    # ── answering ────────────────────────────────────────────────────────────

    async def answer(self, alias: str, incumbent: Hold, asked: Asked[T]) -> T:
        """The reply to a request that *incumbent* holds the alias for.

        Raises:
            ServiceError: what the incumbent raises.
        """
        trial = self._trials.get(alias)
        if trial is None or str(trial.rollout.incumbent) != incumbent.version:
            return self._written(asked, incumbent, await asked.ask(incumbent, False))
        chosen = self._is_chosen(trial.rollout, asked.key())
        if chosen and trial.rollout.draft.mode is RolloutMode.CANARY:
            return await self._canary(trial, incumbent, asked)
        answer = await asked.ask(incumbent, False)
        told = _confidences(answer)
        trial.count(
            incumbent_requests=1,
            incumbent_images=len(told),
            incumbent_confidence=float(told.sum()),
            incumbent_seconds=_seconds(answer),
        )
        if chosen:
            self._shadow(trial, asked, answer)
        return self._written(asked, incumbent, answer)

    def _written(self, asked: Asked[T], by: Hold, answer: Answer) -> T:
        self._observe(by.version, answer)
        return asked.write(by, answer)

    async def _canary(self, trial: _Trial, incumbent: Hold, asked: Asked[T]) -> T:
        candidate = await self._held(trial, _patience(asked.deadline))
        if candidate is not None:
            with candidate:
                answer = await self._try(trial, candidate, asked, patient=False)
                if answer is not None:
                    try:
                        return self._written(asked, candidate, answer)
                    except Exception as error:  # noqa: BLE001 - whatever it is, the incumbent answers
                        self._failed(trial, error)
        return self._written(asked, incumbent, await asked.ask(incumbent, False))

    def _shadow(self, trial: _Trial, asked: Asked[T], answer: Answer) -> None:
        """Ask the candidate too, later; its answer goes nowhere."""
        if len(trial.shadows) >= SHADOWS:
            trial.count(dropped=1)
            return
        task = asyncio.create_task(self._compare(trial, asked, answer))
        trial.shadows.add(task)
        task.add_done_callback(trial.shadows.discard)

    async def _compare(self, trial: _Trial, asked: Asked[T], answer: Answer) -> None:
        candidate = await self._held(trial, SHADOW_SECONDS)
        if candidate is None:
            return
        with candidate:
            try:
                other = await self._try(trial, candidate, asked, patient=True)
            except _NOT_ITS_OWN:
                trial.count(dropped=1)
                return
        if other is not None:
            ours, theirs = _firsts(answer), _firsts(other)
            trial.count(compared=len(ours), agreed=int((ours == theirs).sum()))

    async def _try(
        self, trial: _Trial, candidate: Hold, asked: Asked[T], *, patient: bool
    ) -> Answer | None:
        """The candidate's answer; None if it has none, which is counted.

        Raises:
            ServiceError: the request itself is at fault, or the server has no room.
        """
        trial.count(requests=1)
        try:
            answer = await asked.ask(candidate, patient)
        except _NOT_ITS_OWN:
            trial.count(requests=-1)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the incumbent answers
            self._failed(trial, error)
            return None
        told = _confidences(answer)
        trial.count(images=len(told), confidence=float(told.sum()), seconds=_seconds(answer))
        return answer

    async def _held(self, trial: _Trial, seconds: float) -> Hold | None:
        """The candidate, held; None, which is counted, if it is broken or stays out of memory."""
        name = str(trial.rollout.name)
        with contextlib.suppress(NotReady):
            return self._pool.acquire(name)
        if not trial.broken and trial.paused is None:
            await asyncio.wait({self._bring(trial)}, timeout=seconds)
            with contextlib.suppress(NotReady):
                return self._pool.acquire(name)
        if trial.broken:
            trial.count(requests=1, errors=1)
        else:
            trial.count(dropped=1)
        return None

    def _failed(self, trial: _Trial, error: Exception) -> None:
        trial.count(errors=1)
        structlog.get_logger(__name__).warning(
            "candidate failed", rollout=str(trial.rollout.name), error=str(error)[:300]
        )

    @staticmethod
    def _is_chosen(rollout: Rollout, key: bytes) -> bool:
        digest = hashlib.blake2b(key, key=str(rollout.name).encode()[:64], digest_size=8).digest()
        return int.from_bytes(digest, "big") < rollout.draft.share * 2**64

    def of(self, model: ModelName) -> RolloutName | None:
        """A rollout of one of the model's aliases that runs here, if there is one."""
        mine = f"{model}/"
        return next((t.rollout.name for a, t in self._trials.items() if a.startswith(mine)), None)

    # ── following ────────────────────────────────────────────────────────────

    async def catch_up(self) -> None:
        """Tell the store what was seen, and take up and put down what it says.

        Raises:
            StoreUnavailable: the store is out of reach; what runs here goes on.
        """
        async with self._catching_up:
            await self._catch_up()

    async def _catch_up(self) -> None:
        await self._tell_all()
        running = {
            str(found.draft.alias): found
            for found in await self._lane.run(self._store.rollouts.running)
        }
        for alias in [a for a in self._trials if a not in running]:
            self._put_down(alias)
        wanted = []
        for alias, found in running.items():
            known = self._trials.get(alias)
            if known is None or known.rollout.name != found.name:
                self._put_down(alias)
                known = self._trials[alias] = self._take_up(found)
            elif known.paused is None or known.paused > time.monotonic():
                known.rollout = found
                continue
            wanted.append(known)
        if wanted and (self._bringing is None or self._bringing.done()):
            self._bringing = asyncio.create_task(self._bring_all(wanted))
            await asyncio.wait({self._bringing}, timeout=TAKE_UP_SECONDS)
            await self._tell_all()  # of those that there is no room for

    async def _tell_all(self) -> None:
        for trial in list(self._trials.values()):
            await self._tell(trial)

    async def _tell(self, trial: _Trial) -> None:
        news = trial.news()
        if not trial.seen and news is None:
            return
        seen, trial.seen = trial.seen, Counts()
        counting = self._lane.run(self._store.rollouts.count, trial.rollout.name, seen, news=news)
        self._telling = asyncio.create_task(counting)
        try:
            # Shielded: a server that stops just now must not drop what it has taken away.
            found = await asyncio.shield(self._telling)
        except (StoreUnavailable, Overloaded):
            trial.seen = trial.seen + seen  # told the next time
            raise
        trial.rollout, trial.resumed = found, False
        if found.state is not RolloutState.RUNNING:
            structlog.get_logger(__name__).warning(
                "rollout ended", rollout=str(found.name), state=found.state.value, why=found.reason
            )
            self._put_down(str(found.draft.alias))

    def _take_up(self, rollout: Rollout) -> _Trial:
        """Begin it here. The pool knows its candidate as what a trial points at."""
        self._pool.point(str(rollout.name), str(rollout.draft.candidate), cold=True, trial=True)
        return _Trial(rollout)

    async def _bring_all(self, trials: list[_Trial]) -> None:
        """Load candidates one by one, as far as there is room."""
        for trial in trials:
            if trial in self._trials.values():  # it may have ended meanwhile
                await asyncio.wait({self._bring(trial)})

    def _bring(self, trial: _Trial) -> asyncio.Task[None]:
        """Have the candidate loaded, once at a time."""
        if trial.coming is None or trial.coming.done():
            trial.coming = asyncio.create_task(self._load_candidate(trial))
        return trial.coming

    async def _load_candidate(self, trial: _Trial) -> None:
        paused, trial.paused = trial.paused, None
        try:
            (await self._load(trial.rollout.draft.candidate, modest=True)).release()
            trial.resumed = True
        except Overloaded:
            trial.paused = time.monotonic() + PAUSE_SECONDS
            if paused is None:
                structlog.get_logger(__name__).warning(
                    "rollout stands still", rollout=str(trial.rollout.name), why=NO_ROOM
                )
        except (*_NOT_ITS_OWN, StoreUnavailable):
            return  # there was no store; the next request asks again
        except Exception as error:  # noqa: BLE001 - whatever it is, the incumbent answers
            trial.broken = True
            structlog.get_logger(__name__).error(
                "candidate does not load",
                rollout=str(trial.rollout.name),
                reason=error.reason if isinstance(error, ServiceError) else "INTERNAL",
                message=str(error),
            )

    def _put_down(self, alias: str) -> None:
        trial = self._trials.pop(alias, None)
        if trial is not None:
            for task in (*trial.shadows, *filter(None, [trial.coming])):
                task.cancel()
            self._pool.unpoint(str(trial.rollout.name))

    async def close(self) -> None:
        """Tell what was seen to the last, and let every candidate go.

        Raises:
            StoreUnavailable: the store is out of reach; what was seen last is lost.
        """
        try:
            if self._telling is not None:
                await asyncio.wait({self._telling})
            await self._tell_all()
        finally:
            if self._bringing is not None:
                self._bringing.cancel()
            for alias in list(self._trials):
                self._put_down(alias)


def _patience(deadline: float | None) -> float:
    """The seconds for which a canary's caller waits for a candidate that is not in memory."""
    if deadline is None:
        return CANARY_SECONDS
    return min(max((deadline - time.monotonic()) * CANARY_SHARE, 0.0), CANARY_SECONDS)


def _seconds(answer: Answer) -> float:
    """Of work, not of waiting: a shadow waits for everybody else."""
    return (answer.timings.decode + answer.timings.infer) / 1e9


def _confidences(answer: Answer) -> NDArray[np.floating]:
    """The first class's probability, an image; none were asked for where logits alone were."""
    found = answer.outputs.get("probabilities")
    return np.empty(0) if found is None else found.max(axis=1)


def _firsts(answer: Answer) -> NDArray[np.intp]:
    found = answer.outputs.get("probabilities", answer.outputs.get("logits"))
    return np.empty(0, np.intp) if found is None else found.argmax(axis=1)
