"""Whether a Parquet file was decoded to an equal one: schema, metadata, row groups, values bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def bits_of(values: pa.Array | pa.ChunkedArray) -> Any:
    """Python objects that are equal exactly if the values are, bit for bit, however deep they are nested."""
    types = pa.types
    if isinstance(values, pa.ChunkedArray):
        joined = values.unify_dictionaries().combine_chunks()
        return bits_of(joined) if isinstance(joined, pa.Array) else [bits_of(chunk) for chunk in joined.chunks]
    if isinstance(values, pa.ExtensionArray):
        return bits_of(values.storage)
    kind = values.type
    if types.is_dictionary(kind):
        return bits_of(values.dictionary.take(values.indices))
    if types.is_floating(kind):
        return values.view(f"int{kind.bit_width}").to_pylist()
    if types.is_temporal(kind):
        return values.view(f"int{kind.bit_width}").to_pylist() if kind.bit_width <= 64 else values.to_pylist()
    if types.is_struct(kind):
        return values.is_valid().to_pylist(), [bits_of(child) for child in values.flatten()]
    if types.is_fixed_size_list(kind):
        return values.is_valid().to_pylist(), bits_of(values.flatten())
    if types.is_map(kind):
        return bits_of(values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))))
    if types.is_list(kind) or types.is_large_list(kind):
        valid = values.is_valid()
        sizes = pc.if_else(valid, pc.pairwise_diff(values.offsets)[1:], 0)
        return valid.to_pylist(), sizes.to_pylist(), bits_of(values.flatten())
    return values.to_pylist()


def difference(path: Path, decoded: Path) -> str:
    """What differs between a file and what it was decoded to; nothing if they are equal."""
    with pq.ParquetFile(path) as left, pq.ParquetFile(decoded) as right:
        ours, theirs = left.schema_arrow, right.schema_arrow
        if ours.metadata != theirs.metadata or ours.names != theirs.names:
            return f"schema: {ours.names}, {ours.metadata} became {theirs.names}, {theirs.metadata}"
        for one, other in zip(ours, theirs, strict=True):
            if not same_field(one, other):
                return f"schema: {one} {one.metadata} became {other} {other.metadata}"
        groups = [[f.metadata.row_group(i).num_rows for i in range(f.metadata.num_row_groups)] for f in (left, right)]
        if [rows for rows in groups[0] if rows] != groups[1]:
            return f"row groups: {groups[0]} and {groups[1]}"
        found, expected = right.read(use_threads=False), left.read(use_threads=False)
    for name in expected.column_names:
        if bits_of(found[name]) != bits_of(expected[name]):
            return f"values of column {name!r}"
    return ""


def same_field(left: pa.Field, right: pa.Field) -> bool:
    """Whether two fields are the same, names of parts and metadata included.

    The names of a map's parts are not compared: Parquet readers go by position, and pyarrow writes names of its own.
    """
    same = left.name == right.name and left.nullable == right.nullable and left.metadata == right.metadata
    return same and _same_type(left.type, right.type)


def _same_type(left: pa.DataType, right: pa.DataType) -> bool:
    if pa.types.is_map(left) and pa.types.is_map(right):
        sides = ((left.key_field, right.key_field), (left.item_field, right.item_field))
        return all(a.nullable == b.nullable and _same_type(a.type, b.type) for a, b in sides)
    if pa.types.is_nested(left) and left.id == right.id and left.num_fields == right.num_fields:
        sizes = [getattr(kind, "list_size", None) for kind in (left, right)]
        return sizes[0] == sizes[1] and all(same_field(left.field(i), right.field(i)) for i in range(left.num_fields))
    return bool(left.equals(right))
