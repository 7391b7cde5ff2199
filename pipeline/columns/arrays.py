"""Arrow arrays of fixed-width values ↔ NumPy arrays, without going through Python objects.

NumPy knows no nulls and no decimals, so a column is read as `Scalars`: numbers in one of three wide dtypes
(int64, uint64, float64), and a state for each value that is not an ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns.base import State

Numbers: TypeAlias = npt.NDArray[Any]
"""Numbers in a wide dtype: int64, uint64 or float64."""

States: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]


_VALUE, _NULL = np.uint8(State.VALUE), np.uint8(State.NULL)
_DAY = 86_400_000
"""Milliseconds, the unit of date64, which must be whole days."""


@dataclass(frozen=True)
class Scalars:
    """Values as numbers and states.

    Attributes:
        data: int64, uint64 or float64; 0 where the value is not an ordinary one.
        states: uint8 array of `State`, or None when every value is ordinary.
    """

    data: Numbers
    states: States | None

    def ordinary(self) -> Numbers:
        """The ordinary values alone, in row order."""
        return self.data if self.states is None else self.data[self.states == State.VALUE]


def as_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Joins the chunks of a ChunkedArray; an Array comes back as it is."""
    if not isinstance(values, pa.ChunkedArray):
        return values
    if values.num_chunks == 1:
        return values.chunk(0)
    joined = values.combine_chunks()
    if isinstance(joined, pa.ChunkedArray):
        raise ValueError(f"{values.nbytes:,} bytes of {values.type} do not fit one Arrow array")
    return joined


def storage_of(values: pa.Array) -> pa.Array:
    """The plain array behind an extension array; any other array comes back as it is."""
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def valid_mask(values: pa.Array) -> Mask | None:
    """True where a value is not null; None when none is."""
    if values.null_count == 0:
        return None
    plain = storage_of(values)
    bitmap = plain.buffers()[0]
    if bitmap is None:  # a type that marks nulls otherwise
        return np.asarray(plain.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    first, skipped = divmod(plain.offset, 8)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8)[first:], count=skipped + len(plain), bitorder="little")
    return bits[skipped:].view(np.bool_)


def physical_dtype(data_type: pa.DataType) -> np.dtype[Any]:
    """The NumPy dtype in which Arrow stores one value of a fixed-width type (decimal128 excepted)."""
    width = data_type.bit_width
    if pa.types.is_floating(data_type):
        return np.dtype(f"float{width}")
    unsigned = pa.types.is_unsigned_integer(data_type)
    return np.dtype(f"{'u' if unsigned else ''}int{width}")


def read_physical(values: pa.Array) -> Numbers:
    """The values as they lie in memory; garbage under nulls, no copy, read-only."""
    return _read_buffer(values, physical_dtype(values.type), 1).reshape(-1)


def read_scalars(values: pa.Array) -> Scalars:
    """Reads integers, floats, decimals (unscaled), or temporal values (as Arrow counts them).

    date64 is read in days. What has no such number is `EXACT`: a decimal that does not fit int64, and a
    date64 that is no whole number of days.
    """
    wide: Mask | None = None
    if pa.types.is_decimal128(values.type):
        words = _read_buffer(values, np.dtype(np.int64), 2)
        data: Numbers = words[:, 0]
        outside = words[:, 1] != (data >> 63)
        wide = outside if outside.any() else None
    else:
        data = widen(read_physical(values))
        if pa.types.is_date64(values.type):
            data, outside = np.divmod(data, _DAY)
            wide = outside != 0 if outside.any() else None
    return _with_states(data, valid_mask(values), wide)


def widen(data: Numbers) -> Numbers:
    """Converts to int64, uint64 or float64, whichever holds every value of the dtype."""
    if data.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # a signalling NaN under a null or in the data
            return data.astype(np.float64, copy=False)
    return data if data.dtype == np.uint64 else data.astype(np.int64, copy=False)


def write_scalars(data: Numbers, data_type: pa.DataType, null: Mask | None = None) -> pa.Array:
    """Writes numbers as an array of a type: the inverse of `read_scalars` for ordinary values.

    Args:
        data: Wide numbers, all within the range of `data_type`; rounded to it if it is a narrower float.
        data_type: An integer, float, decimal or temporal type.
        null: True where the value is null.

    Returns:
        An array of `data_type`.
    """
    if pa.types.is_decimal128(data_type):
        low = data.astype(np.int64, copy=False)
        stored: Numbers = np.stack([low, low >> 63], axis=1)
    else:
        stored = narrow(data * _DAY if pa.types.is_date64(data_type) else data, data_type)
    validity = None
    if null is not None and null.any():
        validity = pa.array(~null).buffers()[1]
    buffer = pa.py_buffer(np.ascontiguousarray(stored))
    return pa.Array.from_buffers(data_type, len(data), [validity, buffer])


