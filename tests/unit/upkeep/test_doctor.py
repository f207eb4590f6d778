from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.objectstore import ObjectStore

from acclimate_service import doctor
from acclimate_service.doctor import Finding, Level
from acclimate_service.store import open_store


def of(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what.startswith(what)]
    return found


def test_two_wheels_of_onnxruntime_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _name: "1.31.1")  # type: ignore[attr-defined]
    (found,) = doctor.runtimes()
    assert found.level is Level.BAD
    assert "uninstall" in found.advice


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SERVE", ("numpy", "no_such_library"))
    serving = of(list(doctor.libraries()), "serving")
    assert serving.level is Level.BAD
    assert "no_such_library" in serving.told
    assert "acclimate[serve" in serving.advice


def test_a_variable_that_is_no_setting_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_DATABSE_URL", "postgresql://")
    (found,) = doctor.settings()
    assert found.level is Level.WARNING
    assert "ACCLIMATE_DATABSE_URL (ACCLIMATE_DATABASE_URL?)" in found.told


def test_a_folder_is_examined_without_being_made(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    assert of(list(doctor.folder(home)), "folder").level is Level.GOOD
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    for mode, warned in ((0o755, True), (0o750, False)):
        tmp_path.chmod(mode)
        found = [f for f in doctor.folder(tmp_path) if f.what == "privacy"]
        assert [f.level for f in found] == [Level.WARNING] * warned
    tmp_path.chmod(0o700)


def test_a_folder_that_refuses_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    (found,) = doctor.folder(tmp_path)
    assert (found.level, found.told) == (Level.BAD, "Input/output error")


def test_a_store_tells_its_schema_and_its_clock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'acclimate.db'}"
    open_store(url, tmp_path / "blobs").close()
    found = list(doctor.store(url, tmp_path / "blobs"))
    assert [finding.level for finding in found] == [Level.GOOD] * 3


def test_a_database_that_is_none_is_bad(tmp_path: Path) -> None:
    (tmp_path / "acclimate.db").write_bytes(b"no database" * 1000)
    (found,) = doctor.store(f"sqlite:///{tmp_path / 'acclimate.db'}", tmp_path / "blobs")
    assert found.level is Level.BAD


def test_rows_whose_blob_folder_is_gone_are_bad(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'acclimate.db'}"
    open_store(url, tmp_path / "blobs").close()
    assert of(list(doctor.store(url, tmp_path / "lost")), "blobs").level is Level.BAD


def test_a_bucket_is_told_to_be_good_or_what_to_do_about_it(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    (found,) = doctor.bucket(object_store.bucket())
    assert (found.level, found.advice) == (Level.GOOD, "")
    assert "written, read, listed and deleted" in found.told
    (found,) = doctor.bucket("s3://nobody-made-this/here")
    assert found.level is Level.BAD
    assert "NoSuchBucket" in found.told
    assert found.advice.startswith("make the bucket")


def test_a_bucket_without_its_library_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    (found,) = doctor.bucket("s3://bucket/prefix")
    assert (found.level, found.told) == (Level.BAD, "missing: obstore")
    assert "acclimate[bucket]" in found.advice


def test_where_blobs_are_in_a_bucket_no_folder_is_missed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'acclimate.db'}"
    open_store(url, tmp_path / "blobs").close()
    assert [finding.what for finding in doctor.store(url, None)] == ["store", "clock"]


def test_what_crashes_or_hangs_is_told_and_does_not_take_the_doctor_along() -> None:
    crash = doctor.tried("import os; os.kill(os.getpid(), 11)")
    assert not crash.worked
    assert not doctor.tried("import time; time.sleep(60)", seconds=0.5).worked
    assert doctor.tried("print('well')").told == "well"


@pytest.mark.slow
def test_the_torch_and_the_torchvision_of_this_environment_belong_together() -> None:
    (found,) = doctor.torch_pair()
    assert (found.level, found.advice) == (Level.GOOD, "")


def test_the_exit_code_says_whether_anything_is_bad(tmp_path: Path) -> None:
    home, stand_ins = tmp_path / "home", tmp_path / "stand-ins"
    for folder in (home, stand_ins):
        folder.mkdir()
    (home / "acclimate.db").write_bytes(b"no database" * 1000)
    # The real ones take many seconds to import, and what they say is asked above.
    (stand_ins / "torch.py").write_text("__version__ = 'one'")
    (stand_ins / "torchvision.py").write_text("__version__ = 'other'\nclass ops: nms = None")
    path = os.pathsep.join([str(stand_ins), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "acclimate_service.doctor"],
        env=os.environ | {"ACCLIMATE_HOME": str(home), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "BAD   store" in done.stdout
    assert "ok    torch, torchvision: one other" in done.stdout
