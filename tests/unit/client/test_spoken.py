from __future__ import annotations

import typer.main

from acclimate.cli import app
from acclimate.cli.spoken import COMMANDS, spoken


def test_calls_become_the_commands_that_make_them() -> None:
    assert spoken("there is no 'models/a'; see ListModels") == (
        "there is no 'models/a'; see `acclimate models`"
    )


def test_fields_become_options() -> None:
    assert spoken("set spec.extend_labels to grow it") == "set --extend-labels to grow it"
    assert spoken("spec.variants.0: no") == "--variant: no"
    assert spoken("name a version in `base`") == "name a version in --base"
    assert spoken("overrides.source_margin: no") == "--set source_margin: no"
    assert spoken("spec.guard_overrides.level: no") == "--guard-set level: no"
    assert spoken("add reason=WHY to guard_overrides") == "add reason=WHY to --guard-set"


def test_names_and_sentences_stay_as_they_are() -> None:
    message = "models/spec.ListModelsOf has 3 of domains/base and a_b"
    assert spoken(message) == message


def test_every_command_that_is_named_exists() -> None:
    root = typer.main.get_command(app)
    for words in COMMANDS.values():
        found = root
        for word in words.split():
            found = found.commands[word]  # type: ignore[attr-defined]
