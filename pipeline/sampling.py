"""Seeded draws over rows that do not depend on the order in which work units are done."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.dataset import WorkUnit

MIN_ROWS_TO_HOLD_OUT = 20
"""A dataset with fewer rows is validated on the rows it was trained on."""

_PRIORITY, _HELD_OUT = 0, 1


def priorities(seed: int, unit: WorkUnit) -> npt.NDArray[np.uint64]:
    """A random priority for each row of a unit: the rows with the lowest ones make a uniform sample."""
    return Priorities(seed, unit).next(unit.rows)


class Priorities:
    """The `priorities` of a unit, as its rows come: what a footer claims in rows takes no memory.

    Args:
        seed: The seed.
        unit: The unit.
    """

    def __init__(self, seed: int, unit: WorkUnit) -> None:
        self._rng = np.random.default_rng([seed, _PRIORITY, unit.index])

    def next(self, rows: int) -> npt.NDArray[np.uint64]:
        """The priorities of the next rows."""
        return self._rng.integers(0, np.iinfo(np.uint64).max, rows, np.uint64)


def held_out(seed: int, unit: WorkUnit, fraction: float) -> npt.NDArray[np.bool_]:
    """Which rows of a unit are kept from training, for validation."""
    rng = np.random.default_rng([seed, _HELD_OUT, unit.index])
    return rng.random(unit.rows) < fraction
