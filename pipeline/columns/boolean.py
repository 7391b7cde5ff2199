"""Booleans: one categorical symbol, 0 or 1, and a state symbol if fitting saw nulls. Always exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns.arrays import States, check_type, valid_mask
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.options import ColumnOptions
from pipeline.columns.states import SeenStates, is_state
from pipeline.columns.stats import ColumnStats
from vae_model.layout import Span


@dataclass(frozen=True)
class BooleanColumn(Column):
    """A fitted column of booleans.

    Attributes:
        field: The Arrow field.
        seen: States that fitting saw.
    """

    kind: ClassVar[str] = "boolean"
    field: pa.Field
    seen: SeenStates

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> BooleanColumn:
        """Fits the column; only the states are of interest."""
        return cls(field, SeenStates.of(state for state in State if stats.states[state]))

    def spans(self) -> list[Span]:
        """The state symbol, if there is one, and the value symbol."""
        value = Span(self.name, "value", "categorical", start=self.seen.width, width=1, bins=2)
        return [*self.seen.spans(self.name), value]

    def states_of(self, bins: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says."""
        return self.seen.states_of(bins)

    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols."""
        check_type(values, self.field)
        valid = valid_mask(values)
        states = None if valid is None else np.where(valid, State.VALUE, State.NULL).astype(np.uint8)
        bits = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
        return Symbols(self.seen.beside(bits.astype(np.int64).reshape(-1, 1), states), states)

    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into values."""
        null = is_state(symbols.states, State.NULL)
        return pa.array(symbols.bins[:, -1] > 0, pa.bool_(), mask=null)

    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted."""
        return {"kind": self.kind, "states": self.seen.to_json()}

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> BooleanColumn:
        """Rebuilds the column from `to_json`'s result."""
        return cls(field, SeenStates.from_json(data))
