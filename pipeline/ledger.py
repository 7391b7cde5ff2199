"""The ledger of a running job: which units are finished, kept in its output folder until the job is.

Only the driver writes it, in numbered files of several entries each: a file appears whole or not at all, no file is
written twice, and an entry is written only after what it tells of was published. A driver that was killed has lost at
most the entries of the last seconds; those units are done again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.errors import InputError, ResourceError
from pipeline.lock import OutputLock, clear
from pipeline.storage import Location

LOG = logging.getLogger(__name__)
LEDGER_FOLDER = "_ledger"
RUN_FILE = "run.json"
FLUSH = 2.0
"""Seconds between two files of entries, at least."""
_THREADS = 16


class Ledger:
    """The ledger in an output folder.

    Args:
        folder: The output folder.
        generation: Number of the lock that this run holds. Its files have names of their own, whatever ran before.
    """

    def __init__(self, folder: Location, generation: int = 0) -> None:
        self._folder = folder.join(LEDGER_FOLDER)
        # a run that ends well gives its lock back, and the next one gets the same number
        self._name = f"{generation:06d}-{uuid.uuid4().hex[:12]}"
        self._waiting: list[Mapping[str, Any]] = []
        self._written, self._last = 0, -FLUSH

    def run(self) -> str | None:
        """Fingerprint of the run that the ledger belongs to; None if there is none, or it is damaged."""
        try:
            return str(self._folder.join(RUN_FILE).read_json()["run"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def begin(self, run: str) -> None:
        """Says which run the ledger belongs to."""
        self._folder.join(RUN_FILE).write_json({"run": run})

    def entries(self) -> list[dict[str, Any]]:
        """The entries of earlier runs, in the order they were written; damaged files count for nothing."""
        names = [stat.path for stat in self._folder.files() if stat.path != RUN_FILE and stat.path.endswith(".json")]
        with ThreadPoolExecutor(_THREADS) as pool:
            return [entry for found in pool.map(self._read, names) for entry in found]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry; it is written at once, or within `FLUSH` seconds of the last ones if more come."""
        self._waiting.append(entry)
        if time.monotonic() - self._last >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes the entries that wait."""
        if self._waiting:
            name = f"{self._name}-{self._written:06d}.json"
            self._folder.join(name).write_bytes(json.dumps(self._waiting).encode())
            self._waiting, self._written = [], self._written + 1
        self._last = time.monotonic()

    def remove(self) -> None:
        """Removes the ledger, and forgets the entries that wait."""
        self._waiting = []
        self._folder.remove()

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            return [dict(entry) for entry in self._folder.join(name).read_json()]
        except (FileNotFoundError, ValueError, TypeError):
            LOG.warning("%s/%s is damaged; what it tells of is done again", self._folder, name)
            return []


@contextlib.contextmanager
def recording(ledger: Ledger, folder: Location) -> Iterator[None]:
    """Writes the last entries of a run, however it ends; nothing of it stays in its folder where input was bad."""
    try:
        yield
    except ResourceError:  # the cluster's fault, not the input's
        raise
    except InputError:
        ledger.remove()
        clear(folder)
        raise
    finally:
        ledger.flush()


def open_ledger(folder: Location, run: str, lock: OutputLock, what: str) -> Ledger:
    """The ledger of a run in an output folder that was checked and is locked.

    Args:
        folder: The folder. If it belongs to another run, it is cleared.
        run: Fingerprint of the run.
        lock: The lock.
        what: What is made there, for people ("decode").

    Returns:
        The ledger, with what an earlier, killed run has finished.
    """
    ledger = Ledger(folder, lock.generation)
    if ledger.run() == run:
        LOG.info("continuing the unfinished %s in %s", what, folder)
        return ledger
    clear(folder)
    ledger.begin(run)
    return ledger
