"""Does every column kind keep the contract, on every Arrow type it models?"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import Column, ColumnStats, State, Symbols, fit_column
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from vae_model.layout import FeatureLayout

from .cases import BOOLEANS, MODELLED, NUMBERS, OTHERS, QUICK, SEQUENCES, TEXTS, VECTORS, Case, arrays
from .oracle import fit, numbers, plain, same_symbols, state_of, through_json, vectors

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1, -1, 0, 1]))


@pytest.mark.parametrize("case", MODELLED, ids=str)
@QUICK
@given(data=st.data())
def test_fit_does_not_depend_on_batches_tasks_or_order(case: Case, data: st.DataObject) -> None:
    values = data.draw(arrays(case.type))
    priority = np.array(data.draw(st.permutations(range(len(values)))), dtype=np.uint64)
    size, distinct = data.draw(st.sampled_from([(5, 3), (100, 100)]))

    def empty() -> ColumnStats:
        return ColumnStats.empty(case.field, case.options, sample_size=size, max_distinct=distinct)

    whole = empty()
    whole.observe(values, priority)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    pieces = list(zip([0, *cuts], [*cuts, len(values)], strict=True))
    tasks = [empty() for _ in range(3)]
    for start, stop in data.draw(st.permutations(pieces)):
        tasks[data.draw(st.integers(0, 2))].observe(values[start:stop], priority[start:stop])
    merged = tasks[0].merge(tasks[1].merge(tasks[2]))

    assert merged.rows == whole.rows == len(values)
    assert merged.states.tolist() == whole.states.tolist()
    expected, found = (fit_column(case.field, stats, case.options) for stats in (whole, merged))
    assert found.kind == expected.kind
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize("case", MODELLED, ids=str)
@QUICK
@given(data=st.data())
def test_values_survive_up_to_the_grid(case: Case, data: st.DataObject) -> None:
    fitted = data.draw(arrays(case.type))
    column = fit(fitted, case.options, case.field)
    if column.kind == "passthrough":
        return
    _check_seen_states(column, column.from_values(fitted))
    values = data.draw(arrays(case.type))
    symbols = column.from_values(values)
    _check_symbols(column, symbols, len(values))
    decoded = column.to_values(symbols)
    _check_array(decoded, values.type, len(values))
    _check_values(case, column, values, decoded)

    stored = through_json(column)
    assert stored == column
    assert stored.spans() == column.spans()
    assert same_symbols(stored.from_values(values), symbols)
    assert plain(stored.to_values(symbols)) == plain(decoded)


@pytest.mark.parametrize("case", MODELLED, ids=str)
@QUICK
@given(data=st.data())
def test_any_bins_decode_to_values_of_the_type(case: Case, data: st.DataObject) -> None:
    fitted = data.draw(arrays(case.type))
    column = fit(fitted, case.options, case.field)
    if column.kind == "passthrough":
        return
    width = sum(span.width for span in column.spans())
    rows = data.draw(st.integers(0, 4))
    near = st.integers(-2, min(column.spans()[-1].bins, 2**62) + 1)
    bins = data.draw(st.lists(st.one_of(INT64, near), min_size=rows * width, max_size=rows * width))
    seen = column.from_values(fitted).states
    possible = {State.VALUE, State.NULL, *([] if seen is None else map(State, seen))} - {State.EXACT}
    states = data.draw(st.lists(st.sampled_from(sorted(possible)), min_size=rows, max_size=rows))
    symbols = Symbols(np.array(bins, np.int64).reshape(rows, width), np.array(states, np.uint8))
    before = symbols.bins.copy()
    decoded = column.to_values(symbols)
    assert np.array_equal(symbols.bins, before)
    _check_array(decoded, case.type, rows)
    nulls = [value is None for value in plain(decoded)]
    assert nulls == [state == State.NULL for state in states]
    if isinstance(column, NumericColumn):
        low, high = Fraction(column.grid.low), Fraction(column.grid.high)
        assert all(low <= v <= high for v in numbers(decoded) if isinstance(v, Fraction))
    elif case in TEXTS:
        assert set(plain(decoded)) - {None} <= set(plain(fitted))


@pytest.mark.parametrize("case", [*NUMBERS, *VECTORS], ids=str)
@QUICK
@given(data=st.data())
def test_bounds_hold_value_by_value(case: Case, data: st.DataObject) -> None:
    column = fit(data.draw(arrays(case.type)), case.options, case.field)
    if column.kind == "passthrough":
        return
    bound = data.draw(st.one_of(st.floats(0, 1e308), st.sampled_from([0.0, 1.0, 0.25, 1e-3, 1e-300, 1e300])))
    assert isinstance(column, NumericColumn | VectorColumn)
    bounded = column.with_bound(bound)
    assert bounded.spans()[-1].bins <= 2**62
    values = data.draw(arrays(case.type))
    symbols = bounded.from_values(values)
    _check_symbols(bounded, symbols, len(values))
    decoded = bounded.to_values(symbols)
    _check_array(decoded, values.type, len(values))
    assert same_symbols(through_json(bounded).from_values(values), symbols)
    allowed = Fraction(bounded.bound)
    if case in VECTORS:
        for before, after in zip(vectors(values), vectors(decoded), strict=True):
            _check_bound(before, after, allowed)
    else:
        _check_bound(numbers(values), numbers(decoded), allowed)


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_types_without_a_model_are_passed_through(case: Case) -> None:
    values = pa.nulls(3, case.type)
    column = fit(values, case.options, case.field)
    assert column.kind == "passthrough"
    assert column.spans() == []
    symbols = column.from_values(values)
    assert symbols.bins.shape == (3, 0)
    assert symbols.states is None
    assert symbols.exact is None
    assert through_json(column) == column
    with pytest.raises(TypeError, match="passed through"):
        column.to_values(symbols)


@pytest.mark.parametrize("case", MODELLED, ids=str)
def test_another_type_is_refused(case: Case) -> None:
    columns = [Case(pa.int8()), Case(pa.float32())]
    other = next(c for c in columns if c.type != case.type)
    column = fit(pa.array([1, 2], other.type))
    with pytest.raises(TypeError, match="column 'c'"):
        column.from_values(pa.nulls(1, case.type))


def _check_symbols(column: Column, symbols: Symbols, rows: int) -> None:
    """The matrix fits the spans, and a value symbol is absent exactly where there is no ordinary value."""
    layout = FeatureLayout.assemble(column.spans())
    assert layout.spans == tuple(column.spans())
    assert symbols.bins.dtype == np.int64
    assert symbols.bins.shape == (rows, layout.n_symbols)
    states = np.zeros(rows, np.uint8) if symbols.states is None else symbols.states
    assert symbols.states is None or (symbols.states.dtype == np.uint8 and symbols.states.any())
    for span in layout.spans:
        part = symbols.bins[:, span.start : span.stop]
        assert ((part >= -1) & (part < span.bins)).all()
        if span.role == "value":
            places = part[:, :1] if span.ends else part
            assert ((places == -1) == (states != State.VALUE)[:, None]).all()
            if span.ends:  # nothing follows an end, or a place without a symbol
                assert (part[:, 1:][part[:, :-1] <= 0] == -1).all()
                assert (part[:, 1:][part[:, :-1] > 0] >= 0).all()
    assert (0 if symbols.exact is None else len(symbols.exact)) == (states == State.EXACT).sum()
    assert symbols.exact is None or symbols.exact.type == column.field.type


def _check_seen_states(column: Column, symbols: Symbols) -> None:
    """Each state that fitting saw has a symbol of its own, and there is no symbol if it saw none."""
    if column.spans()[0].role == "value":
        assert symbols.states is None
    elif len(symbols.bins):
        states = np.zeros(len(symbols.bins), np.uint8) if symbols.states is None else symbols.states
        pairs = set(zip(states.tolist(), symbols.bins[:, 0].tolist(), strict=True))
        assert len(pairs) == len(set(states.tolist())) == column.spans()[0].bins - (State.VALUE not in states)
        assert symbols.bins[:, 0].min() >= 0


def _check_array(decoded: pa.Array, data_type: pa.DataType, rows: int) -> None:
    assert decoded.type == data_type
    assert len(decoded) == rows
    decoded.validate(full=True)


def _check_values(case: Case, column: Column, values: pa.Array, decoded: pa.Array) -> None:
    if case in TEXTS or case in BOOLEANS or case in SEQUENCES:
        assert plain(decoded) == plain(values)
    elif isinstance(column, VectorColumn):
        for before, after in zip(vectors(values), vectors(decoded), strict=True):
            assert (before is None) == (after is None)
            if before is not None and all(isinstance(x, Fraction) for x in before):
                _check_near(column, case.type, before, after)
            else:
                assert before == after
    else:
        assert isinstance(column, NumericColumn)
        _check_near(column, case.type, numbers(values), numbers(decoded))


def _check_near(column: Any, data_type: pa.DataType, before: list[Any], after: list[Any]) -> None:
    """Ordinary values come back within half a bin, clipped to the fitted range; the rest as it was."""
    grid = column.grid
    low, high = Fraction(grid.low), Fraction(grid.high)
    for value, back in zip(before, after, strict=True):
        if not isinstance(value, Fraction):
            assert back == value
        elif pa.types.is_decimal(data_type) and not -(2**63) <= value < 2**63:
            assert back == value  # stored exactly
        else:
            assert low <= back <= high
            clipped = min(max(value, low), high)
            half = Fraction(grid.width) / 2 if grid.kind == "float" else Fraction(grid.width // 2)
            assert abs(back - clipped) <= half + _rounding(data_type, clipped, grid)


def _rounding(data_type: pa.DataType, value: Fraction, grid: Any) -> Fraction:
    """What float arithmetic and the column's own precision may add."""
    if grid.kind == "int":
        return Fraction(0)
    element = getattr(data_type, "value_type", data_type)
    largest = max(abs(grid.low), abs(grid.high))
    here = min(abs(float(value)) + grid.width, largest)
    own = np.array(here).astype(f"float{element.bit_width}")
    return _ulp(own) + 4 * _ulp(np.array(largest))


def _ulp(value: np.ndarray) -> Fraction:
    below = np.nextafter(value, np.zeros((), value.dtype))
    return 2 * (Fraction(float(value)) - Fraction(float(below)))


def _check_bound(before: list[Any] | None, after: list[Any] | None, allowed: Fraction) -> None:
    if before is None or after is None:
        assert before == after
        return
    for value, back in zip(before, after, strict=True):
        if isinstance(value, Fraction):
            assert isinstance(back, Fraction)
            assert abs(back - value) <= allowed
        else:
            assert state_of(value) == state_of(back)
