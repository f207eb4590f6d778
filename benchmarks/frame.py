"""What the benchmarks of a server begin and end with: arguments, a home, the result as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import standing

QUICK_SIZE = 64  # pixels a side


def arguments(about: str | None, *, quick: str) -> argparse.ArgumentParser:
    """A parser of the arguments that they share; *quick* says what ``--quick`` does."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--home", type=Path, help="keep the registered model in this folder")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path)
    return parser


@contextlib.contextmanager
def home(given: argparse.Namespace, *, size: int = standing.SIZE) -> Iterator[Path]:
    """A folder in which EfficientNet-Lite0 is registered: the one given, or one that goes."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = given.home or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "acclimate.db").exists():
            standing.register(place, size=size)
        yield place


def keep(given: argparse.Namespace, found: Any) -> None:
    """Write what was found to the file given, if one was."""
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
