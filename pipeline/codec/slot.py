"""One modelled column of a codec: its sections in a cell, its checksum, its values."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

import pipeline.codec.plain as plain
import pipeline.codec.single as single
from pipeline.codec.choose import PARQUET
from pipeline.codec.model import MODEL, UNKNOWN, Bins
from pipeline.codec.sections import Key
from pipeline.columns import Column, Symbols
from pipeline.columns.base import State
from pipeline.rows import RowTransform
from vae_model.layout import ABSENT


@dataclass(frozen=True)
class EncodedColumn:
    """A column of a block.

    Attributes:
        held: What the plain Parquet column holds, or None.
        bins: rows × the column's symbols.
        sections: Its sections; those of a network excepted.
    """

    held: pa.Array | None
    bins: Bins
    sections: dict[Key, bytes]


@dataclass(frozen=True)
class Slot:
    """A modelled column and what codes it.

    Attributes:
        index: Its number among the modelled columns.
        column: The column of the coding transform.
        method: What codes it.
        start: Where its symbols start in `bins_BD`.
    """

    index: int
    column: Column
    method: str
    start: int

    @cached_property
    def place(self) -> slice:
        """Where its symbols stand in `bins_BD`."""
        return slice(self.start, self.start + sum(span.width for span in self.column.spans()))

    def encode(self, values: pa.Array, states: single.StateCoder) -> EncodedColumn:
        """Codes the values of a block.

        Args:
            values: The values.
            states: Codes the states of all columns of the block.
        """
        if self.method == PARQUET:
            held = plain.rounded(self.column, values)
            return EncodedColumn(held, self.column.from_values(held).bins, {})
        symbols = self.column.from_values(values)
        bins, exceptions = symbols.bins, {self.column.name: (symbols.states, symbols.exact)}
        apart = self._alone.split_exceptions(bins, exceptions).get(self.column.name, (None, None))
        sections = single.encode_exceptions(self.index, *apart, states)
        if self.method != MODEL:
            sections |= single.encode_symbols(self.method, self.column, self.index, bins, values, states)
        return EncodedColumn(None, bins, sections)

    def decode(self, sections: Mapping[Key, bytes], held: Mapping[str, pa.Array], rows: int) -> Symbols:
        """Decodes the symbols of a block, as far as no network is needed.

        Args:
            sections: The sections of the cell.
            held: The plain Parquet columns.
            rows: Rows of the block.

        Returns:
            The symbols with the states that were told apart; symbols that a network codes are `UNKNOWN`, value
            symbols of rows that are told apart to have no ordinary value -1.
        """
        with naming(self.column.name):
            if self.method == PARQUET:
                return Symbols(self.column.from_values(held[self.column.name]).bins)
            states, exact = single.decode_exceptions(sections, self.index, self.column.field, rows)
            bins = np.full((rows, self.place.stop - self.start), UNKNOWN, np.int64)
            if self.method != MODEL:
                single.decode_symbols(self.method, self.column, self.index, sections, states, bins)
            elif states is not None:
                state, _ = single.spans_of(self.column)
                bins[states != State.VALUE, int(state is not None) :] = ABSENT
            return Symbols(bins, states, exact)

    def to_array(self, symbols: Symbols, checksum: int) -> pa.Array:
        """The values of decoded symbols.

        Raises:
            ValueError: If the symbols fail the checksum.
        """
        with naming(self.column.name):
            if single.checksum(symbols.bins) != checksum:
                raise ValueError("the decoded values fail their checksum")
            apart = {self.column.name: (symbols.states, symbols.exact)}
            whole = self._alone.join_exceptions(symbols.bins, apart)
            return self._alone.to_arrays(symbols.bins, whole)[self.column.name]

    @cached_property
    def _alone(self) -> RowTransform:
        return RowTransform(pa.schema([self.column.field]), (self.column,))


@contextmanager
def naming(column: str) -> Iterator[None]:
    """Turns what damaged bytes raise into a ValueError that names the column."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"column {column!r}: its section {error} is missing") from error
    except (ValueError, LookupError, OverflowError, pa.ArrowException, lzma.LZMAError, struct.error) as error:
        raise ValueError(f"column {column!r}: {error}") from error
