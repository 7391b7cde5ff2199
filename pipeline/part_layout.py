"""How the columns of a part lie in its Parquet file, and how each is written."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.codec import Codec
from pipeline.codec.plain import COMPRESSION
from pipeline.plan import Plan

_LEVEL = 6
_QUICK_LEVEL = 3
"""For latents that nothing but the network stands beside: it would wait for the writer."""


@dataclass(frozen=True)
class PartShape:
    """Which columns the parts of an archive have.

    Attributes:
        passthrough: Columns that are copied.
        modelled: Columns that are modelled.
        plain: Those of them that stay plain Parquet columns.
        latent_dim: Number of latents; 0 where none are kept.
        use_dictionary: Leaves of plain columns under Parquet's dictionary encoding.
        use_byte_stream_split: Leaves of plain columns under its byte-stream-split encoding.
    """

    passthrough: tuple[str, ...]
    modelled: tuple[str, ...]
    plain: tuple[str, ...] = ()
    latent_dim: int = 0
    use_dictionary: tuple[str, ...] = ()
    use_byte_stream_split: tuple[str, ...] = ()

    @classmethod
    def of_codec(cls, codec: Codec, latent_dim: int) -> PartShape:
        """The shape of the parts that a codec writes."""
        options = codec.writer_options()
        return cls(
            tuple(codec.rows.passthrough),
            tuple(column.name for column in codec.rows.modelled),
            tuple(field.name for field in codec.plain),
            latent_dim,
            tuple(options["use_dictionary"]),
            tuple(options["use_byte_stream_split"]),
        )

    def carried(self, schema: pa.Schema) -> list[str]:
        """The columns of the dataset that a part has, in the dataset's order."""
        return [name for name in schema.names if name in {*self.passthrough, *self.plain}]


def leaf_counts(schema: pa.Schema) -> dict[str, int]:
    """The number of leaf columns that each column has in a Parquet file."""
    return {field.name: _leaves(field.type) for field in schema}


def writer_options(schema: pa.Schema, plan: Plan, shape: PartShape) -> dict[str, Any]:
    """Options of `ParquetWriter` for a part.

    Cells are compressed already by a codec. Statistics of a cell would hold the cell twice more.

    Args:
        schema: The schema of the part.
        plan: The plan.
        shape: Which of its columns are what.
    """
    paths = _paths(schema)
    own = [leaf for name in shape.plain for leaf in paths[name]]
    latents = paths[plan.latent_column] if plan.latents else []
    copied = [leaf for name in shape.passthrough for leaf in paths[name]]
    packed = [*copied, *latents, *(() if plan.guaranteed else paths[plan.corrections_column])]
    levels = {
        **dict.fromkeys(packed, _LEVEL),
        **dict.fromkeys(latents, _LEVEL if plan.guaranteed else _QUICK_LEVEL),
        **dict.fromkeys(own, COMPRESSION["compression_level"]),
    }
    return {
        "compression": {**dict.fromkeys(packed, "zstd"), **dict.fromkeys(own, COMPRESSION["compression"])},
        "compression_level": levels,
        "use_dictionary": [*copied, *latents, *shape.use_dictionary],
        "use_byte_stream_split": list(shape.use_byte_stream_split),
        "write_statistics": copied,
        "write_page_checksum": True,
        "store_schema": not restores(schema),
    }


def restores(schema: pa.Schema) -> bool:
    """Whether Parquet's own types give a schema back, so that the file need not hold Arrow's."""
    found = _empty_file(schema, store_schema=False).schema_arrow
    return found.equals(schema, check_metadata=False) and str(found.types) == str(schema.types)


def _paths(schema: pa.Schema) -> dict[str, list[str]]:
    """The paths of each column's leaves."""
    file = _empty_file(schema, store_schema=True)
    paths, start = {}, 0
    for name, count in leaf_counts(schema).items():
        paths[name] = [file.schema.column(index).path for index in range(start, start + count)]
        start += count
    return paths


def _empty_file(schema: pa.Schema, store_schema: bool) -> pq.ParquetFile:
    sink = io.BytesIO()
    pq.ParquetWriter(sink, schema, store_schema=store_schema).close()
    return pq.ParquetFile(sink)


def _leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _leaves(kind.value_type)
    if pa.types.is_map(kind):
        return _leaves(kind.key_type) + _leaves(kind.item_type)
    if pa.types.is_nested(kind):
        return sum(_leaves(kind.field(index).type) for index in range(kind.num_fields))
    return 1
