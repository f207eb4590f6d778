"""Standard streams that cost a line, not the process, when they cannot be written to.

Logs often lie on the disk that has filled up, or go to a terminal that is gone. What
cannot be told then must not end a server that answers, or a worker that trains.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import structlog


class Forgiving:
    """A text stream over *stream*, whose failures to write are not raised."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write *text* if that can be done now."""
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all that can be written of *lines*."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written, if that can be done now; else with what is written next."""
        try:
            self._stream.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:  # of everything else a stream has
        return getattr(self._stream, name)


def forgive() -> None:
    """Make this process's standard streams forgiving. For the beginning of a process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream))


def log_json_lines() -> None:
    """Log to the standard error stream: a JSON object a line, with the ids of what it is about."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
