"""Bytes that general tools need for one table within the same error bounds.

Numeric columns are cut into bins as wide as the bound allows (floats 2·b, integers 2·⌊b⌋ + 1), so that a tool that
keeps the bins holds the bound; floats at the bound 0 go to the tools as they are. Text, categories, booleans,
timestamps, decimals and what is no ordinary number (null, NaN, ±inf) stay exact.

* Parquet as it is: zstd level 19, the smallest of with and without dictionaries and byte-stream split.
* Parquet on the bins: the same, of the bins and of what stays exact.
* best: what stays exact as Parquet, every other column by the smallest of pcodec (level 8), xz -6 and Parquet; or
  Parquet on the bins, where that is smaller.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pcodec import ChunkConfig, standalone

from pipeline.bounds import Bound

Numbers = npt.NDArray[Any]
_WIDEST = 1 << 62
_STATES = {"value": 0, "null": 1, "nan": 2, "inf": 3, "-inf": 4}


@dataclass(frozen=True)
class Binned:
    """A numeric column.

    Attributes:
        values: Its ordinary numbers: shape (rows with one,), or (rows, elements) of a vector column.
        bins: Their bins, same shape; the values themselves for floats at the bound 0.
        there: Where the rows that have an ordinary number are; None: everywhere.
        states: What other rows have, as a column that stays exact; None without.
        bound: Largest absolute error.
    """

    values: Numbers
    bins: Numbers
    there: npt.NDArray[np.bool_] | None
    states: pa.Array | None
    bound: float

    def whole(self, rows: int) -> pa.Array:
        """The bins of all rows, 0 where there is no ordinary number."""
        if self.bins.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(self.bins.ravel()), self.bins.shape[1])
        full = np.zeros(rows, self.bins.dtype)
        full[slice(None) if self.there is None else self.there] = self.bins
        return pa.array(full)


@dataclass(frozen=True)
class Peers:
    """What general tools need for a table, in bytes.

    Attributes:
        parquet: Parquet as it is.
        on_bins: Parquet on the bins.
        best: The best general tool, column by column.
        exact: The columns that stay exact, as Parquet.
        columns: Numeric column → tool → bytes.
        binned: The numeric columns.
        exact_names: Names of the columns that stay exact.
    """

    parquet: int
    on_bins: int
    best: int
    exact: int
    columns: dict[str, dict[str, int]]
    binned: dict[str, Binned]
    exact_names: list[str]

    @property
    def smallest(self) -> dict[str, str]:
        """Numeric column → the tool that makes it smallest."""
        return {name: min(sizes, key=lambda tool: sizes[tool]) for name, sizes in self.columns.items()}


def measure(table: pa.Table, bound_of: Callable[[str], Bound], report: Callable[[str], None] = lambda _: None) -> Peers:
    """What general tools need for a table.

    Args:
        table: The table.
        bound_of: The error bound of a numeric column; a relative one counts in the column's range in this table.
        report: Told what is being measured.
    """
    report("Parquet as it is")
    parquet = parquet_bytes(table)
    exact: dict[str, pa.Array] = {}
    binned: dict[str, Binned] = {}
    for name in table.column_names:
        column = one_array(table[name])
        found = to_bins(column, bound_of(name))
        if found is None:
            exact[name] = column
            continue
        binned[name] = found
        if found.states is not None:
            exact[f"{name}__null"] = found.states
    columns = {}
    for number, (name, part) in enumerate(binned.items(), 1):
        report(f"general tools, column {number} of {len(binned)}")
        columns[name] = _column_bytes(name, part, part.whole(table.num_rows))
    report("Parquet on the bins")
    rest = parquet_bytes(pa.table(exact)) if exact else 0
    whole = pa.table({**exact, **{name: part.whole(table.num_rows) for name, part in binned.items()}})
    on_bins = parquet_bytes(whole)
    one_by_one = rest + sum(min(sizes.values()) for sizes in columns.values())
    return Peers(parquet, on_bins, min(one_by_one, on_bins), rest, columns, binned, list(exact))


def to_bins(column: pa.Array, bound: Bound) -> Binned | None:
    """The bins of a column; None if it stays exact."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        if not _is_number(kind.value_type) or not len(column) or not kind.list_size or column.null_count:
            return None
        flat = column.flatten()
        values = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
        if flat.null_count or not np.isfinite(values).all():
            return None
        there = states = None
    elif _is_number(kind):
        there, states = _ordinary(column)
        values = (column if there is None else column.filter(pa.array(there))).to_numpy(zero_copy_only=False)
    else:
        return None
    if not values.size:
        return None
    low, high = values.min().item(), values.max().item()
    absolute = bound.absolute(low, high)
    constant = low == high and not bound.exact
    bins = np.zeros(values.shape, np.uint8) if constant else _cut(values, low, high, absolute)
    return None if bins is None else Binned(values, bins, there, states, float(absolute))


