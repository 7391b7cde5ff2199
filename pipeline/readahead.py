"""Reading ahead and writing behind in threads, so that both overlap with computing inside one process."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


def read_ahead(items: Iterable[_T], depth: int = 2) -> Iterator[_T]:
    """Yields `items`, produced up to `depth` ahead by a thread of their own.

    An exception of the producer is raised where the consumer would have met it. When the consumer stops
    early, the producer stops at its next item.

    Args:
        items: What to yield.
        depth: Most items that there are beside the one that was yielded last: the next is produced when one is taken.
    """
    waiting: queue.SimpleQueue[tuple[bool, _T | BaseException | None]] = queue.SimpleQueue()
    room, stop = threading.Semaphore(depth), threading.Event()

    def produce() -> None:
        try:
            source = iter(items)
            while True:
                room.acquire()
                if stop.is_set():
                    return
                try:
                    waiting.put((True, next(source)))
                except StopIteration:
                    waiting.put((False, None))
                    return
        except BaseException as error:
            waiting.put((False, error))
        finally:
            if hasattr(items, "close"):
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
            room.release()
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        room.release()
        thread.join()


@contextlib.contextmanager
def write_behind() -> Iterator[Callable[..., None]]:
    """Gives a function that has a thread of its own make a call, one after the other in the order they came in.

    A call waits until the one before has ended. What a call raises is raised by the next one, or at the end.
    """
    with ThreadPoolExecutor(1, "write-behind") as pool:
        last: Future[Any] | None = None

        def later(function: Callable[..., Any], *arguments: Any) -> None:
            nonlocal last
            if last is not None:
                last.result()
            last = pool.submit(function, *arguments)

        yield later
        if last is not None:
            last.result()
