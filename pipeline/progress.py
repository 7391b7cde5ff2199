"""Progress lines from a job, and a board through which training workers reach the driver."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

LOG = logging.getLogger("parvae.progress")


class Progress:
    """One line a stage, at most every two seconds: units, rows a second, time left.

    Args:
        stage: Name of the stage.
        units: Units there are.
    """

    def __init__(self, stage: str, units: int) -> None:
        self._stage, self._units = stage, units
        self._begun = self._told = time.monotonic()
        self._done = self._rows = 0

    def advance(self, rows: int) -> None:
        """One unit of `rows` rows is done."""
        self._done += 1
        self._rows += rows
        now = time.monotonic()
        if self._done < self._units and now - self._told < 2:
            return
        self._told = now
        elapsed = max(now - self._begun, 1e-9)
        left = elapsed / self._done * (self._units - self._done)
        LOG.info(
            "%s: %d of %d units, %s rows, %s rows/s, %.0f s left",
            self._stage,
            self._done,
            self._units,
            f"{self._rows:,}",
            f"{self._rows / elapsed:,.0f}",
            left,
        )


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
