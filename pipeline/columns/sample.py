"""A uniform sample of rows that does not depend on the order in which rows are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.gathered import Arrays, from_arrow, to_arrow

_LEAST_ROWS = 4096
"""A part sends so many rows at least: its column may have hardly a value in the others."""
_DEVIATIONS = 8


@dataclass
class RowSample:
    """The rows with the lowest priorities.

    Attributes:
        size: Most rows kept.
        priority: uint64 priorities of the rows kept, ascending.
        values: Their values, in the same order; None before the first row.
        below: All priorities kept are below it; None: nothing was left out but for `size`.
    """

    size: int
    priority: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    values: npt.NDArray[Any] | None = None
    below: int | None = None

    def __len__(self) -> int:
        return len(self.priority)

    def candidates(self, priority: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """Which rows would enter the sample: read only their values, then `add` them."""
        kept = np.arange(len(priority))
        if len(self) >= self.size:
            kept = np.flatnonzero(priority < self.priority[-1])
        if len(kept) > self.size:
            kept = kept[np.argpartition(priority[kept], self.size)[: self.size]]
        return kept

    def add(self, priority: npt.NDArray[np.uint64], values: npt.NDArray[Any]) -> None:
        """Offers rows to the sample.

        Args:
            priority: One random number a row; no two rows of the dataset should share one.
            values: One value (or one row of values) a row.
        """
        if self.below is not None:
            stays = priority < np.uint64(self.below)
            priority, values = priority[stays], values[stays]
        if not len(priority):
            return
        if self.values is not None:
            priority = np.concatenate([self.priority, priority])
            values = np.concatenate([self.values, values])
        order = np.argsort(priority, kind="stable")[: self.size]
        self.priority, self.values = priority[order], values[order]

    def merge(self, other: RowSample) -> None:
        """Offers the rows of another sample of the same size."""
        bounds = [sample.below for sample in (self, other) if sample.below is not None]
        if other.values is not None:
            self.add(other.priority, other.values)
        if bounds:
            self._cut(int(np.searchsorted(self.priority, np.uint64(min(bounds)))), min(bounds))

    def shorten(self, share: float) -> None:
        """Leaves out rows that a sample of the whole will hardly hold, but never keeps fewer than 4,096.

        A whole whose parts are alike draws from each as many rows as from so many rows of it, eight standard
        deviations aside. Where parts are not alike (all values of a column are in one file, say), the sample of the
        whole is smaller than `size`, but still uniform: what any part has left out is left out of all.

        Args:
            share: This part's share of the whole's rows.
        """
        expected = self.size * share
        most = max(math.ceil(expected + _DEVIATIONS * math.sqrt(expected)), _LEAST_ROWS)
        if most < len(self):
            self._cut(most, int(self.priority[most]))

    def _cut(self, rows: int, below: int) -> None:
        self.priority, self.below = self.priority[:rows], below
        self.values = None if self.values is None else self.values[:rows]

    def arrays(self) -> Arrays:
        """The rows kept."""
        if self.values is None:
            return {}
        found = {"priority": self.priority}
        if self.below is not None:
            found["below"] = np.array(self.below, np.uint64)
        if self.values.dtype.kind == "O":  # texts, as bytes
            return {**found, "texts": from_arrow(pa.array(self.values, pa.large_binary()))}
        return {**found, "values": self.values}

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of the rows kept."""
        self.priority = arrays.get("priority", np.zeros(0, np.uint64))
        self.values = arrays.get("values")
        self.below = int(arrays["below"]) if "below" in arrays else None
        if "texts" in arrays:
            self.values = to_arrow(arrays["texts"]).to_numpy(zero_copy_only=False)
