from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import grpc
import numpy as np
import prometheus_client
import pytest
from tests.integration.rpc_server import (
    LABELS,
    SIZE,
    Service,
    ask,
    classifier,
    model,
    plain,
    promote,
    refusal,
    sha256,
    version,
)

from acclimate.oip import grpc_service_pb2 as pb
from acclimate.oip import grpc_service_pb2_grpc as pb_grpc
from acclimate.oip import model_config_pb2
from acclimate.v1 import inference_pb2
from acclimate_service.domain.names import ModelName
from acclimate_service.rpc import convert_oip, convert_predictions
from acclimate_service.rpc import oip as oip_module

Tensor = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor

PIXELS = np.zeros((2, SIZE, SIZE, 3), np.uint8)
PIXELS[0, ..., 0] = 250  # red
PIXELS[1, ..., 2] = 250  # blue


def oip(service: Service) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(service.channel)


def served(service: Service, name: str, gain: float = 10) -> str:
    """A model with one version in production; the version's id."""
    owner = model(service.store, name)
    made = version(service.store, owner, classifier(gain))
    promote(service, owner, made)
    return made.version


def raw(name: str, pixels: np.ndarray[Any, Any] = PIXELS, **more: Any) -> pb.ModelInferRequest:
    kind = {"uint8": "UINT8", "float32": "FP32"}[pixels.dtype.name]
    return pb.ModelInferRequest(
        model_name=name,
        inputs=[Tensor(name="images", datatype=kind, shape=pixels.shape)],
        raw_input_contents=[pixels.tobytes()],
        **more,
    )


def numbers(answer: pb.ModelInferResponse, name: str) -> Any:
    """A raw FP32 output as an array."""
    index = [output.name for output in answer.outputs].index(name)
    output = answer.outputs[index]
    assert output.datatype == "FP32"
    return np.frombuffer(answer.raw_output_contents[index], "<f4").reshape(output.shape)


def test_the_server_says_what_it_is_and_that_it_is_ready(service: Service) -> None:
    assert oip(service).ServerLive(pb.ServerLiveRequest(), timeout=10).live
    assert oip(service).ServerReady(pb.ServerReadyRequest(), timeout=10).ready
    told = oip(service).ServerMetadata(pb.ServerMetadataRequest(), timeout=10)
    assert told.name == "acclimate"
    assert {"statistics", "schedule_policy", "classification"} <= set(told.extensions)
    assert "sequence" not in told.extensions


def test_every_form_of_the_same_images_has_the_same_answer(service: Service) -> None:
    number = served(service, "forms")
    files = [plain((250, 0, 0)), plain((0, 0, 250))]
    packed = b"".join(struct.pack("<I", len(file)) + file for file in files)
    typed = pb.ModelInferRequest(
        model_name="forms", inputs=[Tensor(name="images", datatype="UINT8", shape=PIXELS.shape)]
    )
    typed.inputs[0].contents.uint_contents.extend(PIXELS.ravel().tolist())
    floats = pb.ModelInferRequest(
        model_name="forms", inputs=[Tensor(name="images", datatype="FP32", shape=PIXELS.shape)]
    )
    floats.inputs[0].contents.fp32_contents.extend(PIXELS.ravel().tolist())
    encoded = pb.ModelInferRequest(
        model_name="forms",
        inputs=[Tensor(name="images", datatype="BYTES", shape=[2])],
        raw_input_contents=[packed],
    )
    listed = pb.ModelInferRequest(
        model_name="forms", inputs=[Tensor(name="images", datatype="BYTES", shape=[2])]
    )
    listed.inputs[0].contents.bytes_contents.extend(files)
    infer = oip(service).ModelInfer
    first = infer(raw("forms", id="7"), timeout=10)
    assert (first.model_name, first.model_version, first.id) == ("forms", number, "7")
    assert first.parameters["sha256"].string_param == sha256(classifier(10))
    assert [output.name for output in first.outputs] == ["probabilities", "logits", "embeddings"]
    wanted = numbers(first, "logits")
    assert wanted.argmax(axis=1).tolist() == [0, 2]
    column = pb.ModelInferRequest()
    column.CopyFrom(encoded)
    column.inputs[0].shape[:] = [2, 1]
    for other in (raw("forms", PIXELS.astype(np.float32)), encoded, column):
        assert np.array_equal(numbers(infer(other, timeout=10), "logits"), wanted)
    for other in (typed, floats, listed):
        answer = infer(other, timeout=10)
        assert not answer.raw_output_contents
        values = np.array(answer.outputs[1].contents.fp32_contents, np.float32)
        assert np.array_equal(values.reshape(wanted.shape), wanted)
    native = service.inference.Predict(ask("models/forms", *files, logits=True), timeout=10)
    assert np.array_equal([list(row.logits) for row in native.predictions], wanted)


