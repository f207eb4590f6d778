from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.unit.client.fake_service import Service

from acclimate import Client, Preprocessing, WeightsSource
from acclimate.errors import ServiceFault
from acclimate.resources import Decoding
from acclimate.v1 import registry_pb2


def pieces(
    name: str, content: bytes, digest: str = ""
) -> list[registry_pb2.ExportModelVersionResponse]:
    piece = registry_pb2.ExportModelVersionResponse
    half = len(content) // 2
    return [
        piece(file=name, chunk=content[:half]),
        piece(
            file=name,
            chunk=content[half:],
            sha256=digest or hashlib.sha256(content).hexdigest(),
        ),
    ]


def test_weights_travel_whole_in_pieces(service: Service, client: Client, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes(range(256)) * 10_000)
    model, job = client.register_model(
        "digits", "timm/resnet18", weights=weights, labels=["1", "2"], source_domain="pens"
    )
    messages = service.seen[0][1]
    assert isinstance(messages, list)
    assert b"".join(message.chunk for message in messages) == weights.read_bytes()
    assert max(len(message.chunk) for message in messages) <= 2**20
    assert messages[0].draft.source_domain == "domains/pens"
    assert model.weights == WeightsSource(kind="FILE")
    assert job is not None
    assert job.name == "jobs/j1"


def test_a_backbone_has_no_job(service: Service, client: Client) -> None:
    model, job = client.register_model(
        "digits",
        "timm/resnet18",
        weights=WeightsSource(kind="PACKAGE", reference="some-weights"),
        preprocessing=Preprocessing(size=64, mean=(0.5, 0.5, 0.5)),
    )
    messages = service.seen[0][1]
    assert isinstance(messages, list)
    assert messages[0].draft.preprocessing.size == 64
    assert not messages[0].draft.preprocessing.std
    assert messages[0].draft.decoding == registry_pb2.DECODING_UNSPECIFIED  # the service's choice
    assert model.decoding == "full"  # of a server that names none
    assert str(model.architecture) == "timm/resnet18"
    assert job is None


@pytest.mark.parametrize("decoding", ["full", "scaled"])
def test_how_jpegs_are_decoded_is_asked_for_and_shown(
    service: Service, client: Client, decoding: Decoding
) -> None:
    model, _ = client.register_model("digits", "timm/resnet18", decoding=decoding)
    messages = service.seen[0][1]
    assert isinstance(messages, list)
    name = f"DECODING_{decoding.upper()}"
    assert registry_pb2.Decoding.Name(messages[0].draft.decoding) == name
    assert model.decoding == decoding


def test_an_export_is_written_and_checked(service: Service, client: Client, tmp_path: Path) -> None:
    service.export = pieces("model.onnx", b"onnx") + pieces("manifest.json", b"{}")
    files = client.export("digits/2", tmp_path / "out")
    assert files.files == ("model.onnx", "manifest.json")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == b"onnx"
    assert files.sha256["manifest.json"] == hashlib.sha256(b"{}").hexdigest()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files.files)


def test_a_file_with_another_digest_gets_no_name(
    service: Service, client: Client, tmp_path: Path
) -> None:
    service.export = pieces("model.onnx", b"onnx", digest="00" * 32)
    with pytest.raises(ServiceFault, match=r"model\.onnx arrived with the digest"):
        client.export("digits/2", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_stops_in_the_middle_of_a_file_gets_no_name(
    service: Service, client: Client, tmp_path: Path
) -> None:
    service.export = pieces("model.onnx", b"onnx")[:1]
    with pytest.raises(ServiceFault):
        client.export("digits/2", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "", "model.pkl"])
def test_the_service_cannot_choose_where_a_file_is_written(
    service: Service, client: Client, tmp_path: Path, name: str
) -> None:
    service.export = pieces(name, b"evil")
    with pytest.raises(ServiceFault, match="unknown file"):
        client.export("digits/2", tmp_path / "in")
    assert not (tmp_path / "model.onnx").exists()


def test_a_version_shows_its_manifest(client: Client) -> None:
    version = client.version("digits/2")
    assert (version.manifest["seed"], version.manifest["blend"]) == (3, 0.5)
    assert version.variants == ("int8",)
    assert version.parent == "models/digits/versions/1"


@pytest.mark.parametrize("version", ["2", "digits/2", "models/digits/versions/2"])
def test_a_version_can_be_named_in_three_ways(client: Client, version: str) -> None:
    alias = client.promote("digits", version)
    assert alias.name == "models/digits/aliases/production"
    assert alias.version == "models/digits/versions/2"
