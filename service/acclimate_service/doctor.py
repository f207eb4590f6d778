"""What on this machine would keep the service from working. ``acclimate doctor``.

Every examination is one function that yields findings. Nothing here is imported that
might be the very thing that is broken: what may crash is tried in a child process.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from acclimate_service.inference import cores, memory

SERVE = ("alembic", "grpc", "numpy", "onnxruntime", "PIL", "pydantic_settings", "sqlalchemy")
TRAIN = ("onnx", "onnxscript", "safetensors", "timm", "torch", "torchvision")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"}
GIB = 2**30
SPARE_DISK = 5 * GIB
SPARE_MEMORY = 2 * GIB
OPEN_FILES = 4096
CLOCK_SECONDS = 5.0


class Level(enum.Enum):
    """How bad a finding is."""

    GOOD = "good"
    WARNING = "warning"  # works, but not as well as it could
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; ``advice`` is empty where nothing is to be done."""

    what: str
    level: Level
    told: str
    advice: str = ""


def libraries() -> Iterator[Finding]:
    """What is installed, for serving and for training."""
    for what, modules, extra in (("serving", SERVE, "serve,cpu"), ("training", TRAIN, "train,cpu")):
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        told = f"missing: {', '.join(missing)}" if missing else "all libraries are installed"
        level = Level.GOOD if not missing else Level.BAD if what == "serving" else Level.WARNING
        advice = f"pip install 'acclimate[{extra}]'" if missing else ""
        yield Finding(what=what, level=level, told=told, advice=advice)


def runtimes() -> Iterator[Finding]:
    """Whether exactly one wheel provides the module ``onnxruntime``."""
    found = {}
    for name in RUNTIMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    told = ", ".join(f"{name} {version}" for name, version in found.items()) or "none"
    if len(found) > 1:
        advice = "they overwrite each other: pip uninstall all of them, then install one"
        yield Finding(what="onnxruntime", level=Level.BAD, told=told, advice=advice)
    elif not found:
        yield Finding(what="onnxruntime", level=Level.BAD, told=told, advice="install one of them")
    else:
        code = "import onnxruntime as o; print(*o.get_available_providers())"
        answer = tried(code)
        level = Level.GOOD if answer.worked else Level.BAD
        yield Finding(what="onnxruntime", level=level, told=f"{told}: {answer.told}")


def torch_pair() -> Iterator[Finding]:
    """Whether torch and torchvision, if they are there, belong together."""
    if importlib.util.find_spec("torch") is None:
        return
    answer = tried(
        "import torch, torchvision; torchvision.ops.nms; "
        "print(torch.__version__, torchvision.__version__)"
    )
    advice = "" if answer.worked else "install versions that were built for each other"
    level = Level.GOOD if answer.worked else Level.BAD
    yield Finding(what="torch, torchvision", level=level, told=answer.told, advice=advice)


def gpu() -> Iterator[Finding]:
    """The GPUs, and whether both runtimes can use them."""
    if shutil.which("nvidia-smi") is None:
        yield Finding(what="gpu", level=Level.GOOD, told="none: everything runs on the CPU")
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)  # noqa: S607
    yield Finding(
        what="gpu", level=Level.GOOD, told=listed.stdout.strip() or "nvidia-smi is silent"
    )
    for what, code in (
        ("torch on the gpu", _TORCH_ON_GPU),
        ("onnxruntime on the gpu", _ORT_ON_GPU),
    ):
        if importlib.util.find_spec(what.partition(" ")[0]) is not None:
            answer = tried(code)
            advice = "" if answer.worked else "install the gpu extra and a driver that fits it"
            level = Level.GOOD if answer.worked else Level.WARNING
            yield Finding(what=what, level=level, told=answer.told, advice=advice)


def settings() -> Iterator[Finding]:
    """Whether the environment names settings that there are none of: a typo is a default."""
    answer = tried(_ASK_SETTINGS)
    if answer.worked and answer.told != "all are known":
        yield Finding(
            what="settings",
            level=Level.WARNING,
            told=f"ignored, as there are no such settings: {answer.told}",
            advice="correct the names, or take the variables out of the environment",
        )


