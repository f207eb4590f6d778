"""The Node client, built from its lock and run against the real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import Service

from acclimate.demo import digits

NODE = Path(__file__).parents[2] / "clients/node"
OLDEST = 20
RUN: dict[str, Any] = {"cwd": NODE, "capture_output": True, "text": True, "timeout": 120}


def node_is_old() -> bool:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return True
    told = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    return int(told.removeprefix("v").partition(".")[0]) < OLDEST


@pytest.fixture(scope="module")
def built() -> None:
    """Its packages exactly as locked, its stubs from today's protos, its sources type-checked."""
    for command in (["npm", "ci", "--ignore-scripts", "--silent"], ["npm", "run", "build"]):
        done = subprocess.run(command, check=False, **RUN)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path / "home", serve={}, work={"idle_priority": False})
    running.serve.start()
    running.work.start()
    try:
        yield running
    finally:
        running.stop()


def write_folder(folder: Path) -> None:
    for number, example in enumerate(digits.uci(train=200, holdout=10).train):
        path = folder / example.label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(example.image)


@pytest.mark.skipif(node_is_old(), reason=f"needs Node.js {OLDEST} or newer with npm")
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("built")
def test_the_node_client_uploads_adapts_watches_and_predicts(
    service: Service, tmp_path: Path
) -> None:
    write_folder(tmp_path / "photos")
    with service.client():
        pass
    environment = os.environ | {
        "ACCLIMATE_SERVER": service.target,
        "ACCLIMATE_PHOTOS": str(tmp_path / "photos"),
    }
    done = subprocess.run(["npm", "test"], check=False, env=environment, **RUN)
    assert done.returncode == 0, done.stdout + done.stderr
