"""The client's calls to RolloutService: versions tried on live traffic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from acclimate import _names
from acclimate._connection import Connection
from acclimate.rollouts import Rollout, RolloutMode, RolloutState
from acclimate.v1 import rollout_pb2, rollout_pb2_grpc


class RolloutCalls:
    """Shadows and canaries of a model's aliases."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rollouts = rollout_pb2_grpc.RolloutServiceStub(connection.channel)

    def start_rollout(
        self,
        model: str,
        version: str,
        *,
        alias: str = "production",
        mode: RolloutMode | str = RolloutMode.CANARY,
        share: float = 0.1,
        promote: bool = False,
        limits: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> Rollout:
        """Try a version on an alias's traffic.

        Args:
            model: the model.
            version: the candidate, such as ``3``.
            alias: whose traffic; it must point at another version.
            mode: SHADOW asks it beside the incumbent, CANARY answers with it.
            share: of the requests, in (0, 1].
            promote: move the alias once enough images kept within the limits.
            limits: by the names of ``RolloutLimits``; what is left out has its default.
            reason: kept in the audit log.

        Raises:
            Conflict: the alias has a rollout that runs.
            NotFound: there is no such alias or version.
        """
        request = rollout_pb2.StartRolloutRequest(
            alias=_names.alias_name(model, alias),
            candidate=_names.version_name(version, model=model),
            mode=rollout_pb2.Rollout.Mode.Value(f"MODE_{RolloutMode(mode).value}"),
            share=share,
            promote=promote,
            limits=rollout_pb2.RolloutLimits(**dict[str, Any](limits or {})),
            reason=reason,
        )
        # Not repeated: if only the answer got lost, it runs, and a second one is refused.
        return _rollout(
            self._connection.call(self._rollouts.StartRollout, request, idempotent=False)
        )

    def rollout(self, name: str) -> Rollout:
        """One rollout: ``digits/20261125-101500-1a2b3c``, or its full name.

        Raises:
            NotFound: there is none of this name.
        """
        request = rollout_pb2.GetRolloutRequest(name=_names.rollout_name(name))
        return _rollout(self._connection.call(self._rollouts.GetRollout, request, idempotent=True))

    def rollouts(self, model: str) -> list[Rollout]:
        """A model's rollouts, newest first."""
        request = rollout_pb2.ListRolloutsRequest(parent=_names.model_name(model))
        pages = self._connection.pages(self._rollouts.ListRollouts, request)
        return [_rollout(message) for page in pages for message in page.rollouts]

    def stop_rollout(self, name: str, *, reason: str = "") -> Rollout:
        """End a rollout; the alias stays where it is. One that has ended stays as it is.

        Raises:
            NotFound: there is none of this name.
        """
        request = rollout_pb2.StopRolloutRequest(name=_names.rollout_name(name), reason=reason)
        return _rollout(self._connection.call(self._rollouts.StopRollout, request, idempotent=True))


def _rollout(message: rollout_pb2.Rollout) -> Rollout:
    ended = message.end_time.ToDatetime(dt.UTC) if message.HasField("end_time") else None
    return Rollout(
        name=message.name,
        alias=message.alias,
        candidate=message.candidate,
        incumbent=message.incumbent,
        mode=RolloutMode(rollout_pb2.Rollout.Mode.Name(message.mode).removeprefix("MODE_")),
        share=message.share,
        promote=message.promote,
        state=RolloutState(rollout_pb2.Rollout.State.Name(message.state).removeprefix("STATE_")),
        limits=_numbers(message.limits),
        counts=_numbers(message.counts),
        reason=message.reason,
        created_at=message.create_time.ToDatetime(dt.UTC),
        ended_at=ended,
    )


def _numbers(message: rollout_pb2.RolloutLimits | rollout_pb2.RolloutCounts) -> dict[str, float]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
