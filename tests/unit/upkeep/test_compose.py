"""The compose file is an example that no test runs, so at least it must fit the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from acclimate_service.config import CLIENT, ServeSettings, WorkSettings
from acclimate_service.rpc.server import SERVICES

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
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
    stages = re.findall(r"(?m)^FROM \S+ AS (\S+)", DOCKERFILE)
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys()
        if "build" in service:
            target = service["build"]["target"]
            assert target in stages
            # The names that the Dockerfile tells, so that nothing is built twice.
            assert re.search(rf"--target {target} +-t {service['image']} ", DOCKERFILE), name


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
    objects = services["objects"]
    keys, (*flags, kind, root) = objects["environment"], objects["command"]
    assert environment["AWS_ACCESS_KEY_ID"] == keys["ROOT_ACCESS_KEY"]
    assert environment["AWS_SECRET_ACCESS_KEY"] == keys["ROOT_SECRET_KEY"]
    port = environment["AWS_ENDPOINT_URL"].removeprefix("http://objects")
    assert (flags, kind) == (["--port", port], "posix")
    # A folder of its root is a bucket.
    bucket = environment["ACCLIMATE_BLOBS"].removeprefix("s3://").partition("/")[0]
    (volume,) = objects["volumes"]
    assert volume.partition(":")[2] == f"{root}/{bucket}"


def test_what_others_made_is_of_a_named_version(services: dict[str, Any]) -> None:
    theirs = [service["image"] for service in services.values() if "build" not in service]
    assert theirs
    assert all(re.search(r":v?\d", image) for image in theirs)


def test_a_port_without_protection_is_published_on_the_loopback_alone(
    services: dict[str, Any],
) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_container_of_ours_can_do_more_than_its_user(services: dict[str, Any]) -> None:
    for name in ("serve", "work"):
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert services[name]["read_only"]
    # As Kubernetes' "restricted" standard wants it.
    _, *deployments = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_docker_waits_longer_than_a_server_drains(services: dict[str, Any]) -> None:
    drain = ServeSettings.model_fields["drain_seconds"].default
    for name in ("serve", "work"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain


def test_the_example_for_kubernetes_fits_the_rest() -> None:
    text = (ROOT / "deploy" / "kubernetes.yaml").read_text()
    service, *deployments = yaml.safe_load_all(text)
    known = {f"ACCLIMATE_{name.upper()}" for name in ServeSettings.model_fields}
    client = {f"ACCLIMATE_{name}" for name in CLIENT}
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {each["name"] for each in container.get("env", ())} <= known | client
        assert re.search(rf"--target \S+ +-t {container['image']} ", DOCKERFILE)
        assert not pod["enableServiceLinks"]
    serve = deployments[0]["spec"]["template"]
    assert service["spec"]["selector"].items() <= serve["metadata"]["labels"].items()
    (container,) = serve["spec"]["containers"]
    (ready,) = (part for part in container["readinessProbe"]["exec"]["command"] if "." in part)
    assert ready in SERVICES
    drain = ServeSettings.model_fields["drain_seconds"].default
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert serve["spec"]["terminationGracePeriodSeconds"] > drain + waits
