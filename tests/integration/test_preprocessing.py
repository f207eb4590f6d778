"""Training, judging and serving make the same pixels of a file, to the bit.

Each is asked through its own code: a served model whose embeddings are its input, the
judge with a classifier that keeps what it is given, and the trunk that training reads.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tests.integration.rpc_server import (
    PREPROCESSING,
    SIZE,
    Service,
    ask,
    model,
    promote,
    version,
)
from tests.unit.training import tiny

from acclimate.oip import grpc_service_pb2 as pb
from acclimate.oip import grpc_service_pb2_grpc as pb_grpc
from acclimate_service.domain.examples import Example, Role, Split
from acclimate_service.domain.model import Preprocessing
from acclimate_service.domain.names import BatchName, DomainName
from acclimate_service.inference.classifier import Answers, Classifier, Pixels
from acclimate_service.inference.execution import Execution
from acclimate_service.training.trunk import Shown
from acclimate_service.worker.evaluate import VerifySet, predict
from acclimate_service.worker.images import stored_images

SCALED = PREPROCESSING.model_copy(update={"decoding": "scaled"})
LARGE = (1, 3)  # the places of the files that are decoded smaller, if they may be


def mirror() -> bytes:
    """An ONNX file whose embeddings are the pixels that it was given."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["embeddings"]),
        helper.make_node("ReduceMean", ["floats", "sides"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    widths = {"embeddings": SIZE * SIZE * 3, "logits": 3, "probabilities": 3}
    graph = helper.make_graph(
        nodes,
        "mirror",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w]) for n, w in widths.items()],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "sides")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = made.SerializeToString()
    assert onnx.load_model_from_string(content).graph.node
    return content


class Keeping(Classifier):
    """Keeps what it is asked to classify."""

    def __init__(self) -> None:
        self.labels, self.size, self.execution = 3, SIZE, Execution()
        self.digest, self.precision = "", "fp32"
        self.given: list[Pixels] = []

    def run(self, images: Pixels, outputs: Any = ("probabilities",)) -> Answers:
        self.given.append(images)
        return {name: np.zeros((len(images), 3), np.float32) for name in outputs}


def files() -> list[bytes]:
    """Noise, which no two resamplings make alike: large, odd sizes, turned, grey, with alpha."""
    rng = np.random.default_rng(11)
    made = []
    for kind, mode, shape, turned in (
        ("JPEG", "RGB", (97, 61, 3), 1),
        ("JPEG", "RGB", (480, 641, 3), 6),
        ("JPEG", "L", (50, 33), 1),
        ("JPEG", "RGB", (1081, 1437, 3), 3),
        ("PNG", "RGB", (31, 200, 3), 1),
        ("PNG", "RGBA", (40, 40, 4), 1),
        ("WEBP", "RGB", (64, 48, 3), 1),
    ):
        picture = Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)
        exif = Image.Exif()
        exif[0x0112] = turned
        file = io.BytesIO()
        picture.save(file, kind, exif=exif)
        made.append(file.getvalue())
    return made


def example(file: bytes) -> Example:
    digest = hashlib.sha256(file).hexdigest()
    return Example(
        domain=DomainName("d"),
        batch=BatchName("d", "b"),
        content=digest,
        blob=digest,
        label="red",
        role=Role.TRAIN,
        split=Split.TRAIN,
        id="",
    )


def by_serving(service: Service, preprocessing: Preprocessing) -> dict[str, Any]:
    """The pixels that each protocol's request of the files reaches the model with."""
    name = model(service.store, f"mirror-{preprocessing.decoding}")
    made = version(service.store, name, mirror(), preprocessing=preprocessing)
    promote(service, name, made)
    native = service.inference.Predict(ask(name, *files(), embeddings=True), timeout=10)
    packed = b"".join(len(file).to_bytes(4, "little") + file for file in files())
    standard = pb_grpc.GRPCInferenceServiceStub(service.channel).ModelInfer(
        pb.ModelInferRequest(
            model_name=name.model,
            inputs=[
                pb.ModelInferRequest.InferInputTensor(
                    name="images", datatype="BYTES", shape=[len(files())]
                )
            ],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="embeddings")],
            raw_input_contents=[packed],
        ),
        timeout=10,
    )
    shape = (len(files()), SIZE, SIZE, 3)
    return {
        "Predict": np.array([list(row.embedding) for row in native.predictions]).reshape(shape),
        "ModelInfer": np.frombuffer(standard.raw_output_contents[0], "<f4").reshape(shape),
    }


def by_training(
    examples: tuple[Example, ...], blobs: dict[str, bytes], preprocessing: Preprocessing
) -> Any:
    """The unaugmented views that a trunk gives to the network."""
    network = tiny.network()
    network.preprocessing = preprocessing
    source: Any = stored_images(examples, ("red", "green", "blue"), blobs.__getitem__)
    return tiny.trunk(network)._pixels(Shown.plain(source))


def by_judging(
    examples: tuple[Example, ...], blobs: dict[str, bytes], preprocessing: Preprocessing
) -> Any:
    """What the judged classifiers are given."""
    verify = VerifySet(name="v", examples=examples, labels=np.zeros(len(examples), np.int64))
    judged = Keeping()
    predict(
        [judged],
        verify,
        read=blobs.__getitem__,
        preprocessing=preprocessing,
        step=lambda: None,
    )
    return np.concatenate(judged.given)


def by_every_room(service: Service, preprocessing: Preprocessing) -> dict[str, Any]:
    """The pixels of the files by the room that makes them."""
    examples = tuple(map(example, files()))
    blobs = {entry.blob: file for entry, file in zip(examples, files(), strict=True)}
    return {
        **by_serving(service, preprocessing),
        "training": by_training(examples, blobs, preprocessing),
        "judging": by_judging(examples, blobs, preprocessing),
    }


@pytest.fixture(scope="module")
def seen(service: Service) -> dict[str, dict[str, Any]]:
    """By how JPEGs are decoded, and by room."""
    return {how.decoding: by_every_room(service, how) for how in (PREPROCESSING, SCALED)}


@pytest.mark.parametrize("decoding", ["full", "scaled"])
@pytest.mark.parametrize("room", ["Predict", "ModelInfer", "judging"])
def test_a_file_is_the_same_pixels_in_training_and(
    room: str, decoding: str, seen: dict[str, dict[str, Any]]
) -> None:
    found = seen[decoding]
    assert found[room].shape == found["training"].shape
    assert np.array_equal(found[room], found["training"])


def test_the_files_would_show_a_room_that_decodes_otherwise(
    seen: dict[str, dict[str, Any]],
) -> None:
    pairs = zip(seen["full"]["training"], seen["scaled"]["training"], strict=True)
    other = [place for place, (a, b) in enumerate(pairs) if not np.array_equal(a, b)]
    assert other == list(LARGE)


def test_the_files_would_show_a_resize_that_differs(seen: dict[str, dict[str, Any]]) -> None:
    examples = tuple(map(example, files()))
    blobs = {entry.blob: file for entry, file in zip(examples, files(), strict=True)}
    bicubic = PREPROCESSING.model_copy(update={"interpolation": "bicubic"})
    pairs = zip(by_training(examples, blobs, bicubic), seen["full"]["training"], strict=True)
    assert not any(np.array_equal(a, b) for a, b in pairs)
