"""Rollouts: only proto ↔ domain."""

from __future__ import annotations

import dataclasses
from typing import Final

from acclimate.v1 import rollout_pb2 as pb
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.domain.rollout import (
    Rollout,
    RolloutDraft,
    RolloutLimits,
    RolloutMode,
    RolloutState,
)
from acclimate_service.rpc import fields

_MODES: Final = {
    pb.Rollout.MODE_SHADOW: RolloutMode.SHADOW,
    pb.Rollout.MODE_CANARY: RolloutMode.CANARY,
}
_MODES_OUT: Final = {mode: number for number, mode in _MODES.items()}
_STATES_OUT: Final = {
    RolloutState.RUNNING: pb.Rollout.STATE_RUNNING,
    RolloutState.PROMOTED: pb.Rollout.STATE_PROMOTED,
    RolloutState.ROLLED_BACK: pb.Rollout.STATE_ROLLED_BACK,
    RolloutState.STOPPED: pb.Rollout.STATE_STOPPED,
}


def draft(request: pb.StartRolloutRequest) -> RolloutDraft:
    """Read what is to be tried, and how.

    Raises:
        InvalidName: a name has the wrong form.
        InvalidSpec: the mode is missing, or a number makes no sense.
    """
    if request.mode not in _MODES:
        raise InvalidSpec("mode must be SHADOW or CANARY", field="mode")
    if not 0 < request.share <= 1:
        raise InvalidSpec("share must lie in (0, 1]", field="share")
    if request.promote and request.share == 1 and request.mode == pb.Rollout.MODE_CANARY:
        raise InvalidSpec(
            "a canary of all requests leaves none to compare it with, so it would never be "
            "promoted; give a smaller share",
            field="share",
        )
    given = {field.name: value for field, value in request.limits.ListFields()}
    return RolloutDraft(
        alias=AliasName.parse(request.alias),
        candidate=VersionName.parse(request.candidate),
        mode=_MODES[request.mode],
        share=request.share,
        limits=fields.checked(RolloutLimits, given, field="limits"),
        promote=request.promote,
    )


def rollout(value: Rollout) -> pb.Rollout:
    """Write a rollout."""
    return pb.Rollout(
        name=str(value.name),
        alias=str(value.draft.alias),
        candidate=str(value.draft.candidate),
        incumbent=str(value.incumbent),
        mode=_MODES_OUT[value.draft.mode],
        share=value.draft.share,
        limits=pb.RolloutLimits(**value.draft.limits.model_dump()),
        promote=value.draft.promote,
        state=_STATES_OUT[value.state],
        counts=pb.RolloutCounts(**dataclasses.asdict(value.counts)),
        reason=value.reason,
        create_time=fields.timestamp(value.created_at),
        end_time=fields.timestamp(value.ended_at),
    )
