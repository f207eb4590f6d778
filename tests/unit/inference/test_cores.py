from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acclimate_service.inference import control_groups, cores


def allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, *, bound: int, **files: object
) -> int:
    """How many of the processors that it is *bound* to a group with these files may use."""
    *_, path = own.strip().split(":")
    top = folder / "root" / ("" if own.startswith("0::") else "cpu")
    group = top / path.lstrip("/")
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / name.replace("__", ".")).write_text(f"{content}\n")
    (folder / "own").write_text(own)
    found = list(control_groups.of("cpu", folder / "root", folder / "own"))
    monkeypatch.setattr(control_groups, "of", lambda _: found)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    return cores.usable()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)],
)
def test_a_container_s_limit_counts_and_not_the_machine_s_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    assert allowed(tmp_path, monkeypatch, "0::/", bound=8, cpu__max=limit) == expected


@pytest.mark.parametrize(("quota", "expected"), [(-1, 8), (300_000, 3)])
def test_control_groups_of_the_first_version_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: int, expected: int
) -> None:
    files = {"cpu__cfs_quota_us": quota, "cpu__cfs_period_us": 100_000}
    own = "5:cpu,cpuacct:/pod/one\n4:memory:/elsewhere\n".splitlines()[0]
    assert allowed(tmp_path, monkeypatch, own, bound=8, **files) == expected


def test_a_limit_of_a_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root" / "pod").mkdir(parents=True)
    (tmp_path / "root" / "pod" / "cpu.max").write_text("100000 100000\n")
    assert allowed(tmp_path, monkeypatch, "0::/pod/one", bound=8, cpu__max="max 100000") == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound here")
def test_a_process_that_is_bound_to_one_processor_gets_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from acclimate_service.config import ServeSettings, WorkSettings; "
        "print(ServeSettings().threads, WorkSettings().threads)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["1", "1"]
