"""What codes each column of a block, and the block's bytes.

A block becomes a *cell* of sections (see `sections`) and, for columns for which nothing is smaller, plain Parquet
columns. Decoding gives the symbols of the coding transform back, checks them column by column against a CRC-32,
and turns them into values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

import pipeline.codec.description as description
import pipeline.codec.plain as plain
import pipeline.codec.single as single
from pipeline.codec.choose import PARQUET, choose_general
from pipeline.codec.general import RAW_METHODS, SYMBOL_METHODS
from pipeline.codec.model import MODEL, UNKNOWN, Latents, LoadModel, ModelCoder
from pipeline.codec.sections import CHECKS, Sections, pack_cell, unpack_cell
from pipeline.codec.slot import Slot, naming
from pipeline.columns import Symbols
from pipeline.errors import ModelError
from pipeline.rows import RowTransform

CODEC_FILE = "codec.json"
CODER_FILE = "coder.safetensors"
METHODS = (MODEL, PARQUET, *SYMBOL_METHODS, *RAW_METHODS)


@dataclass(frozen=True)
class EncodedBlock:
    """A block in the archive.

    Attributes:
        plain: The plain Parquet columns.
        cell: Everything else.
    """

    plain: dict[str, pa.Array]
    cell: bytes


@dataclass(frozen=True)
class Codec:
    """The coding transform, and what codes each modelled column.

    Attributes:
        rows: The coding transform.
        coded: Modelled column → one of `METHODS`.
        encodings: Plain column → one of `plain.ENCODINGS`.
        model: What codes the columns coded by "model", or None if there are none.
    """

    rows: RowTransform
    coded: Mapping[str, str]
    encodings: Mapping[str, str] = field(default_factory=dict)
    model: ModelCoder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", description.bare(self.rows))
        _check(self)

    @classmethod
    def choose_general(cls, rows: RowTransform, batches: Sequence[pa.RecordBatch], total_rows: int) -> Codec:
        """The codec in which every column takes the smallest general tool, Parquet among them.

        Args:
            rows: The coding transform.
            batches: Sample blocks, with the modelled columns at least.
            total_rows: Rows of the dataset.
        """
        coded, encodings = choose_general(description.bare(rows), batches, total_rows)
        return cls(rows, coded, encodings)

    def files(self) -> dict[str, bytes]:
        """The codec's files."""
        text = description.to_text(self.rows, self.coded, self.encodings)
        weights = {} if self.model is None else {CODER_FILE: self.model.to_bytes()}
        return {CODEC_FILE: text, **weights}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], schema: pa.Schema, load: LoadModel | None = None) -> Codec:
        """Rebuilds a codec from `files()`.

        Args:
            files: File name → bytes.
            schema: The schema of the dataset.
            load: Rebuilds the model coder; None = `networks.Networks.from_bytes`.

        Raises:
            ModelError: If a file is missing, damaged, or does not fit the schema.
        """
        try:
            rows, coded, encodings = description.from_text(files[CODEC_FILE], schema)
            model = None
            if MODEL in coded.values():
                if load is None:
                    from pipeline.codec.networks import Networks

                    load = Networks.from_bytes
                model = load(files[CODER_FILE], rows, coded)
            return cls(rows, coded, encodings, model)
        except ModelError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ModelError(f"{CODEC_FILE} is damaged ({error!r}); copy the model again") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the codec's files."""
        digest = hashlib.sha256()
        for name, data in sorted(self.files().items()):
            digest.update(f"{name} {len(data)}\n".encode())
            digest.update(data)
        return digest.hexdigest()

    @property
    def plain(self) -> list[pa.Field]:
        """The columns that stay plain Parquet columns of a part, in schema order."""
        return [column.field for column in self.rows.modelled if self.coded[column.name] == PARQUET]

    def writer_options(self) -> dict[str, Any]:
        """What `ParquetWriter` must be told of the plain columns; see `plain.writer_options`."""
        return plain.writer_options({item.name: (item, self.encodings[item.name]) for item in self.plain})

    def needs(self, columns: Collection[str] | None) -> set[str]:
        """The modelled columns that `decode_block` reads, from the cell or from `EncodedBlock.plain`, for some columns.

        Args:
            columns: Names; None = all. Others than modelled ones are passed over.
        """
        return {name for name in self.coded if columns is None or name in columns} | self._context(columns)

    def encode_block(self, batch: pa.RecordBatch, latents: Latents | None = None) -> EncodedBlock:
        """Codes the rows of a block.

        Args:
            batch: The block's rows, with the modelled columns at least.
            latents: Their latents, rows × Z, if the archive keeps them.
        """
        states = single.StateCoder()
        encoded = [slot.encode(batch.column(slot.column.name), states) for slot in self._slots]
        sections = {key: body for column in encoded for key, body in column.sections.items()}
        if self.model is not None:
            sections |= self.model.encode(np.concatenate([column.bins for column in encoded], axis=1), latents)
        pairs = list(zip(self._slots, encoded, strict=True))
        checks = [single.checksum(column.bins) for slot, column in pairs if slot.method != PARQUET]
        if checks:
            sections[CHECKS, 0] = np.array(checks, "<u4").tobytes()
        return EncodedBlock({s.column.name: e.held for s, e in pairs if e.held is not None}, pack_cell(sections))

    def decode_block(
        self,
        block: EncodedBlock,
        rows: int,
        latents: Latents | None = None,
        columns: Collection[str] | None = None,
    ) -> dict[str, pa.Array]:
        """Decodes the rows of a block.

        Args:
            block: The block; of its plain columns, those among `needs(columns)` at least.
            rows: Rows of the block.
            latents: The latents that the archive keeps.
            columns: Names of the columns that are wanted; None = all. Others than modelled ones are passed over.

        Returns:
            Column name → its values, in schema order.

        Raises:
            ValueError: If the block is damaged, naming the column where it is one (or `struct.error`,
                `LookupError`, `OverflowError`).
        """
        sections = unpack_cell(block.cell)
        checks = self._checks(sections)
        wanted = [slot for slot in self._slots if columns is None or slot.column.name in columns]
        needed = {slot.column.name for slot in wanted if slot.method != PARQUET} | self._context(columns)
        found = {
            slot.index: slot.decode(sections, block.plain, rows) for slot in self._slots if slot.column.name in needed
        }
        self._decode_model([slot for slot in wanted if slot.method == MODEL], found, sections, latents)
        arrays = {}
        for slot in wanted:
            with naming(slot.column.name):
                held = slot.method == PARQUET
                array = block.plain[slot.column.name] if held else slot.to_array(found[slot.index], checks[slot.index])
            if len(array) != rows:
                raise ValueError(f"column {slot.column.name!r} has {len(array)} values for {rows} rows")
            arrays[slot.column.name] = array
        return arrays

    def _decode_model(
        self, own: list[Slot], found: dict[int, Symbols], sections: Sections, latents: Latents | None
    ) -> None:
        """Fills the symbols of the columns that the model codes."""
        if self.model is None or not own:
            return
        rows = len(found[own[0].index].bins)
        whole = np.full((rows, self._slots[-1].place.stop), UNKNOWN, np.int64)
        for index, symbols in found.items():
            whole[:, self._slots[index].place] = symbols.bins
        self.model.decode(sections, whole, latents, [slot.column.name for slot in own])
        for slot in own:
            found[slot.index].bins[...] = whole[:, slot.place]

    def _context(self, columns: Collection[str] | None) -> set[str]:
        """The columns from which the model decodes those of its own that are wanted."""
        own = {name for name, method in self.coded.items() if method == MODEL and (columns is None or name in columns)}
        return self.model.needs(own) if own and self.model is not None else set()

    def _checks(self, sections: Sections) -> dict[int, int]:
        """The checksum of every column that is not plain, by its number."""
        coded = [slot.index for slot in self._slots if slot.method != PARQUET]
        body = sections[CHECKS, 0] if coded else b""
        return dict(zip(coded, np.frombuffer(body, "<u4").tolist(), strict=True))

    @cached_property
    def _slots(self) -> tuple[Slot, ...]:
        slots: list[Slot] = []
        for index, column in enumerate(self.rows.modelled):
            start = slots[-1].place.stop if slots else 0
            slots.append(Slot(index, column, self.coded[column.name], start))
        return tuple(slots)


def _check(codec: Codec) -> None:
    """Refuses a codec whose parts contradict each other."""
    names = {column.name for column in codec.rows.modelled}
    if codec.coded.keys() != names:
        raise ValueError("what is coded are not the modelled columns")
    for column in codec.rows.modelled:
        method = codec.coded[column.name]
        if method not in METHODS:
            raise ValueError(f"column {column.name!r} is coded by an unknown method {method!r}")
        if method in RAW_METHODS and not single.is_exact_float(column):
            raise ValueError(f"column {column.name!r} is coded by {method}, but holds no exact floats")
    held = {name for name, method in codec.coded.items() if method == PARQUET}
    if codec.encodings.keys() != held or not set(codec.encodings.values()) <= set(plain.ENCODINGS):
        raise ValueError("the encodings are not those of the plain columns")
    if (MODEL in codec.coded.values()) != (codec.model is not None):
        raise ValueError("a network goes with columns that it codes")
