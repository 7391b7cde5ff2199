"""Strings, dictionaries and integers ↔ keys: what a vocabulary is made of and looked up by.

Strings become large_binary, whatever Arrow type holds them: a Parquet file may hold bytes that are no UTF-8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns.kinds import is_string


def key_type(data_type: pa.DataType) -> pa.DataType:
    """The type of the keys of a string, dictionary or integer type."""
    value_type = data_type.value_type if pa.types.is_dictionary(data_type) else data_type
    return pa.large_binary() if is_string(value_type) else value_type


def to_keys(values: pa.Array) -> pa.Array:
    """The key of each value; null where the value is, in a dictionary too."""
    if pa.types.is_dictionary(values.type):
        return to_keys(values.dictionary).take(values.indices)
    return values.cast(pa.large_binary()) if is_string(values.type) else values


def look_up(values: pa.Array, vocabulary: pa.Array) -> pa.Array:
    """Where the key of each value stands in a vocabulary.

    Entries of a dictionary are looked up once each, if they are no more than the values.

    Args:
        values: Values.
        vocabulary: Distinct keys, none of them null.

    Returns:
        int32 indices into `vocabulary`: -1 where a key is not there, null where the value is.
    """
    if pa.types.is_dictionary(values.type) and len(values.dictionary) <= len(values):
        return look_up(values.dictionary, vocabulary).take(values.indices)
    keys = to_keys(values)
    codes = pc.fill_null(pc.index_in(keys, value_set=vocabulary), -1)
    return pc.if_else(keys.is_valid(), codes, pa.scalar(None, pa.int32())) if keys.null_count else codes


def from_keys(keys: pa.Array, codes: npt.NDArray[np.int64], data_type: pa.DataType) -> pa.Array:
    """Values of a type from distinct keys and, for each row, which key it is.

    Args:
        keys: Keys, none of them null.
        codes: Index into `keys`, or -1 for null.
        data_type: A string, dictionary or integer type.

    Returns:
        One value of `data_type` a code.
    """
    if pa.types.is_dictionary(data_type):
        return _dictionary(keys, codes, data_type)
    null = codes < 0
    return _to_type(keys.take(pa.array(codes, mask=null if null.any() else None)), data_type)


def keys_to_json(keys: pa.Array) -> list[Any]:
    """Keys as JSON values; bytes that are no UTF-8 become lone surrogates."""
    values = keys.to_pylist()
    if not pa.types.is_large_binary(keys.type):
        return list(values)
    return [value.decode("utf-8", "surrogateescape") for value in values]


def keys_from_json(values: list[Any], data_type: pa.DataType) -> pa.Array:
    """The inverse of `keys_to_json` for a column of type `data_type`."""
    keys = key_type(data_type)
    if pa.types.is_large_binary(keys):
        values = [value.encode("utf-8", "surrogateescape") for value in values]
    return pa.array(values, keys)


def _to_type(keys: pa.Array, data_type: pa.DataType) -> pa.Array:
    return keys.cast(data_type, safe=False) if pa.types.is_large_binary(keys.type) else keys


def _dictionary(keys: pa.Array, codes: npt.NDArray[np.int64], data_type: pa.DataType) -> pa.Array:
    """A dictionary array of the keys in use; narrow index types may not have room for all of them."""
    room = 2 ** (data_type.index_type.bit_width - int(pa.types.is_signed_integer(data_type.index_type)))
    if len(keys) > room:
        keys, codes = _in_use(keys, codes, room)
    null = codes < 0
    indices = pa.array(np.where(null, 0, codes), mask=null if null.any() else None, type=data_type.index_type)
    dictionary = _to_type(keys, data_type.value_type)
    return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=data_type.ordered)


def _in_use(keys: pa.Array, codes: npt.NDArray[np.int64], room: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Keeps the last `room` keys in use; a row with another key gets the first one kept.

    Exactly stored keys come last: the values that were encoded together fit the index type, so no exact value
    is ever lost; a model's guess may be, if it names more categories than the type can.
    """
    used, inverse = np.unique(codes[codes >= 0], return_inverse=True)
    excess = max(0, len(used) - room)
    packed = np.full(len(codes), -1, np.int64)
    packed[codes >= 0] = np.maximum(inverse.reshape(-1) - excess, 0)
    return keys.take(pa.array(used[excess:])), packed
