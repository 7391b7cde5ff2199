"""Does the coding transform keep every bound, through JSON and with states told by symbols; at 0 bit for bit?"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bounds import Bound, resolve_bounds
from pipeline.columns import ColumnOptions, State
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ConfigError
from pipeline.rows import Exceptions, RowTransform
from tests.small import fit as fit_table

from .cases import MODELLED, QUICK, VECTORS, Case, arrays
from .oracle import fit, numbers, plain, raw, vectors

BOUNDS = [Bound.parse(text) for text in ("0.001r", "0.01r", "0.05r", "1e-7", "0.25", "3", "1e300")]


def batch_of(values: pa.Array, case: Case) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([values], schema=pa.schema([case.field]))


def there_and_back(rows: RowTransform, batch: pa.RecordBatch) -> tuple[np.ndarray, Exceptions, pa.Array]:
    """Symbols, what travels beside them, and the values decoded from both by a transform from JSON."""
    stored = RowTransform.from_json(rows.schema, json.loads(json.dumps(rows.to_json(), allow_nan=False)))
    assert stored.to_json() == rows.to_json()
    bins, exceptions = rows.from_batch(batch)
    beside = rows.split_exceptions(bins, exceptions)
    joined = stored.join_exceptions(bins, beside)
    assert joined.keys() == exceptions.keys()
    for name, (states, exact) in exceptions.items():
        np.testing.assert_array_equal(joined[name][0], states)
        assert joined[name][1] is exact
    (decoded,) = stored.to_arrays(bins, joined).values()
    decoded.validate(full=True)
    return bins, beside, decoded


@pytest.mark.parametrize("exact", [False, True], ids=["bounded", "exact"])
@pytest.mark.parametrize("case", MODELLED, ids=str)
@QUICK
@given(data=st.data())
def test_is_every_value_within_its_bound(case: Case, exact: bool, data: st.DataObject) -> None:
    bound = Bound(0) if exact else data.draw(st.sampled_from(BOUNDS))
    fitted, values = data.draw(arrays(case.type)), data.draw(arrays(case.type))
    rows = RowTransform(pa.schema([case.field]), (fit(fitted, case.options, case.field),))
    if not rows.modelled:
        return
    bounds = resolve_bounds(rows, bound, {})
    sample = data.draw(st.sampled_from([None, fitted, values, fitted.slice(len(fitted) // 2)]))
    coding = rows.with_bounds(bounds, None if sample is None else batch_of(sample, case))
    assert coding.layout().n_symbols >= 1
    bins, beside, decoded = there_and_back(coding, batch_of(values, case))
    _check_symbols(coding, bins, values, beside)
    assert decoded.type == values.type
    allowed = bounds.get("c", 0)
    if allowed == 0:
        assert raw(decoded) == raw(values)
    elif case in VECTORS:
        for before, after in zip(vectors(values), vectors(decoded), strict=True):
            assert (before is None) == (after is None)
            _check_within(before or [], after or [], Fraction(allowed))
    else:
        unit = Fraction(10) ** (values.type.scale if pa.types.is_decimal(values.type) else 0)
        _check_within(numbers(values), numbers(decoded), Fraction(allowed) * unit)


def _check_within(before: list[Any], after: list[Any], allowed: Fraction) -> None:
    for value, back in zip(before, after, strict=True):
        if isinstance(value, Fraction):
            assert isinstance(back, Fraction)
            assert abs(back - value) <= allowed
        else:
            assert value == back


def _check_symbols(rows: RowTransform, bins: np.ndarray, values: pa.Array, beside: Exceptions) -> None:
    """A value symbol is -1 exactly where the state is no ordinary one, and the state symbol says which it is."""
    (column,) = rows.modelled
    states = column.from_values(values).states
    states = np.zeros(len(values), np.uint8) if states is None else states
    start = column.spans()[-1].start
    assert ((bins[:, start:] == -1) == (states != State.VALUE)[:, None]).all()
    told = column.states_of(bins)
    if start == 0:
        assert told is None
    elif (bins[:, 0] >= 0).all():
        np.testing.assert_array_equal(told, states)
        assert beside.get("c", (None, None))[0] is None
    else:
        assert told is None
        assert beside["c"][0] is not None


WIDTHS = [pa.float16(), pa.float32(), pa.float64()]


@pytest.mark.parametrize("listed", [False, True], ids=["numeric", "vector"])
@pytest.mark.parametrize("data_type", WIDTHS, ids=str)
def test_do_payloads_and_signs_survive_a_bound_of_0(data_type: pa.DataType, listed: bool) -> None:
    width = data_type.bit_width
    info = np.finfo(f"float{width}")
    quiet, sign = int(np.array(np.nan, info.dtype).view(f"u{width // 8}")), 1 << (width - 1)
    infinity = int(np.array(np.inf, info.dtype).view(f"u{width // 8}"))
    one = int(np.array(1, info.dtype).view(f"u{width // 8}"))
    nans = [quiet, quiet | sign, quiet | 1, infinity | 1, infinity | sign | 3]
    patterns = np.array(
        [*nans, 0, sign, 1, sign | 1, infinity - 1, infinity, sign | infinity, one] * 2, f"u{width // 8}"
    )
    values = pa.Array.from_buffers(data_type, len(patterns), [None, pa.py_buffer(patterns.tobytes())])
    if listed:
        values = pa.FixedSizeListArray.from_arrays(values, 2)
    case = Case(values.type)
    rows = RowTransform(pa.schema([case.field]), (fit(values, None, case.field),))
    for sample in (None, batch_of(values, case)):
        _, beside, decoded = there_and_back(rows.with_bounds({"c": 0}, sample), batch_of(values, case))
        assert raw(decoded) == raw(values)
        assert listed or len(beside["c"][1] or []) < 2 * len(nans) + 1 + 10 * (sample is None)


def test_does_a_bound_above_0_keep_nan_and_infinities_alone() -> None:
    values = pa.array([np.nan, np.inf, -np.inf, None, 1.0, 2.0])
    column = fit(values)
    assert isinstance(column, NumericColumn)
    symbols = column.with_bound(0.1, values).from_values(values)
    assert symbols.exact is None
    assert plain(column.with_bound(0.1, values).to_values(symbols))[:4] == plain(values)[:4]


def test_do_states_of_the_sample_get_a_symbol() -> None:
    column = fit(pa.array([0.0, 10.0, 5.0]))
    assert isinstance(column, NumericColumn)
    seen = pa.array([0.0, 99.0, None, 5.0])
    assert column.with_bound(0.5).seen.width == 0
    bounded = column.with_bound(0.5, seen)
    assert bounded.seen.seen == (State.VALUE, State.NULL, State.EXACT)
    symbols = bounded.from_values(seen)
    assert symbols.states is not None
    np.testing.assert_array_equal(bounded.states_of(symbols.bins), symbols.states)
    new = bounded.from_values(pa.array([1.0, np.inf]))
    assert new.bins[:, 0].tolist() == [0, -1]
    assert bounded.states_of(new.bins) is None


@pytest.mark.parametrize("listed", [False, True], ids=["numeric", "vector"])
def test_has_a_list_of_values_a_symbol_for_values_that_it_lacks(listed: bool) -> None:
    known = np.repeat(np.random.default_rng(1).normal(size=40), 500)
    for values, width in ((known, 0), (np.append(known, [0.1234567, np.pi]), 1)):
        array = pa.array(values)
        array = pa.FixedSizeListArray.from_arrays(array, 2) if listed else array
        column = fit(array)
        assert isinstance(column, NumericColumn | VectorColumn)
        bounded = column.with_bound(0, array)
        assert bounded.grid.kind == "distinct"
        assert bounded.seen.width == width
        assert bounded.from_values(array).states is None


def test_are_temporal_columns_exact_whatever_the_bound_of_others() -> None:
    times = pa.array([-(2**62), 0, 1, 2**62 + 1], pa.int64()).cast(pa.timestamp("ns"))
    table = pa.table({"t": times, "x": [0.0, 1.0, 2.0, 3.0]})
    rows = fit_table(table)
    assert rows.to_arrays(*rows.from_batch(table.to_batches()[0]))["t"] != times
    coding = rows.with_bounds({"x": 1.0})
    bins, exceptions = coding.from_batch(table.to_batches()[0])
    assert coding.to_arrays(bins, exceptions)["t"].equals(times)
    assert rows.layout() == fit_table(table).layout()


def test_is_a_column_without_a_bound_refused() -> None:
    rows = fit_table(pa.table({"x": [1.0, 2.0], "word": ["a", "a"]}), {"word": ColumnOptions(kind="categorical")})
    with pytest.raises(ConfigError, match=r"column 'x'.*no error bound"):
        rows.with_bounds({})
    assert rows.with_bounds({"x": 0}).columns[1] == rows.columns[1]


def test_are_exact_values_without_a_state_noticed() -> None:
    rows = fit_table(pa.table({"x": [1.0, 2.0]})).with_bounds({"x": 0.1})
    with pytest.raises(ValueError, match="column 'x' has exact values"):
        rows.join_exceptions(np.zeros((1, 1), np.int64), {"x": (None, pa.array([1.0]))})
