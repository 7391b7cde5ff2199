"""Blocks of parts ↔ rows, in a plain process."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa

from pipeline.codec import EncodedBlock
from pipeline.columns import with_dictionary
from pipeline.machine import one_thread
from pipeline.model import ArchiveModel
from pipeline.parts import Block, PartReader, Wanted
from pipeline.readahead import read_ahead


class Decoder:
    """Turns blocks of parts into rows.

    Args:
        model: The archive's model.
        columns: Columns to decode, None for all.
    """

    def __init__(self, model: ArchiveModel, columns: Collection[str] | None = None) -> None:
        self._model, self._columns = model, None if columns is None else set(columns)
        rows = model.rows
        self._modelled = {column.name for column in rows.modelled if columns is None or column.name in columns}
        copied = [name for name in rows.passthrough if columns is None or name in columns]
        if not model.plan.guaranteed:
            self._wanted = Wanted(copied, bool(self._modelled), bool(self._modelled))
            return
        codec = model.codec
        plain = {field.name for field in codec.plain}
        needed = set(codec.needs(self._modelled))
        networks = any(codec.coded[name] == "model" for name in self._modelled)
        cell = bool(needed - plain) or any(pa.types.is_dictionary(codec.rows.schema.field(n).type) for n in needed)
        self._wanted = Wanted([*copied, *sorted(needed & plain)], model.plan.latents and networks, cell)

    def schema_of(self, part: PartReader) -> pa.Schema:
        """The schema that decoded rows of a part have: the source file's, restricted to the columns asked for."""
        schema = part.source_schema
        if self._columns is None:
            return schema
        return pa.schema([field for field in schema if field.name in self._columns], schema.metadata)

    def batches(self, part: PartReader) -> Iterator[pa.RecordBatch]:
        """Decodes a part block by block.

        Raises:
            ArchiveError: If a block is damaged.
        """
        for block in self.blocks(part):
            yield self.decoded(part, block)

    def blocks(self, part: PartReader) -> Iterator[Block]:
        """What `decoded` needs of a part, block by block, read ahead."""
        return read_ahead(part.blocks(self._wanted), depth=1)

    def batch(self, part: PartReader, number: int) -> pa.RecordBatch:
        """Decodes one block.

        Raises:
            ArchiveError: If it is damaged.
        """
        return self.decoded(part, part.block(number, self._wanted))

    def decoded(self, part: PartReader, block: Block) -> pa.RecordBatch:
        """Decodes a block of `blocks`.

        Raises:
            ArchiveError: If it is damaged.
        """
        with part.naming(block.number):
            return self._decode(block, self.schema_of(part))

    def _decode(self, block: Block, schema: pa.Schema) -> pa.RecordBatch:
        arrays = dict(block.carried)
        if self._modelled and self._model.plan.guaranteed:
            coded = EncodedBlock(arrays, block.cell.coded)
            if self._wanted.cell:
                with one_thread():
                    arrays |= self._model.codec.decode_block(coded, block.rows, block.latents, self._modelled)
        elif self._modelled:
            assert block.latents is not None
            bundle = self._model.bundle
            arrays |= bundle.rows.to_arrays(bundle.to_bins(block.latents), block.cell.exceptions)
        for name, dictionary in block.dictionaries.items():
            if name in self._modelled:
                arrays[name] = with_dictionary(arrays[name], dictionary)
        if not schema.names:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * block.rows, pa.struct([])))
        return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)
