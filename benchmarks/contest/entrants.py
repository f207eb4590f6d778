"""Who takes part, as a table, and how a process is started for each."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest.task import ADAPTED_WEIGHTS, Effort, read_effort

ROOT = Path(__file__).resolve().parents[2]
RIVALS_PYTHON = ROOT / ".cache/bench/bin/python"
HOURS = 2  # after which an entrant is given up


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One way to adapt. A rival's library has an environment of its own."""

    module: str
    summary: str
    rival: bool = False


ENTRANTS = {
    "auto": Entrant(module="ours", summary="Acclimate's default: decides from select images"),
    "head": Entrant(module="ours", summary="Acclimate's engine, the head alone, with replay"),
    "naive": Entrant(module="script", summary="the usual script: everything, Adam 1e-3"),
    "lpft": Entrant(module="script", summary="LP-FT with replay, BatchNorm frozen, best epoch"),
    "fastai": Entrant(module="with_fastai", summary="fastai's fine_tune, its defaults", rival=True),
    "avalanche-replay": Entrant(
        module="with_avalanche", summary="Avalanche's Replay, half of every batch", rival=True
    ),
    "avalanche-lwf": Entrant(
        module="with_avalanche", summary="Avalanche's LwF, alpha 1, temperature 2", rival=True
    ),
    "avalanche-replay+frozen-bn": Entrant(
        module="with_avalanche", summary="the same Replay, BatchNorm frozen by hand", rival=True
    ),
}


class EntrantFailed(Exception):
    """An entrant's process ended without weights; its log says why."""


def entrant(method: str) -> Entrant:
    """The entrant of this name, ``@RATE`` aside; any other is a strategy of Acclimate's engine."""
    return ENTRANTS.get(
        method.partition("@")[0], Entrant(module="ours", summary="a strategy of Acclimate's engine")
    )


def run(method: str, folder: Path, *, threads: int, rivals: Path) -> Effort:
    """Let an entrant do the task that lies in a folder, in a process of its own.

    Raises:
        EntrantFailed: it left no weights, or its environment is not there.
    """
    who = entrant(method)
    python = rivals if who.rival else Path(sys.executable)
    if not python.exists():
        raise EntrantFailed(f"{python} is not there; make it with: ./run bench adaptation --rivals")
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV") or not who.rival
    }
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[name] = str(threads)
    env |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}  # nobody fetches or reports
    log = folder / f"{method}.log"
    words = [str(python), "-m", f"benchmarks.contest.{who.module}", str(folder), method]
    with log.open("wb") as file:
        code = subprocess.run(
            words, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT, check=False,
            timeout=HOURS * 3600,
        ).returncode  # fmt: skip
    if code or not (folder / ADAPTED_WEIGHTS).exists():
        last = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise EntrantFailed(f"{method} ended with {code}, see {log}:\n{last}")
    return read_effort(folder)
