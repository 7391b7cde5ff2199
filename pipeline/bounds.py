"""The error bounds of a dataset: from what a user writes to one absolute number a column."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pyarrow as pa

from pipeline.columns import BOUNDED_KINDS, Bound, Column, ColumnOptions
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ConfigError
from pipeline.rows import RowTransform

__all__ = ["Bound", "check_promises", "overrides", "parse_bound", "resolve_bounds"]


def parse_bound(value: str | int | float, where: str) -> Bound:
    """Reads an error bound: `0.01r`, `0`, a number, `none`.

    Args:
        value: Text or a number.
        where: The flag or key that it comes from, for the message.

    Raises:
        ConfigError: If it is anything else.
    """
    try:
        return Bound.parse(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_promises(default: Bound, columns: Mapping[str, ColumnOptions], defaults: ColumnOptions) -> None:
    """Refuses `none` for a part of a dataset: corrections are kept for all columns or for none.

    Args:
        default: The dataset's bound.
        columns: Options of single columns.
        defaults: Options of all others.

    Raises:
        ConfigError: Naming the key.
    """
    keys = {f"columns.{name}.error": options.error for name, options in columns.items()}
    for key, bound in {**keys, "defaults.error": defaults.error}.items():
        if bound is not None and (bound.value is None) != (default.value is None):
            raise ConfigError(
                f"{key} = {str(bound)!r}, but error = {str(default)!r}: 'none' is for the whole dataset; "
                "give every column a bound, or say error: none and no other bound"
            )


def overrides(options: Mapping[str, ColumnOptions]) -> dict[str, Bound]:
    """The bounds that columns were given by themselves."""
    return {name: option.error for name, option in options.items() if option.error is not None}


def resolve_bounds(rows: RowTransform, default: Bound, overrides: Mapping[str, Bound]) -> dict[str, float]:
    """Absolute bounds of the numeric and vector columns; all other columns are always exact.

    Args:
        rows: The fitted columns, on their nominal grids: relative bounds count in their ranges (of a vector
            column the range of all elements).
        default: The bound of the columns without one of their own.
        overrides: Column name → its bound.

    Returns:
        Column name → largest absolute difference in the column's own unit; empty if `default` is none.

    Raises:
        ConfigError: If `overrides` names a column that does not exist.
    """
    for name in overrides:
        if name not in rows.schema.names:
            raise ConfigError(f"there is an error bound for the column {name!r}, the dataset has no such column")
    bounds = {}
    for column in rows.modelled:
        bound = overrides.get(column.name, default)
        if column.kind in BOUNDED_KINDS and bound.value is not None:
            bounds[column.name] = bound.absolute(*_range(column))
    return bounds


def _range(column: Column) -> tuple[int | float, int | float]:
    """Smallest and largest value in the column's own unit."""
    if not isinstance(column, NumericColumn | VectorColumn):
        raise TypeError(f"column {column.name!r} is {column.kind} and has no range")
    low, high = column.grid.low, column.grid.high
    if pa.types.is_decimal(column.field.type):
        low, high = (float(Decimal(value).scaleb(-column.field.type.scale)) for value in (low, high))
    return low, high
