"""In which state each version is on this server, in the words of Triton's repository index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from acclimate_service.domain.access import Scope
from acclimate_service.domain.names import VersionName
from acclimate_service.inference.residents import ResidentVersion


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """A moment of the pool: what is in it, why what is not would not come, what may not."""

    resident: Mapping[VersionName, ResidentVersion]
    failed: Mapping[VersionName, str]
    unloaded: Collection[str]  # models

    @classmethod
    def at(
        cls,
        resident: Iterable[ResidentVersion],
        *,
        failed: Mapping[VersionName, str],
        unloaded: Collection[str],
    ) -> Self:
        """What holds while *resident* is what the pool holds."""
        by_name = {VersionName.parse(one.version): one for one in resident}
        return cls(resident=by_name, failed=dict(failed), unloaded=frozenset(unloaded))

    def of(self, name: VersionName) -> tuple[str, str]:
        """The state of a version, and the reason where there is something to say."""
        found = self.resident.get(name)
        if found is not None and found.loading:
            return "LOADING", ""
        if found is not None and found.leaving:
            return "UNLOADING", "its last requests end"
        if name.model in self.unloaded:  # be it still in memory
            return "UNAVAILABLE", "its model was unloaded from this server; load it again"
        if found is not None:
            return "READY", ""
        if (why := self.failed.get(name)) is not None:
            return "UNAVAILABLE", f"it did not load: {why}"
        return "UNAVAILABLE", "not loaded; it is, when it is asked for or an alias moves to it"

    def answering(self, within: Scope) -> list[VersionName]:
        """What is READY of models *within* a scope, by name."""
        ready = (name for name in self.resident if self.of(name)[0] == "READY")
        return sorted(name for name in ready if name.model in within)
