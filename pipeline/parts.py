"""One part of an archive: a Parquet file of passthrough columns, latents and corrections.

A block is a row group. The latent column is a `fixed_size_list<float>[d]`; the corrections column holds one
binary cell a block, in the block's first row (null elsewhere): what the decoder must be told exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import schema_from_text, schema_to_text
from pipeline.cells import Dictionaries, pack_cell, pack_dictionaries, unpack_cell, unpack_dictionaries
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError, ParvaeError
from pipeline.rows import Exceptions
from pipeline.storage import Location

_META_UNIT = b"parvae.unit"
_META_PLAN = b"parvae.plan"
_META_SCHEMA = b"parvae.source_schema"
_META_DICTIONARIES = b"parvae.dictionaries"
_UNREADABLE = (OSError, pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, struct.error)
"""What reading a damaged part raises."""


@dataclass(frozen=True)
class Block:
    """One row group of a part, as read.

    Attributes:
        passthrough: The columns that were copied.
        latents: float32 array of shape (rows, Z).
        exceptions: What the latents cannot say.
        dictionaries: Source dictionaries of modelled dictionary columns: entries and their order.
    """

    passthrough: pa.RecordBatch
    latents: npt.NDArray[np.float32]
    exceptions: Exceptions
    dictionaries: Dictionaries = field(default_factory=dict)


@dataclass(frozen=True)
class PartColumns:
    """Names of the two columns that parvae adds to the passthrough columns of a part."""

    latent: str
    corrections: str

    @classmethod
    def beside(cls, names: Sequence[str]) -> PartColumns:
        """`latent` and `corrections`, with underscores appended until no passthrough column has the name."""
        return cls(_free("latent", names), _free("corrections", names))


class PartWriter:
    """Writes the blocks of one part to a local file.

    Args:
        path: Local path.
        source_schema: Schema of the source file, metadata included; kept in the footer.
        passthrough: Names of the columns that are copied.
        columns: Names of the added columns.
        latent_dim: Number of latents.
        unit: The work unit's JSON form; kept in the footer.
        plan: Fingerprint of the plan; kept in the footer.
    """

    def __init__(
        self,
        path: str,
        source_schema: pa.Schema,
        passthrough: Sequence[str],
        columns: PartColumns,
        latent_dim: int,
        unit: dict[str, Any],
        plan: str,
    ) -> None:
        fields = [source_schema.field(name) for name in passthrough]
        latent = pa.list_(pa.field("element", pa.float32(), nullable=False), latent_dim)
        fields.append(pa.field(columns.latent, latent, nullable=False))
        fields.append(pa.field(columns.corrections, pa.binary()))
        metadata = {
            _META_UNIT: json.dumps(unit).encode(),
            _META_PLAN: plan.encode(),
            _META_SCHEMA: schema_to_text(source_schema).encode(),
        }
        self._schema = pa.schema(fields, metadata)
        self._passthrough = list(passthrough)
        self._dictionary_columns = {
            name
            for name, kind in zip(source_schema.names, source_schema.types, strict=True)
            if pa.types.is_dictionary(kind) and name not in passthrough
        }
        self._dictionaries: Dictionaries = {}
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=6,
            write_page_checksum=True,
            write_statistics=self._passthrough,  # those of a corrections cell would hold the cell twice more
        )
        self.rows = 0

    def write(self, batch: pa.RecordBatch, latents: npt.NDArray[np.float32], exceptions: Exceptions) -> None:
        """Writes one block (`batch` has the passthrough columns, and may have others)."""
        if batch.num_rows == 0:
            return
        arrays = [batch.column(batch.schema.get_field_index(name)) for name in self._passthrough]
        latent_type = self._schema.field(len(arrays)).type
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), type=latent_type))
        cells: list[bytes | None] = [None] * batch.num_rows
        own = self._own_dictionaries(batch)
        cells[0] = pack_cell(exceptions, own) if exceptions or own else None
        arrays.append(pa.array(cells, pa.binary()))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=batch.num_rows)
        self.rows += batch.num_rows

    def _own_dictionaries(self, batch: pa.RecordBatch) -> Dictionaries:
        """The dictionaries of a block that are not those of the part, which are the first block's."""
        own: Dictionaries = {}
        for name in sorted(self._dictionary_columns & set(batch.schema.names)):
            dictionary = batch.column(batch.schema.get_field_index(name)).dictionary
            if not self._dictionaries.setdefault(name, dictionary).equals(dictionary):
                own[name] = dictionary
        return own

    def close(self) -> None:
        """Writes the footer."""
        if self._dictionaries:
            self._writer.add_key_value_metadata({_META_DICTIONARIES: pack_dictionaries(self._dictionaries)})
        self._writer.close()


