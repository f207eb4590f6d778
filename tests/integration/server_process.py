"""The server in a process of its own, as ``acclimate_service.serve`` starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# As `python -m acclimate_service.serve`, telling at the end what it had loaded.
TELLING = """
import atexit, sys
atexit.register(lambda: print("loaded", *sorted(sys.modules), file=sys.stderr))
from acclimate_service.serve import main
main()
"""


@contextmanager
def serving(home: Path, first: str = "", /, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """A real server process over *home*, killed if a test leaves it running.

    *first* is what it executes before it starts to serve.
    """
    home.mkdir(exist_ok=True)
    environment = os.environ | {"ACCLIMATE_HOME": str(home), "ACCLIMATE_PORT": "0"}
    environment |= {f"ACCLIMATE_{name.upper()}": str(value) for name, value in settings.items()}
    with subprocess.Popen(
        [sys.executable, "-c", first + TELLING],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def port_of(process: subprocess.Popen[str]) -> int:
    """The port in the line that a server prints when it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"acclimate serving on 127\.0\.0\.1:(\d+)\n", line)
    assert found is not None, line
    return int(found[1])