def test_only_the_outputs_asked_for_come_and_classes_come_by_name(service: Service) -> None:
    served(service, "asked")
    best = Output(name="probabilities")
    best.parameters["classification"].int64_param = 2
    answer = oip(service).ModelInfer(raw("asked", outputs=[best]), timeout=10)
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "BYTES", [2, 2])
    found, start = [], 0
    while start < len(answer.raw_output_contents[0]):
        (length,) = struct.unpack_from("<I", answer.raw_output_contents[0], start)
        found.append(answer.raw_output_contents[0][start + 4 : start + 4 + length].decode())
        start += 4 + length
    assert [element.split(":")[1:] for element in found[::2]] == [["0", "red"], ["2", "blue"]]


REFUSED: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "unknown model": (raw("nobody"), "ALIAS_NOT_FOUND"),
    "unknown version": (raw("refused", model_version="99"), "VERSION_NOT_FOUND"),
    "path as name": (raw("../etc"), "INVALID_NAME"),
    "wrong size": (raw("refused", PIXELS[:, 1:]), "INPUT_MISMATCH"),
    "wrong rank": (raw("refused", PIXELS[0]), "INPUT_MISMATCH"),
    "no image": (raw("refused", PIXELS[:0]), "INPUT_MISMATCH"),
    "NaN": (raw("refused", np.full(PIXELS.shape, np.nan, np.float32)), "INPUT_MISMATCH"),
    "infinity": (raw("refused", np.full(PIXELS.shape, np.inf, np.float32)), "INPUT_MISMATCH"),
    "normalised": (raw("refused", np.full(PIXELS.shape, 0.5, np.float32)), "INPUT_MISMATCH"),
    "out of range": (raw("refused", np.full(PIXELS.shape, 256, np.float32)), "INPUT_MISMATCH"),
    "another output": (raw("refused", outputs=[Output(name="boxes")]), "INPUT_MISMATCH"),
    "another input": (
        pb.ModelInferRequest(model_name="refused", inputs=[Tensor(name="x")]),
        "INPUT_MISMATCH",
    ),
    "no input": (pb.ModelInferRequest(model_name="refused"), "INPUT_MISMATCH"),
    "two files an image": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[Tensor(name="images", datatype="BYTES", shape=[1, 2])],
            raw_input_contents=[struct.pack("<II", 0, 0)],
        ),
        "INPUT_MISMATCH",
    ),
    "another type": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[Tensor(name="images", datatype="INT64", shape=PIXELS.shape)],
            raw_input_contents=[b""],
        ),
        "INPUT_MISMATCH",
    ),
    "too few bytes": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[Tensor(name="images", datatype="UINT8", shape=PIXELS.shape)],
            raw_input_contents=[bytes(10)],
        ),
        "INPUT_MISMATCH",
    ),
    "torn strings": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[Tensor(name="images", datatype="BYTES", shape=[1])],
            raw_input_contents=[b"\xff\xff\xff\x7fabc"],
        ),
        "INPUT_MISMATCH",
    ),
    "no such priority": (
        raw("refused", parameters={"priority": pb.InferParameter(uint64_param=9)}),
        "INVALID_SPEC",
    ),
    "no image file": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[Tensor(name="images", datatype="BYTES", shape=[1])],
            raw_input_contents=[b"\x03\x00\x00\x00abc"],
        ),
        "BAD_IMAGE",
    ),
    "shared memory": (
        pb.ModelInferRequest(
            model_name="refused",
            inputs=[
                Tensor(
                    name="images",
                    datatype="UINT8",
                    shape=PIXELS.shape,
                    parameters={"shared_memory_region": pb.InferParameter(string_param="r")},
                )
            ],
        ),
        "INVALID_SPEC",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_model_does_not_take_is_refused_with_its_reason(
    service: Service, case: str
) -> None:
    if case == next(iter(REFUSED)):
        served(service, "refused")
    request, reason = REFUSED[case]
    code, info = refusal(lambda: oip(service).ModelInfer(request, timeout=10))
    assert info.reason == reason
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_a_timeout_that_cannot_be_met_is_refused_as_a_deadline(service: Service) -> None:
    served(service, "hurried")
    request = raw("hurried", np.zeros((256, SIZE, SIZE, 3), np.uint8))
    request.parameters["timeout"].int64_param = 1  # microsecond
    code, info = refusal(lambda: oip(service).ModelInfer(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")


def test_a_stream_answers_in_order_and_says_what_it_cannot_answer(service: Service) -> None:
    served(service, "flow")
    sent = [raw("flow", id="1"), raw("nobody", id="2"), raw("flow", id="3")]
    sent[2].parameters["triton_enable_empty_final_response"].bool_param = True
    answers = list(oip(service).ModelStreamInfer(iter(sent), timeout=10))
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert "ALIAS_NOT_FOUND" in answers[1].error_message
    assert answers[2].infer_response.parameters["triton_final_response"].bool_param


def test_metadata_and_configuration_name_what_is_taken_and_given(service: Service) -> None:
    number = served(service, "described")
    told = oip(service).ModelMetadata(pb.ModelMetadataRequest(name="described"), timeout=10)
    assert list(told.versions) == [number]
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [
        ("images", "UINT8", [-1, SIZE, SIZE, 3])
    ]
    assert list(told.outputs[0].shape) == [-1, len(LABELS)]
    config = oip(service).ModelConfig(pb.ModelConfigRequest(name="described"), timeout=10).config
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert list(config.input[0].dims) == [SIZE, SIZE, 3]
    assert config.parameters["labels"].string_value.split("\n") == list(LABELS)


def test_statistics_count_what_was_answered_and_what_failed(service: Service) -> None:
    number = served(service, "counted")
    for _ in range(3):
        oip(service).ModelInfer(raw("counted"), timeout=10)
    service.inference.Predict(ask("models/counted", plain((1, 2, 3))), timeout=10)
    refusal(lambda: service.inference.Predict(ask("models/counted", b"no image"), timeout=10))
    told = oip(service).ModelStatistics(pb.ModelStatisticsRequest(name="counted"), timeout=10)
    (stats,) = told.model_stats
    assert (stats.name, stats.version, stats.inference_count) == ("counted", number, 7)
    assert stats.inference_stats.success.count == 4
    assert stats.inference_stats.fail.count == 1
    assert stats.inference_stats.compute_infer.ns > 0
    assert stats.last_inference > 0


def scraped(service: Service, model: str) -> dict[str, float]:
    """The samples of a model under Triton's names; a failure's with its reason."""
    text = prometheus_client.generate_latest(service.server.metrics.registry).decode()
    found = re.findall(r"^(nv_inference_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    return {
        name + (f":{reason[1]}" if (reason := re.search(r'reason="(\w+)"', labels)) else ""): float(
            value
        )
        for name, labels, value in found
        if f'model="{model}"' in labels and 'version="1"' in labels
    }


def test_prometheus_tells_under_tritons_names_what_the_statistics_tell(service: Service) -> None:
    served(service, "scraped")
    for _ in range(3):
        oip(service).ModelInfer(raw("scraped"), timeout=10)
    refusal(lambda: service.inference.Predict(ask("models/scraped", b"no image"), timeout=10))
    hurried = raw("scraped", np.zeros((256, SIZE, SIZE, 3), np.uint8))
    hurried.parameters["timeout"].int64_param = 1
    refusal(lambda: oip(service).ModelInfer(hurried, timeout=10))
    told = oip(service).ModelStatistics(pb.ModelStatisticsRequest(name="scraped"), timeout=10)
    (stats,) = told.model_stats
    own = service.inference.ListVersionStatistics(
        inference_pb2.ListVersionStatisticsRequest(parent="models/scraped"), timeout=10
    ).statistics[0]
    times = stats.inference_stats
    assert scraped(service, "scraped") == {
        "nv_inference_request_success": 3,
        "nv_inference_request_failure:OTHER": 1,
        "nv_inference_request_failure:REJECTED": 1,
        "nv_inference_request_failure:CANCELED": 0,
        "nv_inference_request_failure:BACKEND": 0,
        "nv_inference_count": 6,
        "nv_inference_exec_count": stats.execution_count,
        "nv_inference_pending_request_count": 0,
        "nv_inference_request_duration_us": times.success.ns // 1000,
        "nv_inference_queue_duration_us": times.queue.ns // 1000,
        "nv_inference_compute_input_duration_us": times.compute_input.ns // 1000,
        "nv_inference_compute_infer_duration_us": times.compute_infer.ns // 1000,
        "nv_inference_compute_output_duration_us": times.compute_output.ns // 1000,
    }
    assert (times.compute_output.count, own.encode.count) == (3, 3)
    assert 0 < own.infer.nanoseconds == times.compute_infer.ns
    assert (own.version, own.images, own.failed.count) == ("models/scraped/versions/1", 6, 2)


def test_statistics_of_a_model_that_is_not_there_are_refused(service: Service) -> None:
    request = inference_pb2.ListVersionStatisticsRequest(parent="models/nobody")
    code, _ = refusal(lambda: service.inference.ListVersionStatistics(request, timeout=10))
    assert code is grpc.StatusCode.NOT_FOUND


def test_an_index_lists_more_versions_than_it_could_and_refuses_what_it_cannot(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = served(service, "many")
    for gain in range(3):
        version(service.store, ModelName("many"), classifier(20 + gain))
    index, request = oip(service).RepositoryIndex, pb.RepositoryIndexRequest()
    everything = index(request, timeout=10).models
    assert len({item.version for item in everything if item.name == "many"}) == 4
    monkeypatch.setattr(oip_module, "INDEX_LIMIT", len(everything))
    assert list(index(request, timeout=10).models) == list(everything)
    monkeypatch.setattr(oip_module, "INDEX_LIMIT", len(everything) - 1)
    code, info = refusal(lambda: index(request, timeout=10))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
    ready_now = index(pb.RepositoryIndexRequest(ready=True), timeout=10).models
    assert ("many", answering) in {(item.name, item.version) for item in ready_now}
    assert {item.state for item in ready_now} == {"READY"}


def test_the_index_says_why_what_is_not_loaded_is_not(service: Service) -> None:
    number = served(service, "asleep")
    oip(service).RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name="asleep"), timeout=10
    )
    broken = version(service.store, model(service.store, "cracked"), b"no model")
    refusal(lambda: service.inference.Predict(ask(str(broken), plain((1, 2, 3))), timeout=10))
    listed = oip(service).RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
    why = {(item.name, item.version): item.reason for item in listed}
    assert "load it again" in why["asleep", number]
    assert "no model that can be loaded" in why["cracked", broken.version]


def states(service: Service, name: str) -> dict[str, str]:
    listed = oip(service).RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
    return {item.version: item.state for item in listed if item.name == name}


def ready(service: Service, name: str, number: str = "") -> bool:
    request = pb.ModelReadyRequest(name=name, version=number)
    return bool(oip(service).ModelReady(request, timeout=10).ready)


def test_an_unloaded_model_is_neither_ready_nor_answered_until_it_is_loaded_again(
    service: Service,
) -> None:
    number = served(service, "moody")
    other = version(service.store, ModelName("moody"), classifier(11)).version
    assert (ready(service, "moody"), ready(service, "moody", other)) == (True, False)
    assert states(service, "moody") == {number: "READY", other: "UNAVAILABLE"}
    oip(service).RepositoryModelUnload(
        pb.RepositoryModelUnloadRequest(model_name="moody"), timeout=10
    )
    assert not ready(service, "moody")
    assert states(service, "moody") == {number: "UNAVAILABLE", other: "UNAVAILABLE"}
    assert service.health("models/moody") == "NOT_SERVING"
    for request in (raw("moody"), raw("moody", model_version=number)):
        _, info = refusal(partial(oip(service).ModelInfer, request, timeout=10))
        assert info.reason == "NOT_READY"
    oip(service).RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="moody"), timeout=30)
    assert ready(service, "moody")
    answer = oip(service).ModelInfer(raw("moody"), timeout=10)
    assert answer.model_version == number
    assert service.health("models/moody") == "SERVING"


