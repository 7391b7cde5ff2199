"""Which general tool codes each column: whatever takes the fewest bytes on sample blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

import pipeline.codec.plain as plain
import pipeline.codec.single as single
from pipeline.codec.sections import to_varint
from pipeline.columns import Column
from pipeline.rows import RowTransform

PARQUET = "parquet"
"""The method of a column that stays a plain Parquet column of the part."""
_TIE, _TIE_BYTES = 0.005, 64
"""Parquet, which anyone reads, is taken where it is larger by no more than this share and these bytes."""
_XZ, _XZ_WORTH = "xz", 0.9
"""In a hurry xz, which takes many times as long as pcodec, is taken where it leaves less than this share."""
_CHECK_BYTES = 4
_MEASURED_BYTES, _PIECES = 12 << 20, 4
"""No more of a column than this is looked at, in so many pieces."""


def choose_general(
    rows: RowTransform, batches: Sequence[pa.RecordBatch], total_rows: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Measures every tool on every column.

    Args:
        rows: The coding transform.
        batches: Sample blocks, with the modelled columns at least.
        total_rows: Rows of the dataset: what a tie is counts in the whole column's bytes.

    Returns:
        Column → method, and plain column → encoding.
    """
    scale = max(1.0, total_rows / max(1, sum(batch.num_rows for batch in batches)))
    found = {column.name: measure(column, [batch.column(column.name) for batch in batches]) for column in rows.modelled}
    return choose(found, scale)


def choose(
    found: Mapping[str, Mapping[str, float]], scale: float, hurry: bool = False
) -> tuple[dict[str, str], dict[str, str]]:
    """Takes the smallest tool for every column.

    Args:
        found: Column → what `measure` says of it.
        scale: What its bytes are to be multiplied by for the whole dataset.
        hurry: Whether a slow tool must be worth its time.

    Returns:
        Column → method, and plain column → encoding.
    """
    coded: dict[str, str] = {}
    encodings: dict[str, str] = {}
    for column, sizes in found.items():
        kept = {name: size for name, size in sizes.items() if name.startswith(PARQUET)}
        apart = {name: size for name, size in sizes.items() if name not in kept}
        method = min(apart, key=apart.__getitem__)
        if hurry and method.startswith(_XZ):
            quick = {name: size for name, size in apart.items() if not name.startswith(_XZ)}
            second = min(quick, key=quick.__getitem__, default=method)
            if apart[method] > _XZ_WORTH * apart[second]:
                method = second
        if kept:
            best = min(kept, key=kept.__getitem__)
            if kept[best] * scale <= apart[method] * scale * (1 + _TIE) + _TIE_BYTES:
                method, encodings[column] = PARQUET, best.removeprefix(f"{PARQUET}/")
        coded[column] = method
    return coded, encodings


def measure(column: Column, blocks: Sequence[pa.Array]) -> dict[str, int]:
    """Bytes of a column's blocks by every method that can code them all; plain Parquet is "parquet/ENCODING".

    Args:
        column: The column of the coding transform.
        blocks: Its values in sample blocks; without any, every method takes 0 bytes.
    """
    found = [_measure_block(column, values) for values in blocks] or [{"const": 0}]
    shared = [name for name in found[0] if all(name in sizes for sizes in found)]
    return {name: sum(sizes[name] for sizes in found) for name in shared}


def measure_sample(column: Column, blocks: Sequence[pa.Array]) -> dict[str, float]:
    """What `measure` says of a column's sample, from four pieces of it if it is large.

    Args:
        column: The column of the coding transform.
        blocks: Its values in sample blocks.
    """
    rows = sum(map(len, blocks))
    most = rows * _MEASURED_BYTES // max(1, sum(block.nbytes for block in blocks))
    if rows <= most:
        return dict(measure(column, blocks))
    length = max(1, most // _PIECES)
    whole = pa.chunked_array(blocks).unify_dictionaries()
    starts = np.linspace(0, rows - length, _PIECES).astype(np.int64)
    pieces = [pa.concat_arrays(whole.slice(int(start), length).chunks) for start in starts]
    found = measure(column, pieces)
    return {method: size * rows / (length * _PIECES) for method, size in found.items()}


def _measure_block(column: Column, values: pa.Array) -> dict[str, int]:
    alone = RowTransform(pa.schema([column.field]), (column,))
    bins, exceptions = alone.from_batch(pa.record_batch([values], [column.name]))
    rest = alone.split_exceptions(bins, exceptions).get(column.name, (None, None))
    states = single.StateCoder()
    beside = single.encode_exceptions(0, *rest, states) | single.encode_state(column, 0, bins, states)
    common = _CHECK_BYTES + sum(len(body) + _section_bytes(len(body)) for body in beside.values())
    sizes = {
        method: size + _section_bytes(size) + common for method, size in single.sizes(column, bins, values).items()
    }
    held = plain.sizes(column.field, plain.rounded(column, values))
    return sizes | {f"{PARQUET}/{encoding}": size for encoding, size in held.items()}


def _section_bytes(size: int) -> int:
    """What a section takes in the directory of its cell."""
    return 6 + len(to_varint(size))
