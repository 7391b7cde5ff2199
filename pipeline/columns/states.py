"""The state symbol: what the network sees of nulls, NaN, infinities and exactly stored values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.columns.arrays import Mask, States
from pipeline.columns.base import State
from vae_model.layout import ABSENT, Span


@dataclass(frozen=True)
class SeenStates:
    """The states that fitting saw; a column has a state symbol if there was one beside `VALUE`.

    A state that fitting did not see has the symbol `ABSENT`: `Symbols.states` still carries it.

    Attributes:
        seen: The states, ascending, `VALUE` first.
    """

    seen: tuple[State, ...]

    @classmethod
    def of(cls, states: Iterable[State]) -> SeenStates:
        """The states seen, whatever their order; `VALUE` is added."""
        return cls(tuple(sorted({State.VALUE, *states})))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeenStates:
        """Rebuilds the states from a column's JSON."""
        return cls.of(State[name] for name in data["states"])

    def to_json(self) -> list[str]:
        """Names of the states."""
        return [state.name for state in self.seen]

    @property
    def width(self) -> int:
        """Number of state symbols: 0 or 1."""
        return 1 if len(self.seen) > 1 else 0

    def spans(self, column: str) -> list[Span]:
        """The span of the state symbol, if there is one."""
        if not self.width:
            return []
        return [Span(column, "state", "categorical", start=0, width=1, bins=len(self.seen))]

    def also(self, states: States | None) -> SeenStates:
        """These states and those of some rows."""
        return self if states is None else SeenStates.of([*self.seen, *(State(code) for code in np.unique(states))])

    def states_of(self, symbols: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says: the inverse of `beside`.

        Args:
            symbols: n × (width + D) symbols.

        Returns:
            n states; None if there is no state symbol, or if a row has a state that it cannot say.
        """
        if not self.width or (symbols[:, 0] < 0).any():
            return None
        return np.array(self.seen, np.uint8).take(symbols[:, 0], mode="clip")

    def beside(self, bins: npt.NDArray[np.int64], states: States | None) -> npt.NDArray[np.int64]:
        """The symbol matrix: the state symbol, then the bins, absent where there is no ordinary value.

        Args:
            bins: n × D bins of the ordinary values; overwritten.
            states: n states, or None when all are `VALUE`.

        Returns:
            n × (width + D) symbols; where D is 1 they lie symbol after symbol in memory.
        """
        if states is not None:
            absent = states != State.VALUE
            if bins.shape[1] == 1:
                np.copyto(bins[:, 0], ABSENT, where=absent)  # a tenth of the time of an index
            else:
                bins[absent] = ABSENT
        if not self.width:
            return bins
        order: Literal["C", "F"] = "F" if bins.shape[1] == 1 else "C"
        symbols = np.empty((len(bins), bins.shape[1] + 1), np.int64, order=order)
        symbols[:, 1:] = bins
        if states is None:
            symbols[:, 0] = 0
        else:
            codes = np.full(len(State), ABSENT, np.int64)
            codes[list(self.seen)] = np.arange(len(self.seen))
            symbols[:, 0] = codes.take(states)
        return symbols


def states_or_none(states: States) -> States | None:
    """None if every value is an ordinary one."""
    return states if states.any() else None


def is_state(states: States | None, state: State) -> Mask | None:
    """True where the state is the given one; None where it is nowhere."""
    if states is None:
        return None
    mask = np.asarray(states == state, dtype=np.bool_)
    return mask if mask.any() else None
