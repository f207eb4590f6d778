"""The control groups that this process is in, which may have less than the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def of(
    kind: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[Path]:
    """The folders of this process's control group of a *kind* (cpu, memory) and of all above it.

    In a container the root is the container's own, and what is named lies outside of it.
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            top = root / kind if kinds else root
            group = top / path.lstrip("/")
            yield from (one for one in (group, *group.parents) if one.is_relative_to(top))
