"""``acclimate store``: upkeep of what is stored, on the machine that stores it."""

from __future__ import annotations

from typing import Any

import typer

from acclimate.cli.extras import require
from acclimate.cli.processes import SERVE_NEEDS, become

# The service's own program reads the words that follow, `--help` included.
PASSED_ON: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def store(context: typer.Context) -> None:
    """Back up, restore, tidy, erase and give back, beside what is stored; see `store --help`."""
    require(*SERVE_NEEDS, extra="serve,cpu", what="`acclimate store`")
    become("upkeep", *context.args)
