"""Rows with a label as matrices of latents, of principal components or of raw columns, in training and test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archive import Archive
from pipeline.design import DesignMatrix
from pipeline.errors import DatasetError
from pipeline.features import Features
from pipeline.labels import Label

FeatureSet = Literal["latents", "pca", "raw"]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
SAMPLE_ROWS = 100_000
"""Training rows that means, scales, categories and principal components are learned from, at most."""


@dataclass(frozen=True)
class Draw:
    """Which rows are test rows.

    Attributes:
        split: `(column, value)`: those with that value in that column; None: drawn.
        fraction: Share that is drawn.
        seed: Seed of the draw.
    """

    split: tuple[str, str] | None
    fraction: float
    seed: int

    @property
    def columns(self) -> list[str]:
        """The columns that it looks at."""
        return [] if self.split is None else [self.split[0]]

    def masks(self) -> Callable[[pa.RecordBatch], Mask]:
        """What gives the mask of test rows, for the batches of one pass in order."""
        rng = np.random.default_rng([self.seed, 0])

        def mask(batch: pa.RecordBatch) -> Mask:
            if self.split is None:
                drawn: Mask = rng.random(batch.num_rows) < self.fraction
                return drawn
            column = batch.column(self.split[0])
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            equal = pc.equal(column.cast(pa.large_string()), self.split[1]).fill_null(False)
            found: Mask = equal.to_numpy(zero_copy_only=False)
            return found

        return mask


@dataclass(frozen=True)
class Block:
    """Rows of a matrix.

    Attributes:
        x: Features, float32 of shape (rows, width).
        y: Number of the class of each row.
        test: Which rows are test rows.
    """

    x: Floats
    y: Codes
    test: Mask


@dataclass(frozen=True)
class Split:
    """All rows, in memory."""

    x_train: Floats
    y_train: Codes
    x_test: Floats
    y_test: Codes


@dataclass(frozen=True)
class Matrix:
    """One kind of features of all rows, as a stream that can be read again.

    Attributes:
        width: Features a row.
        blocks: Starts a pass over the rows.
    """

    width: int
    blocks: Callable[[], Iterator[Block]]

    def collect(self) -> Split:
        """All rows in memory."""
        x, y, test = (np.concatenate(parts) for parts in zip(*((b.x, b.y, b.test) for b in self.blocks()), strict=True))
        return Split(x[~test], y[~test], x[test], y[test])

    def sample(self, rows: int, seed: int) -> tuple[Floats, Codes]:
        """A uniform sample of training rows (reservoir by random priorities)."""
        rng = np.random.default_rng([seed, 1])
        keys, x, y = np.empty(0), np.empty((0, self.width), np.float32), np.empty(0, np.int64)
        for block in self.blocks():
            train = ~block.test
            keys = np.concatenate([keys, rng.random(int(train.sum()))])
            x, y = np.concatenate([x, block.x[train]]), np.concatenate([y, block.y[train]])
            if len(keys) > 2 * rows:
                kept = np.argpartition(keys, rows)[:rows]
                keys, x, y = keys[kept], x[kept], y[kept]
        kept = np.sort(np.argsort(keys)[:rows])
        return x[kept], y[kept]


class LabelledRows:
    """An archive's rows with a label.

    Args:
        archive: The archive.
        features: Its latents.
        label: The label.
        draw: Which rows are test rows.

    Raises:
        DatasetError: No row, or every row, is a test row.
    """

    def __init__(self, archive: Archive, features: Features, label: Label, draw: Draw) -> None:
        self._archive, self._features, self._label, self._draw = archive, features, label, draw
        modelled = [column for column in archive.model.rows.modelled if column.name != label.name]
        self._columns = [column for column in modelled if column.name not in draw.columns]
        self._check_split()

    def _check_split(self) -> None:
        masks, train, tested = self._draw.masks(), 0, 0
        for batch in self._archive.batches(self._beside()):
            mask = masks(batch)
            train, tested = train + int((~mask).sum()), tested + int(mask.sum())
        if not train or not tested:
            what = "no row is a test row" if train else "every row is a test row"
            raise DatasetError(f"{self._archive.location}: {what} ({self._draw}); choose another split")

    def of(self, kind: FeatureSet) -> Matrix:
        """The rows as one kind of features; what has to be learned for it is learned from training rows alone."""
        if kind == "latents":
            return Matrix(len(self._features.names), self._latents)
        design = DesignMatrix(self._columns).fit(self._training_sample())
        raw = Matrix(design.transform(self._training_sample().slice(0, 1)).shape[1], lambda: self._raw(design))
        return raw if kind == "raw" else self._components(raw)

    def _beside(self) -> list[str]:
        return [self._label.name, *self._draw.columns]

    def _latents(self) -> Iterator[Block]:
        masks = self._draw.masks()
        for values, rows in self._features.beside(self._beside()).arrays():
            yield Block(values, self._label.codes(rows.column(self._label.name)), masks(rows))

    def _raw(self, design: DesignMatrix) -> Iterator[Block]:
        for batch, test in self._decoded():
            codes = self._label.codes(batch.column(self._label.name))
            yield Block(design.transform(pa.Table.from_batches([batch])), codes, test)

    def _decoded(self) -> Iterator[tuple[pa.RecordBatch, Mask]]:
        masks = self._draw.masks()
        names = [column.name for column in self._columns]
        for batch in self._archive.batches(list(dict.fromkeys([*names, *self._beside()]))):
            yield batch, masks(batch)

    def _training_sample(self) -> pa.Table:
        """The first training rows of every part's blocks, up to `SAMPLE_ROWS` spread over the archive."""
        if not hasattr(self, "_sample"):
            share = max(1, SAMPLE_ROWS // max(1, len(self._archive.parts)))
            kept = []
            for batch, test in self._decoded():
                kept.append(batch.filter(pa.array(~test)).slice(0, share))
            self._sample = pa.Table.from_batches([_plain(batch) for batch in kept])
        return self._sample

    def _components(self, raw: Matrix) -> Matrix:
        """Principal components of the raw matrix, as many as there are latents."""
        from sklearn.decomposition import PCA

        width = min(len(self._features.names), raw.width)
        x, _ = raw.sample(SAMPLE_ROWS, self._draw.seed)
        components = PCA(width, random_state=0).fit(x)

        def blocks() -> Iterator[Block]:
            for block in raw.blocks():
                yield Block(np.asarray(components.transform(block.x), np.float32), block.y, block.test)

        return Matrix(width, blocks)


def _plain(batch: pa.RecordBatch) -> Any:
    """The batch without dictionaries, which may differ from block to block."""
    arrays = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
