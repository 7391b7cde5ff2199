"""Original values of sampled rows, as report workers hand them on."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.likeness import MOST_PAIRED, is_single


def pack(
    batch: pa.RecordBatch, columns: Sequence[str], priorities: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Some rows of the columns of single values, the first 100 of them, JSON-serializable.

    Args:
        batch: The rows.
        columns: Names of the columns that may be taken.
        priorities: One a row: the rows of all pieces are ordered by them.
        rows: Numbers of the rows that are taken.

    Returns:
        One piece, or none where nothing is left to take.
    """
    fields = [batch.schema.field(name) for name in columns]
    names = [field.name for field in fields if is_single(field.type)][:MOST_PAIRED]
    if not names or not len(rows):
        return []
    table = pa.table({name: _plain(batch.column(batch.schema.get_field_index(name)).take(rows)) for name in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    text = base64.b64encode(sink.getvalue().to_pybytes()).decode()
    return [{"priorities": priorities[rows].tolist(), "table": text}]


def unpack(pieces: Sequence[Mapping[str, Any]], most: int) -> pa.Table | None:
    """The rows of all pieces with the lowest priorities, in their order; None: there are none."""
    if not pieces:
        return None
    tables = [pa.ipc.open_stream(base64.b64decode(piece["table"])).read_all() for piece in pieces]
    order = np.argsort(np.concatenate([np.array(piece["priorities"], np.uint64) for piece in pieces]), kind="stable")
    return pa.concat_tables(tables).take(order[:most])


def _plain(values: pa.Array) -> pa.Array:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