def test_loading_moves_no_alias(service: Service) -> None:
    name = model(service.store, "unaliased")
    made = version(service.store, name, classifier(13))
    oip(service).RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="unaliased"), timeout=30
    )
    assert ready(service, "unaliased", made.version)
    assert not ready(service, "unaliased")
    assert service.store.registry.list_aliases(name) == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.RepositoryModelLoadRequest(model_name="nobody"), "NOT_FOUND"),
        (pb.RepositoryModelLoadRequest(model_name="a/../b"), "INVALID_NAME"),
        (pb.RepositoryModelLoadRequest(model_name="m", repository_name="r"), "INVALID_SPEC"),
        (
            pb.RepositoryModelLoadRequest(
                model_name="m",
                parameters={
                    "file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"a model of mine")
                },
            ),
            "INVALID_SPEC",
        ),
    ],
)
def test_a_load_takes_a_model_that_is_there_and_nothing_else(
    service: Service, request_: pb.RepositoryModelLoadRequest, reason: str
) -> None:
    _, info = refusal(lambda: oip(service).RepositoryModelLoad(request_, timeout=10))
    assert info.reason == reason


def test_what_is_not_offered_is_unimplemented(service: Service) -> None:
    call: Any = service.channel.unary_unary("/inference.GRPCInferenceService/TraceSetting")
    code, _ = refusal(lambda: call(b"", timeout=10))
    assert code is grpc.StatusCode.UNIMPLEMENTED


