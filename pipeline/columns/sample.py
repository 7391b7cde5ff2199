"""A uniform sample of rows that does not depend on the order in which rows are seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.gathered import Arrays, from_arrow, to_arrow


@dataclass
class RowSample:
    """The rows with the lowest priorities.

    Attributes:
        size: Most rows kept.
        priority: uint64 priorities of the rows kept, ascending.
        values: Their values, in the same order; None before the first row.
    """

    size: int
    priority: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    values: npt.NDArray[Any] | None = None

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
        if not len(priority):
            return
        if self.values is not None:
            priority = np.concatenate([self.priority, priority])
            values = np.concatenate([self.values, values])
        order = np.argsort(priority, kind="stable")[: self.size]
        self.priority, self.values = priority[order], values[order]

    def merge(self, other: RowSample) -> None:
        """Offers the rows of another sample of the same size."""
        if other.values is not None:
            self.add(other.priority, other.values)

    def arrays(self) -> Arrays:
        """The rows kept."""
        if self.values is None:
            return {}
        if self.values.dtype.kind == "O":  # texts, as bytes
            return {"priority": self.priority, "texts": from_arrow(pa.array(self.values, pa.large_binary()))}
        return {"priority": self.priority, "values": self.values}

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of the rows kept."""
        self.priority = arrays.get("priority", np.zeros(0, np.uint64))
        self.values = arrays.get("values")
        if "texts" in arrays:
            self.values = to_arrow(arrays["texts"]).to_numpy(zero_copy_only=False)
