"""The corrections cell of a block: what latents cannot say, exactly, as a checked Arrow IPC stream.

A cell is the magic `PVX1`, the length and the CRC-32 of the stream that follows (little-endian). The stream is one
row of lists: `s:COLUMN` the states, `x:COLUMN` the exactly stored values, `d:COLUMN` a source dictionary.
"""

from __future__ import annotations

import base64
import struct
import zlib

import pyarrow as pa

from pipeline.rows import Exceptions

Dictionaries = dict[str, pa.Array]
"""Column name → the dictionary of a dictionary column, as the source file has it: entries and their order."""

_CELL = struct.Struct("<4sII")
_CELL_MAGIC = b"PVX1"
_MOST_DICTIONARY_BYTES = 1 << 30


def pack_cell(exceptions: Exceptions, dictionaries: Dictionaries) -> bytes:
    """Packs a block's exceptions, and its dictionaries where they are not the part's."""
    arrays = {f"d:{column}": dictionary for column, dictionary in dictionaries.items()}
    for column, (states, exact) in exceptions.items():
        arrays[f"s:{column}"] = pa.array(states)
        if exact is not None and len(exact):
            arrays[f"x:{column}"] = exact
    body = _to_ipc(arrays)
    return _CELL.pack(_CELL_MAGIC, len(body), zlib.crc32(body)) + body


def unpack_cell(cell: bytes, rows: int) -> tuple[Exceptions, Dictionaries]:
    """What `pack_cell` packed for a block of `rows` rows.

    Raises:
        ValueError: If the cell is damaged (or another error of Arrow's or struct's).
    """
    magic, size, checksum = _CELL.unpack_from(cell)
    body = cell[_CELL.size :]
    if magic != _CELL_MAGIC or size != len(body) or checksum != zlib.crc32(body):
        raise ValueError("the corrections fail their checksum")
    exceptions: Exceptions = {}
    dictionaries: Dictionaries = {}
    for name, values in _from_ipc(body).items():
        role, column = name.split(":", 1)
        if role == "d":
            dictionaries[column] = values
        elif role == "s":
            states = values.to_numpy()
            if len(states) != rows:
                raise ValueError(f"column {column!r} has {len(states)} states for {rows} rows")
            exceptions[column] = (states, None)
        else:
            exceptions[column] = (exceptions[column][0], values)
    return exceptions, dictionaries


def pack_dictionaries(dictionaries: Dictionaries) -> bytes:
    """A part's dictionaries as a text for its footer: size, colon, base64 of zstd of an Arrow IPC stream."""
    body = _to_ipc({f"d:{name}": dictionary for name, dictionary in dictionaries.items()})
    return f"{len(body)}:{base64.b64encode(pa.compress(body, 'zstd', asbytes=True)).decode()}".encode()


def unpack_dictionaries(text: bytes | None) -> Dictionaries:
    """What `pack_dictionaries` packed; nothing for None.

    Raises:
        ValueError: If the text is damaged (or an error of Arrow's).
    """
    if text is None:
        return {}
    size, packed = text.split(b":", 1)
    if int(size) > _MOST_DICTIONARY_BYTES:
        raise ValueError(f"dictionaries of {int(size):,} bytes are too large")
    body = pa.decompress(base64.b64decode(packed), int(size), "zstd")
    return {name.split(":", 1)[1]: values for name, values in _from_ipc(body).items()}


def _to_ipc(arrays: dict[str, pa.Array]) -> bytes:
    """Named arrays of any lengths as one Arrow IPC stream: one row of lists."""
    batch = pa.RecordBatch.from_arrays([_one_list(values) for values in arrays.values()], list(arrays))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _from_ipc(body: bytes | pa.Buffer) -> dict[str, pa.Array]:
    with pa.ipc.open_stream(body) as reader:
        batch = reader.read_next_batch()
    batch.validate(full=True)
    return {name: array.flatten() for name, array in zip(batch.schema.names, batch.columns, strict=True)}


def _one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
