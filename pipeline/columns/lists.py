"""Fixed-size lists and fixed-shape tensors of numbers ↔ n × width NumPy matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.columns.arrays import (
    Mask,
    Numbers,
    States,
    narrow,
    read_physical,
    storage_of,
    valid_mask,
    write_scalars,
)
from pipeline.columns.base import State
from pipeline.columns.kinds import list_type


@dataclass(frozen=True)
class Rows:
    """Vectors as a matrix and a state for each row.

    Attributes:
        data: n × width numbers in the dtype of the elements; rows that are not ordinary are 0.
        states: `NULL` for a null row, `EXACT` for one with an element that is null, NaN or infinite; or None.
    """

    data: Numbers
    states: States | None

    def ordinary(self) -> Numbers:
        """The ordinary rows alone, in order."""
        return self.data if self.states is None else self.data[self.states == State.VALUE]


def storage_type(data_type: pa.DataType) -> pa.DataType:
    """The fixed-size list that stores a vector type.

    Raises:
        TypeError: If the type is no vector of numbers.
    """
    storage = list_type(data_type)
    if storage is None:
        raise TypeError(f"{data_type} is not a fixed-size list or tensor of numbers")
    return storage


def read_rows(values: pa.Array) -> Rows:
    """Reads an array of vectors."""
    width = storage_type(values.type).list_size
    storage = storage_of(values)
    # .values is the whole child array, whatever slice of the lists this is
    child = storage.values.slice(storage.offset * width, len(storage) * width)
    data = read_physical(child).reshape(len(storage), width)
    usable = _usable(child, data)
    valid = valid_mask(values)
    if usable is None and valid is None:
        return Rows(data, None)
    states = np.zeros(len(data), np.uint8)
    if usable is not None:
        states[~usable] = State.EXACT
    if valid is not None:
        states[~valid] = State.NULL
    if not states.any():
        return Rows(data, None)
    data = data.copy()
    data[states != State.VALUE] = 0
    return Rows(data, states)


def write_rows(data: Numbers, data_type: pa.DataType, null: Mask | None = None) -> pa.Array:
    """Writes a matrix as vectors of a type.

    Args:
        data: n × width numbers within the range of the elements' type.
        data_type: A vector type.
        null: True where the row is null.

    Returns:
        n vectors of `data_type`.
    """
    storage = storage_type(data_type)
    if null is not None:
        data = data.copy()
        data[null] = 0
    child = write_scalars(narrow(data, storage.value_type).reshape(-1), storage.value_type)
    mask = None if null is None else pa.array(null)
    return wrap(pa.FixedSizeListArray.from_arrays(child, type=storage, mask=mask), data_type)


def wrap(storage: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Makes the extension array again, if the type is an extension type."""
    if isinstance(data_type, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(data_type, storage)
    return storage


def _usable(child: pa.Array, data: Numbers) -> Mask | None:
    """Rows without an element that is null, NaN or infinite; None if all are."""
    usable: Mask | None = None
    if data.dtype.kind == "f":
        finite = np.isfinite(data)
        usable = None if finite.all() else _whole_rows(finite)
    valid = valid_mask(child)
    if valid is not None:
        whole = _whole_rows(valid.reshape(data.shape))
        usable = whole if usable is None else usable & whole
    return usable


def _whole_rows(mask: Mask) -> Mask:
    return np.asarray(mask.all(axis=1), dtype=np.bool_)
