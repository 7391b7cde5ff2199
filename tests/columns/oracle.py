"""Slow, plain Python that says what fast code must do."""

from __future__ import annotations

import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import Column, ColumnOptions, ColumnStats, State, Symbols, column_from_json, fit_column


def fit(values: pa.Array, options: ColumnOptions | None = None, field: pa.Field | None = None) -> Column:
    """Fits a column to one array."""
    field = field or pa.field("c", values.type)
    return fit_column(field, observe(values, options, field), options)


def observe(
    values: pa.Array, options: ColumnOptions | None = None, field: pa.Field | None = None, **sizes: int
) -> ColumnStats:
    """Statistics of one array."""
    stats = ColumnStats.empty(field or pa.field("c", values.type), options, **sizes)
    stats.observe(values, np.random.default_rng(0).permutation(len(values)).astype(np.uint64))
    return stats


def through_json(column: Column) -> Column:
    """The column as it comes back from a file."""
    text = json.dumps(column.to_json(), allow_nan=False)
    return column_from_json(column.field, json.loads(text))


def same_symbols(a: Symbols, b: Symbols) -> bool:
    """Equality of symbols, exact values compared bit by bit."""
    if not np.array_equal(a.bins, b.bins) or (a.states is None) != (b.states is None):
        return False
    if a.states is not None and not np.array_equal(a.states, b.states):
        return False
    return (a.exact is None) == (b.exact is None) and (a.exact is None or plain(a.exact) == plain(b.exact))


def plain(values: pa.Array) -> list[Any]:
    """Python values that compare as they should: times as integers, floats by their bits, NaN as itself."""
    types = pa.types
    if isinstance(values, pa.ExtensionArray):
        return plain(values.storage)
    if types.is_dictionary(values.type):
        return plain(values.dictionary.cast(_arrow_key(values.type.value_type)).take(values.indices))
    if types.is_fixed_size_list(values.type):
        return [None if row is None else tuple(bits(x) for x in row) for row in values.to_pylist()]
    if types.is_floating(values.type):
        return [bits(x) for x in values.to_pylist()]
    if types.is_temporal(values.type):
        return values.view(pa.int64() if values.type.bit_width == 64 else pa.int32()).to_pylist()
    if types.is_string_view(values.type):
        return values.cast(pa.string()).to_pylist()
    return values.to_pylist()


def raw(values: pa.Array) -> list[Any]:
    """What must be equal if values are bit for bit the same: of floats the bit patterns, under nulls None."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_floating(values.type):
        width = values.type.bit_width // 8
        patterns = np.frombuffer(values.buffers()[1] or b"", f"u{width}", len(values), values.offset * width)
        return [p if valid else None for p, valid in zip(patterns.tolist(), values.is_valid().to_pylist(), strict=True)]
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        elements = raw(values.values.slice(values.offset * width, len(values) * width))
        rows = [tuple(elements[i * width : (i + 1) * width]) for i in range(len(values))]
        return [row if valid else None for row, valid in zip(rows, values.is_valid().to_pylist(), strict=True)]
    return plain(values)


def _arrow_key(data_type: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_string_view(data_type) else data_type


def bits(value: Any) -> Any:
    """A float with its sign, NaN equal to NaN; anything else as it is."""
    return repr(float(value)) if isinstance(value, float | np.floating) else value


def numbers(values: pa.Array) -> list[Any]:
    """None, exact fractions, or "nan", "inf", "-inf"; of a decimal unscaled, of a date64 in days."""
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_temporal(values.type):
        unit = 86_400_000 if pa.types.is_date64(values.type) else 1
        return [None if v is None else Fraction(v, unit) for v in plain(values)]
    scale = values.type.scale if pa.types.is_decimal(values.type) else 0
    return [_number(value, scale) for value in values.to_pylist()]


def vectors(values: pa.Array) -> list[Any]:
    """None, or the numbers of each row."""
    storage = values.storage if isinstance(values, pa.ExtensionArray) else values
    return [None if row is None else [_number(x, 0) for x in row] for row in storage.to_pylist()]


def _number(value: Any, scale: int) -> Any:
    if value is None:
        return None
    if isinstance(value, Decimal):
        with localcontext(prec=80):
            return Fraction(value.scaleb(scale))
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return repr(float(value))
    return Fraction(value if isinstance(value, int) else float(value))


def state_of(number: Any) -> State:
    """The state of one of `numbers`."""
    if isinstance(number, Fraction):
        return State.VALUE
    return {None: State.NULL, "nan": State.NAN, "inf": State.POS_INF, "-inf": State.NEG_INF}[number]
