from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.training import tiny

from acclimate_service.domain import strategy_form
from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.training.diagnosis import Failure
from acclimate_service.training.strategies import MODIFIERS, STRATEGIES, BatchNorm, parse


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("head", []),
        ("late", ["neck"]),
        ("tail", ["block1", "neck"]),
        ("full", ["stem", "block0", "block1", "neck"]),
        ("surgical", ["stem", "block0"]),
        ("last:3", ["block0", "block1", "neck"]),
        ("stages:stem,block1", ["stem", "block1"]),
        ("tail+no-replay+gradual", ["block1", "neck"]),
        ("stages:neck,stem,neck", ["stem", "neck"]),
        ("stages:block1,head", ["block1"]),
        ("stages:head", []),
        ("last:0", []),
        ("last:99", ["stem", "block0", "block1", "neck"]),
    ],
)
def test_a_strategy_names_the_stages_that_move(text, stages):
    net = tiny.network()
    assert [net.stage_names[i] for i in parse(text).trained(net)] == stages


def test_the_trunk_ends_before_the_first_stage_that_moves():
    net = tiny.network()
    assert parse("stages:block0,neck").boundary(net) == 1
    assert parse("head").boundary(net) == len(net.stages)


@pytest.mark.parametrize("text", ["auto", "", "lsat:2", "last:x", "stages:", "tail+", "tail+fast"])
def test_what_is_not_in_the_table_is_refused(text):
    with pytest.raises(InvalidSpec, match="there is no"):
        parse(text)


def test_what_can_be_written_is_what_the_table_has():
    assert tuple(STRATEGIES) == strategy_form.ROWS
    assert tuple(MODIFIERS) == strategy_form.MODIFIERS


def test_a_stage_that_the_network_lacks_is_refused():
    with pytest.raises(InvalidSpec, match="no stage 'block7'"):
        parse("stages:block7").trained(tiny.network())


@pytest.mark.parametrize("modifier", MODIFIERS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_modifier_goes_with_every_row(name, modifier):
    assert parse(f"{name}+{modifier}").name == f"{name}+{modifier}"


def test_only_the_naive_row_lets_batchnorm_drift():
    updating = {s.name for s in STRATEGIES.values() if s.batch_norm is BatchNorm.UPDATED}
    assert updating == {"naive"}


def test_every_row_modifier_and_failure_stands_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs/strategies.md").read_text()
    assert [name for name in (*STRATEGIES, *MODIFIERS) if f"| `{name}` |" not in page] == []
    assert [failure for failure in Failure if f"| {failure.value} |" not in page] == []
