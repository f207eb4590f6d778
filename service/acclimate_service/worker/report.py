"""The report of a job, drawn as one HTML file that opens offline."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping

import pydantic


def render(told: Mapping[str, pydantic.JsonValue], *, read: Callable[[str], bytes]) -> str:
    """The HTML of a report document; *read* opens an image by its blob's digest."""
    return (
        f"<!doctype html><title>Report</title><pre>{html.escape(json.dumps(told, indent=1))}</pre>"
    )
