from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from tests.contract.builders import (
    LABELS,
    SOURCE,
    TARGET,
    FakeClock,
    Picture,
    chain_of,
    domain,
    pictures,
    received,
    send,
    upload,
)

from acclimate_service.domain.errors import (
    AlreadyExists,
    BlobNotFound,
    EmptyBatch,
    InvalidSpec,
    NotFound,
    RequestIdReused,
    UploadIncomplete,
)
from acclimate_service.domain.examples import EMPTY_CHAIN, Role, Split
from acclimate_service.domain.names import BatchName, DomainName
from acclimate_service.store import Answer, Refusal, Store, data_digest


def test_the_same_request_creates_one_domain(store: Store) -> None:
    first = store.domains.create(TARGET, LABELS, "a desk", "r1")
    assert store.domains.create(TARGET, LABELS, "a desk", "r1") == first
    with pytest.raises(RequestIdReused):
        store.domains.create(TARGET, LABELS, "another desk", "r1")
    with pytest.raises(AlreadyExists):
        store.domains.create(TARGET, LABELS, "a desk", "r2")


def test_domains_are_listed_page_by_page(store: Store) -> None:
    names = [domain(store, DomainName(f"d{number}")) for number in range(5)]
    found, token = [], ""
    while True:
        page = store.domains.list(2, token)
        found += [item.name for item in page.items]
        token = page.next_token
        if not token:
            break
    assert found == names
    with pytest.raises(InvalidSpec):
        store.domains.list(-1)


def test_a_batch_needs_its_domain(store: Store) -> None:
    with pytest.raises(NotFound):
        store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    with pytest.raises(NotFound):
        store.domains.get_batch(BatchName("webcam", "nothing"))


def test_an_uncommitted_batch_is_seen_by_no_job(store: Store) -> None:
    domain(store)
    batch, _ = send(store, pictures(3), Role.TRAIN, request="r")
    assert store.domains.examples(TARGET, splits=tuple(Split)) == []
    assert store.domains.counts(TARGET)["mug"][Split.TRAIN] == 0
    committed = store.domains.commit_batch(batch.name, count=3, chain=chain_of(pictures(3)))
    assert (committed.committed, committed.accepted) == (True, 3)
    assert len(store.domains.examples(TARGET, splits=[Split.TRAIN])) == 3
    assert store.domains.counts(TARGET) == {
        "mug": {Split.TRAIN: 3, Split.SELECT: 0, Split.VERIFY: 0},
        "pen": {Split.TRAIN: 0, Split.SELECT: 0, Split.VERIFY: 0},
    }


def test_an_example_is_read_back_as_it_was_sent(store: Store) -> None:
    domain(store)
    pic = Picture(b"one", "pen")
    batch = upload(store, [pic], Role.HOLDOUT, request="r")
    [example] = store.domains.examples(TARGET, splits=[Split.SELECT, Split.VERIFY])
    assert (example.batch, example.content, example.label, example.role, example.id) == (
        batch.name,
        pic.content,
        "pen",
        Role.HOLDOUT,
        "file-0",
    )
    assert example.tags == ("camera=1",)
    assert store.blobs.get(example.blob) == b"one"
    assert store.domains.data_digest(TARGET) == data_digest([pic.content])
    assert store.domains.examples(TARGET, splits=tuple(Split), roles=[Role.TRAIN]) == []


def test_the_same_request_id_resumes_the_open_batch(store: Store) -> None:
    domain(store)
    pics = pictures(6)
    batch, _ = send(store, pics[:4], Role.TRAIN, request="r")
    again = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    assert (again.name, again.received, again.chain) == (batch.name, 4, chain_of(pics[:4]))
    rest = received(store, pics[4:], start=4, chain=again.chain)
    assert [item.answer for item in store.domains.add(batch.name, rest)] == [Answer.ACCEPTED] * 2
    committed = store.domains.commit_batch(batch.name, count=6, chain=chain_of(pics))
    assert committed.accepted == 6
    assert store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r") == committed


def test_a_request_id_belongs_to_one_domain_and_role(store: Store) -> None:
    domain(store)
    domain(store, SOURCE)
    store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    for other, role in ((TARGET, Role.HOLDOUT), (SOURCE, Role.TRAIN)):
        with pytest.raises(RequestIdReused):
            store.domains.begin_batch(other, role, request_id="r")


