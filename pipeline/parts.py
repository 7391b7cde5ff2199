"""One part of an archive: a Parquet file of copied and plain columns, latents and corrections.

A block is a row group. The latent column is a `fixed_size_list<float>[d]`; the corrections column holds one
binary cell a block (see `cells`), in the block's first row, null elsewhere.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import footers
from pipeline.bundle import schema_from_text, schema_to_text
from pipeline.cells import BlockCell, Dictionaries, Place, pack_block, pack_dictionaries, unpack_block
from pipeline.cells import unpack_dictionaries as _unpack_dictionaries
from pipeline.columns.kinds import pickled_column
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError, ParvaeError, StoreError
from pipeline.guards import SparsePart, WholePart, mark, same_mark, seal
from pipeline.part_layout import PartShape, leaf_counts, writer_options
from pipeline.plan import PartRecord, Plan
from pipeline.storage import Location

VERSION = (1, 3)
"""Version of the archive format: of the manifest and of every part."""
_MARK = b"parvae"
_SCHEMA = b"parvae.schema"
_DICTIONARIES = b"parvae.dictionaries"
UNREADABLE = (*footers.UNREADABLE, EOFError, struct.error)
"""What reading or decoding a damaged part raises."""
Latents = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PartFormat:
    """What all parts of an archive share.

    Attributes:
        schema: The schema of the dataset, metadata included.
        plan: The plan.
    """

    schema: pa.Schema
    plan: Plan


@dataclass(frozen=True)
class Block:
    """One row group of a part, as read.

    Attributes:
        number: Its number in the part.
        rows: Its rows.
        carried: The copied and plain columns that were asked for.
        latents: float32 array of shape (rows, Z), or None if they were not asked for.
        cell: Its cell; empty if it was not asked for.
        dictionaries: Source dictionaries of modelled dictionary columns: entries and their order.
    """

    number: int
    rows: int
    carried: Mapping[str, pa.Array]
    latents: Latents | None
    cell: BlockCell
    dictionaries: Dictionaries


@dataclass(frozen=True)
class Wanted:
    """What is read of a block.

    Attributes:
        carried: Names of copied and plain columns.
        latents: Whether latents are wanted.
        cell: Whether the cell is wanted.
    """

    carried: Collection[str]
    latents: bool
    cell: bool


class PartWriter:
    """Writes the blocks of one part to a local file.

    Args:
        path: Local path.
        form: What all parts share.
        source_schema: Schema of the source file, metadata included; kept in the footer if it is not the dataset's.
        shape: Which columns the part has.
        unit: The work unit.
    """

    def __init__(
        self,
        path: str,
        form: PartFormat,
        source_schema: pa.Schema,
        shape: PartShape,
        unit: WorkUnit,
    ) -> None:
        plan = form.plan
        self._carried = shape.carried(source_schema)
        fields = [source_schema.field(name).remove_metadata() for name in self._carried]
        if plan.latents:
            latent = pa.list_(pa.field("element", pa.float32(), nullable=False), shape.latent_dim)
            fields.append(pa.field(plan.latent_column, latent, nullable=False))
        fields.append(pa.field(plan.corrections_column, pa.binary()))
        self._plan, self._unit, self._schema = plan, unit, pa.schema(fields)
        self._dictionaries: Dictionaries = {}
        kinds = {name: source_schema.field(name).type for name in shape.modelled}
        self._dictionary_columns = sorted(name for name, kind in kinds.items() if pa.types.is_dictionary(kind))
        self._writer = pq.ParquetWriter(path, self._schema, **writer_options(self._schema, plan, shape))
        line = mark(VERSION, plan.fingerprint, plan.bundle, plan.codec, unit.index)
        self._metadata = {_MARK: line.encode()}
        if not source_schema.equals(form.schema, check_metadata=True):
            self._metadata[_SCHEMA] = schema_to_text(source_schema).encode()
        self._blocks = self.rows = 0

    def write(
        self, batch: pa.RecordBatch, plain: Mapping[str, pa.Array], latents: Latents | None, cell: BlockCell
    ) -> None:
        """Writes one block.

        Args:
            batch: The source rows.
            plain: The plain columns; copied ones are taken from the source rows.
            latents: The latents, if the plan keeps them.
            cell: What the cell holds, dictionaries aside.
        """
        if batch.num_rows == 0:
            return
        arrays = [plain[name] if name in plain else batch.column(name) for name in self._carried]
        if latents is not None:
            latent_type = self._schema.field(self._plan.latent_column).type
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), type=latent_type))
        place = Place(self._unit.index, self._blocks, batch.num_rows)
        cell = BlockCell(cell.coded, cell.exceptions, self._own_dictionaries(batch))
        packed = pa.array([pack_block(place, cell)], pa.binary())
        arrays.append(pa.concat_arrays([packed, pa.nulls(batch.num_rows - 1, pa.binary())]))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table, row_group_size=batch.num_rows)
        self._blocks += 1
        self.rows += batch.num_rows

    def _own_dictionaries(self, batch: pa.RecordBatch) -> Dictionaries:
        """The dictionaries of a block that are not those of the part, which are the first block's."""
        own: Dictionaries = {}
        for name in self._dictionary_columns:
            dictionary = batch.column(batch.schema.get_field_index(name)).dictionary
            if not self._dictionaries.setdefault(name, dictionary).equals(dictionary):
                own[name] = dictionary
        return own

    def close(self) -> None:
        """Writes the footer."""
        if self._dictionaries:
            self._metadata[_DICTIONARIES] = pack_dictionaries(self._dictionaries)
        self._writer.add_key_value_metadata(self._metadata)
        self._writer.close()


