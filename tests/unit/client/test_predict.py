from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.client.fake_service import Service

from acclimate import Client, Prediction, _images, _inference, _questions
from acclimate.errors import InvalidRequest, Unavailable
from acclimate.resources import Refusal
from acclimate.v1 import inference_pb2


def sent(service: Service) -> list[inference_pb2.PredictRequest]:
    return [r for _, r in service.seen if isinstance(r, inference_pb2.PredictRequest)]


def test_paths_and_bytes_are_sent_as_they_are(
    service: Service, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"from a file")
    (first, second) = client.predict("digits", [path, b"from memory"])
    (request,) = sent(service)
    assert list(request.images) == [b"from a file", b"from memory"]
    assert (first.label, first.probability) == ("7", 0.75)
    assert second.version == "models/digits/versions/2"


def test_how_urgent_a_request_is_travels_with_it(service: Service, client: Client) -> None:
    client.predict("digits", b"x", priority=1)
    list(client.predict_stream("digits", [b"x"], priority=3))
    assert [request.priority for request in sent(service)] == [1, 3]


def test_the_domain_of_the_images_travels_with_them(service: Service, client: Client) -> None:
    client.predict("digits", b"x", domain="dock-7")
    list(client.predict_stream("digits", [b"x"], domain="dock-8"))
    client.predict("digits", b"x")
    assert [request.domain for request in sent(service)] == ["dock-7", "dock-8", ""]


def test_one_image_needs_no_list(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    for image in (b"x", path, str(path), np.zeros((8, 8, 3), np.uint8)):
        assert len(client.predict("digits", image)) == 1


def test_arrays_travel_as_one_tensor(service: Service, client: Client) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert len(client.predict("digits", list(images))) == 2
    (request,) = sent(service)
    assert list(request.tensor.shape) == [2, 4, 4, 3]
    assert request.tensor.pixels == images.tobytes()


def test_a_transposed_array_is_sent_row_by_row(service: Service, client: Client) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(3, 4, 4).transpose(1, 2, 0)
    client.predict("digits", image)
    assert sent(service)[0].tensor.pixels == np.ascontiguousarray(image).tobytes()


def test_kinds_and_shapes_are_not_mixed_in_a_request(service: Service, client: Client) -> None:
    small, large = np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    assert len(client.predict("digits", [b"a", b"b", small, large, large, b"c"])) == 6
    assert [len(r.images) or r.tensor.shape[0] for r in sent(service)] == [2, 1, 2, 1]


def test_many_images_travel_in_bounded_requests(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(client.predict("digits", [b"x"] * 150)) == 150
    assert [len(r.images) for r in sent(service)] == [64, 64, 22]
    service.seen.clear()
    monkeypatch.setattr(_images, "REQUEST_BYTES", 100)
    client.predict("digits", [b"x" * 40] * 5)
    assert [len(r.images) for r in sent(service)] == [2, 2, 1]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        17,
    ],
)
def test_what_is_no_image_is_a_type_error(client: Client, image: object) -> None:
    with pytest.raises(TypeError):
        client.predict("digits", [image])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("digits", "models/digits"),
        ("digits/3", "models/digits/versions/3"),
        ("digits@canary", "models/digits/aliases/canary"),
        ("models/digits/versions/3", "models/digits/versions/3"),
    ],
)
def test_what_answers_can_be_named_in_short(
    service: Service, client: Client, model: str, expected: str
) -> None:
    client.predict(model, b"x")
    assert sent(service)[0].model == expected


def test_a_stream_answers_each_image_in_order(client: Client) -> None:
    answers = list(client.predict_stream("digits", [b"good", b"bad", b"good"]))
    assert [type(answer) for answer in answers] == [Prediction, Refusal, Prediction]
    assert isinstance(answers[1], Refusal)
    assert answers[1].reason == "BAD_IMAGE"


def test_a_stream_answers_an_image_before_the_next_one_is_there(client: Client) -> None:
    """A camera may take a picture an hour, or the next one for what the last one showed."""
    answered = threading.Event()

    def camera() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x"
            assert answered.wait(5)
            answered.clear()

    count = 0
    for _ in client.predict_stream("digits", camera()):
        count += 1
        answered.set()
    assert count == 3


def test_a_stream_reads_only_a_window_ahead(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_questions, "STREAM_IN_FLIGHT", 4)
    read = answered = most = 0

    def images() -> Iterator[bytes]:
        nonlocal read, most
        for _ in range(40):
            read += 1
            most = max(most, read - answered)
            yield b"x"

    for _ in client.predict_stream("digits", images()):
        answered += 1
        time.sleep(0.002)
    assert answered == 40
    assert most <= 5


def test_a_streams_own_broken_iterable_reaches_the_caller(client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.predict_stream("digits", broken()))


def test_a_stream_left_early_ends(client: Client) -> None:
    stream = client.predict_stream("digits", (b"x" for _ in range(10**9)))
    assert next(stream) is not None
    stream.close()  # type: ignore[attr-defined]
    assert client.health()


def test_statistics_tell_the_mean_of_each_stage(client: Client) -> None:
    (counts,) = client.statistics("digits")
    assert counts.version == "models/digits/versions/2"
    assert (counts.images, counts.failed.count, counts.cancelled.count) == (6, 1, 0)
    assert counts.infer.mean == pytest.approx(0.01)
    assert counts.encode.mean == 0


def test_a_stream_whose_connection_breaks_answers_each_image_once(
    service: Service, client: Client
) -> None:
    service.faults.predict_after = [3, 0, 2]
    sent = [b"good", b"bad"] * 10
    answers = list(client.predict_stream("digits", sent))
    assert [isinstance(answer, Refusal) for answer in answers] == [False, True] * 10
    assert service.faults.predict_after == []


def test_a_stream_that_outlasts_its_deadline_goes_on_with_the_next_image(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_inference, "STREAM_SECONDS", 0.2)

    def camera() -> Iterator[bytes]:
        yield b"x"
        time.sleep(0.6)  # a quiet night
        yield b"y"
        yield b"z"

    assert len(list(client.predict_stream("digits", camera()))) == 3


def test_a_camera_that_was_quiet_for_longer_than_its_patience_outlasts_a_break(
    service: Service, target: str
) -> None:
    service.faults.predict_after = [1]

    def camera() -> Iterator[bytes]:
        yield b"x"
        time.sleep(0.6)
        yield b"y"

    with Client(target, patience=0.4) as client:
        assert len(list(client.predict_stream("digits", camera()))) == 2
    assert service.faults.predict_after == []


def test_a_stream_gives_up_on_a_service_that_stays_away(service: Service, target: str) -> None:
    service.faults.predict_after = [0] * 1000
    with Client(target, patience=0.5) as client, pytest.raises(Unavailable):
        list(client.predict_stream("digits", [b"x"]))


def test_an_image_too_large_for_a_message_is_told_at_once(service: Service, client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.predict("digits", bytes(65 * 2**20))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert service.seen == []
