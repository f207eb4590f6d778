"""Become a process of the service that ends when the one that started it ends.

    python -m acclimate._bound PARENT_PID serve

A child asks the kernel for SIGTERM at its parent's death, which no SIGKILL of the
parent can prevent, and then turns into the process; the request survives that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind to the parent, then become the process."""
    parent, process = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(1)
    words = [sys.executable, "-m", f"acclimate_service.{process}"]
    os.execv(words[0], words)  # noqa: S606  our own interpreter


if __name__ == "__main__":
    main()
