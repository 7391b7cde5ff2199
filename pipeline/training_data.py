"""Packed symbols from Ray Data to a training worker, in batches whose number every worker agrees on.

`get_dataset_shard` deals rows out equally and Ray's local shuffle buffer emits short batches in mid-stream,
which makes DDP wait for ever. So rows are re-batched here: every worker makes the same number of steps an
epoch, each of the same size, whatever its shard holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.bundle import schema_from_text
from pipeline.config import Optimization
from pipeline.dataset import WorkUnit, read_unit
from pipeline.errors import DatasetError
from pipeline.machine import trim_memory
from pipeline.packed import PackedRows
from pipeline.rows import RowTransform
from pipeline.sampling import MIN_ROWS_TO_HOLD_OUT, held_out
from pipeline.storage import Location

Packed = npt.NDArray[np.uint8]
MAX_VALIDATION_ROWS = 65_536
"""Rows that are held out at most, over all workers: more would sharpen no decision."""
POOL_BYTES = 32 << 20
"""Packed rows that a streaming worker shuffles among at a time."""

PACKED_TOGETHER = 16_384
"""Rows that are read and packed at a time, at most: four times as many were slower, and hold more memory."""


@dataclass(frozen=True)
class PackUnits:
    """A Ray Data transform: work units (as JSON text) in, packed rows out.

    Attributes:
        root: The dataset's root folder.
        columns: The fitted columns, `RowTransform.to_json()`.
        schema: The dataset's schema, as text.
        block_rows: Rows that are read together.
        seed: Seed of the validation split.
        validation_fraction: Share of rows held out.
    """

    root: Location
    columns: list[dict[str, Any]]
    schema: str
    block_rows: int
    seed: int
    validation_fraction: float

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yields tables of (unit, row, held_out, packed)."""
        transform = RowTransform.from_json(schema_from_text(self.schema), self.columns)
        packing = PackedRows(transform.layout())
        names = [column.name for column in transform.modelled]
        for text in batch.column("item").to_pylist():
            unit = WorkUnit.from_json(json.loads(text))
            mask = held_out(self.seed, unit, self.validation_fraction)
            row = 0
            for rows in read_unit(self.root, unit, names, self.block_rows):
                bins, _ = transform.from_batch(rows)
                yield packed_table(unit.index, row, mask[row : row + len(bins)], packing.pack(bins))
                row += len(bins)
            trim_memory()


@dataclass(frozen=True)
class EpochPlan:
    """How an epoch looks to one worker.

    Attributes:
        steps: Steps of an epoch, the same on every worker.
        local_batch: Rows of this worker's share of a batch.
        cached: Whether the worker keeps its shard in memory.
        seed: Seed of the shuffles.
    """

    steps: int
    local_batch: int
    cached: bool
    seed: int


def held_out_fraction(rows: int, options: Optimization) -> float:
    """The share of a dataset's rows that is kept from training; 0 of too few rows."""
    if rows < MIN_ROWS_TO_HOLD_OUT:
        return 0.0
    return min(options.validation_fraction, MAX_VALIDATION_ROWS / rows)


