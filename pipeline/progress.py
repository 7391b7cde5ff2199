"""How far a stage of a job is, and a board through which training workers reach the driver."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

LOG = logging.getLogger("parvae.progress")


class Progress:
    """How far one stage of a job is: units, rows and bytes done, their speeds, the time left.

    It logs itself when it begins and when it ends (the record's `progress` is this object); what is shown in
    between, and how often, is up to whoever handles the records: `jobs.display` for commands.

    Args:
        stage: Name of the stage.
        units: Units there are.
        row_bytes: Bytes of source data a row, for the units that `advance` is told no size of.
        begun: When it began, by `time.monotonic`; None: now.
    """

    def __init__(self, stage: str, units: int, row_bytes: float = 0.0, begun: float | None = None) -> None:
        self.ended = False
        self._stage, self._units, self._row_bytes = stage, units, row_bytes
        self._begun = time.monotonic() if begun is None else begun
        self._seconds = 0.0
        self._done = self._rows = 0
        self._bytes = 0.0
        if units:
            self._log()

    def advance(self, rows: int, size: float = 0) -> None:
        """One more unit is done.

        Args:
            rows: Its rows.
            size: Its bytes of source data; 0: its rows times `row_bytes`.
        """
        self._done += 1
        self._rows += rows
        self._bytes += size or rows * self._row_bytes
        if self._done == self._units:
            self.end()

    def end(self) -> None:
        """The stage is over, even if units are left (an epoch too many, say); the last unit does it by itself."""
        if not self.ended:
            self._seconds = self._elapsed()
            self.ended = True
            self._log()

    def state(self) -> dict[str, Any]:
        """The figures, for machines; `eta_seconds` is None until the first unit is done."""
        elapsed = self._elapsed()
        left = max(0, self._units - self._done)
        eta = 0.0 if self.ended else elapsed / self._done * left if self._done else None
        return {
            "stage": self._stage,
            "units_done": self._done,
            "units": self._units,
            "rows": self._rows,
            "rows_per_second": round(self._rows / elapsed, 1),
            "bytes_per_second": round(self._bytes / elapsed),
            "eta_seconds": None if eta is None else round(eta, 1),
        }

    def line(self) -> str:
        """The figures, for people."""
        state = self.state()
        words = [f"{state['rows']:,} rows", f"{state['rows_per_second']:,.0f} rows/s"]
        if self._bytes:
            words.append(f"{state['bytes_per_second'] / 1e6:,.1f} MB/s")
        if self.ended:
            done = "1 unit" if self._done == 1 else f"{self._done:,} units"
            return f"{self._stage}: {done} in {_duration(self._elapsed())}, {', '.join(words)}"
        if state["eta_seconds"] is not None:
            words.append(f"{_duration(state['eta_seconds'])} left")
        return f"{self._stage}: {self._done:,} of {self._units:,} units, {', '.join(words)}"

    def _elapsed(self) -> float:
        return self._seconds if self.ended else max(time.monotonic() - self._begun, 1e-9)

    def _log(self) -> None:
        LOG.info("%s", self.line(), extra={"progress": self})


class EpochProgress:
    """Progress of training, from the messages that a worker sends after each epoch.

    Args:
        listen: Called with each message first.
    """

    def __init__(self, listen: Callable[[dict[str, Any]], None]) -> None:
        self._listen, self._begun = listen, time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, message: dict[str, Any]) -> None:
        """Takes a message: `epoch`, `epochs` and `rows`, beside what `listen` wants."""
        self._listen(message)
        if self._progress is None:  # a run that goes on begins with a later epoch
            left = max(1, message["epochs"] - message["epoch"])
            self._progress = Progress("train", left, begun=self._begun)
        self._progress.advance(message["rows"])

    def end(self) -> None:
        """Training is over, maybe before its last epoch."""
        if self._progress is not None:
            self._progress.end()


def _duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 35 s, 2 min 05 s, 1 h 03 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


class _Board:
    """Ray actor: what training workers say, for the driver to read."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._failure = ""

    def tell(self, message: dict[str, Any]) -> None:
        """Adds a message."""
        self._messages.append(message)

    def fail(self, reason: str) -> None:
        """Says why training stopped for good."""
        self._failure = reason

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """Takes the messages, and why training stopped ("" if it did not)."""
        messages, self._messages = self._messages, []
        return messages, self._failure


class Board:
    """The driver's end: passes messages to a callback from a thread of its own.

    Args:
        listen: Called with each message.
    """

    def __init__(self, listen: Callable[[dict[str, Any]], None]) -> None:
        self.handle = ray.remote(_Board).options(num_cpus=0).remote()
        self._listen = listen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True, name="progress")
        self.failure = ""

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take()

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            self._take()

    def _take(self) -> None:
        try:
            messages, self.failure = ray.get(self.handle.read.remote(), timeout=30)
        except ray.exceptions.RayError as error:
            LOG.debug("no progress: %s", error)
            return
        for message in messages:
            self._listen(message)
