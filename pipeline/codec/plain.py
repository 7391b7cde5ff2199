"""Columns that stay plain Parquet columns of a part: what they hold, how they are written, what they take."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns.base import Column
from pipeline.columns.lists import storage_type
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn

ENCODINGS = ("dictionary", "plain", "split")
"""Parquet's dictionary, plain, and byte-stream-split encodings."""
COMPRESSION: Mapping[str, Any] = {"compression": "zstd", "compression_level": 19}


def rounded(column: Column, values: pa.Array) -> pa.Array:
    """The values that a plain column holds: rounded to its grid; of a column that is always exact, as they are."""
    if isinstance(column, NumericColumn | VectorColumn) and column.bound != 0:
        return column.to_values(column.from_values(values))
    return values


def writer_options(fields: Mapping[str, tuple[pa.Field, str]]) -> dict[str, Any]:
    """Options of `ParquetWriter` for plain columns.

    Args:
        fields: Column name → its field and one of `ENCODINGS`.

    Returns:
        `use_dictionary` and `use_byte_stream_split` as lists of paths, to which others may be added.
    """
    paths = {
        wanted: [_path(field) for field, encoding in fields.values() if encoding == wanted] for wanted in ENCODINGS
    }
    return {"use_dictionary": paths["dictionary"], "use_byte_stream_split": paths["split"]}


def sizes(field: pa.Field, values: pa.Array) -> dict[str, int]:
    """Bytes that a column adds to a Parquet file, by encoding; nothing for a type that Parquet lacks."""
    found = {}
    for encoding in ENCODINGS:
        if encoding != "split" or _may_split(field):
            options = writer_options({field.name: (field, encoding)})
            try:
                found[encoding] = _file_bytes(field, values, options) - _file_bytes(field, None, options)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
                continue
    return found


def _file_bytes(field: pa.Field, values: pa.Array | None, options: Mapping[str, Any]) -> int:
    sink = io.BytesIO()
    schema = pa.schema([field])
    with pq.ParquetWriter(sink, schema, **COMPRESSION, **options) as writer:
        if values is not None:
            writer.write_table(pa.table([values], schema), row_group_size=max(1, len(values)))
    return sink.getbuffer().nbytes


def _may_split(field: pa.Field) -> bool:
    element = _element(field.type)
    return any(kind(element) for kind in (pa.types.is_floating, pa.types.is_integer, pa.types.is_temporal))


def _element(data_type: pa.DataType) -> pa.DataType:
    try:
        return storage_type(data_type).value_type
    except TypeError:
        return data_type


def _path(field: pa.Field) -> str:
    """The path of the column's leaf in a Parquet file."""
    storage = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(storage) else str(field.name)