def epoch_plan(rows: int, row_bytes: int, options: Optimization, workers: int, seed: int) -> tuple[EpochPlan, int]:
    """Steps, batch and number of epochs for so many training rows.

    Returns:
        The plan of an epoch, and the number of epochs.
    """
    batch = options.batch_size or 2 ** round(math.log2(min(1024, max(32, rows / 100))))
    local = max(1, min(batch, rows) // workers)
    steps = max(1, rows // (local * workers))
    epochs = options.epochs or min(200, max(5, math.ceil(3000 / steps)))
    cached = rows * row_bytes / workers <= options.cache_mib << 20
    return EpochPlan(steps, local, cached, seed), epochs


class Shard(Protocol):
    """Where a worker's rows come from."""

    def tables(self, rng: np.random.Generator) -> Iterable[pa.Table]:
        """All rows once, in tables as `PackUnits` makes them, in an order that `rng` may draw."""
        ...


class ShardRows:
    """One worker's rows: held-out ones kept, training ones cached or streamed every epoch.

    Args:
        shard: Where they come from.
        plan: How an epoch looks.
        validate_on_training: Whether validation takes the training rows, for want of others.
    """

    def __init__(self, shard: Shard, plan: EpochPlan, validate_on_training: bool) -> None:
        self._shard, self._plan, self._validate_on_training = shard, plan, validate_on_training
        self.validation: Packed = np.zeros((0, 0), np.uint8)
        self._train: Packed | None = None
        if plan.cached:
            blocks = sorted(_blocks(shard, np.random.default_rng(plan.seed)), key=lambda block: block[0])
            self._train, held = _merge(block[1] for block in blocks), _merge(block[2] for block in blocks)
            self.validation = (self._train if validate_on_training else held)[:MAX_VALIDATION_ROWS]

    def epoch(self, number: int) -> Iterator[Packed]:
        """Yields `steps` batches of `local_batch` packed rows each, shuffled by (seed, epoch)."""
        rng = np.random.default_rng([self._plan.seed, number])
        if self._train is not None:
            yield from _shuffled(self._train, self._plan.steps, self._plan.local_batch, rng)
        else:
            yield from self._streamed_epoch(rng)

    def _streamed_epoch(self, rng: np.random.Generator) -> Iterator[Packed]:
        """Draws batches from a pool that the stream refills; a short shard draws its last pool again."""
        size, left = self._plan.local_batch, self._plan.steps
        pool, validated = _Pool(2 * size), bool(len(self.validation))
        first = _First(MAX_VALIDATION_ROWS)
        for key, train, kept in _blocks(self._shard, rng):
            if not validated:
                first.add(key, train if self._validate_on_training else kept)
            start = 0
            while left and start < len(train):
                start += pool.fill(train[start:])
                if pool.full:
                    yield pool.draw(size, rng)
                    left -= 1
        yield from _shuffled(pool.rows, left, size, rng)
        if not validated:
            self.validation = first.rows()


class _First:
    """The first rows of a dataset, from blocks in any order.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._blocks: list[tuple[tuple[int, int], Packed]] = []

    def add(self, key: tuple[int, int], rows: Packed) -> None:
        """Takes a block; `key` tells where it stands."""
        if len(rows):
            self._blocks.append((key, rows[: self._most]))
            self._count += len(self._blocks[-1][1])
            if self._count > 2 * self._most:
                kept = self.rows()
                self._blocks, self._count = [(self._blocks[0][0], kept)], len(kept)

    def rows(self) -> Packed:
        """The first of the rows so far."""
        self._blocks.sort(key=lambda block: block[0])
        return _merge(rows for _, rows in self._blocks)[: self._most]


class _Pool:
    """A shuffle buffer of `POOL_BYTES`: filled from a stream, drawn from at random.

    Args:
        least: Rows that it holds at least.
    """

    def __init__(self, least: int) -> None:
        self._least, self._count = least, 0
        self._rows: Packed = np.zeros((0, 0), np.uint8)

    @property
    def rows(self) -> Packed:
        """What it holds."""
        return self._rows[: self._count]

    @property
    def full(self) -> bool:
        """Whether nothing more goes in."""
        return self._count == len(self._rows)

    def fill(self, rows: Packed) -> int:
        """Takes as many rows as there is room for; returns their number."""
        if not len(self._rows):
            self._rows = np.empty((max(self._least, POOL_BYTES // rows.shape[1]), rows.shape[1]), np.uint8)
        taken = min(len(rows), len(self._rows) - self._count)
        self._rows[self._count : self._count + taken] = rows[:taken]
        self._count += taken
        return taken

    def draw(self, size: int, rng: np.random.Generator) -> Packed:
        """Takes `size` rows out at random; rows from the end fill the holes."""
        chosen = rng.choice(self._count, size, replace=False)
        batch = self._rows[chosen]
        rest = self._count - size
        stays = np.ones(size, bool)
        stays[chosen[chosen >= rest] - rest] = False
        self._rows[chosen[chosen < rest]] = self._rows[rest : self._count][stays]
        self._count = rest
        return batch


def _blocks(shard: Shard, rng: np.random.Generator) -> Iterator[tuple[tuple[int, int], Packed, Packed]]:
    for table in shard.tables(rng):
        for batch in table.to_batches():
            if not batch.num_rows:
                continue
            packed = batch.column("packed")
            width = packed.type.byte_width
            flat = np.frombuffer(packed.buffers()[1], np.uint8)
            rows = flat[packed.offset * width : (packed.offset + len(packed)) * width].reshape(-1, width)
            mask = batch.column("held_out").to_numpy(zero_copy_only=False)
            key = (batch.column("unit")[0].as_py(), batch.column("row")[0].as_py())
            yield key, rows[~mask], rows[mask]


def packed_table(unit: int, first: int, mask: npt.NDArray[np.bool_], packed: Packed) -> pa.Table:
    """Packed rows of a unit, from its row `first` on, as a table of (unit, row, held_out, packed)."""
    rows, width = packed.shape
    array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(packed.tobytes())])
    return pa.table(
        {
            "unit": np.full(rows, unit, np.int64),
            "row": np.arange(first, first + rows, dtype=np.int64),
            "held_out": mask,
            "packed": array,
        }
    )


def _shuffled(rows: Packed, batches: int, size: int, rng: np.random.Generator) -> Iterator[Packed]:
    """Batches in random order; every row is given once before any is given again."""
    if batches and not len(rows):
        raise DatasetError("a training worker got no rows; use fewer --workers for so small a dataset")
    rounds = -(-batches * size // max(1, len(rows)))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)]) if rounds else np.empty(0, int)
    for start in range(0, batches * size, size):
        yield rows[order[start : start + size]]


def _merge(parts: Iterable[Packed]) -> Packed:
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.zeros((0, 0), np.uint8)
