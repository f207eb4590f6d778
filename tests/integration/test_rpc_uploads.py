from __future__ import annotations

import io
import queue
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from tests.integration.rpc_server import (
    LABELS,
    Service,
    chain_of,
    commit,
    domain,
    explained,
    fresh_store,
    items,
    opening,
    picture,
    refusal,
    running,
    sha256,
    upload,
)

from acclimate.v1 import adaptation_pb2 as pb
from acclimate_service.domain.names import BatchName
from acclimate_service.imaging import content_digest, decode
from acclimate_service.rpc.server import Limits
from acclimate_service.rpc.upload import UploadLimits

ACCEPTED = pb.UploadBatchResponse.Acknowledgement.OUTCOME_ACCEPTED
DUPLICATE = pb.UploadBatchResponse.Acknowledgement.OUTCOME_DUPLICATE
REJECTED = pb.UploadBatchResponse.Acknowledgement.OUTCOME_REJECTED


def example(seed: int, label: str = "red", **more: object) -> pb.Example:
    return pb.Example(image=picture(seed), label=label, id=f"{seed}.png", **more)  # type: ignore[arg-type]


def answers(
    responses: list[pb.UploadBatchResponse],
) -> list[pb.UploadBatchResponse.Acknowledgement]:
    return [
        response.acknowledgement for response in responses if response.HasField("acknowledgement")
    ]


# ── the ordinary upload ──────────────────────────────────────────────────────


def test_every_example_is_answered_in_order_and_counted(service: Service) -> None:
    where = domain(service, "ordinary")
    sent = [example(number, LABELS[number % 3], tags=["camera=1"]) for number in range(150)]
    responses = upload(service, where, sent, request_id="ordinary-1")
    acknowledged = answers(responses)
    assert [answer.index for answer in acknowledged] == list(range(150))
    assert [answer.id for answer in acknowledged] == [item.id for item in sent]
    assert {answer.outcome for answer in acknowledged} == {ACCEPTED}
    batch = responses[-1].committed
    assert (batch.committed, batch.accepted, batch.rejected) == (True, 150, 0)
    found = service.adaptation.GetDomain(pb.GetDomainRequest(name=where), timeout=10)
    assert [count.train for count in found.counts] == [50, 50, 50]


def test_a_duplicate_a_wrong_label_and_a_wrong_tag_cost_only_themselves(service: Service) -> None:
    where = domain(service, "mixed")
    sent = [
        example(1000),
        example(1000),
        example(1001, "purple"),
        example(1002, tags=["a\nb"]),
        example(1003, tags=["a", "a"]),
        pb.Example(image=picture(1004), label="red", id="../\x1b[31m"),
        example(1005),
    ]
    acknowledged = answers(upload(service, where, sent, request_id="mixed-1"))
    assert [answer.outcome for answer in acknowledged] == [
        ACCEPTED,
        DUPLICATE,
        REJECTED,
        REJECTED,
        REJECTED,
        REJECTED,
        ACCEPTED,
    ]
    assert [answer.reason for answer in acknowledged] == [
        "",
        "",
        "UNKNOWN_LABEL",
        "INVALID_SPEC",
        "INVALID_SPEC",
        "INVALID_SPEC",
        "",
    ]
    assert "purple" in acknowledged[2].message


def test_an_image_that_is_held_out_is_refused_for_training(service: Service) -> None:
    where = domain(service, "leaky")
    held = [example(1100)]
    upload(service, where, held, request_id="leaky-1", role=pb.ROLE_HOLDOUT)
    again = upload(service, where, [*held, example(1101)], request_id="leaky-2")
    assert [answer.reason for answer in answers(again)] == ["HOLDOUT_LEAK", ""]


