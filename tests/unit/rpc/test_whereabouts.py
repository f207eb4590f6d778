"""What the index tells of each version."""

from __future__ import annotations

import pytest

from acclimate_service.domain.access import EVERYTHING, Scope
from acclimate_service.domain.names import VersionName
from acclimate_service.inference.residents import ResidentVersion
from acclimate_service.rpc.whereabouts import Whereabouts

HERE = Whereabouts.at(
    [
        ResidentVersion(
            version=f"models/{model}/versions/1",
            loading=model == "coming",
            leaving=model == "going",
            aliases=(),
            references=0,
        )
        for model in ("there", "coming", "going", "theirs")
    ],
    failed={VersionName("broken", "1"): "no model"},
    unloaded={"out"},
)


@pytest.mark.parametrize(
    ("model", "state", "reason"),
    [
        ("there", "READY", ""),
        ("coming", "LOADING", ""),
        ("going", "UNLOADING", "its last requests end"),
        ("broken", "UNAVAILABLE", "no model"),
        ("out", "UNAVAILABLE", "load it again"),
        ("cold", "UNAVAILABLE", "not loaded; it is, when it is asked for"),
    ],
)
def test_a_version_is_in_one_state_and_says_why(model: str, state: str, reason: str) -> None:
    found, why = HERE.of(VersionName(model, "1"))
    assert (found, reason in why) == (state, True)


def test_only_what_answers_and_is_in_reach_is_told_as_answering() -> None:
    assert HERE.answering(EVERYTHING) == [VersionName("theirs", "1"), VersionName("there", "1")]
    assert HERE.answering(Scope(("there",))) == [VersionName("there", "1")]
