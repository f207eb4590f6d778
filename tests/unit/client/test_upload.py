from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.unit.client.fake_service import Service, start

from acclimate import Client, Example, Role, _window
from acclimate.errors import NotFound, ServiceFault, Unavailable, UploadMismatch
from acclimate.resources import Acknowledgement
from acclimate_service.domain.examples import chain_digest as chain_of_the_service


def examples(count: int, *, size: int = 20) -> list[Example]:
    return [
        Example(image=f"{index:0{size}d}".encode(), label=str(index % 3), id=f"{index}.png")
        for index in range(count)
    ]


def test_every_example_arrives_once_and_in_order(service: Service, client: Client) -> None:
    sent = examples(700)
    result = client.upload("pens", sent, role=Role.TRAIN, request_id="u1")
    batch = service.batches["u1"]
    assert [example.image for example in batch.stored] == [example.image for example in sent]
    assert [example.id for example in batch.stored] == [example.id for example in sent]
    assert batch.committed
    assert batch.streams == 1
    assert (result.accepted, result.rejected, result.request_id) == (700, (), "u1")


def test_the_client_and_the_service_compute_the_same_chain() -> None:
    for text in ("", "a", "ü"):
        assert _window.chain_digest("0" * 64, b"x", text) == chain_of_the_service(
            "0" * 64, b"x", text
        )


@pytest.mark.parametrize("hide_answers", [False, True])
def test_a_broken_upload_goes_on_and_sends_no_stored_example_twice(
    service: Service, client: Client, hide_answers: bool
) -> None:
    service.faults.break_after = [3, 0, 40, 1]
    service.faults.hide_answers = hide_answers
    result = client.upload("pens", examples(100), request_id="u1")
    batch = service.batches["u1"]
    assert batch.streams == 5
    assert batch.sent == list(range(100))
    assert result.accepted == 100


def test_answers_are_told_in_order_on_the_calling_thread(client: Client) -> None:
    told: list[tuple[int, str, str]] = []

    def tell(answer: Acknowledgement) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append((answer.index, answer.id, answer.outcome))

    client.upload("pens", examples(20), on_acknowledgement=tell)
    assert told == [(index, f"{index}.png", "ACCEPTED") for index in range(20)]


def test_a_refused_example_costs_only_itself(client: Client) -> None:
    sent = examples(5)
    sent[2] = Example(image=b"", label="1", id="empty.png")
    result = client.upload("pens", sent)
    assert result.accepted == 4
    assert [(r.index, r.id, r.reason) for r in result.rejected] == [(2, "empty.png", "BAD_IMAGE")]


def test_an_image_too_large_to_send_costs_only_itself(service: Service, client: Client) -> None:
    sent = examples(3)
    sent[1] = Example(image=bytes(65 * 2**20), label="1", id="scan.png")
    result = client.upload("pens", sent, request_id="u1")
    assert result.accepted == 2
    assert service.batches["u1"].streams == 1
    ((index, name, message),) = [(r.index, r.id, r.message) for r in result.rejected]
    assert (index, name) == (1, "scan.png")
    assert "68157440 bytes" in message


def test_another_process_goes_on_with_an_upload_that_was_given_up(
    service: Service, target: str
) -> None:
    service.faults.break_after = [60]

    class PowerCut(Exception):
        """Not an error of ours: nothing catches it."""

    def cut(answer: Acknowledgement) -> None:
        if answer.index == 50:
            raise PowerCut

    with Client(target) as first, pytest.raises(PowerCut):
        first.upload("pens", examples(100), request_id="u1", on_acknowledgement=cut)
    with Client(target) as second:
        result = second.upload("pens", examples(100), request_id="u1")
    assert service.batches["u1"].sent == list(range(100))
    assert result.accepted == 100


@pytest.mark.parametrize("change", ["other image", "other order", "fewer"])
def test_going_on_with_other_examples_is_refused(
    service: Service, target: str, change: str
) -> None:
    service.faults.break_after = [10]
    sent = examples(20)
    with Client(target, patience=0.01) as client:
        with pytest.raises(Unavailable):
            client.upload("pens", sent, request_id="u1")
        if change == "other image":
            sent[4] = Example(image=b"other", label="1")
        elif change == "other order":
            sent[3], sent[4] = sent[4], sent[3]
        else:
            sent = sent[:5]
        with pytest.raises(UploadMismatch):
            client.upload("pens", sent, request_id="u1")
    assert service.batches["u1"].sent == list(range(10))


def test_a_service_that_forgets_what_it_acknowledged_is_a_fault(
    service: Service, client: Client
) -> None:
    service.faults.break_after = [10]

    def forget(answer: Acknowledgement) -> None:
        if answer.index == 9:
            del service.batches["u1"].stored[5:]

    with pytest.raises(ServiceFault, match="wants to go on from 5") as caught:
        client.upload("pens", examples(20), request_id="u1", on_acknowledgement=forget)
    assert caught.value.reason == "ACKNOWLEDGED_EXAMPLES_LOST"


def test_an_upload_survives_a_server_that_is_restarted(service: Service) -> None:
    server, target = start(service)
    servers = [server]
    port = int(target.rpartition(":")[2])

    def restart(answer: Acknowledgement) -> None:
        if answer.index in (20, 60):
            servers[-1].stop(grace=None).wait()
            servers.append(start(service, port)[0])

    try:
        with Client(target, patience=20) as client:
            result = client.upload(
                "pens", examples(100), request_id="u1", on_acknowledgement=restart
            )
    finally:
        servers[-1].stop(grace=None).wait()
    batch = service.batches["u1"]
    assert batch.sent == list(range(100))
    assert result.accepted == 100
    assert len(servers) == 3


def test_a_service_that_stays_away_ends_the_clients_patience(service: Service) -> None:
    service.faults.break_after = [0] * 1000
    server, target = start(service)
    try:
        with Client(target, patience=0.5) as client, pytest.raises(Unavailable):
            client.upload("pens", examples(3))
    finally:
        server.stop(grace=None).wait()


def test_an_error_of_the_callers_own_iterable_reaches_the_caller(client: Client) -> None:
    def broken() -> Iterator[Example]:
        yield from examples(3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.upload("pens", broken())


def test_only_a_window_of_a_long_upload_is_read_ahead(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_window, "WINDOW_EXAMPLES", 8)
    read = answered = most = 0

    def counted() -> Iterator[Example]:
        nonlocal read, most
        for example in examples(200):
            read += 1
            most = max(most, read - answered)
            yield example

    def count(answer: Acknowledgement) -> None:
        nonlocal answered
        answered = answer.index + 1

    client.upload("pens", counted(), on_acknowledgement=count)
    assert read == 200
    assert most <= 8


def test_large_images_fill_the_window_by_their_bytes(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_window, "WINDOW_BYTES", 1000)
    read = answered = most = 0

    def counted() -> Iterator[Example]:
        nonlocal read, most
        for example in examples(50, size=400):
            read += 1
            most = max(most, read - answered)
            yield example

    def count(answer: Acknowledgement) -> None:
        nonlocal answered
        answered = answer.index + 1

    client.upload("pens", counted(), on_acknowledgement=count)
    assert most <= 3


def test_a_refused_batch_is_not_tried_again(service: Service, client: Client) -> None:
    with pytest.raises(NotFound):
        client.upload("elsewhere", examples(1), request_id="u1")
    assert service.batches["u1"].streams == 1
