"""Lanes: a block's rows as contiguous runs that are decoded side by side.

A coder that sees the previous row is sequential in rows. With L lanes of T rows each, step t decodes row t of
every lane at once; only the first row of a lane has no previous row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STEPS = 256
MOST_LANES = 1024


@dataclass(frozen=True)
class Lanes:
    """The lanes of a block.

    Attributes:
        rows: Rows of the block.
        steps: T, rows of a lane; the last lane may be shorter.
    """

    rows: int
    steps: int

    @classmethod
    def of(cls, rows: int, sequential: bool) -> Lanes:
        """Lanes of about 256 rows, at most 1,024 lanes; of one row each if nothing depends on the previous row."""
        if not sequential:
            return cls(rows, 1)
        lanes = min(MOST_LANES, max(1, rows // STEPS))
        return cls(rows, max(1, -(-rows // lanes)))

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """The rows that step `step` decodes, ascending."""
        return np.arange(step, self.rows, self.steps, dtype=np.int64)

    def order(self) -> npt.NDArray[np.int64]:
        """All rows in the order in which they are decoded."""
        return np.concatenate([self.at(step) for step in range(self.steps)]) if self.rows else np.zeros(0, np.int64)

    def previous(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row before each, -1 for the first of a lane."""
        return np.where(rows % self.steps == 0, -1, rows - 1)
