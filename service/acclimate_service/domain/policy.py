"""The guard's limits, as presets that can be overridden with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import pydantic

from acclimate_service.domain.errors import InvalidSpec

Preset = Literal["strict", "balanced", "exploratory"]

# What each preset says otherwise than the defaults below, which are `balanced`. A
# published preset never changes: stored jobs hold their policy in full and are checked
# against it when they are read. Other limits get another name.
_PRESETS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "strict": {
        "level": 0.025,
        "source_drop_limit": 0.005,
        "source_margin": 0.02,
        "target_goal": "better",
        "target_margin": 0.0,
        "earlier_drop_limit": 0.005,
        "earlier_margin": 0.02,
        "class_drop_limit": 0.02,
        "class_minimum": 5,
        "slice_drop_limit": 0.02,
        "nll_rise_limit": 0.1,
        "ece_rise_limit": 0.05,
        "size_ratio_limit": 1.02,
        "latency_ratio_limit": 1.5,
        "label_suspects_limit": 0.1,
        "first_minimum": 100,
    },
    "exploratory": {
        "level": 0.1,
        "source_drop_limit": 0.03,
        "source_margin": 0.08,
        "target_margin": 0.1,
        "earlier_drop_limit": 0.05,
        "earlier_margin": 0.1,
        "class_drop_limit": 0.15,
        "class_minimum": 0,
        "slice_drop_limit": 0.15,
        "nll_rise_limit": 0.5,
        "ece_rise_limit": 0.2,
        "size_ratio_limit": 2.0,
        "latency_ratio_limit": 4.0,
        "label_suspects_limit": 0.25,
        "first_minimum": 20,
    },
}


class GuardPolicy(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How much harm is tolerated, and how sure the guard must be.

    A policy starts from the preset that ``base`` names; what is not given has the
    preset's value. Any limit that differs from the preset needs a ``reason``, and
    both stand in the verdict. Drops and margins are fractions of images (0.01 is
    one point of accuracy), NLL is in nats, ratios are candidate / incumbent.

    A train label that screening does not believe is left out of training, or trained on
    all the same (``label_suspects_use``); it is reported in any case, and beyond a share
    of ``label_suspects_limit`` nothing that was trained beside it is accepted.

    All versions of a chain together may lose ``source_creep_limit`` as observed, and a loss of
    ``source_creep_margin`` is excluded. Unset, the one is ``source_margin`` and the other as
    much again; a limit of 1 asks nothing. The same for the domains accepted earlier.

    ``level`` is the chance, over *all* candidates for one target domain together, that one
    is let through whose true drop is as large as a margin. Each target domain has its own.
    """

    base: Preset = "balanced"
    reason: str = pydantic.Field(default="", max_length=1000)

    level: float = pydantic.Field(default=0.05, ge=1e-4, le=0.2)

    source_drop_limit: float = pydantic.Field(default=0.01, ge=0, le=1)
    source_margin: float = pydantic.Field(default=0.03, gt=0, le=1)

    target_goal: Literal["not_worse", "better"] = "not_worse"
    target_margin: float = pydantic.Field(default=0.05, ge=0, le=1)

    earlier_drop_limit: float = pydantic.Field(default=0.02, ge=0, le=1)
    earlier_margin: float = pydantic.Field(default=0.05, gt=0, le=1)

    source_creep_limit: float | None = pydantic.Field(default=None, ge=0, le=1)
    source_creep_margin: float | None = pydantic.Field(default=None, gt=0, le=1)
    earlier_creep_limit: float | None = pydantic.Field(default=None, ge=0, le=1)
    earlier_creep_margin: float | None = pydantic.Field(default=None, gt=0, le=1)

    class_drop_limit: float = pydantic.Field(default=0.05, ge=0, le=1)
    class_minimum: int = pydantic.Field(default=1, ge=0, le=10_000)
    slice_drop_limit: float = pydantic.Field(default=0.05, ge=0, le=1)

    nll_rise_limit: float = pydantic.Field(default=0.25, ge=0, le=100)
    ece_rise_limit: float = pydantic.Field(default=0.1, ge=0, le=1)

    size_ratio_limit: float = pydantic.Field(default=1.1, gt=0, le=100)
    latency_ratio_limit: float = pydantic.Field(default=2.0, gt=0, le=100)

    label_suspects_limit: float = pydantic.Field(default=0.15, ge=0, le=1)
    label_suspects_use: Literal["leave_out", "train"] = "leave_out"

    first_minimum: int = pydantic.Field(default=30, ge=1, le=1_000_000)

    @classmethod
    def preset(cls, name: str) -> Self:
        """The policy of this name, unchanged.

        Raises:
            InvalidSpec: there is no such preset.
        """
        if name not in _PRESETS:
            raise InvalidSpec(f"no guard preset {name!r}; there are {', '.join(_PRESETS)}")
        return cls.model_validate({"base": name})

    @pydantic.model_validator(mode="before")
    @classmethod
    def _start_from_base(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**_PRESETS.get(str(values.get("base", "balanced")), {}), **values}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        roles: tuple[Literal["source", "earlier"], ...] = ("source", "earlier")
        for domain in roles:
            if getattr(self, f"{domain}_drop_limit") >= getattr(self, f"{domain}_margin"):
                raise ValueError(
                    f"{domain}_drop_limit must lie below {domain}_margin: no number of images "
                    "shows that a drop as large as the margin is smaller than it"
                )
            creep = self.creep(domain)
            if creep is not None and creep[0] >= creep[1]:
                raise ValueError(
                    f"{domain}_creep_limit ({creep[0]:g}) must lie below {domain}_creep_margin "
                    f"({creep[1]:g}): give both, or a limit of 1 to let a chain lose everything"
                )
        if self.target_goal == "not_worse" and self.target_margin == 0:
            raise ValueError(
                "no number of images shows a target to be not worse by a margin of 0; "
                "give a target_margin, or ask for target_goal 'better'"
            )
        if self.overrides and not self.reason.strip():
            raise ValueError(
                f"{', '.join(self.overrides)} differ from the preset {self.base!r}: give a reason"
            )
        return self

    @pydantic.model_serializer(mode="wrap")
    def _without_what_follows(self, write: pydantic.SerializerFunctionWrapHandler) -> Any:
        """As values; what is unset follows from the others, and older workers do not know it."""
        return {name: value for name, value in write(self).items() if value is not None}

    def creep(self, role: Literal["source", "earlier"]) -> tuple[float, float] | None:
        """What all versions since a standard may lose together: as observed, and at worst.

        None where they may lose everything.
        """
        margin: float = getattr(self, f"{role}_margin")
        limit, worst = (getattr(self, f"{role}_creep_{name}") for name in ("limit", "margin"))
        if limit is None and worst is None and margin >= 0.5:
            return None  # one version may lose half of all
        limit = margin if limit is None else limit
        worst = min(limit + margin, 0.99) if worst is None else worst
        return None if limit == 1 else (limit, worst)

    def derived(self, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a policy that starts from this one, or from *preset* if that is named.

        Both reasons are kept, this policy's and the one among *overrides*.

        Raises:
            InvalidSpec: there is no such preset; or this policy's limits are overridden
                without a reason.
        """
        if preset:
            return {**overrides, "base": type(self).preset(preset).base}
        own = {name: getattr(self, name) for name in self.overrides}
        given = str(overrides.get("reason", "")).strip()
        if overrides and not given:
            raise InvalidSpec(
                "a limit that differs from the model's policy needs a reason: add reason=WHY to "
                "guard_overrides"
            )
        reasons = [reason for reason in (self.reason, given) if reason]
        return {**own, **overrides, "base": self.base, "reason": "; ".join(reasons)}

    @property
    def overrides(self) -> dict[str, pydantic.JsonValue]:
        """The limits that differ from the preset, with the preset's values."""
        start = {
            name: field.default
            for name, field in type(self).model_fields.items()
            if name not in ("base", "reason")
        } | _PRESETS[self.base]
        return {name: value for name, value in start.items() if getattr(self, name) != value}
