"""Frames and arrays of other libraries ↔ Arrow tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

ARRAY_COLUMN = "x"
"""Column of the rows of an array that are vectors; the columns of others are `x0`, `x1` …"""


def is_frame(rows: Any) -> bool:
    """Whether rows have named columns: a pandas or Polars frame, an Arrow table."""
    polars = sys.modules.get("polars")
    return isinstance(rows, pd.DataFrame | pa.Table) or (polars is not None and isinstance(rows, polars.DataFrame))


def to_table(rows: Any, shape: tuple[int, ...] | None = None) -> pa.Table:
    """Turns rows into an Arrow table; dictionaries (pandas' categories) become their values.

    Args:
        rows: A frame (see `is_frame`; a pandas index is left out), or a float64 array of shape (rows, columns).
        shape: If the rows of an array are vectors, their shape.

    Raises:
        ValueError: If a column has no Arrow type, or an array's rows are not of `shape`.
    """
    if isinstance(rows, pa.Table):
        table = rows
    elif isinstance(rows, pd.DataFrame):
        try:
            table = pa.Table.from_pandas(rows, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"a column of the frame has mixed or unknown types: {error}") from error
    elif is_frame(rows):
        table = rows.to_arrow()
    else:
        return _of_array(np.asarray(rows, np.float64), shape)
    table = table.replace_schema_metadata(None)
    for number, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(number).cast(field.type.value_type)
            table = table.set_column(number, pa.field(field.name, field.type.value_type, field.nullable), plain)
    return table


def _of_array(values: npt.NDArray[np.float64], shape: tuple[int, ...] | None) -> pa.Table:
    if shape is None:
        return pa.table({f"x{number}": np.ascontiguousarray(column) for number, column in enumerate(values.T)})
    if int(np.prod(shape)) != values.shape[1]:
        raise ValueError(f"shape = {shape} has {int(np.prod(shape))} elements, the rows have {values.shape[1]}")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.table({ARRAY_COLUMN: vectors})


def from_columns(columns: Mapping[str, pa.Array], framed: bool) -> Any:
    """A pandas frame of columns, or a float64 array of shape (rows, columns) if they came from one."""
    if framed:
        return pa.table(dict(columns)).to_pandas()
    arrays = list(columns.values())
    if pa.types.is_fixed_size_list(arrays[0].type):
        flat = arrays[0].flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(arrays[0]), -1).astype(np.float64)
    return np.column_stack([array.to_numpy(zero_copy_only=False).astype(np.float64) for array in arrays])
