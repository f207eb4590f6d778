from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import sqlalchemy as sa
from tests.integration.rpc_server import (
    SIZE,
    Service,
    ask,
    classifier,
    domain,
    fresh_store,
    model,
    plain,
    promote,
    refusal,
    running,
    sha256,
    version,
)
from tests.integration.watching import failed_moves, until

from acclimate.v1 import inference_pb2, registry_pb2
from acclimate_service.domain.model import MANIFEST_FORMAT
from acclimate_service.domain.names import AliasName, VersionName
from acclimate_service.domain.weights_form import HEAD_BYTES
from acclimate_service.rpc.server import Limits
from acclimate_service.store import aliases, schema
from acclimate_service.store.engine import Transaction
from acclimate_service.store.folder import FolderBlobs

RED = plain((250, 10, 10))
BLUE = plain((10, 10, 250))


def logits(service: Service, name: object) -> list[float]:
    """What the version behind *name* says of red: its gain shows."""
    answer = service.inference.Predict(ask(name, RED, logits=True), timeout=10)
    return list(answer.predictions[0].logits)


# ── predictions ──────────────────────────────────────────────────────────────


def test_an_answer_names_the_version_and_the_digest_that_gave_it(service: Service) -> None:
    content = classifier(10)
    name = model(service.store, "asked-by-version")
    made = version(service.store, name, content)
    promote(service, name, made)
    for asked in (name, f"{name}/aliases/production", made):
        answer = service.inference.Predict(ask(asked, RED, BLUE, id="q1", top_k=2), timeout=10)
        assert (answer.version, answer.sha256, answer.id) == (str(made), sha256(content), "q1")
        best = [prediction.classes[0].label for prediction in answer.predictions]
        assert best == ["red", "blue"]
        assert [len(prediction.classes) for prediction in answer.predictions] == [2, 2]


def test_what_is_not_asked_for_is_not_sent(service: Service) -> None:
    name = model(service.store, "lean")
    promote(service, name, version(service.store, name, classifier(9)))
    lean = service.inference.Predict(ask(name, RED), timeout=10).predictions[0]
    assert (list(lean.probabilities), list(lean.logits), list(lean.embedding)) == ([], [], [])
    full = service.inference.Predict(
        ask(name, RED, probabilities=True, logits=True, embeddings=True), timeout=10
    ).predictions[0]
    assert len(full.probabilities) == len(full.logits) == len(full.embedding) == 3
    assert sum(full.probabilities) == pytest.approx(1)


def test_a_tensor_and_the_file_it_came_from_have_the_same_answer(service: Service) -> None:
    name = model(service.store, "tensors")
    promote(service, name, version(service.store, name, classifier(8)))
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[..., :] = (250, 10, 10)
    tensor = inference_pb2.Tensor(shape=pixels.shape, pixels=pixels.tobytes())
    by_tensor = service.inference.Predict(
        inference_pb2.PredictRequest(model=str(name), tensor=tensor, probabilities=True),
        timeout=10,
    )
    by_file = service.inference.Predict(ask(name, RED, probabilities=True), timeout=10)
    assert by_tensor.predictions == by_file.predictions


def test_a_bad_image_is_named_by_its_place(service: Service) -> None:
    name = model(service.store, "places")
    promote(service, name, version(service.store, name, classifier(7)))
    code, info = refusal(
        lambda: service.inference.Predict(ask(name, RED, b"no image", RED), timeout=10)
    )
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_IMAGE")
    assert info.metadata["index"] == "1"


