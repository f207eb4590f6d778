"""Leases on SQLite, beside a time of day that jumps."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from tests.contract.builders import draft, furnish

from acclimate_service.domain.job import JobState
from acclimate_service.store import engine, open_store


@pytest.mark.parametrize("hours", [-1, 1, 24 * 365])
def test_a_clock_that_is_set_takes_no_job_from_a_worker_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "blobs")
    furnish(store)
    name = store.jobs.enqueue(draft(), request_id="").name
    claimed = store.jobs.claim("one", lease_seconds=30, max_attempts=3)
    assert claimed is not None
    true = engine.utc_now
    monkeypatch.setattr(engine, "utc_now", lambda: true() + dt.timedelta(hours=hours))
    assert store.jobs.claim("two", lease_seconds=30, max_attempts=3) is None
    assert store.jobs.request_cancel(name).state is JobState.RUNNING  # its worker is asked
    assert store.jobs.heartbeat(claimed[1], lease_seconds=30).cancel_requested
    store.close()


def test_a_lease_from_before_the_machine_was_started_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'store.db'}", tmp_path / "blobs")
    furnish(store)
    store.jobs.enqueue(draft(), request_id="")
    monkeypatch.setattr("acclimate_service.store.engine.time.monotonic", lambda: 9000.0)
    assert store.jobs.claim("one", lease_seconds=30, max_attempts=3) is not None
    monkeypatch.setattr("acclimate_service.store.engine.time.monotonic", lambda: 60.0)
    claimed = store.jobs.claim("two", lease_seconds=30, max_attempts=3)
    assert claimed is not None
    assert claimed[1].attempt == 2
    store.close()
