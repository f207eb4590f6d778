"""What every test stands on: real photographs, an object store, when a GPU test can run."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from tests import objectstore
from tests.objectstore import CannotStart, FaultProxy, ObjectStore

ROOT = Path(__file__).resolve().parent.parent

# Tests run two at a time, and OpenMP's threads wait for each other by spinning: with as many in
# each as there are cores, that costs more than the work. Said before torch and numpy are
# imported; a trainer sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The machines that run these tests are shared: a slow example is no failure, and CI
# must not fail on a case that the next run would not draw.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds, so only where a test asks for a GPU

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # Of the million objects that torch and its like are made of none ever goes: nobody who
    # collects garbage need look at them, neither here nor in each test of what leaks.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries take for a leak what is still there at the end


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of real photographs: ``<domain>/<label>/<image>``."""
    folder = Path(
        os.environ.get("ACCLIMATE_TEST_PHOTOS", ROOT.parent / "shared" / "data" / "office-caltech")
    )
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}; name a folder with ACCLIMATE_TEST_PHOTOS")
    return folder


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A server that speaks S3."""
    with contextlib.ExitStack() as stack:
        try:
            log = tmp_path_factory.mktemp("objects") / "log"
            yield stack.enter_context(objectstore.object_store(log))
        except CannotStart as error:
            pytest.skip(f"no object store can be started here: {error}")


@pytest.fixture
def faulty(object_store: ObjectStore) -> Iterator[FaultProxy]:
    """A proxy that stands before the object store and can misbehave."""
    with objectstore.fault_proxy(object_store) as proxy:
        yield proxy