class PartReader:
    """Reads a part of an archive.

    Args:
        location: The part.
        columns: Names of the added columns.
        plan: Fingerprint of the plan that the part must have been written under.
        unit: The work unit that the part must hold, None for any.

    Raises:
        ArchiveError: If the part is missing, damaged or foreign.
    """

    def __init__(self, location: Location, columns: PartColumns, plan: str, unit: WorkUnit | None = None) -> None:
        self._location, self._columns = location, columns
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context(location.open())
                self._file = stack.enter_context(pq.ParquetFile(stream, page_checksum_verification=True))
                metadata = self._file.schema_arrow.metadata or {}
                self.source_schema = schema_from_text(metadata[_META_SCHEMA].decode())
                found = (metadata[_META_PLAN].decode(), json.loads(metadata[_META_UNIT]))
                self.rows: int = self._file.metadata.num_rows
                self._dictionaries = unpack_dictionaries(self._file.metadata.metadata.get(_META_DICTIONARIES))
                self._check_columns()
            except FileNotFoundError as error:
                raise ArchiveError(f"the part {location} is missing; restore it or encode again") from error
            except (*_UNREADABLE, ParvaeError) as error:
                raise ArchiveError(f"the part {location} is damaged: {error}; restore it or encode again") from error
            if found[0] != plan:
                raise ArchiveError(f"the part {location} belongs to another archive; restore the right one")
            if unit is not None and found[1] != json.loads(json.dumps(unit.to_json())):
                raise ArchiveError(f"the part {location} holds other rows than its name says; restore it")
            self._open = stack.pop_all()

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _check_columns(self) -> None:
        """The added columns come last, each one leaf in the file."""
        schema = self._file.schema_arrow
        if schema.names[-2:] != [self._columns.latent, self._columns.corrections]:
            raise ValueError(f"its columns are {schema.names}")
        latent, corrections = schema.field(len(schema) - 2).type, schema.field(len(schema) - 1).type
        if not pa.types.is_fixed_size_list(latent) or not pa.types.is_float32(latent.value_type):
            raise ValueError(f"latents are of type {latent}")
        if not pa.types.is_binary(corrections):
            raise ValueError(f"corrections are of type {corrections}")

    def bytes_by_role(self) -> dict[str, int]:
        """Compressed bytes of the latents, corrections and passthrough columns."""
        sizes = {"latents": 0, "corrections": 0, "passthrough": 0}
        footer = self._file.metadata
        for group in range(footer.num_row_groups):
            roles = ["passthrough"] * (footer.num_columns - 2) + ["latents", "corrections"]
            for index, role in enumerate(roles):
                sizes[role] += footer.row_group(group).column(index).total_compressed_size
        return sizes

    def blocks(self) -> Iterator[Block]:
        """Reads the blocks in order.

        Raises:
            ArchiveError: If a block is damaged.
        """
        for number in range(self._file.num_row_groups):
            try:
                block = self._block(number)
            except _UNREADABLE as error:
                raise ArchiveError(
                    f"block {number} of {self._location} is damaged: {error}; restore the part"
                ) from error
            yield block

    def _block(self, number: int) -> Block:
        table = self._file.read_row_group(number, use_threads=False)
        rest = table.drop_columns([self._columns.latent, self._columns.corrections])
        cell = table[self._columns.corrections][0].as_py()
        exceptions, own = ({}, {}) if cell is None else unpack_cell(cell, table.num_rows)
        latents = table[self._columns.latent].combine_chunks()
        values = latents.flatten().to_numpy().reshape(table.num_rows, latents.type.list_size)
        if not np.isfinite(values).all():
            raise ValueError("a latent is not finite")
        return Block(_one_batch(rest, table.num_rows), values, exceptions, {**self._dictionaries, **own})


def sha256_file(path: str) -> str:
    """SHA-256 of a local file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _one_batch(table: pa.Table, rows: int) -> pa.RecordBatch:
    if table.num_columns == 0:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
    batches = table.combine_chunks().to_batches()
    if len(batches) != 1:
        raise ValueError(f"{table.nbytes:,} bytes do not fit one Arrow batch")
    batch: pa.RecordBatch = batches[0]
    batch.validate()
    return batch


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
