"""The client against the real serving process: uploads that are cut off, errors as they come."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.acceptance.processes import Process, free_port, wait_for

from acclimate import AcclimateError, Client, Example, Role, errors
from acclimate.resources import Acknowledgement

START_SECONDS = 60.0


def picture(number: int) -> bytes:
    """A small PNG unlike every other, to the eye of a perceptual hash as well."""
    image = Image.effect_noise((32, 32), 90)
    image.putpixel((0, 0), number % 256)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def examples(count: int) -> list[Example]:
    return [
        Example(image=picture(number), label=("cat", "dog")[number % 2], id=f"{number}.png")
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("home")
    process = Process("serve", home, port=free_port())
    process.start()
    yield process
    process.kill(signal.SIGTERM)


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server._environment['ACCLIMATE_PORT']}", patience=60) as connected:
        wait_until_serving(connected)
        yield connected


def wait_until_serving(client: Client) -> None:
    def answers() -> bool:
        try:
            return bool(client.health())
        except AcclimateError:
            return False

    wait_for(answers, START_SECONDS, "the server's first answer")


def test_an_upload_through_two_server_kills_stores_every_image_once(
    server: Process, client: Client
) -> None:
    client.create_domain("killed", ["cat", "dog"])
    sent = examples(300)
    told: list[int] = []

    def kill(answer: Acknowledgement) -> None:
        told.append(answer.index)
        if answer.index in (70, 200):
            server.restart()

    result = client.upload(
        "killed", sent, role=Role.TRAIN, request_id="k1", on_acknowledgement=kill
    )
    assert (result.accepted, result.duplicates, result.rejected) == (300, 0, ())
    assert told == sorted(set(told))
    assert sum(count.train for count in client.domain("killed").counts) == 300
    (batch,) = client.batches("killed")
    assert batch.committed


def test_the_same_upload_again_is_the_same_batch(client: Client) -> None:
    client.create_domain("again", ["cat", "dog"])
    sent = examples(20)
    first = client.upload("again", sent, request_id="a1")
    second = client.upload("again", sent, request_id="a1")
    assert second.batch == first.batch
    assert len(client.batches("again")) == 1


def test_other_examples_under_the_same_request_id_are_refused(client: Client) -> None:
    client.create_domain("mixed", ["cat", "dog"])
    client.upload("mixed", examples(5), request_id="m1")
    with pytest.raises(AcclimateError):
        client.upload("mixed", examples(5), request_id="m1")


def test_a_bad_image_and_an_unknown_label_cost_only_themselves(client: Client) -> None:
    client.create_domain("bad", ["cat", "dog"])
    sent = examples(4)
    sent[1] = Example(image=b"no image", label="cat", id="text.jpg")
    sent[2] = Example(image=picture(9), label="horse", id="horse.png")
    result = client.upload("bad", sent)
    assert result.accepted == 2
    assert [(r.id, r.reason) for r in result.rejected] == [
        ("text.jpg", "BAD_IMAGE"),
        ("horse.png", "UNKNOWN_LABEL"),
    ]


def test_an_upload_of_nothing_but_refused_images_is_refused(client: Client) -> None:
    client.create_domain("empty", ["cat", "dog"])
    with pytest.raises(errors.AcclimateError) as caught:
        client.upload("empty", [Example(image=b"", label="cat")])
    assert caught.value.reason == "EMPTY_BATCH"


def test_a_slow_iterable_is_waited_for(client: Client) -> None:
    client.create_domain("slow", ["cat", "dog"])

    def slowly() -> Iterator[Example]:
        for example in examples(3):
            time.sleep(0.3)
            yield example

    assert client.upload("slow", slowly()).accepted == 3


@pytest.mark.parametrize(
    ("call", "kind", "reason"),
    [
        (lambda c: c.domain("nowhere"), errors.NotFound, "NOT_FOUND"),
        (lambda c: c.domain("No Such Name"), errors.InvalidRequest, "INVALID_NAME"),
        (lambda c: c.job("nowhere"), errors.NotFound, "NOT_FOUND"),
        (lambda c: c.version("nowhere/1"), errors.NotFound, None),
        (lambda c: c.predict("nowhere", b"x"), errors.NotFound, None),
        (lambda c: c.create_domain("x", []), errors.InvalidRequest, "INVALID_SPEC"),
        (lambda c: c.adapt("nowhere", "nowhere"), errors.NotFound, "NOT_FOUND"),
        (
            lambda c: c.adapt("nowhere", "nowhere", guard={"no_such_limit": 1}),
            errors.InvalidRequest,
            "INVALID_SPEC",
        ),
    ],
)
def test_the_services_refusals_arrive_as_what_they_are(
    client: Client, call: object, kind: type[AcclimateError], reason: str | None
) -> None:
    assert callable(call)
    with pytest.raises(kind) as caught:
        call(client)
    assert reason in (None, caught.value.reason)


def test_a_backbone_is_registered_and_shown(client: Client, tmp_path: Path) -> None:
    client.create_domain("home", ["cat", "dog"])
    model, job = client.register_model("pets", "torchvision/resnet18", source_domain="home")
    assert job is None
    assert client.model("pets") == model
    assert model in client.models()
    assert client.versions("pets") == []
    with pytest.raises(errors.AcclimateError):
        client.export("pets/1", tmp_path)