def record_of(path: str, unit: WorkUnit, plan: Plan, passthrough: Collection[str]) -> PartRecord:
    """The record of a part that was just written to a local file."""
    guards, sha256, size, footer = seal(path)
    if footer.num_rows != unit.rows:
        raise ValueError(f"{footer.num_rows} rows were written, {unit.rows} were to be")
    schema = footer.schema.to_arrow_schema()
    roles: list[str] = []
    for name, leaves in leaf_counts(schema).items():
        role = "passthrough" if name in passthrough else "plain"
        role = {plan.latent_column: "latents", plan.corrections_column: "corrections"}.get(name, role)
        roles += [role] * leaves
    sizes = dict.fromkeys(("latents", "corrections", "plain", "passthrough"), 0)
    for group in range(footer.num_row_groups):
        for index, role in enumerate(roles):
            sizes[role] += footer.row_group(group).column(index).total_compressed_size
    coded = sum(sizes.values()) - sizes["passthrough"]
    bits = 8 * coded / unit.rows if plan.guaranteed and unit.rows else None
    return PartRecord(unit, size, sha256, guards, sizes, bits)


class PartReader:
    """Reads a part of an archive.

    Args:
        location: The part.
        record: Its record in the table of parts.
        form: What all parts share.
        whole: Whether to read the file at once and check its SHA-256; otherwise only the column chunks that are
            asked for are read, each checked by a checksum of its own.

    Raises:
        ArchiveError: If the part is missing, damaged or foreign.
    """

    def __init__(self, location: Location, record: PartRecord, form: PartFormat, whole: bool = True) -> None:
        self._location, self._record, self._plan = location, record, form.plan
        with contextlib.ExitStack() as stack:
            try:
                if whole:
                    self._source: WholePart | SparsePart = WholePart(
                        location, record.size, record.sha256, record.guards
                    )
                else:
                    self._source = SparsePart(location, record.size, record.guards)
                stack.callback(self._source.close)
                self._footer = self._source.footer
                self._open_footer(form)
            except FileNotFoundError as error:
                raise ArchiveError(f"the part {location} is missing; restore it or encode again") from error
            except StoreError:
                raise
            except (*UNREADABLE, ParvaeError) as error:
                raise ArchiveError(f"the part {location} is damaged: {error}; restore it or encode again") from error
            self._close = stack.pop_all()

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def _open_footer(self, form: PartFormat) -> None:
        metadata = self._footer.metadata or {}
        plan, unit = self._plan, self._record.work_unit
        expected = mark(VERSION, plan.fingerprint, plan.bundle, plan.codec, unit.index)
        if not same_mark(metadata[_MARK].decode(), expected):
            raise ValueError("it belongs to another archive or another place")
        text = metadata.get(_SCHEMA)
        self.source_schema: pa.Schema = form.schema if text is None else schema_from_text(text.decode())
        self._dictionaries = _unpack_dictionaries(metadata.get(_DICTIONARIES))
        self.block_rows = [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)]
        if self._footer.num_rows != unit.rows or sum(self.block_rows) != unit.rows:
            raise ValueError(f"it has {self._footer.num_rows} rows, the manifest says {unit.rows}")
        schema = self._footer.schema.to_arrow_schema()
        if pickled_column(schema) is not None:
            raise ValueError(f"column {pickled_column(schema)!r} holds pickled Python objects, which are never read")
        self._types = dict(zip(schema.names, schema.types, strict=True))
        self._leaves: dict[str, list[int]] = {}
        start = 0
        for name, leaves in leaf_counts(schema).items():
            self._leaves[name] = list(range(start, start + leaves))
            start += leaves

    def column_bytes(self) -> dict[str, int]:
        """Compressed bytes of every column of the file."""
        groups = [self._footer.row_group(number) for number in range(self._footer.num_row_groups)]
        return {
            name: sum(group.column(leaf).total_compressed_size for group in groups for leaf in leaves)
            for name, leaves in self._leaves.items()
        }

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Reads the blocks in order.

        Raises:
            ArchiveError: If a block is damaged.
        """
        for number in range(len(self.block_rows)):
            yield self.block(number, wanted)

    def block(self, number: int, wanted: Wanted) -> Block:
        """Reads one block.

        Raises:
            ArchiveError: If it is damaged.
        """
        with self.naming(number):
            return self._block(number, wanted)

    @contextlib.contextmanager
    def naming(self, number: int) -> Iterator[None]:
        """Turns what reading or decoding a damaged block raises into an `ArchiveError` that names it."""
        try:
            yield
        except UNREADABLE as error:
            text = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
            raise ArchiveError(f"block {number} of {self._location} is damaged: {text}; restore the part") from error

    def _block(self, number: int, wanted: Wanted) -> Block:
        plan, rows = self._plan, self.block_rows[number]
        names = [*wanted.carried, *[plan.latent_column] * wanted.latents, *[plan.corrections_column] * wanted.cell]
        leaves = sorted(leaf for name in names for leaf in self._leaves[name])
        columns: dict[str, pa.Array] = {}
        if leaves:
            file = self._source.file(number, leaves)
            table = file.reader.read_row_group(number, column_indices=leaves, use_threads=False)
            columns = {name: _one_array(table, name, rows) for name in names}
        for name in wanted.carried:
            expected = self.source_schema.field(name).type
            if columns[name].type != expected:
                raise ValueError(f"column {name!r} is {columns[name].type}, expected {expected}")
        cell = BlockCell()
        if wanted.cell:
            data = columns[plan.corrections_column][0].as_py()
            cell = unpack_block(data, Place(self._record.work_unit.index, number, rows))
        latents = _to_numpy(columns[plan.latent_column]) if wanted.latents else None
        carried = {name: columns[name] for name in wanted.carried}
        return Block(number, rows, carried, latents, cell, {**self._dictionaries, **cell.dictionaries})


def _to_numpy(latents: pa.Array) -> Latents:
    values: Latents = latents.flatten().to_numpy().reshape(len(latents), latents.type.list_size)
    if values.dtype != np.float32 or not np.isfinite(values).all():
        raise ValueError("a latent is not finite")
    return values


def _one_array(table: pa.Table, name: str, rows: int) -> pa.Array:
    """A column of a row group as one valid array."""
    column = table.column(table.schema.get_field_index(name)).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1:
            raise ValueError(f"{column.nbytes:,} bytes of column {name!r} do not fit one Arrow array")
        column = column.chunk(0)
    if len(column) != rows:
        raise ValueError(f"column {name!r} has {len(column)} values for {rows} rows")
    column.validate()
    return column
