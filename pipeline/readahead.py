"""Reading ahead in a thread, so that input overlaps with computing inside one process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def read_ahead(items: Iterable[_T], depth: int = 2) -> Iterator[_T]:
    """Yields `items`, produced up to `depth` ahead by a thread of their own.

    An exception of the producer is raised where the consumer would have met it. When the consumer stops
    early, the producer stops at its next item.

    Args:
        items: What to yield.
        depth: Most items that wait.
    """
    waiting: queue.Queue[tuple[bool, _T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[bool, _T | BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=produce, daemon=True, name="read-ahead")
    thread.start()
    try:
        while True:
            more, value = waiting.get()
            if not more:
                if isinstance(value, BaseException):
                    raise value
                return
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
