"""Which optional parts are installed, and what to install where one is missing."""

from __future__ import annotations

import importlib.util

import typer

from acclimate.cli.refusals import Exit, complain


def require(*modules: str, extra: str, what: str) -> None:
    """Stop with one clear line, unless every module is there. Nothing is imported.

    Raises:
        typer.Exit: one is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        complain(
            "MISSING_EXTRA",
            f"{what} needs {', '.join(missing)}; install it: pip install 'acclimate[{extra}]'",
        )
        raise typer.Exit(Exit.USAGE)