def test_examples_that_come_twice_get_the_same_answers_and_count_once(store: Store) -> None:
    domain(store)
    pics = [*pictures(2), Picture(b"x", "a lamp"), pictures(1)[0]]
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    items = received(store, pics)
    first = store.domains.add(batch.name, items)
    assert [item.answer.value for item in first] == [
        "ACCEPTED",
        "ACCEPTED",
        "REJECTED",
        "DUPLICATE",
    ]
    assert store.domains.add(batch.name, items) == first
    found = store.domains.get_batch(batch.name)
    assert (found.received, found.accepted, found.rejected, found.duplicates) == (4, 2, 1, 1)


def test_a_gap_in_the_upload_is_refused(store: Store) -> None:
    domain(store)
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    with pytest.raises(UploadIncomplete) as error:
        store.domains.add(batch.name, received(store, pictures(1), start=3))
    assert error.value.metadata["received"] == "0"


@pytest.mark.parametrize(("count", "chain"), [(2, None), (3, EMPTY_CHAIN)])
def test_a_commit_that_does_not_match_what_arrived_is_refused(
    store: Store, count: int, chain: str | None
) -> None:
    domain(store)
    batch, _ = send(store, pictures(3), Role.TRAIN, request="r")
    with pytest.raises(UploadIncomplete):
        store.domains.commit_batch(batch.name, count=count, chain=chain or chain_of(pictures(3)))
    assert not store.domains.get_batch(batch.name).committed


def test_a_commit_repeated_is_the_same_commit(store: Store) -> None:
    domain(store)
    batch = upload(store, pictures(3), Role.TRAIN, request="r")
    again = store.domains.commit_batch(batch.name, count=3, chain=chain_of(pictures(3)))
    assert again == batch
    with pytest.raises(UploadIncomplete):
        store.domains.add(batch.name, received(store, pictures(1), start=3))


def test_a_batch_without_one_good_example_is_not_committed(store: Store) -> None:
    domain(store)
    pics = [Picture(b"x", "a lamp")]
    batch, _ = send(store, pics, Role.TRAIN, request="r")
    with pytest.raises(EmptyBatch):
        store.domains.commit_batch(batch.name, count=1, chain=chain_of(pics))


def test_an_image_refused_by_its_decoder_costs_only_itself(store: Store) -> None:
    domain(store)
    batch = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r")
    items = received(store, pictures(3))
    refusal = Refusal(reason="BAD_IMAGE", message="truncated JPEG")
    items[1] = dataclasses.replace(items[1], content="", blob="", refusal=refusal)
    outcomes = store.domains.add(batch.name, items)
    assert [item.answer.value for item in outcomes] == ["ACCEPTED", "REJECTED", "ACCEPTED"]
    assert outcomes[1].refusal == refusal
    [told] = store.domains.refusals(batch.name)
    assert (told.index, told.refusal) == (1, refusal)
    assert store.domains.refusals(batch.name, after=1) == []


def test_the_same_picture_under_another_label_is_a_conflict(store: Store) -> None:
    domain(store)
    upload(store, [Picture(b"one", "mug")], Role.TRAIN, request="r1")
    _, [outcome] = send(store, [Picture(b"one", "pen")], Role.TRAIN, request="r2")
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "LABEL_CONFLICT"


def test_another_domain_may_label_the_same_picture_otherwise(store: Store) -> None:
    domain(store)
    domain(store, SOURCE)
    upload(store, [Picture(b"one", "mug")], Role.TRAIN, request="r1")
    upload(store, [Picture(b"one", "pen")], Role.TRAIN, request="r2", to=SOURCE)
    assert [example.label for example in store.domains.examples(SOURCE, splits=[Split.TRAIN])] == [
        "pen"
    ]


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("other", [TARGET, SOURCE])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Role.HOLDOUT, Role.TRAIN),
        (Role.HOLDOUT, Role.REPLAY),
        (Role.TRAIN, Role.HOLDOUT),
        (Role.REPLAY, Role.HOLDOUT),
    ],
)
def test_no_picture_is_both_held_out_and_trained_on_anywhere(
    store: Store, first: Role, second: Role, other: DomainName, committed: bool
) -> None:
    domain(store)
    domain(store, SOURCE)
    (upload if committed else send)(store, pictures(2), first, request="r1")
    _, outcomes = send(store, pictures(3), second, to=other, request="r2")
    assert [item.answer.value for item in outcomes] == ["REJECTED", "REJECTED", "ACCEPTED"]
    assert {item.refusal.reason for item in outcomes if item.refusal} == {"HOLDOUT_LEAK"}


def test_a_picture_the_domain_holds_is_a_duplicate_and_stored_once(store: Store) -> None:
    domain(store)
    upload(store, pictures(2), Role.TRAIN, request="r1")
    batch = upload(store, pictures(3), Role.TRAIN, request="r2")
    assert (batch.accepted, batch.duplicates) == (1, 2)
    assert len(store.domains.examples(TARGET, splits=[Split.TRAIN])) == 3


