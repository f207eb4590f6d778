"""A store in a process whose disk fails: what it acknowledged is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.chaos.shim import NoCompiler, Shim

from acclimate_service.store import open_store

TRIES = 100
WRITE = """
import json, sys
from pathlib import Path
from acclimate_service.domain.errors import StoreUnavailable
from acclimate_service.store import open_store

home, tries = Path(sys.argv[1]), int(sys.argv[2])
store = open_store(f"sqlite:///{home / 'store.db'}", home / "blobs")
kept = []
(home / "begin").touch()
sys.stdin.readline()
for number in range(tries):
    content = f"content {number}"
    try:
        digest = store.blobs.put(content.encode())
        store.audit.record(who="test", action="put", subject=digest)
    except StoreUnavailable as error:
        print(json.dumps({"refused": str(error)}))
    else:
        print(json.dumps({"kept": digest}))
"""


def test_nothing_is_acknowledged_whose_sync_failed(tmp_path: Path) -> None:
    """The files', the folders' and SQLite's own; the shim stands before the C library."""
    try:
        shim = Shim(tmp_path, "disk", logs=True)
    except NoCompiler as error:
        pytest.skip(str(error))
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path), str(TRIES)],
        env=os.environ | shim.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        while not (tmp_path / "begin").exists():
            assert writer.poll() is None
        shim.turn(failing=0.2)
        told = writer.communicate("go\n", timeout=60)[0].splitlines()
    answers = [json.loads(line) for line in told]
    kept = {answer["kept"] for answer in answers if "kept" in answer}
    refused = Counter(answer["refused"].split(": ")[1] for answer in answers if "refused" in answer)
    failed = [Path(one.path).name for one in shim.noted() if one.what == "failed"]
    # What fails when SQLite brings its log into the file refuses nothing: the log is kept.
    databases = sum(name.startswith("store.db") for name in failed)
    assert sum(refused.values()) == TRIES - len(kept)
    assert refused["Input/output error"] == len(failed) - databases > 0
    assert 0 < refused["disk I/O error"] <= databases
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "blobs")
    for digest in kept:
        store.blobs.verify(digest)
    assert kept <= {entry.subject for entry in store.audit.list(page_size=1000).items}
    store.close()
