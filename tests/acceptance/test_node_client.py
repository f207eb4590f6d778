"""The Node client, built from its lock and run against the real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.processes import Service, wait_for
from tests.chaos import pictures
from tests.integration.certificates import Authority

NODE = Path(__file__).parents[2] / "clients/node"
OLDEST = 20
RUN: dict[str, Any] = {"cwd": NODE, "capture_output": True, "text": True, "timeout": 360}


def node_is_old() -> bool:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return True
    told = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout
    return int(told.removeprefix("v").partition(".")[0]) < OLDEST


@pytest.fixture(scope="module")
def built() -> None:
    """Its packages exactly as locked, its stubs from today's protos, its sources type-checked."""
    for command in (
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--silent"],
        ["npm", "run", "build"],
    ):
        done = subprocess.run(command, check=False, **RUN)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "home", serve={}, work={"idle_priority": False}) as running:
        yield running


def write_folder(folder: Path) -> None:
    for number, example in enumerate(pictures.bars(0, 200)):
        path = folder / example.label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(example.image)


@pytest.mark.skipif(node_is_old(), reason=f"needs Node.js {OLDEST} or newer with npm")
@pytest.mark.timeout(500)
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_node_client_uploads_adapts_watches_and_predicts(
    service: Service, tmp_path: Path, slow: bool
) -> None:
    write_folder(tmp_path / "photos")
    with service.client():
        pass
    environment = os.environ | {
        "ACCLIMATE_SERVER": service.target,
        "ACCLIMATE_PHOTOS": str(tmp_path / "photos"),
        "ACCLIMATE_WEIGHTS": str(pictures.weights(tmp_path)),
        "ACCLIMATE_SLOW": "1" if slow else "",
    }
    done = subprocess.run(["npm", "test"], check=False, env=environment, **RUN)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(node_is_old(), reason=f"needs Node.js {OLDEST} or newer with npm")
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("built")
def test_the_node_client_speaks_tls_and_shows_its_certificate(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "tls")
    authority.issue("client")
    certificate, key = authority.issue("server")
    files = {
        "server_certificate": certificate,
        "server_key": key,
        "client_ca": authority.pem,
        "host": "0.0.0.0",  # noqa: S104  127.0.0.2 is called, too
    }
    running = Service(tmp_path / "home", serve=files, work={})
    words = ["tokens", "create", "root", "--role", "admin", "--local", "--json"]
    made = subprocess.run(
        [sys.executable, "-m", "acclimate", *words, "--home", str(running.home)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    running.serve.start()
    try:
        wait_for(lambda: "serving on" in running.serve.log.read_text(), 60, "the server's start")
        environment = os.environ | {
            "ACCLIMATE_TLS_SERVER": running.target,
            "ACCLIMATE_TLS_FOLDER": str(authority.folder),
            "ACCLIMATE_ROOT": json.loads(made.stdout)["secret"],
        }
        words = ["node", "--test", "dist/test/tls.test.js"]
        done = subprocess.run(words, check=False, env=environment, **RUN)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "skipped 0" in done.stdout
    finally:
        running.stop()
