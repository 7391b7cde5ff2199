"""The rows of a work unit as blocks, and a sample of a dataset as contiguous runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.dataset import Dataset, WorkUnit, read_unit
from pipeline.storage import Location

_T = TypeVar("_T")
CODED_BLOCK_ROWS = 1 << 19
CODED_BLOCK_BYTES = 32 << 20
"""A block that a codec codes at once has at most so many rows, and about so many bytes in memory."""
_RUNS = 8
"""A sample of a large dataset has about so many runs: long ones, for general tools see whole blocks."""


def coded_block_rows(dataset: Dataset) -> int:
    """Rows of a block that a codec codes at once."""
    return max(256, min(CODED_BLOCK_ROWS, CODED_BLOCK_BYTES // dataset.row_bytes))


def read_blocks(
    root: Location, unit: WorkUnit, block_rows: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Streams a unit in blocks of `block_rows`; only the last one, and one before other dictionaries, is shorter.

    Raises:
        DatasetError: If the file cannot be read.
    """
    waiting: list[pa.RecordBatch] = []
    for batch in read_unit(root, unit, columns, block_rows):
        if waiting and not _same_dictionaries(waiting[0], batch):
            block, waiting = [_joined(waiting)], []
            yield block.pop()
        rows = sum(part.num_rows for part in waiting)
        waiting.append(batch.slice(0, block_rows - rows))
        if rows + batch.num_rows >= block_rows:
            block, rest = [_joined(waiting)], batch.slice(block_rows - rows)
            waiting = [rest] if rest.num_rows else []
            yield block.pop()  # nothing here holds on to a block, nor to what it was joined of
    if waiting:
        yield _joined(waiting)


def gathered(pieces: Iterable[tuple[pa.RecordBatch, _T]], block_rows: int) -> Iterator[tuple[pa.RecordBatch, list[_T]]]:
    """Puts what was made of consecutive pieces together by block.

    Args:
        pieces: Batches, and what was made of each.
        block_rows: Most rows of a block, unless a single piece has more.

    Yields:
        The rows of a block, all of one set of dictionaries, and what was made of its pieces.
    """
    waiting: list[tuple[pa.RecordBatch, _T]] = []
    rows = 0

    def block() -> tuple[pa.RecordBatch, list[_T]]:
        nonlocal waiting, rows
        found, waiting, rows = waiting, [], 0
        return _joined([part for part, _ in found]), [made for _, made in found]

    for piece in pieces:
        batch = piece[0]
        if waiting and (rows + batch.num_rows > block_rows or not _same_dictionaries(waiting[0][0], batch)):
            yield block()
        waiting.append(piece)
        rows += batch.num_rows
        if rows == block_rows:  # nothing more can come to it
            yield block()
    if waiting:
        yield block()


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _same_dictionaries(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    return all(
        a.dictionary.equals(b.dictionary)
        for a, b in zip(left.columns, right.columns, strict=True)
        if pa.types.is_dictionary(a.type)
    )


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a work unit.

    Attributes:
        unit: The unit.
        start: Number in the unit of the first row.
        rows: Number of rows.
    """

    unit: WorkUnit
    start: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """Rebuilds a run from `to_json`'s result."""
        return cls(**{**data, "unit": WorkUnit.from_json(data["unit"])})

    def read(self, root: Location, columns: Sequence[str], block_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows, in blocks; only the row groups that hold some are read.

        Raises:
            DatasetError: If the file cannot be read.
        """
        first, skipped = 0, 0
        groups = self.unit.row_groups
        while first < len(groups) and skipped + groups[first] <= self.start:
            skipped += groups[first]
            first += 1
        last, rows = first, -(self.start - skipped)
        while last < len(groups) and rows < self.rows:
            rows += groups[last]
            last += 1
        part = WorkUnit(self.unit.index, self.unit.path, self.unit.first_group + first, groups[first:last], 0)
        begin, end = self.start - skipped, self.start - skipped + self.rows
        seen = 0
        for batch in read_blocks(root, part, block_rows, columns):
            low, high = max(begin - seen, 0), min(end - seen, batch.num_rows)
            if low < high:
                yield batch.slice(low, high - low)
            seen += batch.num_rows
            if seen >= end:
                return


def sample_runs(dataset: Dataset, rows: int, size: int, seed: int) -> list[Run]:
    """Contiguous runs spread over a dataset; all of it if it is small enough.

    Args:
        dataset: The dataset.
        rows: Most rows of the sample.
        size: Most bytes of the sample in memory, about.
        seed: Seed of the draw.
    """
    units = [unit for unit in dataset.units() if unit.rows]
    most = max(1, min(rows, size // dataset.row_bytes))
    if dataset.rows <= most:
        return [Run(unit, 0, unit.rows) for unit in units]
    count = max(1, min(_RUNS, most // 1024))
    length = most // count
    ends = np.cumsum([unit.rows for unit in units])
    borders = np.linspace(0, dataset.rows, count + 1).astype(np.int64)
    draw = np.random.default_rng([seed, 2])
    runs = []
    for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        start = int(draw.integers(low, max(low, high - length), endpoint=True))
        number = int(np.searchsorted(ends, start, side="right"))
        inside = start - int(ends[number] - units[number].rows)
        inside = max(0, min(inside, units[number].rows - length))
        runs.append(Run(units[number], inside, min(length, units[number].rows)))
    return _without_repeats(runs)


def _without_repeats(runs: list[Run]) -> list[Run]:
    """The runs in order; one that begins before the end of the one before loses what was there already."""
    found: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.unit.index, run.start)):
        start, stop = run.start, run.start + run.rows
        if found and found[-1].unit == run.unit:
            start = max(start, found[-1].start + found[-1].rows)
        if start < stop:
            found.append(Run(run.unit, start, stop - start))
    return found
