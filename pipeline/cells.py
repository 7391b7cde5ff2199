"""The cell of a block in the corrections column: what the decoder must be told exactly.

It is a cell of sections (`codec.sections`): which block of which part it is, then, in a guaranteed archive, the
codec's own cell; where only latents are kept, states and exactly stored values as an Arrow IPC stream; and source
dictionaries where they are not the part's. An IPC stream is one row of lists: `s:COLUMN` the states, `x:COLUMN`
the exactly stored values, `d:COLUMN` a source dictionary.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.codec.sections import Key, from_varint, pack_cell, to_varint, unpack_cell
from pipeline.columns.kinds import pickled_column
from pipeline.rows import Exceptions

Dictionaries = dict[str, pa.Array]
"""Column name → the dictionary of a dictionary column, as the source file has it: entries and their order."""

_HEAD: Key = (0, 0)
_CODED: Key = (1, 0)
_EXCEPTIONS: Key = (2, 0)
_DICTIONARIES: Key = (3, 0)
_MOST_DICTIONARY_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """Which block a cell belongs to.

    Attributes:
        unit: Index of the work unit.
        block: Number of the block in its part.
        rows: Rows of the block.
    """

    unit: int
    block: int
    rows: int


@dataclass(frozen=True)
class BlockCell:
    """What a cell holds.

    Attributes:
        coded: The codec's cell; empty where only latents are kept.
        exceptions: What latents cannot say; empty where there is a codec.
        dictionaries: Source dictionaries that are not the part's.
    """

    coded: bytes = b""
    exceptions: Exceptions = field(default_factory=dict)
    dictionaries: Dictionaries = field(default_factory=dict)


def pack_block(place: Place, cell: BlockCell) -> bytes:
    """Packs the cell of a block."""
    sections = {_HEAD: b"".join(map(to_varint, (place.unit, place.block, place.rows)))}
    if cell.coded:
        sections[_CODED] = cell.coded
    if cell.exceptions:
        sections[_EXCEPTIONS] = _to_ipc(_exceptions_to_arrays(cell.exceptions))
    if cell.dictionaries:
        sections[_DICTIONARIES] = _to_ipc({f"d:{name}": values for name, values in cell.dictionaries.items()})
    return pack_cell(sections)


def unpack_block(data: bytes, place: Place) -> BlockCell:
    """What `pack_block` packed for the block at `place`.

    Raises:
        ValueError: If the cell is damaged or belongs to another block (or an error of Arrow's or struct's).
    """
    sections = unpack_cell(data)
    head, at = [], 0
    for _ in range(3):
        number, at = from_varint(sections[_HEAD], at)
        head.append(number)
    if Place(*head) != place:
        raise ValueError(f"its corrections belong to block {head[1]} with {head[2]} rows of part {head[0]}")
    exceptions = _from_ipc(sections[_EXCEPTIONS]) if _EXCEPTIONS in sections else {}
    dictionaries = _from_ipc(sections[_DICTIONARIES]) if _DICTIONARIES in sections else {}
    return BlockCell(
        sections.get(_CODED, b""),
        _exceptions_from_arrays(exceptions, place.rows),
        {name.removeprefix("d:"): values for name, values in dictionaries.items()},
    )


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


def _exceptions_to_arrays(exceptions: Exceptions) -> dict[str, pa.Array]:
    arrays: dict[str, pa.Array] = {}
    for column, (states, exact) in exceptions.items():
        arrays[f"s:{column}"] = pa.array(states)
        if exact is not None and len(exact):
            arrays[f"x:{column}"] = exact
    return arrays


def _exceptions_from_arrays(arrays: dict[str, pa.Array], rows: int) -> Exceptions:
    exceptions: Exceptions = {}
    for name, values in arrays.items():
        role, column = name.split(":", 1)
        if role == "s":
            states = values.to_numpy()
            if len(states) != rows:
                raise ValueError(f"column {column!r} has {len(states)} states for {rows} rows")
            exceptions[column] = (states, None)
        else:
            exceptions[column] = (exceptions[column][0], values)
    return exceptions


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
        if pickled_column(reader.schema) is not None:
            raise ValueError("it holds pickled Python objects, which are never read")
        batch = reader.read_next_batch()
    batch.validate(full=True)
    return {name: array.flatten() for name, array in zip(batch.schema.names, batch.columns, strict=True)}


def _one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
