"""What plain fine-tuning does to the same model on the same images, for comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from acclimate.errors import ServiceFault


@dataclass(frozen=True, kw_only=True)
class Naive:
    """Accuracies on the verify images, in [0, 1], and how long it took."""

    target_before: float
    target_after: float
    source_before: float
    source_after: float
    seconds: float


def fine_tune(home: Path, job: str, *, threads: int, limit_seconds: float) -> Naive:
    """Fine-tune *job*'s incumbent the usual way on *job*'s images, in a process of its own.

    The usual way: every weight, Adam at 1e-3, BatchNorm updating, no holdout looked at.

    Raises:
        ServiceFault: the process failed, or took longer than *limit_seconds*.
    """
    words = [sys.executable, "-m", "acclimate_service.worker.naive"]
    words += ["--home", str(home), "--job", job, "--threads", str(threads), "--json"]
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=limit_seconds, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        raise ServiceFault(
            f"naive fine-tuning took more than {limit_seconds:g} s", reason="NAIVE_TOO_SLOW"
        ) from None
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ServiceFault(f"naive fine-tuning failed: {last}", reason="NAIVE_FAILED")
    return Naive(**json.loads(ended.stdout))