# tritonclient registers the same protobuf symbols, so it gets a process of its own.
TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("triton")
told = client.get_model_metadata("triton", as_json=True)
config = client.get_model_config("triton", as_json=True)
size = int(config["config"]["input"][0]["dims"][0])
pixels = np.zeros((2, size, size, 3), np.uint8)
pixels[0, ..., 0] = pixels[1, ..., 2] = 250
image = triton.InferInput("images", pixels.shape, "UINT8")
image.set_data_from_numpy(pixels)
result = client.infer("triton", [image], priority=1, timeout=10_000_000, request_id="7")
assert result.get_response().id == "7"
best = result.as_numpy("probabilities").argmax(axis=1).tolist()
named = client.infer(
    "triton", [image], outputs=[triton.InferRequestedOutput("probabilities", class_count=1)]
).as_numpy("probabilities")
files = triton.InferInput("images", [1], "BYTES")
files.set_data_from_numpy(np.array([open(sys.argv[2], "rb").read()], dtype=object))
green = client.infer("triton", [files]).as_numpy("logits").argmax(axis=1).tolist()
streamed = []
client.start_stream(lambda result, error: streamed.append((result, error)))
for name in ("triton", "nobody", "triton"):
    client.async_stream_infer(name, [image], request_id=name)
client.stop_stream()
try:
    client.infer("nobody", [image])
    refused = ""
