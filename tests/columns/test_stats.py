"""Do statistics hold what they say, within the memory they are given?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.columns import ColumnOptions, ColumnStats, State
from pipeline.columns.gathered import Arrays, from_bytes, to_bytes

from .oracle import observe

RNG = np.random.default_rng(5)


def _priority(n: int) -> np.ndarray:
    return np.random.default_rng(11).permutation(n).astype(np.uint64)


def test_the_sample_is_the_rows_of_lowest_priority() -> None:
    values = RNG.normal(size=1000)
    priority = _priority(1000)
    stats = ColumnStats.empty(pa.field("c", pa.float64()), sample_size=50)
    for start in range(0, 1000, 130):
        stats.observe(pa.array(values[start : start + 130]), priority[start : start + 130])
    assert stats.sample is not None
    assert stats.sample.priority.tolist() == list(range(50))
    assert stats.sample.values is not None
    assert stats.sample.values.tolist() == values[np.argsort(priority)[:50]].tolist()


def _parts(valid: list[int], size: int, shorten: bool) -> list[ColumnStats]:
    """Statistics of parts of 40,000 rows each, of which so many have a value, as they come from other processes."""
    rng = np.random.default_rng(3)
    parts = []
    for count in valid:
        stats = ColumnStats.empty(pa.field("c", pa.float64()), sample_size=size)
        values = np.where(np.arange(40_000) < count, rng.normal(size=40_000), np.nan)
        stats.observe(pa.array(values, from_pandas=True), rng.integers(0, 2**64 - 1, 40_000, np.uint64))
        if shorten:
            stats.shorten(1 / len(valid))
        again = ColumnStats.empty(pa.field("c", pa.float64()), sample_size=size)
        parts.append(again.take(from_bytes(to_bytes(stats.arrays()))))
    return parts


def _sampled(parts: list[ColumnStats], size: int) -> dict[int, float]:
    merged = ColumnStats.empty(pa.field("c", pa.float64()), sample_size=size)
    for part in parts:
        merged.merge(part)
    assert merged.sample is not None
    assert merged.sample.values is not None
    return dict(zip(merged.sample.priority.tolist(), merged.sample.values.tolist(), strict=True))


@pytest.mark.parametrize("valid", [[40_000] * 20, [40_000, 30_000] * 10, [400] * 20], ids=["all", "most", "few"])
def test_what_a_part_leaves_out_the_whole_does_not_miss(valid: list[int]) -> None:
    long, short = _parts(valid, 20_000, shorten=False), _parts(valid, 20_000, shorten=True)
    assert sum(len(part.sample or ()) for part in short) == min(4096, valid[0]) * len(valid)
    assert _sampled(short, 20_000) == _sampled(long, 20_000)


@pytest.mark.parametrize("valid", [[40_000] + [0] * 29, [40_000] * 2 + [10] * 18], ids=["one part", "two parts"])
def test_a_sample_of_parts_that_are_not_alike_is_smaller_but_uniform(valid: list[int]) -> None:
    short = _parts(valid, 20_000, shorten=True)
    found = _sampled(short, 20_000)
    lowest = sorted(_sampled(_parts(valid, 10**6, shorten=False), 10**6).items())
    assert list(found.items()) == lowest[: len(found)]
    assert 4096 <= len(found) < 20_000
    assert _sampled(short[::-1], 20_000) == found


def test_are_rows_that_come_after_a_sample_was_shortened_held_to_its_bound() -> None:
    (stats,) = _parts([40_000], 20_000, shorten=False)
    stats.shorten(0.001)
    assert stats.sample is not None
    below = stats.sample.below
    priority = np.random.default_rng(8).integers(0, 2**64 - 1, 40_000, np.uint64)
    stats.observe(pa.array(np.zeros(40_000)), priority)
    assert below is not None
    assert (stats.sample.priority < np.uint64(below)).all()
    assert len(stats.sample) == 4096 + int((priority < np.uint64(below)).sum())


def test_does_a_sample_that_tells_frequent_texts_stay_whole() -> None:
    stats = ColumnStats.empty(pa.field("c", pa.string()), ColumnOptions(kind="categorical"), sample_size=9000)
    stats.observe(pa.array(np.arange(9000).astype(str)), _priority(9000))
    stats.shorten(0.001)
    assert stats.sample is not None
    assert len(stats.sample) == 9000


def test_a_vector_sample_counts_elements() -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(1000.0)), 10)
    stats = observe(values, sample_size=55)
    assert stats.sample is not None
    assert stats.sample.values is not None
    assert stats.sample.values.shape == (5, 10)


def test_nulls_and_specials_are_counted_and_not_sampled() -> None:
    values = pa.array([1.5, None, float("nan"), float("inf"), float("-inf"), float("-inf"), -2.0])
    stats = observe(values)
    assert {s.name: int(n) for s, n in zip(State, stats.states, strict=True)} == {
        "VALUE": 2,
        "NULL": 1,
        "NAN": 1,
        "POS_INF": 1,
        "NEG_INF": 2,
        "EXACT": 0,
    }
    assert (stats.rows, stats.ordinary, stats.low, stats.high) == (7, 2, -2.0, 1.5)
    assert stats.sample is not None
    assert len(stats.sample) == 2


@pytest.mark.parametrize("data_type", [pa.int64(), pa.uint64()], ids=str)
def test_extremes_are_exact(data_type: pa.DataType) -> None:
    limits = (0, 2**64 - 1) if data_type == pa.uint64() else (-(2**63), 2**63 - 1)
    stats = observe(pa.array([*limits, 5], data_type))
    assert (stats.low, stats.high) == limits


def test_distinct_values_are_counted_exactly_up_to_the_limit() -> None:
    words = [f"w{i % 100}" for i in range(1000)] + ["w7"] * 3
    for limit, overflow in ((100, False), (99, True)):
        parts = [words[:400], words[400:]]
        stats = ColumnStats.empty(pa.field("c", pa.string()), ColumnOptions(max_categories=9), max_distinct=limit)
        for part in parts:
            other = ColumnStats.empty(pa.field("c", pa.string()), ColumnOptions(max_categories=9), max_distinct=limit)
            other.observe(pa.array(part), _priority(len(part)))
            stats.merge(other)
        assert stats.distinct is not None
        assert len(stats.distinct) == (0 if overflow else 100)
        assert stats.distinct.overflow is overflow
        keys, counts = stats.distinct.most_frequent(2)
        assert (keys is None) is overflow
        if keys is not None:
            assert keys.to_pylist() == [b"w7", b"w0"]
            assert counts.tolist() == [13, 10]


def test_long_texts_do_not_fill_the_memory() -> None:
    stats = ColumnStats.empty(pa.field("c", pa.string()))
    for start in range(0, 400, 50):
        stats.observe(pa.array([f"{start + i}" * 20_000 for i in range(50)]), _priority(50))
    assert stats.distinct is not None
    assert len(stats.distinct) == 0
    assert stats.distinct.overflow
    assert len(to_bytes(stats.arrays())) < 10_000


def test_statistics_of_many_rows_travel_small() -> None:
    stats = observe(pa.array(RNG.normal(size=100_000)), sample_size=1000)
    assert len(to_bytes(stats.arrays())) < 30_000


WORDS = ["one", "two three", "\u00fc", "", None, "one"] * 5
TRAVELLERS = {
    "float": (pa.array([1.5, None, float("nan"), float("inf"), -0.0, 1e-320, 1e300]), ColumnOptions()),
    "float16": (pa.array(np.array([1.5, 2.5], np.float16)), ColumnOptions()),
    "int64": (pa.array([-(2**63), 2**63 - 1, None]), ColumnOptions()),
    "uint64": (pa.array([0, 2**64 - 1], pa.uint64()), ColumnOptions()),
    "categorical int": (pa.array([3, 3, -4, None], pa.int16()), ColumnOptions(kind="categorical")),
    "decimal": (pa.array(["1.25", "-99999999999.99", None]).cast(pa.decimal128(20, 2)), ColumnOptions()),
    "time": (pa.array([0, 10**15, None], pa.timestamp("us", "UTC")), ColumnOptions()),
    "bool": (pa.array([True, None, True]), ColumnOptions()),
    "vector": (pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12.0, dtype=np.float32)), 4), ColumnOptions()),
    "text": (pa.array(WORDS), ColumnOptions()),
    "categorical text": (pa.array(WORDS, pa.large_string()), ColumnOptions(kind="categorical")),
    "no UTF-8": (pa.array([b"\xff", b"a"]).view(pa.string()), ColumnOptions(kind="categorical")),
    "dictionary": (pa.array(WORDS).dictionary_encode(), ColumnOptions()),
    "dictionary of ints": (pa.array([7, 7, None, 9]).dictionary_encode(), ColumnOptions(kind="categorical")),
    "words": (pa.array(WORDS), ColumnOptions(kind="sequence", tokens="words")),
    "nothing": (pa.array([], pa.float64()), ColumnOptions()),
    "nulls": (pa.nulls(4, pa.string()), ColumnOptions(kind="categorical")),
    "passed through": (pa.array(WORDS), ColumnOptions(kind="passthrough")),
}


@pytest.mark.parametrize("name", TRAVELLERS)
def test_statistics_travel_between_processes(name: str) -> None:
    values, options = TRAVELLERS[name]
    field = pa.field("c", values.type)
    there = observe(values, options)
    here = ColumnStats.empty(field, options).take(from_bytes(to_bytes(there.arrays())))
    assert same_arrays(here.arrays(), there.arrays())
    assert type(here.low) is type(there.low)
    assert (here.low, here.high) == (there.low, there.high)
    further = observe(values.slice(1), options)
    more = ColumnStats.empty(field, options).merge(here).merge(further)
    assert same_arrays(more.arrays(), ColumnStats.empty(field, options).merge(there).merge(further).arrays())
    assert more.rows == 2 * len(values) - (len(values) > 0)


def same_arrays(a: Arrays, b: Arrays) -> bool:
    """Whether all names, dtypes, shapes and bits are the same."""
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in a.items()} == {
        k: (v.dtype, v.shape, v.tobytes()) for k, v in b.items()
    }


def test_chunked_arrays_are_taken_whole() -> None:
    chunked = pa.chunked_array([["a"], [], ["b", None]], pa.dictionary(pa.int8(), pa.string()))
    stats = ColumnStats.empty(pa.field("c", chunked.type))
    stats.observe(chunked, _priority(3))
    assert stats.distinct is not None
    assert len(stats.distinct) == 2
    assert stats.states.tolist() == [2, 1, 0, 0, 0, 0]


def test_passed_through_columns_are_only_counted() -> None:
    stats = observe(pa.array(["a", None]), ColumnOptions(kind="passthrough"))
    assert stats.states.tolist() == [1, 1, 0, 0, 0, 0]
    assert stats.sample is stats.moments is stats.distinct is None