def parquet_bytes(table: pa.Table, level: int = 19) -> int:
    """Bytes of a table as Parquet, with the encodings that make it smallest."""
    variants: list[dict[str, Any]] = [{"use_dictionary": True}, {"use_dictionary": False}]
    if all(pa.types.is_floating(_element(field.type)) for field in table.schema):
        variants.append({"use_dictionary": False, "use_byte_stream_split": True})
    sizes = []
    for variant in variants:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", compression_level=level, **variant)
        sizes.append(sink.getbuffer().nbytes)
    return min(sizes)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """All of a column as one array."""
    if pa.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _column_bytes(name: str, column: Binned, whole: pa.Array) -> dict[str, int]:
    """Bytes of one column's bins by tool; vectors by rows or by elements."""
    orders = [column.bins] if column.bins.ndim == 1 else [column.bins, column.bins.T]
    return {
        "pcodec": min(map(_pcodec_bytes, orders)),
        "xz": min(len(lzma.compress(np.ascontiguousarray(values).tobytes(), preset=6)) for values in orders),
        "parquet": parquet_bytes(pa.table({name: whole})),
    }


def _pcodec_bytes(values: Numbers) -> int:
    values = values.astype(np.uint16) if values.dtype == np.uint8 else values
    flat = np.ascontiguousarray(values).ravel()
    return len(standalone.simple_compress(flat, ChunkConfig(compression_level=8)))


def _cut(values: Numbers, low: float, high: float, bound: float) -> Numbers | None:
    """Bins from 0 up of the smallest type; None if there are too many to count."""
    if np.issubdtype(values.dtype, np.floating):
        if bound == 0:
            return values
        width = 2 * bound
        if not (high - low) / width < _WIDEST:
            return None
        return _narrow(np.rint((values.astype(np.float64) - low) / width).astype(np.uint64))
    step = 2 * int(bound) + 1
    if step >= 2 * _WIDEST:
        return None
    above = values.astype(np.uint64) - np.uint64(int(low) % 2**64)  # modulo 2^64, so exact
    up = above % np.uint64(step) >= np.uint64(step - step // 2)
    return _narrow(above // np.uint64(step) + up)


def _narrow(bins: Numbers) -> Numbers:
    most = int(bins.max())
    return bins.astype(next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if most <= np.iinfo(kind).max))


def _ordinary(column: pa.Array) -> tuple[npt.NDArray[np.bool_] | None, pa.Array | None]:
    """Where a scalar column has ordinary numbers, and what it has elsewhere; None, None if it has them everywhere."""
    states = np.zeros(len(column), np.int8)
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        states[np.isnan(values)] = _STATES["nan"]
        states[values == np.inf] = _STATES["inf"]
        states[values == -np.inf] = _STATES["-inf"]
    if column.null_count:
        states[column.is_null().to_numpy(zero_copy_only=False)] = _STATES["null"]
    kinds = np.unique(states[states != 0])
    if not len(kinds):
        return None, None
    return states == 0, pa.array(states != 0) if len(kinds) == 1 else pa.array(states)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _element(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_fixed_size_list(kind) else kind
