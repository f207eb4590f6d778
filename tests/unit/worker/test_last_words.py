"""What those who watch a job are told of a trainer that died: how, and not where."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from acclimate_service.worker import trainer
from acclimate_service.worker.trainer import ChildTrainer, Workplace


def last_words(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, said: str, status: int = 0, killed: int = 0
) -> str:
    """The last words of a child that says *said* and ends."""
    end = f"kill -{killed} $$" if killed else f"exit {status}"
    python = folder / "python"
    (folder / "said").write_text(said)
    python.write_text(f'#!/bin/sh\ncat "{folder}/said" >&2\n{end}\n')
    python.chmod(0o755)
    monkeypatch.setattr(trainer.sys, "executable", str(python))  # type: ignore[attr-defined]
    workplace = Workplace(
        store_url="",
        blob_root=folder,
        home=folder,
        device="cpu",
        threads=1,
        gpu_memory_share=1.0,
        cache_bytes=0,
        priority="usual",
    )
    before = set(threading.enumerate())
    child = ChildTrainer(workplace)
    child._child.wait(30)
    for reader in set(threading.enumerate()) - before:
        reader.join(30)
    told = child.last_words()
    for pipe in (child._child.stdin, child._child.stdout, child._child.stderr):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it did not read what it was sent
            pipe.close()
    return told


@pytest.mark.parametrize(("killed", "told"), [(9, "SIGKILL"), (40, "signal 40")])
def test_a_child_that_was_killed_names_the_signal_whether_it_has_a_name_or_not(
    killed: int, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = last_words(monkeypatch, tmp_path, said="", killed=killed)
    assert words.partition(",")[0] == f"killed by {told}"
    assert ("where memory" in words) == (killed == signal.SIGKILL)  # its usual cause, and only its


def test_no_folder_and_no_address_of_the_machine_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = (
        'File "/srv/acclimate/lib/python3.11/torch/serialization.py", line 3, in load\n'
        "OperationalError: postgresql+psycopg://ada:secret@10.1.2.3:5432/store and/or 3/4 images\n"
        "MemoryError: /var/lib/acclimate/blobs/sha256/ab/abcd is too large\n"
    )
    told = last_words(monkeypatch, tmp_path, said=said, status=1)
    assert told == (
        'exit status 1; File "…serialization.py", line 3, in load; '
        "OperationalError: postgresql+… and/or 3/4 images; MemoryError: …abcd is too large"
    )


def test_of_an_absent_store_nothing_else_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = 'connection to server at "10.1.2.3" failed for user "ada"\n'
    told = last_words(monkeypatch, tmp_path, said=said, status=os.EX_TEMPFAIL)
    assert told == "the store was out of reach"


def test_of_the_log_s_lines_what_happened_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = (
        '{"phase": "TUNING", "event": "epoch 3 of 8", "level": "info"}\n[1, 2]\n{"no": "event"}\n'
    )
    told = last_words(monkeypatch, tmp_path, said=said, status=1)
    assert told == 'exit status 1; epoch 3 of 8; [1, 2]; {"no": "event"}'


def test_a_worker_s_log_is_json_lines_to_its_end(tmp_path: Path) -> None:
    nobody = "postgresql+psycopg://ada@127.0.0.1:1/absent"
    done = subprocess.run(
        [sys.executable, "-m", "acclimate_service.work"],
        env=os.environ | {"ACCLIMATE_HOME": str(tmp_path), "ACCLIMATE_DATABASE_URL": nobody},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (lines[-1]["event"], lines[-1]["reason"]) == ("cannot work", "STORE_UNAVAILABLE")
