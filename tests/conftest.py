"""Fixtures that many tests share."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from pipeline.storage import Location
from tests.servers.store import Store, announce_store, running_store

STORE_SOCKET = announce_store()
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# The same examples in every run, and no clock: a slow machine is no bug.
settings.register_profile("parvae", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("parvae")

Command = Callable[..., dict[str, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: of several processes, none is left with a long one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    from pipeline.cluster import prepare_environment

    prepare_environment(local=True)

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def parvae(ray_session: None, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process and returns the JSON object of its last line."""
    from jobs.cli import main

    def call(*argv: object) -> dict[str, Any]:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return dict(json.loads(captured.out.splitlines()[-1]))

    return call


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty place: on the disk, in fsspec's object store in memory, and on a real object store."""
    if request.param == "local":
        yield Location(str(tmp_path / "place"))
        return
    if request.param == "s3":
        location = request.getfixturevalue("store").place(f"{uuid.uuid4().hex}/place")
    else:
        location = Location(f"memory://{uuid.uuid4().hex}/place")
    yield location
    location.parent.remove()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store that speaks S3; every process of a test reaches it by its environment."""
    with running_store(STORE_SOCKET, tmp_path_factory.mktemp("store") / "swift") as running:
        yield running


@pytest.fixture
def shared_data() -> Path:
    """The folder of real datasets; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real datasets are not here ({SHARED_DATA})")
    return SHARED_DATA
