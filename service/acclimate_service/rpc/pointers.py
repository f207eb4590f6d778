"""Where aliases point on this server, and what health and metrics tell of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import structlog

from acclimate_service.domain.errors import NotReady
from acclimate_service.domain.model import PRODUCTION, ModelVersion
from acclimate_service.domain.names import AliasName, ModelName, VersionName
from acclimate_service.inference.pool import Pool
from acclimate_service.rpc.bounds import Locks
from acclimate_service.rpc.health import Health
from acclimate_service.rpc.loads import Loads
from acclimate_service.rpc.metrics import Metrics


class Pointers:
    """The aliases of *pool*. Belongs to one event loop.

    Whoever moves an alias holds its model's lock of ``locks``, so that a slow move overtakes
    no later one. ``unloaded`` are the models that are not to be answered here.
    """

    def __init__(
        self, pool: Pool[ModelVersion], *, loads: Loads, health: Health, metrics: Metrics
    ) -> None:
        self.locks = Locks()
        self.unloaded: set[str] = set()
        self._pool = pool
        self._loads = loads
        self._health = health
        self._metrics = metrics

    def at(self, alias: AliasName) -> str | None:
        """The version that an alias points at, loaded or not; None if it is not known here."""
        return self._pool.pointed_at(str(alias))

    def to(self, versions: Iterable[VersionName]) -> dict[AliasName, VersionName]:
        """The aliases that point at one of *versions*, and at which."""
        sought = {str(version): version for version in versions}
        return {
            AliasName.parse(alias): sought[at]
            for alias, at in (self._pool.aliases().items() if sought else ())
            if at in sought and "/aliases/" in alias  # a candidate goes by its rollout's name
        }

    def answers(self, name: str) -> bool:
        """Whether what an alias or a version names answers here.

        An alias's version does unless it failed to load; another, if it is loaded. Nothing of
        a model does that was unloaded.
        """
        if name.split("/")[1] in self.unloaded:
            return False
        version = self._pool.pointed_at(name)
        if version is not None:
            return not self._loads.failed(VersionName.parse(version))
        with contextlib.suppress(NotReady):
            self._pool.acquire(name).release()
            return True
        return False

    async def point(self, alias: AliasName, version: ModelVersion, *, cold: bool = False) -> None:
        """Move an alias to a version, which must be loaded if it is not to be *cold*."""
        self._pool.point(str(alias), str(version.name), cold=cold)
        self.unloaded.discard(alias.model)
        self._metrics.swaps.labels("served").inc()
        structlog.get_logger(__name__).info(
            "alias served", alias=str(alias), version=str(version.name), loaded=not cold
        )
        await self.tell_health(alias)

    def point_at_failed(self, alias: AliasName, version: VersionName) -> None:
        """Have whoever asks hear why a version does not load, where no other answers."""
        if self.at(alias) is None:
            self._pool.point(str(alias), str(version), cold=True)

    async def unpoint(self, alias: AliasName) -> None:
        """Forget an alias: nothing is answered under it."""
        self._pool.unpoint(str(alias))
        await self.tell_health(alias)

    async def tell_health(self, alias: AliasName) -> None:
        """Say of the alias's model whether its production is answered."""
        if alias.alias == PRODUCTION:
            await self._health.set_model(ModelName(alias.model), self.answers(str(alias)))
