"""Conditions on columns, `education=Masters` or `age>=30`, as a model's decoder can weigh them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns import Column, Symbols
from pipeline.columns.categorical import CategoricalColumn
from pipeline.columns.numeric import NumericColumn
from pipeline.errors import ConfigError
from pipeline.rows import RowTransform

_COMPARED = re.compile(r"\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_CONDITION = re.compile(r"\s*(.+?)" + _COMPARED.pattern, re.DOTALL)
_COMPARE = {
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    ">": pc.greater,
    "<": pc.less,
}
_ORDER = frozenset({">=", "<=", ">", "<"})
_MOST_LISTED = 40


@dataclass(frozen=True)
class Equality:
    """A column has a value: weighed with the probability that the decoder gives it.

    Attributes:
        column: The column.
        value: The value, of the column's type.
        symbols: The column's symbols when it has it.
        own: Which symbols of a row are the column's.
        spans: Numbers of the column's spans.
    """

    column: Column
    value: pa.Scalar
    symbols: tuple[int, ...]
    own: slice
    spans: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """A column's value compares with another one: rows that are drawn are kept or dropped.

    Attributes:
        column: The column.
        compare: Which comparison.
        value: What with, of the column's type.
        own: Which symbols of a row are the column's.
    """

    column: Column
    compare: str
    value: pa.Scalar
    own: slice

    def holds(self, bins_bd: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether rows satisfy it; nulls and NaN never do.

        Args:
            bins_bd: Symbols of whole rows, shape (rows, D).
        """
        own = bins_bd[:, self.own]
        values = self.column.to_values(Symbols(own, self.column.states_of(own)))
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        found = pc.fill_null(_COMPARE[self.compare](values, self.value), False)
        mask = np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
        if pa.types.is_floating(values.type):
            mask &= ~pc.fill_null(pc.is_nan(values), True).to_numpy(zero_copy_only=False)
        return mask


@dataclass(frozen=True)
class Conditions:
    """All conditions that rows must satisfy.

    Attributes:
        equalities: Columns with given values.
        comparisons: Columns with a range of values.
    """

    equalities: tuple[Equality, ...]
    comparisons: tuple[Comparison, ...]

    def __bool__(self) -> bool:
        return bool(self.equalities or self.comparisons)

    @property
    def text(self) -> str:
        """For messages."""
        parts = [f"{e.column.name}={e.value}" for e in self.equalities]
        return " and ".join([*parts, *(f"{c.column.name}{c.compare}{c.value}" for c in self.comparisons)])


def parse_conditions(texts: Sequence[str], rows: RowTransform, what: str = "--where") -> Conditions:
    """Reads conditions and finds what they are about.

    Args:
        texts: `COL=VALUE`, or with `!=`, `<`, `<=`, `>`, `>=`.
        rows: The columns of the model.
        what: Name of the argument, for messages.

    Raises:
        ConfigError: If a condition cannot be read, its column is not modelled, or its value is unknown.
    """
    equalities: list[Equality] = []
    comparisons: list[Comparison] = []
    for text in texts:
        name, compare, value_text = _split(text, rows, what)
        column, own, spans = _find(name, rows, f"{what} {text!r}")
        value = _value(column, value_text, f"{what} {text!r}")
        if compare != "=":
            _check_order(column, compare, f"{what} {text!r}")
            comparisons.append(Comparison(column, compare, value, own))
            continue
        if any(other.column is column for other in equalities):
            raise ConfigError(f"{what} names {name!r} twice; a column has one value")
        symbols = _symbols(column, value, f"{what} {text!r}")
        equalities.append(Equality(column, value, symbols, own, spans))
    for condition in comparisons:
        if any(other.column is condition.column for other in equalities):
            raise ConfigError(f"{what} gives {condition.column.name!r} a value and a range; give one of them")
    return Conditions(tuple(equalities), tuple(comparisons))


def _split(text: str, rows: RowTransform, what: str) -> tuple[str, str, str]:
    """Column, comparison and value; the longest column name that fits wins."""
    for name in sorted(rows.schema.names, key=len, reverse=True):
        if text.startswith(name):
            found = _COMPARED.fullmatch(text, len(name))
            if found is not None:
                return name, found[1], found[2]
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ConfigError(f"{what} {text!r}: expected COL=VALUE, or a comparison such as 'age>=30'")
    return found[1], found[2], found[3]


def _find(name: str, rows: RowTransform, where: str) -> tuple[Column, slice, tuple[int, ...]]:
    """A modelled column, and which symbols and spans of a row are its own."""
    if name in rows.passthrough:
        raise ConfigError(f"{where}: column {name!r} is passed through, the model knows nothing of it")
    position = 0
    for column in rows.modelled:
        width = sum(span.width for span in column.spans())
        if column.name == name:
            if column.kind in ("vector", "sequence"):
                raise ConfigError(
                    f"{where}: column {name!r} is a {column.kind}; conditions take columns of single values"
                )
            spans = enumerate(rows.layout().spans)
            return (
                column,
                slice(position, position + width),
                tuple(number for number, span in spans if span.column == name),
            )
        position += width
    known = ", ".join(repr(column.name) for column in rows.modelled[:_MOST_LISTED])
    raise ConfigError(f"{where}: the model has no column {name!r}; it has {known}")


def _value(column: Column, text: str, where: str) -> pa.Scalar:
    """The value of the column's type that a text says."""
    kind = column.field.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        if pa.types.is_duration(kind):
            return pa.array([int(text)], pa.int64()).cast(kind)[0]
        return pa.array([text], pa.string()).cast(kind)[0]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {text!r} is no {kind}, the type of column {column.name!r}") from error


def _check_order(column: Column, compare: str, where: str) -> None:
    if compare in _ORDER and not isinstance(column, NumericColumn):
        raise ConfigError(f"{where}: column {column.name!r} is {column.kind} and has no order; use = or !=")


def _symbols(column: Column, value: pa.Scalar, where: str) -> tuple[int, ...]:
    """The symbols of a value that the model knows."""
    values = pa.array([value.as_py()], value.type) if not pa.types.is_decimal(value.type) else pa.repeat(value, 1)
    if isinstance(column, NumericColumn):
        low, high = column.to_values(Symbols(_edges(column)))
        if not (pc.greater_equal(value, low).as_py() and pc.less_equal(value, high).as_py()):
            raise ConfigError(f"{where}: the model was fitted to values from {low} to {high} of {column.name!r}")
    if pa.types.is_dictionary(column.field.type):
        indices = pa.array([0], column.field.type.index_type)
        values = pa.DictionaryArray.from_arrays(indices, values, ordered=column.field.type.ordered)
    symbols = column.from_values(values)
    if symbols.states is not None:
        listed = ""
        if isinstance(column, CategoricalColumn):
            names = [repr(name) for name in column.categories[:_MOST_LISTED]]
            more = len(column.categories) - len(names)
            listed = f"; known are {', '.join(names)}" + (f" and {more} more" if more else "")
        raise ConfigError(f"{where}: the model knows no such value of {column.name!r}{listed}")
    return tuple(symbols.bins[0].tolist())


def _edges(column: NumericColumn) -> npt.NDArray[np.int64]:
    """The symbols of the lowest and the highest value of a column."""
    edges = np.zeros((2, column.seen.width + 1), np.int64)
    edges[1, -1] = column.grid.bins - 1
    return edges