def folder(home: Path) -> Iterator[Finding]:
    """Whether the home folder can hold a store: rights, locks, durability, space."""
    place = next(path for path in (home, *home.parents) if path.exists())
    what = f"folder {home}"
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"acclimate")
            file.flush()
            began = time.monotonic()
            os.fsync(file.fileno())
            seconds = time.monotonic() - began
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        advice = "the service's user must be able to write, lock and sync here"
        yield Finding(what=what, level=Level.BAD, told=str(error.strerror), advice=advice)
        return
    yield Finding(
        what=what, level=Level.GOOD, told=f"writable; a sync takes {seconds * 1e3:.1f} ms"
    )
    if home.exists() and home.stat().st_mode & 0o007:
        told = "other accounts of this machine may read it, images and models"
        yield Finding(what="privacy", level=Level.WARNING, told=told, advice=f"chmod o-rwx {home}")
    kind = file_system(place)
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "keep the database elsewhere: PostgreSQL, or a home folder on a local disk"
        told = f"{kind} cannot hold an SQLite database safely"
        yield Finding(what="file system", level=Level.WARNING, told=told, advice=advice)
    free = shutil.disk_usage(place).free
    level = Level.GOOD if free > SPARE_DISK else Level.WARNING if free > GIB else Level.BAD
    advice = "" if level is Level.GOOD else "free some, or see `acclimate store tidy --help`"
    yield Finding(what="disk", level=level, told=f"{free / GIB:.1f} GiB free", advice=advice)


def store(url: str, blobs: Path | None) -> Iterator[Finding]:
    """Whether the store answers, and whose clock it goes by. Makes none where none is.

    *blobs* is the folder of the blobs, None where they are in a bucket.
    """
    if importlib.util.find_spec("sqlalchemy") is None:
        return
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        yield Finding(what="store", level=Level.GOOD, told="none yet: the first start makes it")
        return
    answer = tried(_ASK_STORE, ACCLIMATE_DATABASE_URL=url)
    if not answer.worked:
        advice = "is the database running, and the URL right?"
        yield Finding(what="store", level=Level.BAD, told=answer.told, advice=advice)
        return
    revision, _, ahead = answer.told.partition("|")
    yield Finding(what="store", level=Level.GOOD, told=f"answers; schema {revision}")
    seconds = float(ahead)
    level = Level.GOOD if abs(seconds) < CLOCK_SECONDS else Level.WARNING
    advice = "" if level is Level.GOOD else "run a time service (NTP) on both machines"
    yield Finding(what="clock", level=level, told=f"{seconds:+.2f} s to the store's", advice=advice)
    if blobs is None:
        return
    level = Level.GOOD if blobs.is_dir() else Level.BAD
    told = "there" if blobs.is_dir() else f"{blobs} is missing, and the database is not empty"
    if level is Level.GOOD or not revision.startswith("empty"):
        yield Finding(what="blobs", level=level, told=told)


def bucket(url: str) -> Iterator[Finding]:
    """Whether the object store at *url* lets blobs be written, read, listed and deleted."""
    what = f"blobs in {url}"
    if importlib.util.find_spec("obstore") is None:
        advice = "pip install 'acclimate[bucket]'"
        yield Finding(what=what, level=Level.BAD, told="missing: obstore", advice=advice)
        return
    answer = tried(_ASK_BUCKET, ACCLIMATE_BLOBS=url)
    if answer.worked:
        yield Finding(what=what, level=Level.GOOD, told=answer.told)
        return
    why, _, advice = answer.told.partition("; ")
    yield Finding(what=what, level=Level.BAD, told=why, advice=advice)


def limits() -> Iterator[Finding]:
    """Open files, processors, memory."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    level = Level.GOOD if files >= OPEN_FILES else Level.WARNING
    advice = "" if level is Level.GOOD else f"ulimit -n {OPEN_FILES * 4}: every stream takes one"
    yield Finding(what="open files", level=level, told=str(files), advice=advice)
    free, whole = memory.available(), memory.limit()
    level = Level.GOOD if free > SPARE_MEMORY else Level.WARNING
    advice = "" if level is Level.GOOD else "serving takes 0.3 GiB, training 1 to 2 GiB and more"
    told = (
        f"{free / GIB:.1f} of {whole / GIB:.1f} GiB free, {cores.usable()} "
        f"processors; on a CPU, versions may take {memory.SHARE * whole / GIB:.1f} GiB unless "
        "ACCLIMATE_RESIDENT_MIB says otherwise"
    )
    yield Finding(what="memory", level=level, told=told, advice=advice)


# ── what they use ────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a child process printed last, and whether it ended well."""

    worked: bool
    told: str


