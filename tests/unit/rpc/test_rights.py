from __future__ import annotations

import re
from pathlib import Path

import pytest

from acclimate.v1 import adaptation_pb2, inference_pb2
from acclimate_service.domain.access import AccessRole, Principal, Scope
from acclimate_service.domain.errors import InvalidName, PermissionDenied
from acclimate_service.rpc.rights import ANY, RIGHTS

DOCS = Path(__file__).resolve().parents[3] / "docs" / "security.md"
ADAPT = RIGHTS["/acclimate.v1.AdaptationService/CreateAdaptationJob"]
PREDICT = RIGHTS["/acclimate.v1.InferenceService/Predict"]


def someone(*roles: AccessRole, models: str = "*", domains: str = "*") -> Principal:
    return Principal(
        name="someone",
        roles=frozenset(roles),
        models=Scope(tuple(models.split())),
        domains=Scope(tuple(domains.split())),
    )


def job(model: str, domain: str, promote_to: str = "") -> adaptation_pb2.CreateAdaptationJobRequest:
    return adaptation_pb2.CreateAdaptationJobRequest(
        model=model, domain=domain, spec=adaptation_pb2.AdaptationSpec(promote_to=promote_to)
    )


def test_the_page_on_security_has_the_table_of_the_code() -> None:
    text = DOCS.read_text().partition("<!-- roles")[2].partition("<!-- end of roles")[0]
    written = {
        cells[0].strip(): set(re.findall(r"\w+", cells[1]))
        for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE)[2:]
        if (cells := row.split("|"))
    }
    told: dict[str, set[str]] = {name: set() for name in written}
    for method, right in RIGHTS.items():
        short = method.rpartition("/")[2]
        if right.open:
            told["no token"].add(short)
        elif right.roles == ANY:
            told["every role"].add(short)
        elif right.roles == {AccessRole.ADMIN}:
            told["admin alone"].add(short)
        else:
            for role in right.roles:
                told[str(role)].add(short)
    assert written == told


def test_a_job_that_is_to_move_an_alias_needs_the_right_to_move_it() -> None:
    ADAPT.check_message(someone(AccessRole.ADAPT), job("models/a", "domains/b"))
    with pytest.raises(PermissionDenied, match="promote"):
        ADAPT.check_message(someone(AccessRole.ADAPT), job("models/a", "domains/b", "production"))
    both = someone(AccessRole.ADAPT, AccessRole.PROMOTE)
    ADAPT.check_message(both, job("models/a", "domains/b", "production"))


@pytest.mark.parametrize(
    ("models", "name", "allowed"),
    [
        ("shop", "models/shop", True),
        ("shop", "models/shop/versions/3", True),
        ("shop", "models/shop/aliases/production", True),
        ("shop", "models/shopping", False),
        ("shop-*", "models/shop-1", True),
        ("shop-*", "models/shop", False),
        ("shop-*", "models/workshop-1", False),
        ("", "models/shop", False),
        ("*", "models/shop", True),
    ],
)
def test_a_limit_is_an_id_or_a_prefix(models: str, name: str, allowed: bool) -> None:
    who = someone(AccessRole.PREDICT, models=models, domains="x")
    request = inference_pb2.PredictRequest(model=name)
    if allowed:
        PREDICT.check_message(who, request)
    else:
        with pytest.raises(PermissionDenied):
            PREDICT.check_message(who, request)


@pytest.mark.parametrize("name", ["models/shop/../other", "models/shop\n", "shop/other", "models/"])
def test_a_name_that_cannot_be_read_is_not_taken_for_one_in_reach(name: str) -> None:
    who = someone(AccessRole.PREDICT, models="shop*", domains="")
    with pytest.raises(InvalidName):
        PREDICT.check_message(who, inference_pb2.PredictRequest(model=name))


def test_both_the_model_and_the_domain_of_a_job_must_be_in_reach() -> None:
    who = someone(AccessRole.ADAPT, models="shop", domains="night")
    ADAPT.check_message(who, job("models/shop", "domains/night"))
    for model, domain in (("models/shop", "domains/day"), ("models/other", "domains/night")):
        with pytest.raises(PermissionDenied):
            ADAPT.check_message(who, job(model, domain))
