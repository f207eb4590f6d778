from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acclimate_service.worker.trainer import ENVIRONMENT

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

TAKE = """
import pathlib, torch
kept = torch.ones(32 * 2**20)  # 128 MiB
lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages:")))
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="there are no huge pages here"
)
def test_what_torch_takes_in_a_trainer_lies_on_huge_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKE],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert int(done.stdout) >= 64 * 1024  # KiB