# The URL, which may hold a password, comes by the environment: a command line is for all to see.
_ASK_STORE = """
import datetime as dt, os
from acclimate_service.store import migrations
from acclimate_service.store.engine import Database, open_engine
database = Database(open_engine(os.environ["ACCLIMATE_DATABASE_URL"]))
print(database.read(lambda tx: f"{migrations.current(tx.connection) or 'empty'}, newest known "
      f"{migrations.HEAD}|{(tx.now - dt.datetime.now(dt.UTC)).total_seconds()}"))
"""
_ASK_BUCKET = """
import os, sys, time
from acclimate_service.domain.errors import ServiceError
from acclimate_service.store.objects import Objects
began = time.monotonic()
try:
    Objects(os.environ["ACCLIMATE_BLOBS"]).examine()
except ServiceError as error:
    sys.exit(str(error))
print(f"can be written, read, listed and deleted; all four took "
      f"{(time.monotonic() - began) * 1e3:.0f} ms")
"""
_ASK_SETTINGS = """
import os
from acclimate_service import config
print(", ".join(config.unknown(os.environ)) or "all are known")
"""
_TORCH_ON_GPU = "import torch; print(torch.ones(2, device='cuda').sum().item())"
_ORT_ON_GPU = """
import onnxruntime
found = onnxruntime.get_available_providers()
assert "CUDAExecutionProvider" in found, found
print("CUDA")
"""


def tried(code: str, *, seconds: float = 60.0, **environment: str) -> Answer:
    """Run *code* in a Python of its own, where it may crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired:
        return Answer(worked=False, told=f"no answer within {seconds:g} s")
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).split("\n")
    told = next((line for line in reversed(lines) if line.strip()), f"exit {done.returncode}")
    return Answer(worked=done.returncode == 0, told=told.strip()[:300])


def file_system(place: Path) -> str:
    """The type of the file system that holds *place*; empty where that cannot be told."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        holding = [m for m in mounts if place.resolve().is_relative_to(m[1])]
        return max(holding, key=lambda m: len(m[1]))[2] if holding else ""
    return ""


def examinations(home: Path, url: str, blobs: str = "") -> list[Callable[[], Iterator[Finding]]]:
    """All of them, in the order in which they are told. *blobs* is as in the settings."""
    far = "://" in blobs
    local = None if far else Path(blobs).absolute() if blobs else home / "blobs"
    return [
        libraries,
        runtimes,
        torch_pair,
        gpu,
        settings,
        lambda: folder(home),
        lambda: store(url, local),
        *([lambda: bucket(blobs)] if far else []),
        limits,
    ]


def main() -> None:
    """Examine and print; the exit code is 1 if anything is bad."""
    home = Path(os.environ.get("ACCLIMATE_HOME", "acclimate-data")).absolute()
    url = os.environ.get("ACCLIMATE_DATABASE_URL") or f"sqlite:///{home / 'acclimate.db'}"
    blobs = os.environ.get("ACCLIMATE_BLOBS", "")
    found = [finding for examine in examinations(home, url, blobs) for finding in examine()]
    if "--json" in sys.argv[1:]:
        told = [{**asdict(finding), "level": finding.level.value} for finding in found]
        print(json.dumps({"findings": told}, indent=2))  # noqa: T201
    else:
        signs = {Level.GOOD: "ok  ", Level.WARNING: "warn", Level.BAD: "BAD "}
        for finding in found:
            print(f"{signs[finding.level]}  {finding.what}: {finding.told}")  # noqa: T201
            if finding.advice:
                print(f"      → {finding.advice}")  # noqa: T201
    sys.exit(any(finding.level is Level.BAD for finding in found))


if __name__ == "__main__":
    main()
