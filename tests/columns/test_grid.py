"""Is every number within half a bin of what its bin stands for, at the edges of every dtype too?"""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.columns.choose_grid import grid_from_json
from pipeline.columns.grid import (
    MAX_BINS,
    FloatGrid,
    IntGrid,
    bounded_grid,
    misses_bound,
    nominal_grid,
)

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9), st.sampled_from([-(2**63), 2**63 - 1]))
UINT64 = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 9), st.sampled_from([0, 2**64 - 1]))
FLOAT = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-9, 9),
    st.sampled_from([1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 0.0, -0.0]),
)
BINS = st.one_of(INT64, st.integers(-2, 300))
quick = settings(max_examples=150, deadline=None, derandomize=True)


def _typed(values: list[int], unsigned: bool) -> np.ndarray:
    return np.array(values, np.uint64 if unsigned else np.int64)


@quick
@given(data=st.data(), unsigned=st.booleans(), relative=st.floats(0, 2))
def test_ints_come_back_within_half_a_bin(data: st.DataObject, unsigned: bool, relative: float) -> None:
    numbers = UINT64 if unsigned else INT64
    values = data.draw(st.lists(numbers, min_size=2, max_size=8))
    low, high = sorted(values[:2])
    bound = math.floor(relative * (high - low))
    for grid in (nominal_grid(low, high, 1.0), bounded_grid(bound, low, high)):
        assert isinstance(grid, IntGrid)
        assert grid == grid_from_json(json.loads(json.dumps(grid.to_json())))
        bins = grid.to_bins(_typed(values, unsigned))
        back = grid.to_values(bins)
        for value, number, result in zip(values, bins.tolist(), back.tolist(), strict=True):
            clipped = min(max(value, grid.low), grid.high)
            assert number == (clipped - grid.low) // grid.width
            assert grid.low <= result <= grid.high
            assert abs(result - clipped) <= grid.width // 2
            assert grid.to_bins(_typed([result], unsigned)).tolist() == [number]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("low", [0, 5, 20])
