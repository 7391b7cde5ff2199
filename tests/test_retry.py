"""Is what passes tried again, and what does not pass said at once?"""

from __future__ import annotations

import errno
import io
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.retry import PATIENCE_VARIABLE, PersistentReader, is_denied, is_passing, persistently


class Answer(Exception):
    """An exception as botocore raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def translated(status: int) -> OSError:
    """An exception as s3fs raises it: an OSError with botocore's as its cause."""
    error = OSError(errno.EIO, "Please reduce your request rate")
    error.__cause__ = Answer(status)
    return error


class NoCredentialsError(Exception):
    """As botocore's."""


PASSING = [Answer(503), Answer(500), Answer(429), translated(502), TimeoutError(), ConnectionResetError()]
PASSING += [OSError(errno.EBUSY, "SlowDown"), OSError(errno.EIO, "broken")]
LASTING = [FileNotFoundError(), Answer(404), Answer(412), OSError(errno.ENOSPC, "full"), ValueError(), KeyError("x")]
DENIED = [PermissionError("Forbidden"), Answer(403), translated(401), NoCredentialsError("none")]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_is_what_passes_tried_again(error: Exception) -> None:
    failures = [error, error]

    def act() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert is_passing(error)
    assert not is_denied(error)
    assert persistently(act, "reading", "s3://bucket/x") == "done"


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_is_what_lasts_raised_as_it_is_and_at_once(error: Exception) -> None:
    tries: list[int] = []

    def act() -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        persistently(act, "reading", "s3://bucket/x")
    assert caught.value is error
    assert len(tries) == 1


@pytest.mark.parametrize("error", DENIED, ids=repr)
def test_are_denied_credentials_named_at_once(error: Exception) -> None:
    tries: list[int] = []

    def act() -> None:
        tries.append(1)
        raise error

    with pytest.raises(StoreError, match=r"reading s3://bucket/x: .*the store denies it: check the credentials"):
        persistently(act, "reading", "s3://bucket/x")
    assert len(tries) == 1


def test_does_a_store_that_fails_for_ever_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")

    def act() -> None:
        raise Answer(503)

    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"writing s3://bucket/x: the store failed \d+ times .*same command again"):
        persistently(act, "writing", "s3://bucket/x")
    assert time.monotonic() - begun >= 0.5


def test_does_a_reader_go_on_where_it_was(tmp_path: Path) -> None:
    data = bytes(range(256)) * 100

    class Flaky(io.BytesIO):
        """Fails after it has moved, every second time."""

        calls = 0

        def read(self, size: int | None = -1) -> bytes:
            self.calls += 1
            found = super().read(size)
            if self.calls % 2:
                raise ConnectionResetError
            return found

    with PersistentReader(Flaky(data), "x") as reader:
        assert reader.read(1000) == data[:1000]
        assert reader.tell() == 1000
        reader.seek(-10, io.SEEK_END)
        assert reader.read() == data[-10:]
        reader.seek(5)
        buffer = bytearray(7)
        assert reader.readinto(buffer) == 7
        assert buffer == data[5:12]
    assert reader.closed
