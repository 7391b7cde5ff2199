"""What fitting a column saw: how far values lie outside of its range, and which states there were.

A column's symbols say the first or the last bin of its grid for any value outside of it. Who asks how improbable a
value is must know the rest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.arrays import Numbers, read_scalars, widen
from pipeline.columns.base import Column, State
from pipeline.columns.grid import Grid
from pipeline.columns.lists import read_rows
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.states import SeenStates
from pipeline.columns.vector import VectorColumn

FARTHEST = 1e30
"""Distance, in standardized units, of an infinity, and of whatever lies farther."""
_NEAREST = 1e-30
_SIGNS = ((State.POS_INF, FARTHEST), (State.NEG_INF, -FARTHEST))


def states_seen(column: Column) -> tuple[State, ...]:
    """The states that fitting a modelled column saw."""
    seen = getattr(column, "seen", None)
    return seen.seen if isinstance(seen, SeenStates) else (State.VALUE,)


def distance_beyond(column: Column, values: pa.Array) -> npt.NDArray[np.float64] | None:
    """Signed distances of values from their column's grid, in standardized units.

    Args:
        column: A fitted column, as the model sees it (without an error bound).
        values: n values of the column's type.

    Returns:
        n × D distances, one an element: above 0 for values above the range, below 0 for those below, 0 within it and
        where there is no number; None if all are 0. An infinity counts as `FARTHEST` unless fitting saw one: then the
        column has a state for it.
    """
    if isinstance(column, NumericColumn):
        scalars = read_scalars(values)
        distances = _distances(scalars.data.reshape(-1, 1), column.grid, column.spans()[-1].step)
        if scalars.states is not None:
            distances[scalars.states != State.VALUE] = 0.0
            for state, far in _SIGNS:
                if state not in column.seen.seen:
                    distances[scalars.states == state] = far
    elif isinstance(column, VectorColumn):
        rows = read_rows(values)
        distances = _distances(widen(rows.data), column.grid, column.spans()[-1].step)
        if rows.states is not None:
            distances[rows.states != State.VALUE] = 0.0
    else:
        return None
    return distances if distances.any() else None


def _distances(data: Numbers, grid: Grid, step: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """How far wide numbers lie outside of a grid; integers are subtracted exactly."""
    over, under = data > grid.high, data < grid.low
    distances = np.zeros(data.shape)
    if not over.any() and not under.any():
        return distances
    with np.errstate(over="ignore", invalid="ignore"):
        per_unit = np.broadcast_to(np.array(step) / float(grid.width), data.shape)
        for beyond, edge, sign in ((over, grid.high, 1.0), (under, grid.low, -1.0)):
            apart = _apart(data[beyond], edge) * per_unit[beyond]
            distances[beyond] = sign * np.clip(np.nan_to_num(apart, nan=FARTHEST), _NEAREST, FARTHEST)
    return distances


def _apart(data: Numbers, edge: int | float) -> npt.NDArray[np.float64]:
    """|data - edge|."""
    if data.dtype.kind == "f":
        return np.abs(data - float(edge))
    steps = data.view(np.uint64) - np.uint64(int(edge) % 2**64)
    return np.asarray(np.where(data > edge, steps, np.uint64(0) - steps), np.float64)
