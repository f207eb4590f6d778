"""What of the Dockerfile can be held to its promises without building it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

DOCKERFILE = (Path(__file__).resolve().parents[3] / "Dockerfile").read_text()


def _stage(name: str) -> str:
    """The lines of a stage."""
    found = re.search(rf"(?ms)^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE)
    assert found, name
    return found[1]


def _check(what: str) -> float:
    """Seconds that the health check is given: of Docker's own options, or ``asks``, ``ends``."""
    found = re.search(
        {"asks": r"health --timeout (\d+)", "ends": r"timeout -s KILL (\d+) "}.get(
            what, rf"--{what}=(\d+)s"
        ),
        _stage("answering"),
    )
    assert found, what
    return float(found[1])


def _ask(
    folder: Path, acclimate: str, *, ends: str, given: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the health check as Docker would, on an ``acclimate`` that is this shell script."""
    (program := folder / "acclimate").write_text(f"#!/bin/sh\n{acclimate}\n")
    program.chmod(0o755)
    (command,) = re.findall(r"^ +CMD (\[.*health.*\])", _stage("answering"), re.MULTILINE)
    shell, option, script = json.loads(command)
    return subprocess.run(
        [shell, option, re.sub(r"KILL \d+", f"KILL {ends}", script)],
        check=False,
        capture_output=True,
        text=True,
        env=given | {"PATH": f"{folder}:{os.defpath}"},
    )


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, "127.0.0.1:50051"),
        ({"ACCLIMATE_PORT": "8500"}, "127.0.0.1:8500"),
        ({"ACCLIMATE_SERVER": "127.0.0.1:7", "ACCLIMATE_PORT": "8"}, "127.0.0.1:7"),
    ],
)
def test_the_health_check_of_an_image_asks_the_port_that_is_set(
    tmp_path: Path, given: dict[str, str], asked: str
) -> None:
    told = _ask(tmp_path, 'echo "$@"', ends="20", given=given)
    assert told.stdout.split() == ["health", "--timeout", "5", "--server", asked]
    assert told.returncode == 0


def test_the_health_check_passes_on_what_it_was_told(tmp_path: Path) -> None:
    assert _ask(tmp_path, "exit 1", ends="20", given={}).returncode == 1


def test_a_health_check_that_hangs_ends_itself_before_docker_gives_it_up(tmp_path: Path) -> None:
    # Docker before 23 lets it run then, and each one makes the next one slower.
    told = _ask(tmp_path, "exec sleep 60", ends="0.2", given={})
    assert told.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL}
    assert _check("asks") < _check("ends") < _check("timeout") < _check("interval")


def test_a_user_without_a_name_has_the_volume_for_a_home() -> None:
    # Docker gives one that is not in /etc/passwd the root folder, which is read-only.
    (volume,) = re.findall(r"(?m)^VOLUME (\S+)$", _stage("runtime"))
    for name in ("HOME", "ACCLIMATE_HOME"):
        assert re.search(rf"(?m)^(?:ENV)? +{name}={volume} ", _stage("runtime"))


@pytest.mark.parametrize("image", ["serve", "work", "all"])
def test_an_upgrade_brings_a_layer_without_the_packages(image: str) -> None:
    kind = "serve" if image == "serve" else "work"
    copies = re.findall(r"(?m)^COPY --from=(\S+) ", _stage(image))
    assert copies == [f"{kind}-environment", "program"]
    # So that nothing of ours, which changes with each commit, is in the layer of the packages.
    needed = re.findall(r"(?m)^COPY (.*)", _stage(f"{kind}-environment"))
    assert needed == [f"requirements/{kind}.txt /requirements/"]


def test_both_images_that_answer_are_checked_and_the_worker_is_not() -> None:
    assert re.search(r"(?m)^FROM answering AS serve$", DOCKERFILE)
    assert re.search(r"(?m)^FROM answering AS all$", DOCKERFILE)
    assert "HEALTHCHECK NONE" in _stage("work")


def test_pythons_own_library_is_compiled_before_the_rights_to_do_so_are_given_up() -> None:
    before, _, after = _stage("runtime").partition("\nUSER ")
    assert "RUN python -m compileall " in before
    assert after
