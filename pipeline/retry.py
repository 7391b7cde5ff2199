"""Retries of what an object store refuses for the moment, and errors that say what it refuses for good.

Throttling (429, 503 `SlowDown`), answers 500, 502, 503 and 504, timeouts and lost connections are tried again with
exponential backoff and full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
Denied credentials are not: waiting does not mend them.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import StoreError

LOG = logging.getLogger(__name__)
PATIENCE_VARIABLE = "PARVAE_STORE_PATIENCE"
"""Environment variable: seconds that an object store may go on failing before a job gives up."""
_PATIENCE = 180.0
_FIRST, _LONGEST = 0.2, 15.0
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EBUSY", "EIO", "EAGAIN", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE"),
        *("EHOSTUNREACH", "ENETUNREACH", "EREMOTEIO", "EREMCHG"),
    )
    if hasattr(errno, name)
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_DENIED_STATUS = frozenset({401, 403, 407})
_DENIED_NAMES = ("NoCredentials", "PartialCredentials", "CredentialRetrieval", "TokenRetrieval", "Unauthorized")
_PASSING_NAMES = ("ConnectionError", "HTTPClientError", "ClientError", "ClientPayloadError", "ServerDisconnected")
Result = TypeVar("Result")


def patience() -> float:
    """Seconds that an object store may go on failing: `PARVAE_STORE_PATIENCE`, 180 without it."""
    try:
        return float(os.environ.get(PATIENCE_VARIABLE, _PATIENCE))
    except ValueError:
        return _PATIENCE


def persistently(action: Callable[[], Result], what: str, name: str, seconds: float | None = None) -> Result:
    """Does something with an object store, again and again while it fails for reasons that pass.

    Args:
        action: What to do; it must be harmless to do it twice.
        what: What it is, for messages: "reading".
        name: Of what, for messages.
        seconds: How long it may go on failing; None: `patience()`.

    Raises:
        StoreError: If credentials are denied, at once; or if the store fails for longer.
        Exception: What `action` raises otherwise: FileNotFoundError and the like.
    """
    begun, tries = time.monotonic(), 0
    while True:
        try:
            return action()
        except Exception as error:
            if is_denied(error):
                raise StoreError(
                    f"{what} {name}: {_reason(error)}; the store denies it: check the credentials"
                ) from error
            if not is_passing(error):
                raise
            tries += 1
            waited = time.monotonic() - begun
            if waited >= (patience() if seconds is None else seconds):
                raise StoreError(
                    f"{what} {name}: the store failed {tries} times in {waited:.0f} s ({_reason(error)}); "
                    f"run the same command again when it answers ({PATIENCE_VARIABLE} sets the seconds)"
                ) from error
            pause = random.uniform(0, min(_LONGEST, _FIRST * 2**tries))
            LOG.log(
                logging.WARNING if tries > 3 else logging.DEBUG, "%s %s: %s; again in %.1f s", what, name, error, pause
            )
            time.sleep(pause)


def is_denied(error: BaseException) -> bool:
    """Whether a store refuses the credentials, or lacks them."""
    status = _status(error)
    if status is not None:
        return status in _DENIED_STATUS
    return isinstance(error, PermissionError) or type(error).__name__.startswith(_DENIED_NAMES)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return False
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return any(base.__name__.endswith(_PASSING_NAMES) for base in type(error).__mro__)


class PersistentReader(io.RawIOBase):
    """A file of an object store for random reads, each tried again while it fails for reasons that pass.

    Args:
        stream: The file, as fsspec opens it.
        name: Its name, for messages.
    """

    def __init__(self, stream: Any, name: str) -> None:
        super().__init__()
        self._stream, self._name = stream, name

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves; nothing is read."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """Where the next read begins."""
        return int(self._stream.tell())

    def read(self, size: int | None = -1) -> bytes:
        """Reads some bytes, or all that are left."""
        begin = self._stream.tell()

        def attempt() -> bytes:
            self._stream.seek(begin)
            data: bytes = self._stream.read(-1 if size is None else size)
            return data

        return persistently(attempt, "reading", self._name)

    def readinto(self, buffer: Any) -> int:
        """Reads into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
        super().close()


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an exception of botocore, aiohttp, gcsfs or adlfs."""
    seen = error
    for _ in range(4):
        response = getattr(seen, "response", None)
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for value in (
            found,
            getattr(seen, "status", None),
            getattr(seen, "status_code", None),
            getattr(seen, "code", None),
        ):
            if isinstance(value, int) and 100 <= value < 600:
                return value
        if seen.__cause__ is None:
            return None
        seen = seen.__cause__
    return None


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
