"""Does a dataset live on an object store as it lives on a disk, and does the store's every mood get its answer?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from jobs.cli import main
from pipeline.errors import JobError, ParvaeError, StoreError
from pipeline.locate import locate
from pipeline.retry import PATIENCE_VARIABLE
from pipeline.storage import Location
from tests.servers.store import BUCKET, Store
from tests.slow.disturbed import write_source

NAMES = [
    "a b/c d.bin",
    "größe/東京.parquet",
    "x[1]*?.bin",
    "day=2024-01-01/f=1.bin",
    "plus+and&.bin",
    "%20.bin",
    "#1.bin",
]


@pytest.mark.parametrize("name", NAMES)
def test_does_a_file_with_an_odd_name_live_through_everything(folder: Location, name: str) -> None:
    file, other = folder.join(name), folder.join(name + "2")
    for location in (file, other):
        location.write_bytes(location.name.encode())
    assert [stat.path for stat in folder.files()] == sorted([name, name + "2"])
    assert file.exists()
    assert file.is_file()
    assert not file.parent.is_file()
    assert file.read_bytes() == file.name.encode()
    with file.open() as stream:
        stream.seek(2)
        assert stream.read() == file.name.encode()[2:]
    file.remove()
    assert not file.exists()
    assert other.read_bytes() == other.name.encode()
    folder.remove()
    assert folder.is_empty()


def test_is_a_neighbour_with_the_same_beginning_another_folder(folder: Location) -> None:
    folder.join("a/x").write_bytes(b"1")
    folder.join("ab/x").write_bytes(b"2")
    assert [stat.path for stat in folder.join("a").files()] == ["x"]
    folder.join("a").remove()
    assert [stat.path for stat in folder.files()] == ["ab/x"]


def test_is_only_the_first_of_many_told_that_it_created_a_file(folder: Location) -> None:
    place, told = folder.join("_lock", "000001.json"), list[tuple[int, bool]]()
    ready = threading.Barrier(6)

    def create(number: int) -> None:
        ready.wait()
        told.append((number, place.create_bytes(f"writer {number}".encode())))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number, first in told if first]
    assert len(told) == 6
    assert len(winners) == 1 or (place.path.startswith(BUCKET) and winners)  # Swift looks before it takes the body
    assert place.read_bytes() in [f"writer {number}".encode() for number in winners]
    assert not place.create_bytes(b"too late")
    place.remove()
    assert place.create_bytes(b"free again")


def test_does_a_full_disk_say_which_file_it_had_no_room_for(folder: Location) -> None:
    place = folder.join("a", "x.bin")
    spools = []

    def write() -> None:
        with place.publishing() as spool, open("/dev/full", "wb", buffering=0) as full:
            spools.append(Path(spool))
            spools[0].write_bytes(b"some of it")
            full.write(b"the rest")

    with pytest.raises(JobError, match=r"x\.bin: No space left on device in .*; make room"):
        write()
    assert not spools[0].exists()
    assert not place.exists()


@pytest.mark.slow
def test_is_a_large_file_published_in_pieces_and_at_once(store: Store) -> None:
    place = store.place("large/file.bin")
    data = np.random.default_rng(0).integers(0, 256, 120 << 20, np.uint8).tobytes()
    before = store.proxy.passed.copy()
    with store.proxy.failing(0.2):
        with place.publishing() as spool:
            Path(spool).write_bytes(data)
            assert not place.exists()
        assert place.stat().size == len(data)
        assert place.read_bytes() == data
    assert (store.proxy.passed - before)["POST"] >= 2  # the beginning and the end of a multipart upload
    assert [stat.path for stat in place.parent.files()] == ["file.bin"]


@pytest.fixture
def other_credentials(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret that the store does not know, by fsspec's own configuration."""
    secret = "a-secret-that-nobody-may-see"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"key": "test:tester", "secret": secret})
    return secret


def test_are_denied_credentials_said_at_once_without_the_secret(store: Store, other_credentials: str) -> None:
    place, before = store.place("denied/x"), sum(store.proxy.passed.values())
    for action in (place.exists, place.files, place.read_bytes, lambda: place.write_bytes(b""), place.remove):
        with pytest.raises(StoreError, match="check the credentials") as found:
            action()
        assert str(place) in str(found.value)
        assert other_credentials not in "".join(map(repr, chain_of(found.value)))
    assert sum(store.proxy.passed.values()) - before <= 12  # nothing was tried again and again
    with pytest.raises(ParvaeError, match="denied"):
        locate(f"s3://{BUCKET}/denied", "DATA")


def test_is_a_store_that_forbids_never_asked_twice(store: Store) -> None:
    with store.proxy.failing(1, "AccessDenied") as refused, pytest.raises(StoreError, match="check the credentials"):
        store.place("forbidden/x").write_bytes(b"x")
    assert refused.total() == 1


def test_is_a_bucket_that_is_not_there_named(
    store: Store, source: Location, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = "s3://no-such-bucket/folder"
    for argv in (
        ["inspect", place],
        ["train", str(source), "--model", place],
        ["decode", place, "--out", str(tmp_path)],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert place in told
        assert "bucket" in told.replace(place, "")


@pytest.mark.slow
def test_is_a_store_survived_that_is_too_busy_for_a_third_of_the_requests(store: Store) -> None:
    place = store.place("busy")
    with store.proxy.failing(1 / 3) as refused:
        for number in range(4):
            place.join(f"{number}.bin").write_bytes(bytes([number]) * 1000)
        assert [stat.size for stat in place.files()] == [1000] * 4
        for number in range(4):
            with place.join(f"{number}.bin").open() as stream:
                assert stream.read() == bytes([number]) * 1000
        assert place.join("lock").create_bytes(b"mine")
        assert not place.join("lock").create_bytes(b"yours")
        place.remove()
        assert place.is_empty()
    assert refused.total() > 5


@pytest.mark.slow
def test_does_endless_throttling_end_with_what_to_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    place = store.place("endless/x")
    with store.proxy.failing(1), pytest.raises(StoreError, match="run the same command again") as found:
        place.write_bytes(b"x")
    assert str(place) in str(found.value)
    assert not place.exists()


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.fixture(scope="module")
def source(store: Store) -> Location:
    place = store.place("tour of parvae/data")
    write_source(place, files=3, rows=400)
    return place
