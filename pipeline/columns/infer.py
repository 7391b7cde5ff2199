"""Which kind a column is given, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.columns.arrays import write_scalars
from pipeline.columns.base import Column, State
from pipeline.columns.boolean import BooleanColumn
from pipeline.columns.categorical import CategoricalColumn
from pipeline.columns.kinds import family, possible_kinds
from pipeline.columns.lists import storage_type
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.options import ColumnOptions
from pipeline.columns.passthrough import PassthroughColumn
from pipeline.columns.sequence import SequenceColumn
from pipeline.columns.stats import ColumnStats
from pipeline.columns.temporal import TemporalColumn
from pipeline.columns.tokens import MAX_LENGTH
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ConfigError

ALWAYS_CATEGORIES = 64
"""So few distinct values are categories however few the rows."""

ROWS_PER_CATEGORY = 4
"""Text with fewer rows than this for each distinct value is free text, or a key."""


class _Fitter(Protocol):
    def fit(self, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> Column: ...

    def from_json(self, field: pa.Field, data: Mapping[str, Any]) -> Column: ...


KINDS: dict[str, _Fitter] = {
    "numeric": NumericColumn,
    "categorical": CategoricalColumn,
    "boolean": BooleanColumn,
    "temporal": TemporalColumn,
    "vector": VectorColumn,
    "sequence": SequenceColumn,
    "passthrough": PassthroughColumn,
}
"""The class of each kind."""

BOUNDED_KINDS = ("numeric", "vector")
"""The kinds that an error bound above 0 applies to; all others are exact."""


def check_options(field: pa.Field, options: ColumnOptions) -> None:
    """Refuses options that a column's type does not allow; needs no data.

    Args:
        field: The Arrow field.
        options: The column's options.

    Raises:
        ConfigError: If the kind is unknown or impossible for the type, the shape does not fit, or a number is
            out of range.
    """
    possible = possible_kinds(field.type)
    where = f"column {field.name!r} ({field.type})"
    if options.kind is not None and options.kind not in possible:
        known = "" if options.kind in KINDS else " (unknown kind)"
        raise ConfigError(f"{where} cannot be {options.kind!r}{known}; possible: {', '.join(possible)}")
    if options.max_categories < 1:
        raise ConfigError(f"{where}: max_categories must be at least 1, got {options.max_categories}")
    if options.scaling not in ("robust", "standard"):
        raise ConfigError(f"{where}: scaling must be 'robust' or 'standard', got {options.scaling!r}")
    if options.shape is not None:
        _check_shape(field, options.shape, where)
    kind = options.kind or possible[0]
    if kind != "sequence" and (options.tokens is not None or options.max_length is not None):
        given = "tokens" if options.tokens is not None else "max_length"
        raise ConfigError(f"{where} is {kind}, and {given} is for sequences; say kind: sequence beside it")
    if options.max_length is not None and not 1 <= options.max_length <= MAX_LENGTH:
        raise ConfigError(f"{where}: max_length must be between 1 and {MAX_LENGTH:,}, got {options.max_length}")
    bound = options.error
    if kind not in BOUNDED_KINDS and bound is not None and bound.value is not None and not bound.exact:
        raise ConfigError(f"{where} is {kind} and always exact: its error cannot be {bound}, only 0")


def fit_column(field: pa.Field, stats: ColumnStats, options: ColumnOptions | None = None) -> Column:
    """Fits a column of the kind that was asked for, or of the one that its type and data suggest.

    Whatever was asked for, a column without one ordinary value (all null, all NaN) is passed through.

    Args:
        field: The Arrow field.
        stats: Statistics over all rows, gathered with the same options.
        options: The column's options.

    Returns:
        The fitted column.

    Raises:
        ConfigError: If the options do not suit the column.
    """
    options = options or ColumnOptions()
    check_options(field, options)
    kind = options.kind or _natural_kind(field, stats, options)
    if kind != "passthrough" and not stats.ordinary:
        kind = "passthrough"
    return KINDS[kind].fit(field, stats, options)


def column_from_json(field: pa.Field, data: Mapping[str, Any]) -> Column:
    """Rebuilds any column from its `to_json`.

    Raises:
        ValueError: If the kind is unknown.
    """
    kind = data["kind"]
    if kind not in KINDS:
        raise ValueError(f"column {field.name!r} is of unknown kind {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind].from_json(field, data)


def explain(column: Column, stats: ColumnStats) -> str:
    """Says in one line what a column is and what it was seen to hold.

    Args:
        column: The fitted column.
        stats: The statistics it was fitted to.

    Returns:
        For example `numeric: int16, 0 … 1272, 3 nulls`.
    """
    parts = [str(column.field.type)]
    if column.kind == "passthrough":
        parts += _why_passed_through(stats)
    elif isinstance(column, CategoricalColumn):
        parts.append(f"{len(column.categories):,} categories" if column.categories else "no categories")
    elif isinstance(column, SequenceColumn):
        parts.append(f"{len(column.vocabulary):,} tokens ({column.how}), at most {column.length:,} a row")
    elif isinstance(column, VectorColumn) and column.shape is not None:
        parts.append(f"image {'×'.join(map(str, column.shape))}")
    if column.kind in ("numeric", "temporal", "vector"):
        parts.append(f"{_value(stats, stats.low)} … {_value(stats, stats.high)}")
    parts += _counted_states(column, stats)
    return f"{column.kind}: {', '.join(parts)}"


def _natural_kind(field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> str:
    kind = possible_kinds(field.type)[0]
    if kind == "categorical" and not _few_categories(stats, options):
        return "passthrough"
    if family(field.type) == "decimal" and stats.states[State.EXACT]:
        return "passthrough"
    return kind


def _few_categories(stats: ColumnStats, options: ColumnOptions) -> bool:
    if stats.distinct is None:
        return False
    distinct = len(stats.distinct)
    if stats.distinct.overflow or distinct > options.max_categories:
        return False
    return distinct <= ALWAYS_CATEGORIES or distinct * ROWS_PER_CATEGORY <= stats.ordinary


def _check_shape(field: pa.Field, shape: tuple[int, ...], where: str) -> None:
    if family(field.type) != "vector":
        raise ConfigError(f"{where} is no vector and has no shape")
    width = storage_type(field.type).list_size
    if len(shape) not in (2, 3) or any(extent < 1 for extent in shape) or math.prod(shape) != width:
        given = list(shape)
        raise ConfigError(f"{where}: shape must be [H, W] or [H, W, C] with product {width}, got {given}")


def _why_passed_through(stats: ColumnStats) -> list[str]:
    if stats.rows and stats.states[State.NULL] == stats.rows:
        return ["all null"]
    if stats.distinct is not None and stats.ordinary:
        over = stats.distinct.overflow
        distinct = f"more than {stats.distinct.limit:,}" if over else f"{len(stats.distinct):,}"
        return [f"{distinct} distinct of {stats.ordinary:,} values"]
    if family(stats.field.type) == "decimal" and stats.states[State.EXACT]:
        return ["values wider than 64 bits"]
    return []


def _counted_states(column: Column, stats: ColumnStats) -> list[str]:
    names = {State.NULL: "null", State.NAN: "NaN", State.POS_INF: "+inf", State.NEG_INF: "-inf"}
    counted = []
    for state, name in names.items():
        count = int(stats.states[state])
        if count and count < stats.rows:
            counted.append(f"{count:,} {name}" + ("s" if name == "null" and count > 1 else ""))
    if isinstance(column, SequenceColumn) and stats.tokens is not None:
        beyond = stats.tokens.longer_than(column.length) + int(stats.states[State.EXACT])
        counted += [f"{beyond:,} of other tokens or longer"] * (beyond > 0)
    if column.kind == "vector" and stats.states[State.EXACT]:
        counted.append(f"{int(stats.states[State.EXACT]):,} rows with null, NaN or infinite elements")
    return counted


def _value(stats: ColumnStats, value: int | float | None) -> str:
    """A value in the column's own terms: decimals scaled, times as times."""
    kind = family(stats.field.type)
    if kind == "decimal" and value is not None:
        scaled = pa.scalar(value, pa.decimal128(38, 0)).as_py()
        return str(scaled.scaleb(-stats.field.type.scale))
    if kind == "temporal" and value is not None:
        return _moment(int(value), stats.field.type)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _moment(value: int, data_type: pa.DataType) -> str:
    if pa.types.is_duration(data_type):
        return f"{value} {data_type.unit}"
    try:
        return str(write_scalars(np.array([value]), data_type).cast(pa.string())[0].as_py())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError):
        return str(value)
