"""One column by itself: its symbols by general tools, and what symbols cannot say."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import pipeline.codec.exact as exact
import pipeline.codec.general as general
from pipeline.codec.sections import EXACT, STATES, SYMBOLS, VALUES, Key
from pipeline.columns.arrays import Numbers, physical_dtype, read_physical
from pipeline.columns.base import Column, State
from pipeline.columns.lists import read_rows, storage_type
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.vector import VectorColumn
from vae_model.layout import ABSENT, Span

States = npt.NDArray[np.uint8]
Bins = npt.NDArray[np.int64]
_CRC_ROWS = 1 << 13
_RUNS, _RUN_ROWS = 4, 1 << 12
_XZ_SAVES = 1 / 256
"""Bytes a row that xz must save on many states."""


class StateCoder:
    """Codes the streams of states of a block; columns that lack values in the same rows are coded once."""

    def __init__(self) -> None:
        self._coded: dict[bytes, bytes] = {}

    def __call__(self, states: npt.NDArray[Any]) -> bytes:
        """Codes n states, each from 0 to 255."""
        key = hashlib.sha256(states.astype(np.uint8).data).digest()
        if key not in self._coded:
            self._coded[key] = smallest(states.reshape(-1, 1))
        return self._coded[key]


def encode_exceptions(index: int, states: States | None, values: pa.Array | None, code: StateCoder) -> dict[Key, bytes]:
    """Sections of the states that symbols do not say and of the exactly stored values; of nothing, none."""
    sections: dict[Key, bytes] = {}
    if states is not None:
        sections[STATES, index] = code(states)
    if values is not None and len(values):
        sections[EXACT, index] = exact.encode(values)
    return sections


def decode_exceptions(
    sections: Mapping[Key, bytes], index: int, field: pa.Field, rows: int
) -> tuple[States | None, pa.Array | None]:
    """The inverse of `encode_exceptions`.

    Raises:
        ValueError: If a section is damaged (or `pa.ArrowException`, `lzma.LZMAError`).
    """
    states, values = None, None
    if (STATES, index) in sections:
        states = general.decode(sections[STATES, index], rows, 1, len(State)).reshape(-1).astype(np.uint8)
    if (EXACT, index) in sections:
        values = exact.decode(sections[EXACT, index], field.type, rows)
    return states, values


def encode_state(column: Column, index: int, bins: Bins, code: StateCoder) -> dict[Key, bytes]:
    """The section of the state symbols, if the column has them; a state that they cannot say comes last."""
    state, _ = spans_of(column)
    if state is None:
        return {}
    symbols = bins[:, 0]
    if (symbols < 0).any():
        symbols = np.where(symbols < 0, state.bins, symbols)
    return {(SYMBOLS, index): code(symbols)}


def encode_symbols(
    method: str, column: Column, index: int, bins: Bins, values: pa.Array, code: StateCoder
) -> dict[Key, bytes]:
    """Sections of the state symbols and the value symbols of a column.

    Args:
        method: A method of `general`.
        column: The column of the coding transform.
        index: Its number among the modelled ones.
        bins: rows × its symbols.
        values: The values of the rows.
        code: Codes the state symbols.
    """
    sections = encode_state(column, index, bins, code)
    if method in general.RAW_METHODS:
        sections[VALUES, index] = general.encode_raw(method, floats_of(values)[bins[:, -1] != ABSENT])
    else:
        sections[VALUES, index] = general.encode(method, _value_symbols(column, bins))
    return sections


def decode_symbols(
    method: str, column: Column, index: int, sections: Mapping[Key, bytes], told: States | None, bins: Bins
) -> None:
    """Fills `bins` (rows × the column's symbols) with what `encode_symbols` coded.

    Args:
        method: The column's method.
        column: The column of the coding transform.
        index: Its number among the modelled ones.
        sections: The sections of the cell.
        told: The states that were told apart, or None.
        bins: The matrix that is filled.

    Raises:
        ValueError: If a section is damaged (or `LookupError`, `lzma.LZMAError`).
    """
    state, value = spans_of(column)
    present = np.ones(len(bins), np.bool_) if told is None else told == State.VALUE
    if state is not None:
        symbols = general.decode(sections[SYMBOLS, index], len(bins), 1, state.bins + 1)
        bins[:, :1] = np.where(symbols == state.bins, ABSENT, symbols)
        if told is None:
            present = symbols[:, 0] == 0
    body, count = sections[VALUES, index], int(present.sum())
    if method in general.RAW_METHODS:
        found = _from_floats(column, general.decode_raw(method, body, count, value.width, float_dtype(column)))
    else:
        found = general.decode(body, count, value.width, value.bins)
    bins[:, -value.width :] = ABSENT
    bins[present, -value.width :] = found


def sizes(column: Column, bins: Bins, values: pa.Array) -> dict[str, int]:
    """Bytes that every method needs for the value symbols of a column; arguments as for `encode_symbols`."""
    floats = floats_of(values)[bins[:, -1] != ABSENT] if is_exact_float(column) else None
    return general.choices(_value_symbols(column, bins), floats)


def smallest(symbols: npt.NDArray[Any]) -> bytes:
    """Symbols by whatever codes them smallest: of equal ones by the first in the order of the methods.

    Of many symbols a sample decides, runs of rows here and there; a sample of one symbol alone tells nothing. There xz,
    which takes several times as long, must save `_XZ_SAVES` bytes a row.
    """
    methods: tuple[str, ...] = ("pco", "xz")
    if len(symbols) > 2 * _RUNS * _RUN_ROWS:
        starts = np.linspace(0, len(symbols) - _RUN_ROWS, _RUNS).astype(int)
        sample = np.concatenate([symbols[start : start + _RUN_ROWS] for start in starts])
        if sample.min() < sample.max():
            pco, xz = (len(general.encode(method, sample)) for method in methods)
            methods = ("xz" if pco - xz > _XZ_SAVES * len(sample) else "pco",)
    return min((general.encode(method, symbols) for method in methods), key=len)


def spans_of(column: Column) -> tuple[Span | None, Span]:
    """The span of the state symbol, if there is one, and the span of the value symbols."""
    *state, value = column.spans()
    return (state[0] if state else None), value


def is_exact_float(column: Column) -> bool:
    """True if the column holds floats, and its grid gives every one back bit for bit."""
    if not isinstance(column, NumericColumn | VectorColumn) or column.bound != 0:
        return False
    return bool(pa.types.is_floating(_element_type(column)))


def float_dtype(column: Column) -> np.dtype[Any]:
    """The dtype of a float column's values, or of its vectors' elements."""
    return physical_dtype(_element_type(column))


def floats_of(values: pa.Array) -> Numbers:
    """The numbers as they are stored: rows × width."""
    if pa.types.is_floating(values.type):
        return read_physical(values).reshape(-1, 1)
    return read_rows(values).data


def checksum(bins: Bins) -> int:
    """CRC-32 of symbols as little-endian int64, row by row."""
    crc = 0
    for start in range(0, len(bins), _CRC_ROWS):
        piece = bins[start : start + _CRC_ROWS]
        if piece.shape[1] == 2 and not piece.flags.c_contiguous:  # symbol after symbol: a third of one copy's time
            piece = np.stack([piece[:, 0], piece[:, 1]], axis=1)
        crc = zlib.crc32(np.ascontiguousarray(piece, "<i8").data, crc)
    return crc


def _value_symbols(column: Column, bins: Bins) -> Bins:
    """The value symbols of the rows that have an ordinary value."""
    symbols, present = bins[:, -spans_of(column)[1].width :], bins[:, -1] != ABSENT
    if not present.all():
        # numbers are picked several times as fast as rows of a matrix
        symbols = symbols[:, 0][present].reshape(-1, 1) if symbols.shape[1] == 1 else symbols[present]
    return symbols


def _element_type(column: Column) -> pa.DataType:
    data_type = column.field.type
    return storage_type(data_type).value_type if isinstance(column, VectorColumn) else data_type


def _from_floats(column: Column, floats: Numbers) -> Bins:
    if not isinstance(column, NumericColumn | VectorColumn) or not is_exact_float(column):
        raise ValueError(f"column {column.name!r} holds no exact floats")
    if not np.isfinite(floats).all():
        raise ValueError("an ordinary value is not finite")
    return column.grid.to_bins(floats)
