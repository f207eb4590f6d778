"""Whatever is asked of a pool, in whatever order, its rules hold after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from acclimate_service.domain.errors import NotReady, Overloaded, VersionInUse, VersionUnloadable
from acclimate_service.inference import pool as pool_module
from acclimate_service.inference.batcher import Batcher
from acclimate_service.inference.classifier import Classifier
from acclimate_service.inference.execution import Execution
from acclimate_service.inference.handle import Handle
from acclimate_service.inference.pool import Pool
from acclimate_service.inference.residents import Footprint, Loaded

T = TypeVar("T")

CAPACITY, SPARE = 4, 1
ONE = Footprint(own=1)
VERSIONS = st.sampled_from([f"versions/{number}" for number in range(7)])
ALIASES = st.sampled_from(["production", "canary", "shadow"])


class Nothing(Classifier):
    """A version that takes no time to load."""

    def __init__(self) -> None:
        self.labels, self.size, self.execution = 1, 8, Execution()
        self.digest, self.precision = "", "fp32"

    def warm(self, batches: Any = (1,)) -> None:
        assert batches


def nothing() -> Loaded[None]:
    return Loaded(classifier=Nothing(), details=None)


def broken() -> Loaded[None]:
    raise VersionUnloadable("broken")


class PoolRules(RuleBasedStateMachine):
    """A model beside the pool: where aliases point, and which handles are held."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.batcher = Batcher(threads=1)
        self.pool = Pool[None](self.batcher, budget=CAPACITY, spare=SPARE)
        self.aliases: dict[str, str] = {}
        self.held: list[Handle[None]] = []

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 10))

    def at_once(self, act: Callable[..., T], *given: Any) -> T:
        """What *act* returns, called on the loop as the server calls it."""

        async def on_loop() -> T:
            return act(*given)

        result: T = self.wait(on_loop())
        return result

    def loaded(self) -> set[str]:
        return {one.version for one in self.pool.resident()}

    def in_use(self) -> set[str]:
        return {handle.version for handle in self.held}

    @rule(version=VERSIONS)
    def ensure(self, version: str) -> None:
        if version not in self.loaded() and len(self.in_use()) >= CAPACITY:
            with pytest.raises(Overloaded):
                self.wait(self.pool.ensure(version, nothing, footprint=ONE))
        else:
            self.held.append(self.wait(self.pool.ensure(version, nothing, footprint=ONE)))

    @rule(version=VERSIONS)
    def fail_to_load(self, version: str) -> None:
        if version in self.loaded():
            self.held.append(self.wait(self.pool.ensure(version, broken, footprint=ONE)))
        else:
            with pytest.raises((VersionUnloadable, Overloaded)):
                self.wait(self.pool.ensure(version, broken, footprint=ONE))

    @rule(alias=ALIASES, version=VERSIONS)
    def point(self, alias: str, version: str) -> None:
        if version in self.loaded():
            assert self.at_once(self.pool.point, alias, version) == self.aliases.get(alias)
            self.aliases[alias] = version
        else:
            with pytest.raises(NotReady):
                self.at_once(self.pool.point, alias, version)

    @rule(alias=ALIASES, version=VERSIONS)
    def point_cold(self, alias: str, version: str) -> None:
        def cold() -> str | None:
            return self.pool.point(alias, version, cold=True)

        assert self.at_once(cold) == self.aliases.get(alias)
        self.aliases[alias] = version

    @rule(alias=ALIASES)
    def unpoint(self, alias: str) -> None:
        assert self.at_once(self.pool.unpoint, alias) == self.aliases.pop(alias, None)

    @rule(key=ALIASES | VERSIONS)
    def acquire(self, key: str) -> None:
        version = self.aliases.get(key, key)
        if version in self.loaded():
            handle = self.pool.acquire(key)
            assert handle.version == version
            self.held.append(handle)
        else:
            with pytest.raises(NotReady):
                self.pool.acquire(key)

    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: Any) -> None:
        if self.held:
            self.at_once(self.held.pop(choice.randrange(len(self.held))).release)

    @rule(version=VERSIONS)
    def unload(self, version: str) -> None:
        if version in self.aliases.values():
            with pytest.raises(VersionInUse):
                self.wait(self.pool.unload(version))
        elif version not in {handle.version for handle in self.held}:
            self.wait(self.pool.unload(version))
            assert version not in self.loaded()

    @invariant()
    def what_is_in_use_is_loaded(self) -> None:
        assert self.in_use() <= self.loaded()
        assert self.pool.aliases() == self.aliases

    @invariant()
    def what_is_loaded_is_bounded(self) -> None:
        assert len(self.loaded()) <= CAPACITY
        assert len(self.loaded() - self.in_use() - set(self.aliases.values())) <= SPARE

    @invariant()
    def references_are_the_handles_held(self) -> None:
        counts = {one.version: one.references for one in self.pool.resident()}
        for version, count in counts.items():
            assert count == sum(handle.version == version for handle in self.held)

    def teardown(self) -> None:
        self.wait(self.pool.close())
        self.wait(self.batcher.close())
        self.loop.close()


PoolRules.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestPoolRules: Callable[..., Any] = PoolRules.TestCase


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ROOM_SECONDS", 0.01)
