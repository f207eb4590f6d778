"""``acclimate store``, as whoever runs the service calls it.

What its commands do and say is asked of its program in this process, since Python's start and
imports take most of a call's time; that the command line gets there, of real processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from tests.contract.builders import SOURCE, claimed, draft, furnish, make_version
from tests.objectstore import ObjectStore

from acclimate_service import imaging, upkeep
from acclimate_service.domain.errors import ImageInUse
from acclimate_service.domain.examples import EMPTY_CHAIN, Role, Split, chain_digest
from acclimate_service.domain.job import JobState
from acclimate_service.store import Bucket, Received, Store, open_store
from acclimate_service.store.erasure import content_of


def encoded(shade: int, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 2 * shade, 0)).save(held, kind, lossless=True)
    return held.getvalue()


def store_at(home: Path) -> Store:
    return open_store(f"sqlite:///{home / 'acclimate.db'}", home / "blobs")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose store holds two images and a version made from them."""
    home = tmp_path / "home"
    store = store_at(home)
    furnish(store)
    batch = store.domains.begin_batch(SOURCE, Role.TRAIN, request_id="r")
    chain, items = EMPTY_CHAIN, []
    for index, shade in enumerate((10, 20)):
        chain = chain_digest(chain, encoded(shade), "mug")
        items.append(
            Received(
                index=index,
                id=f"mug/{index}.png",
                label="mug",
                chain=chain,
                content=imaging.content_digest(imaging.decode(encoded(shade))),
                blob=store.blobs.put(encoded(shade)),
            )
        )
    store.domains.add(batch.name, items)
    store.domains.commit_batch(batch.name, count=2, chain=chain)
    make_version(store)
    store.close()
    return home


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*words: str, home: Path) -> Done:
    """A command, in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"ACCLIMATE_HOME": str(home)}),
        mock.patch.object(sys, "argv", ["acclimate store", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        upkeep.main()
    code = ended.value.code
    return Done(returncode=int(code or 0), stdout=out.getvalue(), stderr=errors.getvalue())


def called(*words: str, home: Path) -> Done:
    """A command, as a person calls it."""
    done = subprocess.run(
        [sys.executable, "-m", "acclimate", "store", *words],
        env=os.environ | {"ACCLIMATE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return Done(returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def told(*words: str, home: Path, by: Callable[..., Done] = run) -> Any:
    done = by(*words, home=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_backup_is_restored_into_another_home(home: Path, tmp_path: Path) -> None:
    saved = told("backup", str(tmp_path / "b.tar"), home=home, by=called)
    restored = told("restore", str(tmp_path / "b.tar"), home=tmp_path / "new", by=called)
    assert restored == saved
    assert saved["tables"]["examples"]["count"] == 2
    new = store_at(tmp_path / "new")
    assert new.reconcile().missing == ()
    new.close()


def test_a_store_moves_from_a_folder_to_a_bucket_and_back(
    home: Path, tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    url, far = object_store.bucket(), tmp_path / "far"
    here = store_at(home)
    saved = here.save(tmp_path / "first.tar")
    here.close()
    restored = told("restore", str(tmp_path / "first.tar"), "--blobs", url, home=far)
    assert restored == saved.model_dump(mode="json")
    assert not (far / "blobs").exists()

    place = Bucket(url=url, cache=far / "blob-cache", cache_bytes=2**20)
    there = open_store(f"sqlite:///{far / 'acclimate.db'}", place)
    again = there.save(tmp_path / "second.tar")
    there.close()
    assert (again.tables, again.blobs, again.missing) == (saved.tables, saved.blobs, ())
    back = store_at(tmp_path / "back")
    assert back.restore(tmp_path / "second.tar") == again
    assert back.reconcile().missing == ()
    back.close()


def test_a_bucket_that_is_not_there_is_refused_in_one_line(
    home: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    done = run("tidy", "--blobs", "s3://nobody-made-this/here", home=home)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("acclimate: INVALID_SPEC: ")
    assert "make the bucket" in line


def test_a_restore_over_a_store_in_use_is_refused_in_one_line(home: Path, tmp_path: Path) -> None:
    told("backup", str(tmp_path / "b.tar"), home=home)
    done = called("restore", str(tmp_path / "b.tar"), home=home)
    assert done.returncode == 1
    assert done.stderr.startswith("acclimate: ALREADY_EXISTS: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("backup", "b.tar"), ("tidy",)], ids=" ".join)
def test_a_mistyped_home_is_refused_and_not_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    words = tuple(str(tmp_path / word) if word.endswith(".tar") else word for word in words)
    done = run(*words, home=tmp_path / "hoem")
    assert done.returncode == 1
    assert done.stderr.startswith("acclimate: NOT_FOUND: there is no store ")
    assert "--home" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_backup_leaves_no_store_behind(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"no backup")
    done = run("restore", str(tmp_path / "b.tar"), home=tmp_path / "new")
    assert done.returncode == 1
    assert not (tmp_path / "new").exists()


def test_an_image_is_erased_by_the_image_itself_in_another_format(
    home: Path, tmp_path: Path
) -> None:
    (tmp_path / "face.webp").write_bytes(encoded(10, "WEBP"))
    erased = told(
        "erase", "--image", str(tmp_path / "face.webp"), "--reason", "asked to", home=home
    )
    assert erased["files"] == 1
    assert erased["trained"] == ["models/desk/versions/1"]


def test_an_image_is_erased_by_the_name_its_uploader_gave(home: Path) -> None:
    words = ("erase", "--domain", "amazon", "--id", "mug/1.png", "--reason", "asked to")
    assert told(*words, home=home)["files"] == 1
    again = run(*words, home=home)
    assert again.returncode == 1
    assert "NOT_FOUND" in again.stderr


def test_an_image_is_erased_beside_a_job_that_read_it_if_the_job_may_be_cancelled(
    home: Path,
) -> None:
    store = store_at(home)
    store.jobs.enqueue(draft(), request_id="")
    job, lease = claimed(store)
    store.jobs.release(lease)
    words = ("erase", "--domain", "amazon", "--id", "mug/1.png", "--reason", "asked to")
    refused = run(*words, home=home)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"acclimate: IMAGE_IN_USE: {job.name}: ")
    assert "--cancel-jobs" in line
    erased = told(*words, "--cancel-jobs", home=home)
    assert erased["cancelled"] == [str(job.name)]
    assert erased["files"] == 1
    assert store.jobs.get(job.name).state is JobState.CANCELLED
    store.close()


def test_an_image_that_stayed_withheld_is_given_back_by_its_name(home: Path) -> None:
    store = store_at(home)
    store.jobs.enqueue(draft(), request_id="")
    _, lease = claimed(store)
    content = content_of(store.database, "amazon", "mug/1.png")
    with pytest.raises(ImageInUse):
        store.erase(content, who="ann", why="asked to", cancel_jobs=0)
    store.jobs.finish(lease, state=JobState.CANCELLED, summary={})
    words = ("--domain", "amazon", "--id", "mug/1.png", "--reason", "it was the wrong one")
    given = told("give-back", *words, home=home)
    assert given["content"] == content
    assert content in {one.content for one in store.domains.examples(SOURCE, splits=tuple(Split))}
    store.close()


def test_a_rehearsed_tidying_removes_nothing(home: Path) -> None:
    store = store_at(home)
    for _ in range(3):
        make_version(store)
    store.close()
    rehearsed = told("tidy", "--versions", "1", "--rehearse", home=home)
    assert len(rehearsed["versions"]) == 3
    done = told("tidy", "--versions", "1", home=home)
    assert done["versions"] == rehearsed["versions"]


@pytest.mark.parametrize(
    "words", [("--candidate-days", "-1"), ("--batch-days", "nan"), ("--report-days", "inf")]
)
def test_a_time_that_is_none_is_refused_in_one_line(home: Path, words: tuple[str, str]) -> None:
    done = run("tidy", *words, home=home)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"acclimate: INVALID_SPEC: tidy.{words[0][2:].replace('-', '_')}: ")


def test_a_setting_that_cannot_be_is_refused_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCLIMATE_BLOB_CACHE_GIB", "plenty")
    done = run("tidy", "--rehearse", home=home)
    (line,) = done.stderr.splitlines()
    assert line.startswith("acclimate: INVALID_SPEC: ACCLIMATE_BLOB_CACHE_GIB: ")
