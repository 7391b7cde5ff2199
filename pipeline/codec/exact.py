"""Exactly stored values of a column as bytes.

```
values      count · bytes of text (0 for numbers), both varints · xz of the body
numbers     their bytes as Arrow keeps them
texts       the length of each (4 bytes, little-endian), and all of them end to end
vectors     a bit an element (0 = null) · the bytes of all elements
```

Exactly stored values are never null themselves; a dictionary column's are stored as the texts or numbers they are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.codec.general import from_xz, to_xz
from pipeline.codec.sections import from_varint, to_varint
from pipeline.columns.arrays import storage_of
from pipeline.columns.keys import from_keys, key_type, to_keys
from pipeline.columns.kinds import is_string, list_type
from pipeline.columns.lists import wrap

_MOST_RATIO = 10_000
"""xz does not make text smaller than this."""


def encode(values: pa.Array) -> bytes:
    """Codes an array of numbers, texts, vectors of numbers, or a dictionary array of numbers or texts."""
    size = 0
    if list_type(values.type) is not None:
        body = _vector_bytes(storage_of(values))
    else:
        keys = to_keys(values)
        if pa.types.is_large_binary(keys.type):
            texts = keys.to_pylist()
            size = sum(map(len, texts))
            body = np.array([len(text) for text in texts], "<u4").tobytes() + b"".join(texts)
        else:
            body = _number_bytes(keys)
    return to_varint(len(values)) + to_varint(size) + to_xz(body)


def decode(data: bytes, data_type: pa.DataType, most: int) -> pa.Array:
    """Decodes what `encode` coded.

    Args:
        data: The bytes.
        data_type: The type of the values.
        most: Most values that there may be.

    Raises:
        ValueError: If they are no such values (or `pa.ArrowException`, `lzma.LZMAError`).
    """
    count, start = from_varint(data, 0)
    size, start = from_varint(data, start)
    if not 0 < count <= most or size > _MOST_RATIO * len(data):
        raise ValueError(f"{count:,} exact values with {size:,} bytes of text are too many")
    storage = list_type(data_type)
    if storage is not None:
        return wrap(_vectors(data[start:], storage, count), data_type)
    keys = key_type(data_type)
    if pa.types.is_large_binary(keys):
        found = _texts(from_xz(data[start:], 4 * count + size), count)
    else:
        found = _numbers(from_xz(data[start:], count * keys.bit_width // 8), keys)
    if not pa.types.is_dictionary(data_type) and not is_string(data_type):
        return found
    encoded = found.dictionary_encode()
    return from_keys(encoded.dictionary, encoded.indices.to_numpy().astype(np.int64), data_type)


def _number_bytes(values: pa.Array) -> bytes:
    width = values.type.bit_width // 8
    buffer = values.buffers()[1]
    return bytes(memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width])


def _numbers(body: bytes, data_type: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(data_type, len(body) * 8 // data_type.bit_width, [None, pa.py_buffer(body)])


def _texts(body: bytes, count: int) -> pa.Array:
    lengths = np.frombuffer(body, "<u4", count)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if int(offsets[-1]) != len(body) - 4 * count:
        raise ValueError("the lengths of texts do not add up")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(body[4 * count :])]
    return pa.Array.from_buffers(pa.large_binary(), count, buffers)


def _vector_bytes(storage: pa.FixedSizeListArray) -> bytes:
    child = storage.flatten()
    mask = np.asarray(child.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    return np.packbits(mask).tobytes() + _number_bytes(child)


def _vectors(data: bytes, storage: pa.DataType, count: int) -> pa.Array:
    elements, width = count * storage.list_size, storage.value_type.bit_width // 8
    masked = (elements + 7) // 8
    body = from_xz(data, masked + elements * width)
    mask = np.unpackbits(np.frombuffer(body, np.uint8, masked), count=elements).astype(np.bool_)
    validity = None if mask.all() else pa.array(mask).buffers()[1]
    child = pa.Array.from_buffers(storage.value_type, elements, [validity, pa.py_buffer(body[masked:])])
    return pa.FixedSizeListArray.from_arrays(child, type=storage)
