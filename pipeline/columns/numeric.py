"""Numbers on a grid: integers, unsigned integers, floats and decimals of any width.

One ordinal symbol, and a state symbol before it if fitting saw nulls, NaN, infinities or decimals wider than
int64. Without a bound, values outside the fitted range are clipped to it. With a bound every value is decoded
and compared in its own dtype, and the ones that miss it are stored exactly. A bound of 0 compares bits: -0.0 is
not 0.0 there, and a NaN with a payload of its own is stored exactly too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.arrays import (
    Numbers,
    Scalars,
    States,
    check_type,
    narrow,
    odd_nans,
    place_exact,
    read_scalars,
    widen,
    write_scalars,
)
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.choose_grid import bound_check, choose_grid, grid_from_json, may_miss
from pipeline.columns.grid import Grid, nominal_grid
from pipeline.columns.kinds import is_decimal
from pipeline.columns.options import ColumnOptions
from pipeline.columns.scaling import (
    KNEE,
    robust_location_scale,
    standard_location_scale,
    step_and_shift,
)
from pipeline.columns.states import SeenStates, is_state, states_or_none
from pipeline.columns.stats import ColumnStats
from pipeline.errors import ConfigError
from vae_model.layout import Span

_ANY_DISTANCE = 2**64
"""No two 64-bit integers are further apart."""

_PIECE = 1 << 15
"""Values that are transformed at once."""

COMPONENTS = 3
"""Mixture components that the likelihood of a scalar should have."""


@dataclass(frozen=True)
class NumericColumn(Column):
    """A fitted column of numbers.

    Attributes:
        field: The Arrow field.
        grid: The grid, over unscaled values for decimals.
        centre: Value that the network sees as 0.
        scale: Distance that the network sees as 1.
        knee: Where standardized values are bent to a logarithm; None = nowhere.
        seen: States that fitting saw.
        bound: Largest absolute error of a decoded value, in the unit of the grid; None = no promise.
    """

    kind: ClassVar[str] = "numeric"
    field: pa.Field
    grid: Grid
    centre: int | float
    scale: float
    knee: float | None
    seen: SeenStates
    bound: float | None = None

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> NumericColumn:
        """Fits a column without an error bound to statistics with at least one ordinary value."""
        if stats.low is None or stats.high is None:
            raise ValueError(f"column {field.name!r} has no ordinary values to fit")
        robust = options.scaling == "robust"
        centre, scale = robust_location_scale(stats) if robust else standard_location_scale(stats)
        grid = nominal_grid(stats.low, stats.high, scale)
        seen = SeenStates.of(state for state in State if stats.states[state])
        return cls(field, grid, centre, scale, KNEE if robust else None, seen)

    def with_bound(self, bound: float, sample: pa.Array | None = None) -> Self:
        """The same column with an absolute error bound in the column's own unit.

        Args:
            bound: Largest absolute difference; 0 = bit for bit.
            sample: Values of the column from anywhere in it: they choose the grid of floats, and the states
                that they have at this bound get a state symbol.

        Raises:
            ConfigError: If the bound is negative or not finite.
        """
        scaled = bound
        if is_decimal(self.field.type) and math.isfinite(bound):
            scaled = math.floor(Decimal(repr(float(bound))).scaleb(self.field.type.scale))
            scaled = min(scaled, _ANY_DISTANCE)
        ordinary = None if sample is None else read_scalars(sample).ordinary().reshape(-1, 1)
        try:
            grid = choose_grid(scaled, self.grid, self.centre, self.field.type.bit_width, ordinary)
        except ValueError as error:
            raise ConfigError(f"column {self.name!r} ({self.field.type}): {error}") from error
        bounded = dataclasses.replace(self, grid=grid, bound=scaled)
        if sample is None or ordinary is None:
            return bounded
        seen = self.seen.also(bounded.from_values(sample).states)
        if may_miss(grid, ordinary):
            seen = SeenStates.of([*seen.seen, State.EXACT])
        return dataclasses.replace(bounded, seen=seen)

    def spans(self) -> list[Span]:
        """The state symbol, if there is one, and the value symbol."""
        step, shift = step_and_shift(self.grid.width, self.grid.origin, self.centre, self.scale)
        value = Span(
            self.name,
            "value",
            "ordinal",
            start=self.seen.width,
            width=1,
            bins=self.grid.bins,
            step=(step,),
            shift=(shift,),
            knee=self.knee,
            components=COMPONENTS,
        )
        return [*self.seen.spans(self.name), value]

    def states_of(self, bins: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says."""
        return self.seen.states_of(bins)

    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols."""
        check_type(values, self.field)
        if len(values) <= _PIECE:
            symbols, states = self._from_piece(values)
        else:
            symbols = np.empty((len(values), self.seen.width + 1), np.int64, order="F")
            states = np.zeros(len(values), np.uint8)
            for start in range(0, len(values), _PIECE):
                piece = slice(start, start + _PIECE)
                symbols[piece], found = self._from_piece(values[piece])
                if found is not None:
                    states[piece] = found
            states = states_or_none(states)
        missed = is_state(states, State.EXACT)
        exact = None if missed is None else values.filter(pa.array(missed))
        return Symbols(symbols, states, exact)

    def _from_piece(self, values: pa.Array) -> tuple[npt.NDArray[np.int64], States | None]:
        """Symbols and states of so few values that what is computed on the way stays in a cache."""
        scalars = read_scalars(values)
        bins = self.grid.to_bins(scalars.data)
        states = scalars.states if self.bound is None else self._checked(values, scalars, bins, self.bound)
        return self.seen.beside(bins.reshape(-1, 1), states), states

    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into values."""
        data = self.grid.to_values(symbols.bins[:, -1])
        states = symbols.states
        if states is None:
            return write_scalars(data, self.field.type)
        if data.dtype.kind == "f":
            data[states == State.NAN] = np.nan
            data[states == State.POS_INF] = np.inf
            data[states == State.NEG_INF] = -np.inf
        decoded = write_scalars(data, self.field.type, is_state(states, State.NULL))
        return place_exact(decoded, states, symbols.exact)

    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted."""
        return {
            "kind": self.kind,
            "grid": self.grid.to_json(),
            "centre": self.centre,
            "scale": self.scale,
            "knee": self.knee,
            "states": self.seen.to_json(),
            "bound": self.bound,
        }

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> NumericColumn:
        """Rebuilds the column from `to_json`'s result."""
        return cls(
            field,
            grid_from_json(data["grid"]),
            data["centre"],
            float(data["scale"]),
            data["knee"],
            SeenStates.from_json(data),
            data["bound"],
        )

    def _checked(self, values: pa.Array, scalars: Scalars, bins: npt.NDArray[np.int64], bound: float) -> States | None:
        """The states, with `EXACT` for values that would miss the bound after decoding."""
        decoded = self._own_precision(self.grid.to_values(bins))
        states = np.zeros(len(bins), np.uint8) if scalars.states is None else scalars.states.copy()
        missed = bound_check(bound)(decoded, scalars.data)
        states[missed & (states == State.VALUE)] = State.EXACT
        if bound == 0 and is_state(states, State.NAN) is not None:
            states[odd_nans(values) & (states == State.NAN)] = State.EXACT
        return states_or_none(states)

    def _own_precision(self, data: Numbers) -> Numbers:
        """Rounds wide floats to the column's own dtype; integers are exact already."""
        return widen(narrow(data, self.field.type)) if data.dtype.kind == "f" else data
