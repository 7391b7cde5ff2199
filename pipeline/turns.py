"""Work units side by side in one worker: while one computes, the next reads and the one before writes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pipeline.machine import use_threads

_T = TypeVar("_T")
OVERLAP = 2
"""Units that a worker has under way at once: one that computes, one that reads or writes."""


class Turns:
    """Lets one of a worker's units compute at a time, in a given number of torch threads.

    Args:
        threads: Compute threads. OpenMP keeps their number by thread, so every turn sets it.
    """

    def __init__(self, threads: int) -> None:
        self._lock, self._threads = threading.Lock(), threads

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Waits until no other unit computes, and keeps them waiting."""
        with self._lock:
            use_threads(self._threads)
            yield


def begun(items: Iterable[_T]) -> Iterator[_T]:
    """The same items, the first of which is taken at once: whatever reads ahead for it begins before a turn does."""
    iterator = iter(items)
    return itertools.chain(list(itertools.islice(iterator, 1)), iterator)
