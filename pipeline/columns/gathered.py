"""What statistics gathered, as NumPy arrays by name: how it travels between the processes of a job, nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import load, save

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by name; a part of a whole has the whole's name for it and a dot before its own names."""


def nested(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """A part's arrays, as the whole names them."""
    return {f"{name}.{key}": array for key, array in arrays.items()}


def inside(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The arrays of one part, as the part names them."""
    return {key[len(name) + 1 :]: array for key, array in arrays.items() if key.startswith(f"{name}.")}


def from_arrow(values: pa.Array) -> npt.NDArray[np.uint8]:
    """An Arrow array as the bytes of an IPC stream."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"values": values})
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return np.frombuffer(sink.getvalue(), np.uint8)


def to_arrow(data: npt.NDArray[np.uint8]) -> pa.Array:
    """The array of `from_arrow`."""
    return pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch().column(0)


def to_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Arrays as safetensors."""
    return bytes(save({name: np.asarray(array, order="C") for name, array in arrays.items()}))


def from_bytes(data: bytes) -> Arrays:
    """The arrays of `to_bytes`."""
    return dict(load(data))
