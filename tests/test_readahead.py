"""Does reading ahead keep order and errors, and does it stop when nobody listens any more?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.readahead import read_ahead, write_behind


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
    assert len(made) <= 4
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


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_are_calls_made_in_order_and_to_the_last(count: int) -> None:
    made: list[int] = []
    with write_behind() as later:
        for number in range(count):
            later(made.append, number)
    assert made == list(range(count))
    assert not any(thread.name.startswith("write-behind") for thread in threading.enumerate())


def test_does_no_more_than_one_call_wait() -> None:
    begun: list[int] = []
    go = threading.Semaphore(0)

    def call(number: int) -> None:
        begun.append(number)
        go.acquire()

    with write_behind() as later:
        later(call, 0)
        threading.Timer(0.2, go.release).start()
        later(call, 1)  # returns once the first has ended
        assert begun[0] == 0
        go.release()
    assert begun == [0, 1]


@pytest.mark.parametrize("more", [0, 1])
def test_is_an_error_of_a_call_raised(more: int) -> None:
    made: list[int] = []

    def fail() -> None:
        raise RuntimeError("no room")

    def run() -> None:
        with write_behind() as later:
            later(fail)
            for _ in range(more):
                later(made.append, 1)

    with pytest.raises(RuntimeError, match="no room"):
        run()
    assert made == []


def test_does_an_error_in_between_wait_for_the_call() -> None:
    made: list[int] = []

    def slow() -> None:
        time.sleep(0.2)
        made.append(1)

    def run() -> None:
        with write_behind() as later:
            later(slow)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run()
    assert made == [1]
