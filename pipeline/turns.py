"""Work units side by side in one worker: while one computes, the next reads and the one before writes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

from pipeline.machine import use_threads

_T = TypeVar("_T")
_R = TypeVar("_R")
OVERLAP = 2
"""Units that a worker has under way at once: one that computes, one that reads or writes."""


class Turns:
    """Lets one of a worker's units read at a time, and one compute, in a given number of torch threads.

    Args:
        threads: Compute threads. OpenMP keeps their number by thread, so every turn sets it.
    """

    def __init__(self, threads: int) -> None:
        self._computing, self._reading, self._threads = threading.Lock(), threading.Lock(), threads

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Waits until no other unit computes, and keeps them waiting."""
        with self._computing:
            use_threads(self._threads)
            yield

    def compute(self, items: Iterable[_T], make: Callable[[_T], _R]) -> Generator[_R]:
        """What is made of each of one unit's items, none of which is None.

        The turn ends with the last of them: the next unit computes while what was made here is still being written.
        """
        source = iter(items)
        with contextlib.ExitStack() as turn:
            turn.enter_context(self.taken())
            item = next(source, None)
            while item is not None:
                made, item = make(item), None  # an item need not stay while the next one is taken
                item = next(source, None)
                if item is None:
                    turn.close()
                yield made

    def read(self, items: Iterable[_T]) -> Generator[_T]:
        """What one unit reads, the first item of which waits until the unit before has read its last.

        So units beside each other hold no more in memory than one unit that reads ahead.
        """
        with self._reading:
            yield from items


class Begun(Iterator[_T]):
    """The same items, the first of which is taken at once: a unit has it at hand when its turn comes.

    Args:
        items: The items.
    """

    def __init__(self, items: Iterable[_T]) -> None:
        self._items = iter(items)
        self._first = list(itertools.islice(self._items, 1))

    def __next__(self) -> _T:
        return self._first.pop() if self._first else next(self._items)

    def close(self) -> None:
        """Ends a source that is a generator, wherever it is."""
        if isinstance(self._items, Generator):
            self._items.close()
