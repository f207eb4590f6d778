"""The child process that trains: one job in, one end state out.

The parent half (`ChildTrainer`) starts, watches and kills; the child half
(`main`) imports torch, takes the device's lock, waits for a lease on its standard
input and runs the recipe. A dot on the child's standard output is a sign
of life. The child dies with its parent, so a device never has two trainers.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import pydantic
import structlog

from acclimate_service import streams
from acclimate_service.domain.errors import ProviderUnavailable, StoreUnavailable
from acclimate_service.domain.job import Lease
from acclimate_service.domain.names import JobName
from acclimate_service.store import Bucket
from acclimate_service.worker.turns import Watch, turns_of

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_LAST_WORDS = 40  # lines of the child's standard error that are kept
_PLACE = re.compile(r"\w+://\S+|(?<![\w.])(?:/[\w.@~+-]+)+/")


# idle: only what nothing else wants. low: a twentieth of a core that others want too.
Priority = Literal["idle", "low", "usual"]


class Workplace(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a trainer must know before it has a job: where things are, and on what it runs."""

    store_url: str
    blob_root: Path | Bucket
    home: Path
    device: str  # "auto", "cpu", "cuda", "cuda:1"
    threads: int
    gpu_memory_share: float
    cache_bytes: int
    priority: Priority


ENVIRONMENT: Final = {
    # Threads that spin while they wait take the processor from serving, and on two busy cores
    # made training itself five times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch takes fresh memory for each layer of each step, and huge pages where it may: a step
    # takes 0.6 to 0.9 of the processor time, the same to the bit, and up to a fifth more memory.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Below normal, for NVIDIA's Multi-Process Service; without that the device knows no priority
    # that reaches across processes.
    "CUDA_MPS_CLIENT_PRIORITY": "1",
}


class ChildTrainer:
    """A trainer in a process of its own; the parent's view of it."""

    def __init__(self, workplace: Workplace) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "acclimate_service.worker.trainer", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | ENVIRONMENT,
        )
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(workplace.model_dump_json().encode() + b"\n")
            self._child.stdin.flush()
        self._heard = time.monotonic()
        self._ready = False
        self._turns = Watch() if workplace.priority == "idle" else None
        self._printed: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
        threading.Thread(target=self._listen, daemon=True).start()
        self._stderr = threading.Thread(target=self._read_errors, daemon=True)
        self._stderr.start()

    def start(self, lease: Lease) -> None:
        """Give the child its job."""
        self._heard = time.monotonic()
        line = json.dumps({"job": lease.job.job, "worker": lease.worker, "attempt": lease.attempt})
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died first; alive() will say so
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.close()

    def ready(self) -> bool:
        """Whether it has imported torch and found its device."""
        return self._ready

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._child.poll() is None

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._heard

    def starving(self) -> bool:
        """Whether it stands back and, over a while, was not let through."""
        if self._turns is None:
            return False
        return self._turns.starving(time.monotonic(), turns_of(self._child.pid))

    def gave_up(self) -> bool:
        """Whether it ended because the store was out of reach: not the job's fault."""
        return self._child.poll() == os.EX_TEMPFAIL

    def refused(self) -> bool:
        """Whether it ended because its device is not there."""
        return self._child.poll() == os.EX_CONFIG

    def last_words(self) -> str:
        """The exit status and the end of what was printed.

        Those who watch the job are told it: places on this machine and addresses are left out.
        """
        if self.gave_up():
            return "the store was out of reach"
        self._stderr.join(timeout=2)
        status = self._child.poll()
        if status is not None and status < 0:
            ended = f"killed by {_signal(-status)}"
            if status == -signal.SIGKILL:
                ended += ", as the kernel does where memory, or a container's limit of it, runs out"
        else:
            ended = f"exit status {status}"
        return "; ".join([ended, *(_PLACE.sub("…", line) for line in list(self._printed)[-3:])])

    def kill(self) -> None:
        """End the process now and wait until it is gone."""
        self._child.kill()
        self._child.wait()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        while os.read(self._child.stdout.fileno(), 4096):
            self._heard = time.monotonic()
            self._ready = True

    def _read_errors(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            text = line.decode(errors="replace").rstrip()
            self._printed.append(_said(text))
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _said(line: str) -> str:
    """A printed line as people are told it: of a line of the log, what happened."""
    with contextlib.suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and "event" in told:
            return str(told["event"])
    return line


def _signal(number: int) -> str:
    """A signal's name; most of the real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    """The child: wait for a lease on standard input, run its job, exit."""
    _die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is the parent's to answer
    signs = os.dup(1)  # standard output carries signs of life and nothing else
    os.dup2(2, 1)
    streams.forgive()
    streams.log_json_lines()
    workplace = Workplace.model_validate_json(sys.stdin.readline())

    # torch comes in here, while the parent waits for a job to claim.
    from acclimate_service.training.device import choose_device  # noqa: PLC0415

    try:
        device = choose_device(
            workplace.device,
            threads=workplace.threads,
            memory_share=workplace.gpu_memory_share,
        )
    except ProviderUnavailable as error:
        print(error, file=sys.stderr)  # noqa: T201  its last words
        sys.exit(os.EX_CONFIG)
    from acclimate_service import tracing  # noqa: PLC0415
    from acclimate_service.training.cache import FOLDER, Cache  # noqa: PLC0415
    from acclimate_service.worker.recipe import run_job  # noqa: PLC0415

    sign_of_life = partial(os.write, signs, b".")
    # Before it is ready: a job that is claimed never waits for another worker's, with its
    # lease kept and nothing to show for it.
    with _device_lock(workplace.home if device.type == "cpu" else None, str(device)):
        sign_of_life()  # ready
        line = sys.stdin.readline()
        if not line:
            return  # the parent ended before there was a job
        given = json.loads(line)
        lease = Lease(job=JobName(given["job"]), worker=given["worker"], attempt=given["attempt"])
        if device.type == "cpu":
            _step_back(workplace.priority)
        try:
            run_job(
                lease,
                store_url=workplace.store_url,
                blob_root=workplace.blob_root,
                cache=Cache(budget=workplace.cache_bytes, folder=workplace.home / FOLDER),
                device=device,
                threads=workplace.threads,
                sign_of_life=sign_of_life,
                tracer=tracing.configure("acclimate-work"),
            )
        except StoreUnavailable as error:
            log.warning("store out of reach, job given back", error=str(error))
            sys.exit(os.EX_TEMPFAIL)


@contextlib.contextmanager
def _device_lock(home: Path | None, device: str) -> Iterator[None]:
    """Hold a device: the CPU against other workers of one *home*, a GPU against the machine's."""
    folder = home or Path(tempfile.gettempdir())
    path = folder / f"acclimate-{device.replace(':', '-')}.lock"
    # Only read: it may be another account's. And never through a link: whoever may write to
    # the machine's temporary folder must not choose which file is opened.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for the device, which another worker has", device=device)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def _step_back(priority: Priority) -> None:
    """Leave the processor to serving, training's threads too, which inherit this.

    A thread under SCHED_IDLE gives way at once when any other wakes (what requests still
    notice: benchmarks/beside.py). But on a machine full of other work it gets next to no
    turns, and without a right to do so nothing can leave that policy again: whoever
    watches this process then starts another one at nice 10.
    """
    if priority == "usual":
        return
    if priority == "low":
        os.nice(10)
        return
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except PermissionError:
        os.nice(19)
        log.warning("SCHED_IDLE is not allowed here; running at nice 19")


if __name__ == "__main__":
    main()