def test_auto_takes_what_is_there_already_for_what_it_is(store: Store) -> None:
    domain(store)
    upload(store, pictures(10), Role.HOLDOUT, request="r1")
    batch = upload(store, pictures(10), Role.AUTO, request="r2")
    assert (batch.duplicates, batch.rejected) == (10, 0)


def test_two_open_batches_with_the_same_pictures_lose_none_of_them(store: Store) -> None:
    """Either may be committed first, or never: what was accepted is there in the end."""
    domain(store)
    pics = pictures(4)
    one, first = send(store, pics, Role.TRAIN, request="r1")
    two, second = send(store, pics, Role.TRAIN, request="r2")
    assert {item.answer for item in first + second} == {Answer.ACCEPTED}
    store.domains.delete_batch(one.name)
    committed = store.domains.commit_batch(two.name, count=4, chain=chain_of(pics))
    assert committed.accepted == 4
    assert len(store.domains.examples(TARGET, splits=[Split.TRAIN])) == 4


def test_of_two_open_batches_the_later_commit_finds_duplicates(store: Store) -> None:
    domain(store)
    pics = pictures(4)
    one, _ = send(store, pics, Role.TRAIN, request="r1")
    two, _ = send(store, pics, Role.TRAIN, request="r2")
    for batch in (one, two):
        store.domains.commit_batch(batch.name, count=4, chain=chain_of(pics))
    found = store.domains.get_batch(two.name)
    assert (found.accepted, found.duplicates) == (0, 4)
    assert len(store.domains.examples(TARGET, splits=[Split.TRAIN])) == 4


def test_every_reader_sees_the_examples_in_one_order(store: Store) -> None:
    domain(store)
    upload(store, pictures(8)[::-1], Role.TRAIN, request="r1")
    upload(store, pictures(8, prefix="more"), Role.TRAIN, request="r2")
    contents = [example.content for example in store.domains.examples(TARGET, splits=[Split.TRAIN])]
    assert contents == sorted(contents)
    assert len(contents) == 16


def test_what_leaked_into_a_holdout_by_any_way_is_not_given_out_for_training(store: Store) -> None:
    """The last line of defence: rows that no upload could have written."""
    import sqlalchemy as sa

    from acclimate_service.store import schema
    from acclimate_service.store.engine import Transaction

    domain(store)
    domain(store, SOURCE)
    upload(store, pictures(3), Role.TRAIN, request="r1")
    upload(store, pictures(3, prefix="other"), Role.HOLDOUT, to=SOURCE, request="r2")
    leaked = pictures(1)[0].content
    held = sa.select(sa.func.min(schema.examples.c.number)).where(
        schema.examples.c.domain == SOURCE.domain
    )
    store.database.write(
        Transaction.run,
        sa.update(schema.examples)
        .where(schema.examples.c.number == held.scalar_subquery())
        .values(content=leaked),
    )
    given = store.domains.examples(TARGET, splits=[Split.TRAIN])
    assert len(given) == 2
    assert leaked not in {example.content for example in given}


def test_uploads_that_nobody_goes_on_with_expire(store: Store, clock: FakeClock) -> None:
    domain(store)
    upload(store, pictures(1), Role.TRAIN, request="r1")
    old, _ = send(store, pictures(2, prefix="old"), Role.TRAIN, request="r2")
    clock.advance(3600)
    send(store, pictures(2, prefix="new"), Role.TRAIN, request="r3")
    assert store.reconcile(idle=dt.timedelta(minutes=30)).expired == (old.name,)
    assert len(store.domains.list_batches(TARGET).items) == 2
    begun = store.domains.begin_batch(TARGET, Role.TRAIN, request_id="r2")
    assert begun.received == 0  # the client is told to send all of it again


def test_batches_are_listed_newest_first_page_by_page(store: Store) -> None:
    domain(store)
    names = [
        store.domains.begin_batch(TARGET, Role.TRAIN, request_id=str(number)).name
        for number in range(3)
    ]
    first = store.domains.list_batches(TARGET, 2)
    second = store.domains.list_batches(TARGET, 2, first.next_token)
    assert [item.name for item in first.items + second.items] == names[::-1]
    assert second.next_token == ""
    with pytest.raises(InvalidSpec):
        store.domains.list_batches(TARGET, 2, "not a token")


def test_a_blob_that_was_never_stored_is_not_found(store: Store) -> None:
    with pytest.raises(BlobNotFound):
        store.blobs.get("0" * 64)
