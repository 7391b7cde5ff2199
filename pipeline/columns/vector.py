"""Vectors: fixed-size lists and fixed-shape tensors of numbers; with a shape, images.

One ordinal symbol an element on one grid for the whole column, and a state symbol before them if fitting saw
rows that are null or hold an element that is null, NaN or infinite. Such rows, and with a bound rows with an
element that misses it, are stored exactly as a whole. Without a shape each element is standardized by itself;
an image's pixels share one mean and one scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.arrays import Numbers, States, check_type, narrow, place_exact, storage_of, widen
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.choose_grid import bound_check, choose_grid, grid_from_json, may_miss
from pipeline.columns.grid import Grid, nominal_grid
from pipeline.columns.lists import Rows, read_rows, storage_type, wrap, write_rows
from pipeline.columns.moments import Moments
from pipeline.columns.options import ColumnOptions
from pipeline.columns.scaling import step_and_shift
from pipeline.columns.states import SeenStates, is_state, states_or_none
from pipeline.columns.stats import ColumnStats
from pipeline.errors import ConfigError
from vae_model.layout import Span

_MIN_RELATIVE_SCALE = 1e-3
"""No element's scale is smaller than this part of the whole column's."""


@dataclass(frozen=True)
class VectorColumn(Column):
    """A fitted column of vectors or images.

    Attributes:
        field: The Arrow field.
        grid: The grid of all elements.
        centre: Value that the network sees as 0: one, or one an element.
        scale: Distance that the network sees as 1: one, or one an element.
        shape: Shape of an image, or None.
        seen: States that fitting saw.
        bound: Largest absolute error of a decoded element; None = no promise.
    """

    kind: ClassVar[str] = "vector"
    field: pa.Field
    grid: Grid
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    shape: tuple[int, ...] | None
    seen: SeenStates
    bound: float | None = None

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> VectorColumn:
        """Fits a column without an error bound to statistics with at least one ordinary row."""
        if stats.low is None or stats.high is None or stats.moments is None:
            raise ValueError(f"column {field.name!r} has no ordinary rows to fit")
        centre, scale = _location_scale(stats.moments, stats.low, stats.high, options.shape is not None)
        grid = nominal_grid(stats.low, stats.high, min(scale))
        seen = SeenStates.of(state for state in State if stats.states[state])
        return cls(field, grid, centre, scale, options.shape, seen)

    def with_bound(self, bound: float, sample: pa.Array | None = None) -> VectorColumn:
        """The same column with an absolute error bound for each element.

        Args:
            bound: Largest absolute difference; 0 = bit for bit.
            sample: Values of the column from anywhere in it: they choose the grid of floats, and the states
                that they have at this bound get a state symbol.

        Raises:
            ConfigError: If the bound is negative or not finite.
        """
        middle = sum(value / len(self.centre) for value in self.centre)
        bits = storage_type(self.field.type).value_type.bit_width
        ordinary = None if sample is None else widen(read_rows(sample).ordinary())
        try:
            grid = choose_grid(bound, self.grid, middle, bits, ordinary)
        except ValueError as error:
            raise ConfigError(f"column {self.name!r} ({self.field.type}): {error}") from error
        bounded = dataclasses.replace(self, grid=grid, bound=bound)
        if sample is None or ordinary is None:
            return bounded
        seen = self.seen.also(bounded.from_values(sample).states)
        if may_miss(grid, ordinary):
            seen = SeenStates.of([*seen.seen, State.EXACT])
        return dataclasses.replace(bounded, seen=seen)

    @property
    def width(self) -> int:
        """Number of elements of a vector."""
        return int(storage_type(self.field.type).list_size)

    def spans(self) -> list[Span]:
        """The state symbol, if there is one, and the element symbols."""
        places = [
            step_and_shift(self.grid.width, self.grid.origin, centre, scale)
            for centre, scale in zip(self.centre, self.scale, strict=True)
        ]
        value = Span(
            self.name,
            "value",
            "ordinal",
            start=self.seen.width,
            width=self.width,
            bins=self.grid.bins,
            step=tuple(step for step, _ in places),
            shift=tuple(shift for _, shift in places),
            shape=self.shape,
        )
        return [*self.seen.spans(self.name), value]

    def states_of(self, bins: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says."""
        return self.seen.states_of(bins)

    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols."""
        check_type(values, self.field)
        rows = read_rows(values)
        bins = self.grid.to_bins(rows.data)
        states = rows.states if self.bound is None else self._checked(rows, widen(rows.data), bins, self.bound)
        missed = is_state(states, State.EXACT)
        exact = None
        if missed is not None:
            exact = wrap(storage_of(values).take(pa.array(np.flatnonzero(missed))), values.type)
        return Symbols(self.seen.beside(bins, states), states, exact)

    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into values."""
        data = self.grid.to_values(symbols.bins[:, self.seen.width :])
        states = symbols.states
        decoded = write_rows(data, self.field.type, is_state(states, State.NULL))
        if states is None:
            return decoded
        exact = None if symbols.exact is None else storage_of(symbols.exact)
        return wrap(place_exact(storage_of(decoded), states, exact), self.field.type)

    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted."""
        return {
            "kind": self.kind,
            "grid": self.grid.to_json(),
            "centre": list(self.centre),
            "scale": list(self.scale),
            "shape": None if self.shape is None else list(self.shape),
            "states": self.seen.to_json(),
            "bound": self.bound,
        }

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> VectorColumn:
        """Rebuilds the column from `to_json`'s result."""
        return cls(
            field,
            grid_from_json(data["grid"]),
            tuple(data["centre"]),
            tuple(data["scale"]),
            None if data["shape"] is None else tuple(data["shape"]),
            SeenStates.from_json(data),
            data["bound"],
        )

    def _checked(self, rows: Rows, data: Numbers, bins: npt.NDArray[np.int64], bound: float) -> States | None:
        """The states, with `EXACT` for rows in which an element would miss the bound after decoding."""
        decoded = self.grid.to_values(bins)
        if decoded.dtype.kind == "f":
            decoded = widen(narrow(decoded, storage_type(self.field.type).value_type))
        states = np.zeros(len(bins), np.uint8) if rows.states is None else rows.states.copy()
        missed = bound_check(bound)(decoded, data).any(axis=1)
        states[missed & (states == State.VALUE)] = State.EXACT
        return states_or_none(states)


def _location_scale(
    moments: Moments, low: int | float, high: int | float, image: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and scales: one for an image, one an element otherwise; scales finite and above 0."""
    mean, deviation = moments.pooled()
    if not deviation > 0:
        deviation = float(high / 2 - low / 2) or 1.0
    if image:
        return (mean,), (deviation,)
    scales = moments.std()
    # an element that never varies is given the scale of the whole column
    scales = np.where(scales > 0, np.maximum(scales, deviation * _MIN_RELATIVE_SCALE), deviation)
    return tuple(moments.mean().tolist()), tuple(scales.tolist())
