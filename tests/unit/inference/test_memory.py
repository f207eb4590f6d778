"""How much memory there is, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from acclimate_service.inference import control_groups as groups
from acclimate_service.inference import memory
from acclimate_service.inference.execution import Execution

MIB = 2**20


def control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, **files: object
) -> None:
    """A tree of control groups; a double underscore in a name is a slash."""
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        path = tmp_path / "root" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    found = list(groups.of("memory", tmp_path / "root", tmp_path / "own"))
    monkeypatch.setattr(groups, "of", lambda _: found)


def test_without_a_limit_there_is_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, monkeypatch, "0::/\n", memory_max="max")
    told = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    assert memory.limit() == int(told) * 1024
    assert 0 < memory.available() <= memory.limit()


def test_the_narrowest_control_group_above_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(
        tmp_path,
        monkeypatch,
        "0::/system/acclimate\n",
        system__acclimate__memory_max=100 * MIB,
        system__memory_max=80 * MIB,
        other__memory_max=10 * MIB,
        memory_max="max",
    )
    assert memory.limit() == 80 * MIB


def test_in_a_container_the_root_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, monkeypatch, "0::/\n", memory_max=64 * MIB)
    assert memory.limit() == 64 * MIB
    assert memory.usual_budget(Execution()) == 32 * MIB


def test_control_groups_of_the_first_version_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(
        tmp_path,
        monkeypatch,
        "4:memory:/docker/abc\n3:cpuset:/\n0::/\n",
        **{"memory__memory.limit_in_bytes": 2**63 - 4096},
        **{"memory__docker__abc__memory.limit_in_bytes": 96 * MIB},
        **{"memory__docker__abc__memory.usage_in_bytes": 60 * MIB},
        **{"memory__docker__abc__memory.stat": f"cache 9\ntotal_inactive_file {20 * MIB}"},
    )
    assert memory.limit() == 96 * MIB
    assert memory.available() == 56 * MIB


def test_a_session_counts_for_more_than_its_file_and_a_tail_for_less_than_a_whole() -> None:
    tail = memory.session_bytes(10 * MIB, Execution(), shares=True)
    whole = memory.session_bytes(10 * MIB, Execution())
    assert 10 * MIB < tail < whole
    assert memory.session_bytes(10 * MIB, Execution.for_gpu()) > 3 * 10 * MIB
