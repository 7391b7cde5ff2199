"""Which grid do floats take for a bound of 0, and does it hold what it says it holds, bit for bit?"""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.columns.choose_grid import choose_grid, grid_from_json
from pipeline.columns.exact_grid import DistinctGrid, FixedPointGrid, OrderedGrid, from_order, order
from pipeline.columns.grid import MAX_BINS, Grid, differs, nominal_grid
from pipeline.columns.numeric import NumericColumn

from .oracle import fit, raw

RNG = np.random.default_rng(6)
BITS = st.sampled_from([16, 32, 64])
FEW = RNG.normal(size=50)
NORMAL = RNG.normal(size=20_000)


def coded(values: np.ndarray, sampled: slice = slice(None)) -> tuple[Grid, int]:
    """The grid of a bound of 0, and how many values it cannot hold; checks that all come back."""
    array = pa.array(values)
    column = fit(array)
    assert isinstance(column, NumericColumn)
    column = column.with_bound(0, array[sampled])
    assert column.grid == grid_from_json(json.loads(json.dumps(column.grid.to_json(), allow_nan=False)))
    assert all(np.isfinite([*column.spans()[-1].step, *column.spans()[-1].shift]))
    symbols = column.from_values(array)
    assert raw(column.to_values(symbols)) == raw(array)
    return column.grid, 0 if symbols.exact is None else len(symbols.exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_are_decimals_counted_in_their_last_digit(dtype: str) -> None:
    grid, exact = coded(np.round(NORMAL * 100, 2).astype(dtype) + 0)
    assert isinstance(grid, FixedPointGrid)
    assert (grid.base, grid.digits, exact) == (10, 2, 0)
    assert grid.bins == pytest.approx((grid.high - grid.low) * 100 + 1, abs=1)


def test_are_fractions_of_a_power_of_two_counted_as_such() -> None:
    grid, exact = coded(np.floor(NORMAL * 1e6) / 4096)
    assert isinstance(grid, FixedPointGrid)
    assert (grid.base, grid.digits, exact) == (2, 12, 0)
    grid, exact = coded(np.floor(NORMAL * 1e6) * 2.0**40)
    assert (grid.kind, exact) == ("fixed", 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_are_few_values_listed(dtype: str) -> None:
    values = np.append(RNG.choice(FEW, 20_000), [-0.0, 0.0] * 10).astype(dtype)
    grid, exact = coded(values)
    assert isinstance(grid, DistinctGrid)
    assert (grid.bins, exact) == (len(np.unique(values)) + 1, 0)


@pytest.mark.parametrize(("dtype", "most"), [("float16", 2**16), ("float32", 2**30), ("float64", 2**59)])
def test_are_other_floats_counted_by_their_bits(dtype: str, most: int) -> None:
    grid, exact = coded(NORMAL.astype(dtype), slice(0, 10_000))
    assert isinstance(grid, OrderedGrid)
    assert grid.bins < most
    assert exact == 0


def test_are_rare_oddities_stored_exactly_instead_of_spoiling_the_grid() -> None:
    values = np.round(NORMAL * 100, 2) + 0
    values[::2000] = [-0.0, np.pi, 1e300, -1e300, 5e-324, -np.e, 1 / 3, 2**60 + 0.0, -0.0, 1e-9]
    grid, exact = coded(values)
    assert (grid.kind, exact) == ("fixed", 10)


def test_are_a_few_ones_among_zeros_worth_their_digits() -> None:
    """Most values lie on the whole numbers, the others on hundredths: those are no rare oddities."""
    grid, exact = coded(np.where(RNG.random(20_000) < 0.95, 0.0, np.round(RNG.random(20_000), 2)).astype(np.float32))
    assert isinstance(grid, FixedPointGrid)
    assert (grid.digits, grid.bins, exact) == (2, 101, 0)


def test_does_a_window_lie_where_the_values_are() -> None:
    """All floats between -1e300 and 1e300 are more than a grid may number."""
    values = np.append(NORMAL, [-1e300, 1e300, 1e-300])
    grid, exact = coded(values)
    assert isinstance(grid, OrderedGrid)
    assert MAX_BINS // 2 < grid.bins <= MAX_BINS
    assert 1 <= exact <= 3
    values = np.append(np.exp(NORMAL) * 1e-200, [1e300, 1e300])
    grid, exact = coded(values)
    assert exact <= 2


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_is_there_a_grid_without_a_sample(bits: int) -> None:
    largest = float(np.finfo(f"float{bits}").max)
    for low, high in [(-largest, largest), (0.0, 0.0), (-1.0, 1.0), (1.0, 1.0), (0.0, largest), (-2.0, -1.0)]:
        grid = choose_grid(0, nominal_grid(low, high, 1.0), None, bits)
        assert isinstance(grid, OrderedGrid)
        ends = np.array([low, high])
        back = grid.to_values(grid.to_bins(ends))
        assert grid.bins > MAX_BINS // 2 or back.tolist() == ends.tolist()


def test_does_a_bound_finer_than_the_dtype_become_exact() -> None:
    values = pa.array((NORMAL * 1e6).astype(np.float32))
    column = fit(values)
    assert isinstance(column, NumericColumn)
    bounded = column.with_bound(1e-4, values)
    assert bounded.grid.bins < column.with_bound(1e-4).grid.bins / 16
    assert isinstance(bounded.grid, OrderedGrid)
    assert bounded.from_values(values).exact is None


def test_do_values_halfway_between_two_bins_not_miss_the_bound() -> None:
    """1.1 is 0.1 from 1.0 and from 1.2, but for the last bit."""
    values = pa.array(np.arange(101) / 10)
    column = fit(values)
    assert isinstance(column, NumericColumn)
    assert column.with_bound(0.1).from_values(values).exact is not None
    assert column.with_bound(0.1, values).from_values(values).exact is None


@given(bits=BITS, data=st.data())
def test_is_the_order_that_of_the_values(bits: int, data: st.DataObject) -> None:
    floats = st.floats(width=bits, allow_nan=False)  # type: ignore[arg-type]
    values = np.array(data.draw(st.lists(floats, min_size=1)), f"f{bits // 8}")
    codes = order(values)
    assert not differs(from_order(codes, bits).astype(np.float64), values.astype(np.float64)).any()
    pairs = sorted(zip(codes.tolist(), values.tolist(), strict=True))
    assert [value for _, value in pairs] == sorted(values.tolist())
    with np.errstate(over="ignore"):
        above = np.nextafter(values, np.inf, dtype=values.dtype)
    steps = order(above) - codes
    assert ((steps == 1) | ((values == 0) & (steps <= 2)) | np.isinf(values)).all()


@given(bits=BITS, data=st.data())
@example(bits=64, data=None)
def test_do_ordered_grids_hold_all_that_they_cover(bits: int, data: st.DataObject | None) -> None:
    largest = float(np.finfo(f"float{bits}").max)
    least = float(np.finfo(f"float{bits}").smallest_subnormal)
    numbers = [-0.0, 0.0, least, -least, 1.0, -1.5, largest / 2, -largest]
    low, high, tiny = -2.0, 2.0, 2.0**-10
    if data is not None:
        floats = st.floats(width=bits, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
        low, high = sorted([data.draw(floats), data.draw(floats)])
        tiny = abs(data.draw(floats)) or least
        numbers += data.draw(st.lists(floats))
    try:
        grid = OrderedGrid.over(low, high, tiny, bits)
    except ValueError:
        assert bits == 64
        return
    values = np.array(numbers)
    bins = grid.to_bins(values)
    assert ((bins >= 0) & (bins < grid.bins)).all()
    held = (values >= low) & (values <= high) & ((values == 0) | (np.abs(values) >= tiny))
    assert not differs(grid.to_values(bins), values)[held].any()
    some = np.array([0, 1, grid.bins // 2, grid.bins - 1]).clip(0, grid.bins - 1)
    np.testing.assert_array_equal(grid.to_bins(grid.to_values(some)), some)
    np.testing.assert_array_equal(
        grid.to_values(np.array([-5, 2**63 - 1])), grid.to_values(np.array([0, grid.bins - 1]))
    )


@given(base=st.sampled_from([2, 10]), digits=st.integers(0, 9), data=st.data())
def test_do_fixed_point_grids_hold_all_that_they_cover(base: int, digits: int, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(-(2**50), 2**50), min_size=2, max_size=2)))
    low, high = (end / base**digits for end in ends)
    grid = FixedPointGrid.over(low, high, base, digits)
    assert grid.bins == ends[1] - ends[0] + 1
    steps = np.array(data.draw(st.lists(st.integers(*ends))), np.int64)
    values = steps / float(base**digits)
    np.testing.assert_array_equal(grid.to_bins(values), steps - ends[0])
    assert not differs(grid.to_values(steps - ends[0]), values).any()
    assert grid.to_bins(np.array([-1e308, 1e308])).tolist() == [0, grid.bins - 1]


@given(bits=BITS, data=st.data())
def test_do_lists_hold_their_values_in_order(bits: int, data: st.DataObject) -> None:
    floats = st.floats(width=bits, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    values = np.array(data.draw(st.lists(floats, min_size=1)), f"f{bits // 8}")
    grid = DistinctGrid.of(values)
    assert grid == grid_from_json(json.loads(json.dumps(grid.to_json(), allow_nan=False)))
    wide = values.astype(np.float64)
    bins = grid.to_bins(wide)
    assert grid.bins == len(np.unique(order(wide)))
    assert not differs(grid.to_values(bins), wide).any()
    np.testing.assert_array_equal(np.argsort(order(wide), kind="stable"), np.argsort(bins, kind="stable"))
    others = grid.to_bins(np.array([-1.7e308, 0.123, 1.7e308]))
    assert ((others >= 0) & (others < grid.bins)).all()


def _packed(steps: list[int]) -> str:
    raw_bytes = np.array(steps, "<i8").view(np.uint8).reshape(-1, 8).T.tobytes()
    return base64.b64encode(zlib.compress(raw_bytes)).decode()


LISTED = DistinctGrid.of(np.array([1.0, 2.0])).to_json()
FIXED = FixedPointGrid.over(0, 1, 10, 2).to_json()
ORDERED = OrderedGrid.over(0, 1, 2.0**-9, 32).to_json()


@pytest.mark.parametrize(
    "bad",
    [
        {**LISTED, "packed": "?"},
        {**LISTED, "packed": "AAAA"},
        {**LISTED, "packed": _packed([])},
        {**LISTED, "packed": _packed([1, 0])},
        {**LISTED, "packed": _packed([5, -1])},
        {**LISTED, "high": 3.0},
        {**LISTED, "bits": 8},
        {**LISTED, "width": 0.0},
        {**FIXED, "base": 3},
        {**FIXED, "digits": -1},
        {**FIXED, "high": 1e300},
        {**FIXED, "high": -1.0},
        {**ORDERED, "bits": 7},
        {**ORDERED, "tiny": 0.0},
        {**ORDERED, "low": 1e-300},
        {**ORDERED, "high": float("inf")},
        {**ORDERED, "bits": 64, "low": -1e300, "high": 1e300, "tiny": 5e-324},
    ],
    ids=str,
)
def test_is_an_impossible_grid_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        grid_from_json(bad)


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("size", [50, 20_000])
@pytest.mark.parametrize("bound", [0.0, 0.01])
def test_floats_need_not_be_wide(dtype: str, size: int, bound: float) -> None:
    values = RNG.normal(size=size).astype(dtype)
    values.flags.writeable = False
    wide = values.astype(np.float64)
    grid = choose_grid(bound, nominal_grid(-3.0, 3.0, 1.0), 0.0, 8 * values.itemsize, wide.reshape(-1, 1))
    assert np.array_equal(grid.to_bins(values), grid.to_bins(wide))


def test_is_bit_for_bit_more_than_equal() -> None:
    a, b = np.array([0.0, -0.0, 1.0, 2.0]), np.array([-0.0, -0.0, 1.0, 3.0])
    assert differs(a, b).tolist() == [True, False, False, True]
    assert differs(np.array([1, 2]), np.array([1, 3])).tolist() == [False, True]