def test_a_tensor_of_another_size_is_refused_with_the_size_that_is_taken(service: Service) -> None:
    name = model(service.store, "sizes")
    promote(service, name, version(service.store, name, classifier(6)))
    tensor = inference_pb2.Tensor(shape=[1, 8, 8, 3], pixels=bytes(192))
    code, info = refusal(
        lambda: service.inference.Predict(
            inference_pb2.PredictRequest(model=str(name), tensor=tensor), timeout=10
        )
    )
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_MISMATCH")


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("models/nobody", grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND"),
        ("models/nobody/aliases/canary", grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND"),
        ("models/nobody/versions/1", grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND"),
        ("nobody", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
        ("models/../x", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NAME"),
    ],
)
def test_a_name_that_nothing_answers_to_says_so(
    service: Service, name: str, code: grpc.StatusCode, reason: str
) -> None:
    found, info = refusal(lambda: service.inference.Predict(ask(name, RED), timeout=10))
    assert (found, info.reason) == (code, reason)


def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(service: Service) -> None:
    name = model(service.store, "streamed")
    promote(service, name, version(service.store, name, classifier(5)))
    sent = [
        ask(name, RED, id="1"),
        ask(name, b"no image", id="2"),
        ask("models/nobody", RED, id="3"),
        ask(name, BLUE, id="4"),
    ]
    answers = list(service.inference.PredictStream(iter(sent), timeout=10))
    kinds = [answer.WhichOneof("part") for answer in answers]
    assert kinds == ["response", "refusal", "refusal", "response"]
    assert [answers[0].response.id, answers[3].response.id] == ["1", "4"]
    assert [(answers[n].refusal.id, answers[n].refusal.reason) for n in (1, 2)] == [
        ("2", "BAD_IMAGE"),
        ("3", "ALIAS_NOT_FOUND"),
    ]


# ── aliases ──────────────────────────────────────────────────────────────────


def test_a_new_version_answers_only_after_it_is_promoted(service: Service) -> None:
    name = model(service.store, "careful")
    assert refusal(lambda: service.health(str(name)))[0] is grpc.StatusCode.NOT_FOUND
    first = version(service.store, name, classifier(1))
    promote(service, name, first)
    assert service.health(str(name)) == "SERVING"
    second = version(service.store, name, classifier(2))
    assert logits(service, name)[0] == pytest.approx(250 / 255, abs=1e-3)
    alias = promote(service, name, second)
    assert (alias.version, alias.previous) == (str(second), str(first))
    assert logits(service, name)[0] == pytest.approx(500 / 255, abs=1e-3)


def test_a_rollback_goes_back_and_says_when_there_is_nowhere_to_go(service: Service) -> None:
    name = model(service.store, "backward")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 3))
    promote(service, name, first)
    promote(service, name, second)
    back = registry_pb2.RollbackAliasRequest(name=f"{name}/aliases/production", reason="worse")
    assert service.registry.RollbackAlias(back, timeout=30).version == str(first)
    assert service.inference.Predict(ask(name, RED), timeout=10).version == str(first)
    code, info = refusal(lambda: service.registry.RollbackAlias(back, timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_INCUMBENT")
    moves = service.store.registry.alias_history(AliasName("backward", "production"))
    assert moves[0].why == "worse"
    assert moves[0].who.startswith("anonymous at ipv4:127.0.0.1")


def test_an_alias_that_moved_meanwhile_is_not_moved_again(service: Service) -> None:
    name = model(service.store, "raced")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 4))
    promote(service, name, first)
    request = registry_pb2.SetAliasRequest(
        name=f"{name}/aliases/production", version=str(second), expected_version=str(second)
    )
    code, info = refusal(lambda: service.registry.SetAlias(request, timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "ALIAS_MOVED")
    assert service.inference.Predict(ask(name, RED), timeout=10).version == str(first)


@pytest.mark.parametrize(
    ("damage", "reason", "code"),
    [
        ("another file", "BLOB_CORRUPT", grpc.StatusCode.DATA_LOSS),
        ("no file", "BLOB_NOT_FOUND", grpc.StatusCode.DATA_LOSS),
        ("no model", "VERSION_UNLOADABLE", grpc.StatusCode.FAILED_PRECONDITION),
        ("another size", "VERSION_UNLOADABLE", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
def test_a_version_that_does_not_load_leaves_the_old_one_serving(
    service: Service, damage: str, reason: str, code: grpc.StatusCode
) -> None:
    name = model(service.store, "damaged-" + damage.replace(" ", "-"))
    good = version(service.store, name, classifier(1))
    promote(service, name, good)
    content = {
        "no model": b"not an ONNX file " + damage.encode(),
        "another size": classifier(2, size=SIZE * 2),
    }.get(damage, classifier(100 + len(damage)))
    bad = version(service.store, name, content)
    assert isinstance(service.store.blobs, FolderBlobs)
    path = service.store.blobs.path(sha256(content))
    if damage == "another file":
        path.write_bytes(classifier(66))
    if damage == "no file":
        path.unlink()
    found, info = refusal(lambda: promote(service, name, bad))
    assert (found, info.reason) == (code, reason)
    assert service.inference.Predict(ask(name, RED), timeout=10).version == str(good)
    assert service.store.registry.get_alias(AliasName(name.model, "production")).version == good
    assert service.health(str(name)) == "SERVING"


def test_a_deleted_alias_is_answered_no_more(service: Service) -> None:
    name = model(service.store, "dropped")
    promote(service, name, version(service.store, name, classifier(1)))
    service.registry.DeleteAlias(
        registry_pb2.DeleteAliasRequest(name=f"{name}/aliases/production"), timeout=10
    )
    code, info = refusal(lambda: service.inference.Predict(ask(name, RED), timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "ALIAS_NOT_FOUND")
    assert service.health(str(name)) == "NOT_SERVING"


def test_an_alias_that_is_moved_in_the_store_alone_is_followed(service: Service) -> None:
    name = model(service.store, "followed")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 5))
    promote(service, name, first)
    alias = AliasName("followed", "production")
    service.store.registry.set_alias(alias, second, why="a worker promoted it")
    until(lambda: service.inference.Predict(ask(name, RED), timeout=10).version == str(second))
    service.store.registry.delete_alias(alias)
    until(lambda: service.health(str(name)) == "NOT_SERVING")


def test_an_alias_moved_in_the_store_to_what_does_not_load_keeps_the_old_version(
    service: Service,
) -> None:
    name = model(service.store, "stuck")
    good = version(service.store, name, classifier(1))
    promote(service, name, good)
    bad = version(service.store, name, b"not an ONNX file at all")
    last = version(service.store, name, classifier(6))
    alias = AliasName("stuck", "production")
    service.store.registry.set_alias(alias, bad)
    until(lambda: failed_moves(service) >= 1)
    assert service.inference.Predict(ask(name, RED), timeout=10).version == str(good)
    assert service.health(str(name)) == "SERVING"
    service.store.registry.set_alias(alias, last)
    until(lambda: service.inference.Predict(ask(name, RED), timeout=10).version == str(last))


def test_a_newer_worker_s_version_is_served_if_its_format_is_known_and_else_the_one_before(
    service: Service,
) -> None:
    name = model(service.store, "upgraded")
    first, second, third = (version(service.store, name, classifier(n)) for n in (1, 2, 3))
    promote(service, name, first)
    alias = AliasName("upgraded", "production")

    def promoted_by_a_newer_worker(which: VersionName, **newer: object) -> None:
        def write(tx: Transaction) -> None:
            aliases.set_to(tx, alias, which, who="", why="a worker promoted it")
            table = schema.versions
            row = sa.and_(table.c.model == which.model, table.c.id == which.version)
            found = tx.scalar(sa.select(table.c.manifest).where(row))
            tx.run(sa.update(table).where(row).values(manifest={**found, **newer}))

        service.store.database.write(write)

    promoted_by_a_newer_worker(second, carbon={"grams": 7})
    until(lambda: service.inference.Predict(ask(name, RED), timeout=10).version == str(second))
    failed = failed_moves(service)
    promoted_by_a_newer_worker(third, format=MANIFEST_FORMAT + 1)
    until(lambda: failed_moves(service) > failed)
    assert service.inference.Predict(ask(name, RED), timeout=10).version == str(second)
    code, info = refusal(
        lambda: service.registry.GetModelVersion(
            registry_pb2.GetModelVersionRequest(name=str(third)), timeout=10
        )
    )
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_UNLOADABLE")


def test_no_prediction_fails_while_versions_are_promoted_under_load(service: Service) -> None:
    name = model(service.store, "swapped")
    gains = range(1, 9)
    versions = {version(service.store, name, classifier(gain)): gain for gain in gains}
    promote(service, name, next(iter(versions)))
    done = threading.Event()
    failures: list[object] = []
    seen: set[str] = set()

    def load() -> None:
        while not done.is_set():
            try:
                answer = service.inference.Predict(ask(name, RED, logits=True), timeout=20)
            except grpc.RpcError as error:
                failures.append(error)
                return
            seen.add(answer.version)
            gain = versions[VersionName.parse(answer.version)]
            if abs(answer.predictions[0].logits[0] - gain * 250 / 255) > 1e-3:
                failures.append(answer)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for made in [*versions] * 3:
        promote(service, name, made)
    done.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(seen) > 2


def test_a_restarted_server_serves_what_the_aliases_point_at(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    name, broken = model(store, "kept"), model(store, "broken")
    with running(store, Limits()) as service:
        made = version(store, name, classifier(3))
        promote(service, name, made)
        bad = version(store, broken, b"no ONNX file")
        store.registry.set_alias(AliasName("broken", "production"), bad)
    with running(store, Limits()) as service:
        assert service.inference.Predict(ask(name, RED), timeout=10).version == str(made)
        assert service.health() == "SERVING"
        assert service.health(str(broken)) == "NOT_SERVING"
    store.close()


# ── registering and taking along ─────────────────────────────────────────────


EMPTY = b"\x02" + bytes(7) + b"{}"  # a safetensors file of no tensors


def registration(
    chunks: list[bytes], digest: str, **changes: object
) -> Iterator[registry_pb2.RegisterModelRequest]:
    draft: dict[str, object] = {
        "model_id": "mine",
        "architecture": registry_pb2.Architecture(library="timm", name="resnet18"),
        "weights": registry_pb2.WeightsSource(kind=registry_pb2.WeightsSource.KIND_FILE),
        "labels": ["a", "b"],
        "promote_to": "production",
        "request_id": "register-mine",
    }
    yield registry_pb2.RegisterModelRequest(
        draft=registry_pb2.RegisterModelRequest.Draft(**{**draft, **changes})  # type: ignore[arg-type]
    )
    for chunk in chunks:
        yield registry_pb2.RegisterModelRequest(chunk=chunk)
    yield registry_pb2.RegisterModelRequest(
        commit=registry_pb2.RegisterModelRequest.Commit(sha256=digest)
    )


def test_registering_a_file_keeps_it_and_queues_its_job_once(service: Service) -> None:
    file = EMPTY + bytes(range(256)) * 5000
    chunks = [file[start : start + 300_000] for start in range(0, len(file), 300_000)]
    first = service.registry.RegisterModel(registration(chunks, sha256(file)), timeout=30)
    assert first.model.weights.reference == sha256(file)
    assert service.store.blobs.get(sha256(file)) == file
    again = service.registry.RegisterModel(registration(chunks, sha256(file)), timeout=30)
    assert (again.model, again.job) == (first.model, first.job)
    assert first.job.startswith("jobs/")


def test_a_file_that_is_not_what_was_sent_registers_nothing(service: Service) -> None:
    sent = registration([EMPTY], sha256(b"abd"), model_id="torn", request_id="")
    code, info = refusal(lambda: service.registry.RegisterModel(sent, timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_INCOMPLETE")
    cut = list(registration([EMPTY], "", model_id="torn"))[:-1]
    code, info = refusal(lambda: service.registry.RegisterModel(iter(cut), timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_INCOMPLETE")
    code, info = refusal(
        lambda: service.registry.GetModel(
            registry_pb2.GetModelRequest(name="models/torn"), timeout=10
        )
    )
    assert info.reason == "NOT_FOUND"


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([b"\x80\x04\x95" + bytes(20)], "bare pickle"),
        ([b"\x08\x0a\x12\x07pytorch" + bytes(20)], "ONNX"),
        ([b"\xff", b"\xff" * 7, b"{" + bytes(20)], "header"),  # in pieces
        ([b"<html>"], "neither"),  # shorter than what is looked at
    ],
)
def test_a_file_that_cannot_be_weights_is_refused_before_the_rest_is_sent(
    service: Service, sent: list[bytes], why: str
) -> None:
    answered = threading.Event()

    def stream() -> Iterator[registry_pb2.RegisterModelRequest]:
        *messages, commit = registration(sent, sha256(b"".join(sent)), model_id="evil")
        yield from messages
        if sum(map(len, sent)) < HEAD_BYTES:
            yield commit
        answered.wait(30)

    with pytest.raises(grpc.RpcError) as refused:
        service.registry.RegisterModel(stream(), timeout=30)
    answered.set()
    failed: Any = refused.value
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert why in failed.details()
    assert isinstance(service.store.blobs, FolderBlobs)
    assert not list(service.store.blobs.root.joinpath("tmp").iterdir())


def test_a_bare_backbone_has_no_job(service: Service) -> None:
    hub = registry_pb2.WeightsSource(kind=registry_pb2.WeightsSource.KIND_HUB)
    sent = registration(
        [], "", model_id="bare", weights=hub, labels=[], promote_to="", request_id="r-bare"
    )
    answer = service.registry.RegisterModel(sent, timeout=30)
    assert (answer.model.name, answer.job) == ("models/bare", "")


def test_an_id_that_is_taken_is_refused(service: Service) -> None:
    model(service.store, "taken")
    sent = registration([EMPTY], sha256(EMPTY), model_id="taken", request_id="")
    code, info = refusal(lambda: service.registry.RegisterModel(sent, timeout=30))
    assert (code, info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


def test_an_export_is_the_files_to_the_byte(service: Service) -> None:
    content = classifier(12)
    name = model(service.store, "exported")
    made = version(service.store, name, content)
    files: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    for part in service.registry.ExportModelVersion(
        registry_pb2.ExportModelVersionRequest(name=str(made)), timeout=30
    ):
        files[part.file] = files.get(part.file, b"") + part.chunk
        if part.sha256:
            digests[part.file] = part.sha256
    assert set(files) == {"model.onnx", "weights.safetensors", "manifest.json"}
    assert files["model.onnx"] == content
    assert digests == {file: sha256(whole) for file, whole in files.items()}


def test_an_exported_manifest_has_the_whole_verdict_of_which_rows_keep_what_decides(
    service: Service,
) -> None:
    whole = {"decision": "ACCEPT", "measurements": {"sets": [{"classes": [1, 2, 3]}]}}
    name = model(service.store, "judged")
    made = version(service.store, name, classifier(3), verdict=json.dumps(whole).encode())
    assert service.store.registry.get_version(made).manifest.verdict != whole
    sent = registry_pb2.ExportModelVersionRequest(name=str(made))
    parts = list(service.registry.ExportModelVersion(sent, timeout=30))
    manifest = b"".join(part.chunk for part in parts if part.file == "manifest.json")
    assert json.loads(manifest)["verdict"] == whole
    assert parts[-1].sha256 == sha256(manifest)


def test_a_version_in_use_is_not_deleted_and_another_is(service: Service) -> None:
    name = model(service.store, "lived")
    first, second = (version(service.store, name, classifier(gain)) for gain in (1, 7))
    promote(service, name, first)
    code, info = refusal(
        lambda: service.registry.DeleteModelVersion(
            registry_pb2.DeleteModelVersionRequest(name=str(first)), timeout=10
        )
    )
    assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_IN_USE")
    service.inference.Predict(ask(second, RED), timeout=10)
    service.registry.DeleteModelVersion(
        registry_pb2.DeleteModelVersionRequest(name=str(second)), timeout=10
    )
    code, info = refusal(lambda: service.inference.Predict(ask(second, RED), timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND")


def test_forcing_needs_a_reason_and_a_candidate(service: Service) -> None:
    domain(service, "forced")
    for request, reason in (
        (registry_pb2.ForceModelVersionRequest(job="jobs/none", reason=" "), "INVALID_SPEC"),
        (registry_pb2.ForceModelVersionRequest(job="jobs/none", reason="because"), "NOT_FOUND"),
    ):
        _, info = refusal(partial(service.registry.ForceModelVersion, request, timeout=10))
        assert info.reason == reason