def narrow(data: Numbers, data_type: pa.DataType) -> Numbers:
    """Converts wide numbers to the dtype that the type is stored in."""
    with np.errstate(over="ignore", invalid="ignore"):
        return data.astype(physical_dtype(data_type), copy=False)


def odd_nans(values: pa.Array) -> Mask:
    """True where a float is not, bit for bit, the NaN that decoding writes."""
    data = read_physical(values)
    own = narrow(np.array([np.nan]), values.type)
    unsigned = f"u{own.itemsize}"
    return np.asarray(data.view(unsigned) != own.view(unsigned), dtype=np.bool_)


def place_exact(decoded: pa.Array, states: States, exact: pa.Array | None) -> pa.Array:
    """Puts the exactly stored values where the state says so.

    Args:
        decoded: n values.
        states: n states.
        exact: The values of the rows in state `EXACT`, in row order.

    Returns:
        n values of the same type.

    Raises:
        ValueError: If the number of exact values is not the number of rows in state `EXACT`.
    """
    rows = np.flatnonzero(states == State.EXACT)
    found = 0 if exact is None else len(exact)
    if found != len(rows):
        raise ValueError(f"{len(rows)} rows are stored exactly, but {found} exact values are given")
    if exact is None or not found:
        return decoded
    indices = np.arange(len(decoded))
    indices[rows] = np.arange(len(decoded), len(decoded) + found)
    return pa.concat_arrays([decoded, exact]).take(pa.array(indices))


def check_type(values: pa.Array, field: pa.Field) -> None:
    """Refuses an array of another type than the column was fitted on.

    Raises:
        TypeError: If the types differ.
    """
    if values.type != field.type:
        raise TypeError(f"column {field.name!r} is {field.type}, got an array of {values.type}")


def _read_buffer(values: pa.Array, dtype: np.dtype[Any], words: int) -> Numbers:
    buffer = values.buffers()[1]
    count = len(values)
    if buffer is None or count == 0:
        return np.zeros((count, words), dtype)
    start = values.offset * words * dtype.itemsize
    return np.frombuffer(buffer, dtype, count * words, start).reshape(count, words)


def _with_states(data: Numbers, valid: Mask | None, wide: Mask | None) -> Scalars:
    finite: Mask | None = None
    if data.dtype.kind == "f":
        finite = np.isfinite(data)
        finite = None if finite.all() else finite
    if wide is None and finite is None:
        if valid is None:
            return Scalars(data, None)
        return Scalars(np.where(valid, data, np.zeros((), data.dtype)), np.where(valid, _VALUE, _NULL))
    states = np.zeros(len(data), np.uint8)
    if finite is not None:
        states[np.isnan(data)] = State.NAN
        states[data == np.inf] = State.POS_INF
        states[data == -np.inf] = State.NEG_INF
    if wide is not None:
        states[wide] = State.EXACT
    if valid is not None:
        states[~valid] = State.NULL
    if not states.any():
        return Scalars(data, None)
    return Scalars(np.where(states == State.VALUE, data, np.zeros((), data.dtype)), states)


def with_dictionary(values: pa.DictionaryArray, dictionary: pa.Array) -> pa.DictionaryArray:
    """The same values over another dictionary: its entries in its order, then what it lacks.

    Args:
        values: A dictionary array.
        dictionary: Entries of the same type as those of `values`.

    Returns:
        An array equal by value and of the same type; `values` itself where its index type has no room.
    """
    kind = values.type
    if dictionary.null_count:
        return values
    found = pc.index_in(values.dictionary, value_set=dictionary)
    missing = values.dictionary.filter(found.is_null())
    used = pc.is_in(missing, value_set=values.dictionary.take(pc.drop_null(values.indices.unique())))
    missing = missing.filter(used)
    if len(dictionary) + len(missing) > 2 ** (kind.index_type.bit_width - 1):
        return values
    entries = pa.concat_arrays([dictionary, missing]) if len(missing) else dictionary
    moved = pc.index_in(values.dictionary, value_set=entries).cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(moved.take(values.indices), entries, ordered=kind.ordered)
