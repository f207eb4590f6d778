"""The compose file is an example that nobody runs here, so at least it must fit the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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
    dockerfile = (ROOT / "Dockerfile").read_text()
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)", dockerfile)
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys()
        if "build" in service:
            target = service["build"]["target"]
            assert target in stages
            # The names that the Dockerfile tells, so that nothing is built twice.
            assert re.search(rf"--target {target} +-t {service['image']} ", dockerfile), name


def test_the_bucket_and_the_database_that_it_makes_are_those_that_are_used(
    services: dict[str, Any],
) -> None:
    environment, postgres = services["work"]["environment"], services["postgres"]["environment"]
    url = sa.make_url(environment["ACCLIMATE_DATABASE_URL"])
    assert (url.host, url.username, url.password, url.database) == (
        "postgres",
        postgres["POSTGRES_USER"],
        postgres["POSTGRES_PASSWORD"],
        postgres["POSTGRES_DB"],
    )
    endpoint, keys = environment["AWS_ENDPOINT_URL"], services["objects"]["environment"]
    assert endpoint == "http://objects:9000"
    assert environment["AWS_ACCESS_KEY_ID"] == keys["MINIO_ROOT_USER"]
    assert environment["AWS_SECRET_ACCESS_KEY"] == keys["MINIO_ROOT_PASSWORD"]
    script = services["bucket"]["entrypoint"][-1]
    assert f"store {endpoint} {keys['MINIO_ROOT_USER']} {keys['MINIO_ROOT_PASSWORD']}" in script
    bucket = environment["ACCLIMATE_BLOBS"].removeprefix("s3://").partition("/")[0]
    assert f"store/{bucket}\n" in script


def test_a_port_without_protection_is_published_on_the_loopback_alone(
    services: dict[str, Any],
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
