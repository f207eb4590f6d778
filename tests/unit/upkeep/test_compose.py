"""The compose file is an example that nobody runs here, so at least it must fit the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from acclimate_service.config import ServeSettings, WorkSettings

ROOT = Path(__file__).resolve().parents[3]
yaml: Any = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return found["services"]  # type: ignore[no-any-return]  # it is YAML


def test_what_it_sets_are_settings_that_both_processes_agree_on(services: dict[str, Any]) -> None:
    known = set(ServeSettings.model_fields) | set(WorkSettings.model_fields)
    given = [services[name]["environment"] for name in ("serve", "work")]
    for environment in given:
        ours = {name for name in environment if name.startswith("ACCLIMATE_")}
        assert {name.removeprefix("ACCLIMATE_").lower() for name in ours} <= known
    shared = [{k: v for k, v in e.items() if k != "ACCLIMATE_INSECURE"} for e in given]
    assert shared[0] == shared[1]
    assert {"ACCLIMATE_DATABASE_URL", "ACCLIMATE_BLOBS", "AWS_ENDPOINT_URL"} <= shared[0].keys()


def test_it_builds_stages_that_there_are_and_waits_for_services_that_there_are(
    services: dict[str, Any],
) -> None:
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text())
    for service in services.values():
        assert service.get("build", {}).get("target", "serve") in stages
        assert set(service.get("depends_on", ())) <= services.keys()


def test_a_port_without_protection_is_published_on_the_loopback_alone(
    services: dict[str, Any],
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