except triton.InferenceServerException as error:
    refused = error.status()
statistics = client.get_inference_statistics("triton", as_json=True)["model_stats"][0]
states = {m["name"]: m["state"] for m in client.get_model_repository_index(as_json=True)["models"]}
client.unload_model("triton")
gone = client.is_model_ready("triton")
client.load_model("triton")
print(json.dumps({
    "inputs": told["inputs"],
    "best": best,
    "named": [element.decode().split(":")[-1] for element in named.ravel()],
    "green": green,
    "streamed": [error is None for _, error in streamed],
    "refused": refused,
    "success": statistics["inference_stats"]["success"]["count"],
    "state": states["triton"],
    "ready": [gone, client.is_model_ready("triton")],
}))
"""


def test_tritons_own_client_works_unchanged(service: Service, tmp_path: Any) -> None:
    served(service, "triton")
    image = tmp_path / "green.png"
    image.write_bytes(plain((0, 250, 0)))
    outcome = subprocess.run(
        [sys.executable, "-c", TRITON, f"127.0.0.1:{service.port}", str(image)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert outcome.returncode == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    size = str(SIZE)
    assert told == {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": ["-1", size, size, "3"]}],
        "best": [0, 2],
        "named": ["red", "blue"],
        "green": [1],
        "streamed": [True, False, True],
        "refused": "StatusCode.NOT_FOUND",
        "success": "5",
        "state": "READY",
        "ready": [False, True],
    }


@pytest.mark.parametrize("given", [{"int64_param": 7}, {"uint64_param": 7}, {"string_param": "a"}])
def test_a_sequence_is_refused_by_name_and_not_answered_as_single_requests(
    service: Service, given: dict[str, Any]
) -> None:
    served(service, f"single-{next(iter(given)).partition('_')[0]}")
    request = raw(f"single-{next(iter(given)).partition('_')[0]}")
    # What Triton's client sends with every request that belongs to none.
    request.parameters["sequence_id"].int64_param = 0
    assert oip(service).ModelInfer(request, timeout=10).outputs
    request.parameters["sequence_id"].CopyFrom(pb.InferParameter(**given))
    code, info = refusal(lambda: oip(service).ModelInfer(request, timeout=10))
    assert (code, info.metadata["field"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameters.sequence_id",
    )


def test_floats_are_not_read_on_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(service, "floats")
    threads = []
    usual = convert_predictions.whole

    def whole(values: Any) -> Any:
        threads.append(threading.current_thread().name)
        return usual(values)

    monkeypatch.setattr(convert_predictions, "whole", whole)
    monkeypatch.setattr(convert_oip, "whole", whole)
    pixels = PIXELS.astype(np.float32)
    tensor = inference_pb2.Tensor(shape=pixels.shape, floats=pixels.tobytes())
    question = inference_pb2.PredictRequest(model="models/floats", tensor=tensor)
    typed = raw("floats", pixels)
    typed.inputs[0].contents.fp32_contents.extend(pixels.ravel().tolist())
    del typed.raw_input_contents[:]
    assert service.inference.Predict(question, timeout=10).predictions
    for request in (raw("floats", pixels), typed):
        assert oip(service).ModelInfer(request, timeout=10).outputs
    assert [name.partition("_")[0] for name in threads] == ["tensors"] * 3
