"""Does reading ahead keep order and errors, and does it stop when nobody listens any more?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.readahead import read_ahead


def threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("depth", [1, 2, 10])
def test_are_items_yielded_in_order(count: int, depth: int) -> None:
    assert list(read_ahead(range(count), depth)) == list(range(count))
    assert threads() == 0


def test_may_none_and_exceptions_be_items() -> None:
    items = [None, ValueError("an item"), None]
    assert list(read_ahead(items)) == items


def test_does_an_error_arrive_where_it_happened() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise RuntimeError("after three")

    stream = read_ahead(items())
    assert [next(stream), next(stream), next(stream)] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="after three"):
        next(stream)
    assert threads() == 0


def test_is_no_more_read_ahead_than_asked_for() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    stream = read_ahead(items(), depth=3)
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 5
    stream.close()  # type: ignore[attr-defined]


def test_does_the_producer_stop_and_close_its_source_with_the_consumer() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    stream = read_ahead(items())
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert threads() == 0


def test_is_nothing_read_before_the_first_item_is_asked_for() -> None:
    made = []
    stream = read_ahead(made.append(i) for i in range(3))
    assert made == []
    assert list(stream) == [None] * 3
