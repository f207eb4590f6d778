"""What stands between a process and its C library, compiled where it is needed: ``shim.c``."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
LAYOUT = struct.Struct("=qI4x")  # as ``struct control``


class NoCompiler(Exception):
    """There is no C compiler here."""


def compiled(folder: Path) -> Path:
    """The shim as a shared library, made once for a folder.

    Raises:
        NoCompiler: nothing can compile it.
    """
    path = folder / "shim.so"
    if not path.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise NoCompiler("the shim between a process and its C library needs a C compiler")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(path), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
    return path


@dataclass(frozen=True, kw_only=True)
class Noted:
    """One line of a shim's log."""

    what: str  # began, synced, failed, named
    inode: int
    path: str


class Shim:
    """One shim for the processes that find ``environment`` in theirs; it may be turned as they run.

    Args:
        folder: where its files lie.
        name: of this one; others may be in the folder too.
        logs: whether it notes every sync and rename.
    """

    def __init__(self, folder: Path, name: str, *, logs: bool = False) -> None:
        self._control = folder / f"{name}.shim"
        self._log = folder / f"{name}.syncs"
        self.turn()
        self.environment = {"LD_PRELOAD": str(compiled(folder)), "CHAOS_SHIM": str(self._control)}
        if logs:
            self.environment["CHAOS_SHIM_LOG"] = str(self._log)

    def turn(self, *, ahead: float = 0.0, failing: float = 0.0) -> None:
        """Set the wall clock *ahead* by so many seconds, and let a share of all syncs fail."""
        content = LAYOUT.pack(int(ahead * 1e9), int(failing * 1e6))
        if self._control.exists():
            with self._control.open("r+b") as file:
                file.write(content)
        else:
            self._control.write_bytes(content)

    def noted(self) -> Iterator[Noted]:
        """What it saw, in order."""
        with self._log.open() as log:
            for line in log:
                what, inode, path = line.rstrip("\n").split(" ", 2)
                yield Noted(what=what, inode=int(inode), path=path)