def test_an_image_erased_while_it_is_uploaded_anew_is_stored_all_the_same(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, sent = domain(service, "anew"), [example(1200), example(1201)]
    upload(service, where, sent, request_id="anew-1")
    put_many, blobs = service.store.blobs.put_many, service.store.blobs

    def meanwhile(contents: Sequence[bytes]) -> list[str]:
        monkeypatch.setattr(blobs, "put_many", put_many)
        stored = put_many(contents)
        content = content_digest(decode(sent[1].image))
        assert service.store.erase(content, who="ann", why="asked to").files == (stored[1],)
        return stored

    monkeypatch.setattr(blobs, "put_many", meanwhile)
    again = answers(upload(service, where, sent, request_id="anew-2"))
    assert [answer.outcome for answer in again] == [DUPLICATE, ACCEPTED]
    assert blobs.get(sha256(sent[1].image)) == sent[1].image


# ── odd images ───────────────────────────────────────────────────────────────


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(len(mode)).integers(0, 255, (40, 30, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    frames = [noise(), noise().rotate(90)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD: dict[str, tuple[Callable[[], bytes], bool]] = {
    "nothing": (lambda: b"", False),
    "zeros": (lambda: bytes(100), False),
    "truncated JPEG": (lambda: saved(noise(), "JPEG")[:-200], False),
    "text named .jpg": (lambda: b"I am not an image\n" * 10, False),
    "PNG bomb": (bomb, False),
    "more than 20 MiB": (lambda: saved(noise(), "PNG") + bytes(21 * 2**20), False),
    "animated GIF": (gif, False),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
    "EPS": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),
    "CMYK JPEG": (lambda: saved(noise("CMYK"), "JPEG"), True),
    "16-bit PNG": (
        lambda: saved(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)), "PNG"),
        True,
    ),
    "palette PNG": (lambda: saved(noise().convert("P"), "PNG"), True),
    "grey JPEG": (lambda: saved(noise("L"), "JPEG"), True),
    "transparent PNG": (lambda: saved(noise("RGBA"), "PNG"), True),
    "WebP": (lambda: saved(noise(), "WEBP"), True),
}


def test_odd_images_are_taken_or_refused_one_by_one_and_the_stream_goes_on(
    service: Service,
) -> None:
    where = domain(service, "odd")
    sent = []
    for seed, (name, (make, _)) in enumerate(ODD.items()):
        sent.append(pb.Example(image=make(), label="red", id=name))
        sent.append(example(2000 + seed))
    started = time.monotonic()
    responses = upload(service, where, sent, request_id="odd-1")
    assert time.monotonic() - started < 20
    odd, ordinary = answers(responses)[::2], answers(responses)[1::2]
    assert {answer.outcome for answer in ordinary} == {ACCEPTED}
    taken = {answer.id: answer.outcome == ACCEPTED for answer in odd}
    assert taken == {name: good for name, (_, good) in ODD.items()}
    for answer in odd:
        if answer.outcome == REJECTED:
            assert answer.reason == "BAD_IMAGE"
            assert answer.message


# ── streams that go wrong ────────────────────────────────────────────────────


def test_a_batch_without_an_accepted_example_is_refused(service: Service) -> None:
    where = domain(service, "empty")
    bad = [pb.Example(image=b"no", label="red")]
    for request_id, sent in (("empty-1", bad), ("empty-2", [])):
        code, info = refusal(partial(upload, service, where, sent, request_id=request_id))
        assert (code, info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EMPTY_BATCH")


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("no open", [commit(0, "0" * 64)]),
        ("open twice", [opening("domains/torn", "t-1"), opening("domains/torn", "t-1")]),
        ("a gap", [opening("domains/torn", "t-2"), *items([example(3000)], first=5)]),
        ("no role", [opening("domains/torn", "t-3", pb.ROLE_UNSPECIFIED)]),
        ("no id", [opening("domains/torn", "")]),
        ("bad chain", [opening("domains/torn", "t-4"), commit(0, "zz")]),
    ],
)
def test_messages_out_of_turn_are_an_invalid_argument(
    service: Service, name: str, messages: list[pb.UploadBatchRequest]
) -> None:
    if name == "no open":
        domain(service, "torn")
    code, info = refusal(lambda: list(service.adaptation.UploadBatch(iter(messages), timeout=10)))
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")


def test_a_commit_that_does_not_match_what_arrived_leaves_the_batch_open(service: Service) -> None:
    where = domain(service, "lossy")
    sent = [example(3100), example(3101)]
    wrong = [
        opening(where, "lossy-1"),
        *items(sent[:1]),
        commit(2, chain_of(sent)),
    ]
    code, info = refusal(lambda: list(service.adaptation.UploadBatch(iter(wrong), timeout=10)))
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_INCOMPLETE")
    found = service.adaptation.GetDomain(pb.GetDomainRequest(name=where), timeout=10)
    assert sum(count.train for count in found.counts) == 0


