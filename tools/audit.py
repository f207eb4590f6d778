"""What the advisory databases know of what is locked: ./run audit.

    python tools/audit.py [LOCK...]

Exit code 0: every package was asked about, and nothing is known of any. 1: something is
known. 3: the index could not be asked, about some package or at all; says so loudly,
since silence would read as a pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LOCKS: Final = ("requirements/dev.txt",)
CLEAN, KNOWN, NOT_ASKED = 0, 1, 3
NAMED: Final = 5  # packages that could not be asked about, before they are only counted


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found out. ``known`` are lines to print; ``unasked`` maps packages to why."""

    asked: int
    known: tuple[str, ...]
    unasked: dict[str, str]

    @property
    def code(self) -> int:
        """The exit code; what is known counts also where not everything could be asked."""
        return KNOWN if self.known else NOT_ASKED if self.unasked or not self.asked else CLEAN


def read(output: str, errors: str) -> Answer:
    """What pip-audit said, as JSON on standard output, or in its last words if it gave up."""
    try:
        dependencies = json.loads(output)["dependencies"]
    except (ValueError, KeyError):
        last = errors.strip().splitlines() or ["pip-audit said nothing"]
        return Answer(asked=0, known=(), unasked={"every package": last[-1][:300]})
    return Answer(
        asked=sum("skip_reason" not in each for each in dependencies),
        known=tuple(
            f"{each['name']} {each['version']}: {found['id']}"
            f" (mended in {', '.join(found['fix_versions']) or 'no version yet'})"
            for each in dependencies
            for found in each.get("vulns", ())
        ),
        unasked={
            each["name"]: each["skip_reason"] for each in dependencies if "skip_reason" in each
        },
    )


def ask(lock: str) -> Answer:
    """Ask about every package of *lock*, at the versions that it pins."""
    done = subprocess.run(
        [
            *("pip-audit", "--disable-pip", "--require-hashes", "-r", lock),
            *("--format", "json", "--progress-spinner", "off", "--timeout", "15"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return read(done.stdout, done.stderr)


def main(locks: Sequence[str]) -> int:
    """Ask, and print what was found out; the exit code."""
    answers = {lock: ask(lock) for lock in locks or LOCKS}
    for lock, answer in answers.items():
        print(f"audit: {lock}: asked about {answer.asked} packages")
        for line in answer.known:
            print(f"audit: KNOWN VULNERABILITY: {line}")
        if answer.unasked:
            names = list(answer.unasked)
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            print(f"audit: NOT ASKED ABOUT {', '.join(names[:NAMED])}{more}")
            print(f"audit: because: {answer.unasked[names[0]]}")
    codes = [answer.code for answer in answers.values()]
    return KNOWN if KNOWN in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