def test_ints_need_not_be_wide(dtype: str, width: int, low: int) -> None:
    grid = IntGrid(low, 100, width)
    values = np.array([0, 7, 20, 21, 22, 99, 100, 127], dtype)
    values.flags.writeable = False
    bins = grid.to_bins(values)
    assert bins.dtype == np.int64
    assert bins.tolist() == [(min(max(value, low), 100) - low) // width for value in values.tolist()]
    bins[:] = -1  # states are written over them: they are nobody else's memory
    assert values.tolist() == [0, 7, 20, 21, 22, 99, 100, 127]


@quick
@given(low=INT64, extent=st.integers(0, 2**64 - 1), radius=st.integers(0, 2**65))
@example(low=-(2**63), extent=2**64 - 1, radius=0)
@example(low=-(2**63), extent=2**64 - 1, radius=2**63)
@example(low=0, extent=2**62, radius=0)
def test_an_int_bound_is_met_inside_the_grid(low: int, extent: int, radius: int) -> None:
    high = min(low + extent, 2**63 - 1)
    grid = bounded_grid(float(radius), low, high, centre=0)
    assert grid.bins <= MAX_BINS
    if grid.width == 1 and high - low >= MAX_BINS:
        assert grid.low <= min(max(0, low), high) <= grid.high
    else:
        assert (grid.low, grid.high) == (low, high)
    inside = [grid.low, grid.high, (grid.low + grid.high) // 2, grid.low + (grid.high - grid.low) // 3]
    back = grid.to_values(grid.to_bins(np.array(inside, np.int64))).tolist()
    assert all(abs(a - b) <= int(float(radius)) for a, b in zip(inside, back, strict=True))


@quick
@given(low=FLOAT, high=FLOAT, scale=st.floats(5e-324, 1.7e308), values=st.lists(FLOAT, max_size=6))
@example(low=-1.7976931348623157e308, high=1.7976931348623157e308, scale=1.0, values=[0.0, 1e308])
@example(low=0.0, high=1.79e308, scale=1.46e308, values=[1e308])
@example(low=5e-324, high=1.79e308, scale=1e300, values=[1.0])
@example(low=0.0, high=5e-324, scale=5e-324, values=[5e-324])
@example(low=-0.0, high=0.0, scale=1.0, values=[-0.0])
@example(low=1e16, high=1e16 + 2, scale=1e-300, values=[1e16, 1e16 + 2])
def test_floats_come_back_within_half_a_bin(low: float, high: float, scale: float, values: list[float]) -> None:
    low, high = min(low, high), max(low, high)
    grid = nominal_grid(low, high, scale)
    assert isinstance(grid, FloatGrid)
    assert grid == grid_from_json(json.loads(json.dumps(grid.to_json())))
    assert 1 <= grid.bins <= 2**54
    given_values = np.array([low, high, *values])
    bins = grid.to_bins(given_values)
    back = grid.to_values(bins)
    assert ((bins >= 0) & (bins < grid.bins)).all()
    assert ((back >= low) & (back <= high)).all()
    largest = max(abs(low), abs(high))
    slack = 4 * (Fraction(largest) - Fraction(math.nextafter(largest, 0)))
    for value, result in zip(given_values.tolist(), back.tolist(), strict=True):
        clipped = min(max(value, low), high)
        assert abs(Fraction(result) - Fraction(clipped)) <= Fraction(grid.width) / 2 + slack


@quick
@given(
    low=FLOAT,
    high=FLOAT,
    bound=st.one_of(
        st.floats(5e-324, 1.7976931348623157e308),
        st.floats(1e-3, 1e3),
        st.just(5e-324),
        st.just(1.7976931348623157e308),
    ),
    bins=st.lists(BINS, max_size=5),
)
def test_any_float_bound_gives_a_sound_grid(low: float, high: float, bound: float, bins: list[int]) -> None:
    low, high = min(low, high), max(low, high)
    grid = bounded_grid(bound, low, high)
    assert low <= grid.low <= grid.high <= high
    assert 1 <= grid.bins <= MAX_BINS
    values = np.array([low, high, low / 2 + high / 2])
    back = grid.to_values(grid.to_bins(values))
    assert np.isfinite(back).all()
    if (high / 2 - low / 2) / bound < 2**30:
        assert np.abs(back / 2 - values / 2).max() <= bound / 2 * (1 + 1e-6) + 1e-15 * max(abs(low), abs(high))
    back = grid.to_values(np.array(bins, np.int64))
    assert ((back >= grid.low) & (back <= grid.high)).all()


@quick
@given(low=INT64, high=INT64, bins=st.lists(BINS, max_size=9))
def test_int_bins_out_of_range_are_clipped(low: int, high: int, bins: list[int]) -> None:
    grid = nominal_grid(min(low, high), max(low, high), 1.0)
    back = grid.to_values(np.array(bins, np.int64)).tolist()
    inside = [min(max(number, 0), grid.bins - 1) for number in bins]
    assert back == grid.to_values(np.array(inside, np.int64)).tolist()
    assert all(grid.low <= value <= grid.high for value in back)


def test_nominal_widths() -> None:
    assert nominal_grid(0, 2**53 - 1, 1.0).width == 1
    assert nominal_grid(-(2**63), 2**63 - 1, 1.0).width == 2**11
    assert nominal_grid(0.0, 1000.0, 256.0).width == 1.0
    assert nominal_grid(0.0, 2.0**80, 1.0).width == 2.0**27
    assert nominal_grid(7, 7, 1.0).bins == nominal_grid(7.5, 7.5, 1.0).bins == 1


def test_bounded_widths() -> None:
    assert bounded_grid(2.9, 0, 100).width == 5
    assert bounded_grid(0, 0, 100).width == 1
    assert bounded_grid(0.25, 0.0, 100.0).width == 0.5
    assert bounded_grid(0.25, 0.0, 100.0).bins == 201


@pytest.mark.parametrize("bound", [-1.0, math.inf, math.nan])
def test_no_such_bound(bound: float) -> None:
    with pytest.raises(ValueError, match="error bound"):
        bounded_grid(bound, 0, 1)


def test_no_float_grid_is_exact() -> None:
    with pytest.raises(ValueError, match="no float grid is exact"):
        bounded_grid(0, 0.0, 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "int", "low": 0, "high": 2**64, "width": 1},
        {"kind": "int", "low": -1, "high": 2**63, "width": 2**11},
        {"kind": "int", "low": 2, "high": 1, "width": 1},
        {"kind": "int", "low": 0, "high": 2**63, "width": 1},
        {"kind": "int", "low": 0, "high": 1, "width": 0},
        {"kind": "float", "low": 0.0, "high": 1.0, "width": 0.0},
        {"kind": "float", "low": 0.0, "high": 1.0, "width": 1e-300},
        {"kind": "float", "low": 0.0, "high": math.inf, "width": 1.0},
        {"kind": "float", "low": 1.0, "high": 0.0, "width": 1.0},
        {"kind": "square", "low": 0, "high": 1, "width": 1},
    ],
    ids=str,
)
def test_an_impossible_grid_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"range|grid kind"):
        grid_from_json(bad)


@quick
@given(a=FLOAT, b=FLOAT, bound=st.one_of(st.floats(0, 1e308), st.floats(0, 9)))
@example(a=1.0, b=-1e-20, bound=1.0)
@example(a=-1.0, b=1e-20, bound=1.0)
@example(a=1.0, b=1e-20, bound=1.0)
@example(a=-1.7976931348623157e308, b=1.7976931348623157e308, bound=1e308)
def test_float_distances_are_judged_exactly(a: float, b: float, bound: float) -> None:
    for limit in (bound, abs(a / 2 - b / 2), min(abs(a - b), 1.7e308)):
        expected = abs(Fraction(a) - Fraction(b)) > Fraction(limit)
        assert misses_bound(np.array([a]), np.array([b]), limit).tolist() == [expected]


@quick
@given(a=INT64, b=INT64, bound=st.one_of(st.floats(0, 2**65), st.integers(0, 2**64)))
def test_int_distances_are_judged_exactly(a: int, b: int, bound: float) -> None:
    for limit in (bound, abs(a - b)):
        found = misses_bound(np.array([a], np.int64), np.array([b], np.int64), limit)
        assert found.tolist() == [abs(a - b) > Fraction(limit)]
        shifted = [np.array([x + 2**63], np.uint64) for x in (a, b)]
        assert misses_bound(*shifted, limit).tolist() == found.tolist()
