"""Numbers and times: what does the network see, and what do the edges of a type come back as?"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from pipeline.columns import Column, ColumnOptions, State
from pipeline.columns.arrays import valid_mask
from pipeline.columns.numeric import NumericColumn
from pipeline.errors import ConfigError

from .oracle import bits, fit, plain, same_symbols

RNG = np.random.default_rng(2)


def _standardized(column: Column, values: pa.Array) -> np.ndarray:
    span = column.spans()[-1]
    return column.from_values(values).bins[:, -1] * np.array(span.step) + np.array(span.shift)


@pytest.mark.parametrize("data_type", [pa.float32(), pa.int64(), pa.timestamp("ns")], ids=str)
def test_robust_scaling_puts_the_median_at_0_and_the_quartiles_as_a_gaussian_has_them(
    data_type: pa.DataType,
) -> None:
    numbers = RNG.normal(size=20_001) * 1e6 + 3e6
    values = pa.array(numbers.astype(np.int64)).cast(data_type, safe=False)
    u = _standardized(fit(values), values)
    assert abs(np.median(u)) < 0.01
    assert np.quantile(u, 0.75) - np.quantile(u, 0.25) == pytest.approx(1.349, abs=0.01)


def test_standard_scaling_has_mean_0_and_deviation_1_and_no_knee() -> None:
    values = pa.array(RNG.exponential(size=20_000))
    column = fit(values, ColumnOptions(scaling="standard"))
    u = _standardized(column, values)
    assert abs(u.mean()) < 0.01
    assert u.std() == pytest.approx(1, abs=0.01)
    assert column.spans()[-1].knee is None
    assert fit(values).spans()[-1].knee == 5.0


def test_a_heavy_tail_does_not_flatten_the_bulk() -> None:
    bulk = RNG.normal(size=10_000)
    values = pa.array(np.concatenate([bulk, [1e9, -1e12]]))
    column = fit(values)
    decoded = column.to_values(column.from_values(values)).to_numpy()
    assert np.abs(decoded[:10_000] - bulk).max() < 0.01


def test_mostly_equal_values_are_scaled_by_the_others() -> None:
    values = pa.array(np.where(RNG.random(10_000) < 0.97, 0, RNG.integers(1, 1000, 10_000)))
    assert 0.001 < fit(values).spans()[-1].step[0] < 0.1


def test_one_outlier_that_no_sample_would_catch_still_scales() -> None:
    values = np.zeros(100_000)
    values[77] = 1e30
    span = fit(pa.array(values)).spans()[-1]
    assert np.isfinite([*span.step, *span.shift]).all()
    assert 0 < span.step[0] * span.bins < 1e6


@pytest.mark.parametrize(
    "value",
    [0, -3, 2**63 - 1, -(2**63), 0.1, -0.0, 1.7e308, 5e-324, Decimal("1.25"), Decimal("-0.01")],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 1000])
def test_a_constant_column_comes_back(value: object, rows: int) -> None:
    values = pa.array([value] * rows)
    column = fit(values)
    span = column.spans()[-1]
    assert (span.bins, len(column.spans())) == (1, 1)
    assert np.isfinite([*span.step, *span.shift]).all()
    assert column.to_values(column.from_values(values)).to_pylist() == [value] * rows


def test_minus_zero_becomes_zero_without_a_bound() -> None:
    values = pa.array([-0.0, 0.0, 1.0])
    for array in (values, values.take([1, 0, 2])):
        column = fit(array)
        assert [bits(v) for v in column.to_values(column.from_values(values)).to_pylist()[:2]] == ["0.0"] * 2


def test_new_values_are_clipped_without_a_bound_and_kept_with_one() -> None:
    column = fit(pa.array([0.0, 10.0]))
    new = pa.array([-5.0, 4.0, 1e300])
    decoded = column.to_values(column.from_values(new)).to_pylist()
    assert (decoded[0], decoded[2]) == (0.0, pytest.approx(10.0, abs=0.02))
    assert isinstance(column, NumericColumn)
    symbols = column.with_bound(0.5).from_values(new)
    assert symbols.states is not None
    assert symbols.states.tolist() == [State.EXACT, State.VALUE, State.EXACT]
    assert symbols.exact is not None
    assert symbols.exact.to_pylist() == [-5.0, 1e300]


def test_a_bound_counts_after_rounding_to_the_dtype() -> None:
    """7.6 is within 1.9 of 6, but up here float32 knows only even numbers: it would become 8."""
    offsets = np.array([0, 6, 100])
    values = pa.array((2**24 + offsets).astype(np.float32))
    column = fit(values)
    assert isinstance(column, NumericColumn)
    bounded = column.with_bound(1.9)
    assert bounded.grid.to_values(bounded.grid.to_bins(2.0**24 + offsets))[1] == 2**24 + 7.6
    symbols = bounded.from_values(values)
    assert symbols.states is not None
    assert symbols.states[1] == State.EXACT
    decoded = bounded.to_values(symbols).to_numpy().astype(np.float64)
    assert np.abs(decoded - values.to_numpy()).max() <= 1.9


def test_sentinels_do_not_make_everything_else_exact() -> None:
    """The grid of a bound of 0 has room for 2^62 bins: they lie where the values are."""
    values = pa.array([-(2**63), *range(1000), 2**63 - 1])
    column = fit(values)
    assert isinstance(column, NumericColumn)
    bounded = column.with_bound(0)
    symbols = bounded.from_values(values)
    assert symbols.exact is not None
    assert symbols.exact.to_pylist() == [-(2**63), 2**63 - 1]
    assert bounded.to_values(symbols).equals(values)


def test_a_decimal_bound_is_in_the_unit_of_the_column() -> None:
    values = pa.array([Decimal("0.00"), Decimal("7.31"), Decimal("100.00")], pa.decimal128(9, 2))
    column = fit(values)
    assert isinstance(column, NumericColumn)
    assert column.with_bound(0.29).grid.width == 59
    bounded = column.with_bound(0.005)
    assert bounded.to_values(bounded.from_values(values)).equals(values)


def test_wide_decimals_are_stored_exactly() -> None:
    fitted = pa.array([Decimal(1), Decimal(5)], pa.decimal128(38, 0))
    column = fit(fitted)
    values = pa.array([Decimal(3), Decimal(10**37), None, Decimal(-(2**63) - 1)], fitted.type)
    symbols = column.from_values(values)
    assert symbols.bins.tolist() == [[2], [-1], [-1], [-1]]
    assert column.to_values(symbols).equals(values)


@pytest.mark.parametrize("bound", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("value", [1, 1.5, Decimal("1.5")], ids=str)
def test_an_impossible_bound_names_the_column(bound: float, value: object) -> None:
    column = fit(pa.array([value]), field=pa.field("price", pa.array([value]).type))
    assert isinstance(column, NumericColumn)
    with pytest.raises(ConfigError, match=r"column 'price'.*error bound"):
        column.with_bound(bound)


def test_a_date64_that_is_no_whole_day_is_stored_exactly() -> None:
    day = 86_400_000
    values = pa.array([0, day, day + 1, -1], pa.int64()).view(pa.date64())
    column = fit(values)
    decoded = column.to_values(column.from_values(values))
    assert decoded.view(pa.int64()).to_pylist() == [0, day, day + 1, -1]


NUMBERS = RNG.normal(size=100)
NUMBERS[[3, 50, 99]], NUMBERS[[7, 60]] = np.nan, np.inf
PIECES = {
    "integers": pa.array(RNG.integers(-9, 9, 100), mask=RNG.random(100) < 0.1),
    "full": pa.array(RNG.integers(0, 200, 100).astype(np.uint8)),
    "floats": pa.array(NUMBERS, mask=RNG.random(100) < 0.1),
    "one null": pa.array([0.5] * 70 + [None] + [0.25] * 29, pa.float32()),
    "wide decimals": pa.array([Decimal(i) * 10 ** (30 if i == 85 else 0) for i in range(100)], pa.decimal128(38, 2)),
}


@pytest.mark.parametrize("bound", [None, 0, 0.01])
@pytest.mark.parametrize("kind", PIECES)
def test_are_values_transformed_alike_in_pieces(
    kind: str, bound: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = PIECES[kind]
    column = fit(values.slice(0, 80))
    if bound is not None and isinstance(column, NumericColumn):
        column = column.with_bound(bound, values.slice(0, 40))
    for part in (values, values.slice(5), values.slice(33, 14), values.slice(0, 0)):
        monkeypatch.setattr("pipeline.columns.numeric._PIECE", 1000)
        whole = column.from_values(part)
        monkeypatch.setattr("pipeline.columns.numeric._PIECE", 14)
        found = column.from_values(part)
        assert same_symbols(found, whole)
        assert found.bins.flags.f_contiguous
        decoded = plain(column.to_values(whole))
        assert plain(column.to_values(found)) == decoded


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
@pytest.mark.parametrize("length", [0, 1, 8, 20])
def test_which_values_of_a_slice_are_not_null(start: int, length: int) -> None:
    numbers = pa.array([None if i % 3 == 0 else i for i in range(40)], pa.int16())
    for values in (numbers, numbers.cast(pa.string()), numbers.dictionary_encode(), pa.nulls(40)):
        part = values.slice(start, length)
        mask = valid_mask(part)
        assert (mask is None) == (part.null_count == 0)
        if mask is not None:
            assert mask.dtype == np.bool_
            assert mask.tolist() == part.is_valid().to_pylist()


def test_exact_values_that_are_missing_are_noticed() -> None:
    column = fit(pa.array([1.0, 2.0]))
    assert isinstance(column, NumericColumn)
    symbols = column.with_bound(0.1).from_values(pa.array([1.0, 50.0, 60.0]))
    short = type(symbols)(symbols.bins, symbols.states, pa.array([50.0]))
    with pytest.raises(ValueError, match="2 rows are stored exactly, but 1"):
        column.to_values(short)