def test_a_stream_that_ends_without_a_commit_is_resumed_without_sending_twice(
    service: Service,
) -> None:
    where = domain(service, "resumed")
    sent = [example(3200 + number) for number in range(10)]
    first = [opening(where, "resumed-1"), *items(sent[:6])]
    received: list[pb.UploadBatchResponse] = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(service.adaptation.UploadBatch(iter(first), timeout=10))
    code, info = explained(caught.value)
    assert (code, info.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_INCOMPLETE")

    sent_again: list[int] = []
    outbox: queue.Queue[pb.UploadBatchRequest | None] = queue.Queue()
    outbox.put(opening(where, "resumed-1"))
    call = service.adaptation.UploadBatch(iter(outbox.get, None), timeout=10)
    opened = next(call).opened
    assert (opened.next_index, opened.chain) == (6, chain_of(sent[:6]))
    for message in items(sent[opened.next_index :], first=opened.next_index):
        sent_again.append(message.item.index)
        outbox.put(message)
    outbox.put(commit(10, chain_of(sent)))
    outbox.put(None)
    committed = list(call)[-1].committed
    assert sent_again == [6, 7, 8, 9]
    assert (committed.committed, committed.accepted) == (True, 10)


def test_committing_again_gives_the_same_batch(service: Service) -> None:
    where = domain(service, "again")
    sent = [example(3300)]
    first = upload(service, where, sent, request_id="again-1")[-1].committed
    repeated = [opening(where, "again-1"), commit(1, chain_of(sent))]
    second = list(service.adaptation.UploadBatch(iter(repeated), timeout=10))
    assert second[0].opened.next_index == 1
    assert second[-1].committed == first


# Reads messages, each after its length, and sends them; then waits to be killed.
UPLOADER = """
import struct, sys, time, grpc
from acclimate.v1 import adaptation_pb2, adaptation_pb2_grpc
def messages():
    with open(sys.argv[2], "rb") as file:
        while length := file.read(4):
            raw = file.read(struct.unpack("<I", length)[0])
            yield adaptation_pb2.UploadBatchRequest.FromString(raw)
    time.sleep(60)
with grpc.insecure_channel(sys.argv[1]) as channel:
    for answer in adaptation_pb2_grpc.AdaptationServiceStub(channel).UploadBatch(messages()):
        print(answer.WhichOneof("part"), flush=True)
"""


def test_a_killed_uploader_leaves_a_batch_that_is_open_and_keeps_what_was_acknowledged(
    service: Service, tmp_path: Path
) -> None:
    where = domain(service, "killed")
    sent = [opening(where, "killed-1"), *items([example(3400 + number) for number in range(5)])]
    script = tmp_path / "messages"
    with script.open("wb") as file:
        for message in sent:
            raw = message.SerializeToString()
            file.write(struct.pack("<I", len(raw)) + raw)
    with subprocess.Popen(
        [sys.executable, "-c", UPLOADER, f"127.0.0.1:{service.port}", str(script)],
        stdout=subprocess.PIPE,
        text=True,
    ) as uploader:
        assert uploader.stdout is not None
        try:
            lines = [uploader.stdout.readline().strip() for _ in sent]
        finally:
            uploader.kill()
    assert lines == ["opened", *["acknowledgement"] * 5]
    listed = service.adaptation.ListLabeledBatches(
        pb.ListLabeledBatchesRequest(parent=where), timeout=10
    )
    assert [batch.committed for batch in listed.batches] == [False]
    stored = service.store.domains.get_batch(BatchName.parse(listed.batches[0].name))
    assert (stored.received, stored.accepted) == (5, 5)


def test_what_stands_still_is_ended_and_what_is_too_many_is_refused(tmp_path: Path) -> None:
    store = fresh_store(tmp_path)
    limits = Limits(uploads=1, poll_seconds=0.05, upload=UploadLimits(idle_seconds=0.5))
    with running(store, limits) as service:
        where = domain(service, "still")
        hold: queue.Queue[pb.UploadBatchRequest | None] = queue.Queue()
        hold.put(opening(where, "still-1"))
        idle = service.adaptation.UploadBatch(iter(hold.get, None), timeout=30)
        assert next(idle).opened.next_index == 0
        code, info = refusal(
            lambda: list(
                service.adaptation.UploadBatch(iter([opening(where, "still-2")]), timeout=10)
            )
        )
        assert (code, info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert service.health() == "SERVING"
        code, info = refusal(lambda: next(idle))
        assert (code, info.reason) == (grpc.StatusCode.ABORTED, "UPLOAD_INCOMPLETE")
        hold.put(None)
        upload(service, where, [example(3500)], request_id="still-3")
    store.close()


def test_a_stream_of_large_images_is_held_back_rather_than_kept_in_memory(
    service: Service,
) -> None:
    where = domain(service, "large")
    big = []
    for seed in range(3600, 3624):
        pixels = np.random.default_rng(seed).integers(0, 255, (700, 700, 3), np.uint8)
        file = saved(Image.fromarray(pixels), "PNG", compress_level=0)
        big.append(pb.Example(image=file, label="red", id=str(seed)))
    assert sum(len(item.image) for item in big) > 32 * 2**20

    def messages() -> Iterator[pb.UploadBatchRequest]:
        yield opening(where, "large-1")
        yield from items(big)
        yield commit(len(big), chain_of(big))

    responses = list(service.adaptation.UploadBatch(messages(), timeout=60))
    assert responses[-1].committed.accepted == len(big)
