"""The contract of a column kind: fit on a stream, then values ↔ bins, JSON in and out.

A column turns an Arrow array of n values into n × D_c integer *symbols* (what `vae_model.layout` calls
`bins_BD`) and back. What bins cannot say is stated apart, exactly:

* every value has a *state* (`State`): an ordinary value, null, NaN, +inf, -inf, or `EXACT` (stored as it is);
* `exact` holds, in row order, the original values of the rows whose state is `EXACT`.

`from_values(array)` and `to_values(symbols)` are inverse up to the column's grid: null-ness, NaN-ness,
infinities and exactly stored values come back as they were whatever the model says; ordinary values come back
within half a bin (exactly, for categories, booleans and integer grids of width 1). A column with an error bound
stores exactly what its bins would miss, so the bound holds value by value.

The value symbols of a row are -1 exactly when its state is not `VALUE` (of a sequence the first one; those after its
end are -1 too). A column whose fitting saw more states has
a state symbol before them, from which `states_of` reads the states again; without one, -1 is all that the symbols
say, and `Symbols.states` says the rest.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vae_model.layout import Span


class State(enum.IntEnum):
    """What a value is, apart from its bin."""

    VALUE = 0
    NULL = 1
    NAN = 2
    POS_INF = 3
    NEG_INF = 4
    EXACT = 5


@dataclass(frozen=True)
class Symbols:
    """A column's values as the codec and the model take them.

    Attributes:
        bins: int64 array of shape (n, D_c); -1 where there is nothing to say.
        states: uint8 array of shape (n,) of `State`, or None when every value is an ordinary one.
        exact: The values of the rows in state `EXACT`, in row order, of the column's own type; or None.
    """

    bins: npt.NDArray[np.int64]
    states: npt.NDArray[np.uint8] | None = None
    exact: pa.Array | None = None


class Column(ABC):
    """A fitted, immutable, reversible transform of one column.

    Attributes:
        kind: Name of the kind, as it stands in YAML and JSON.
        field: The Arrow field: name, type, nullability, metadata.
    """

    kind: ClassVar[str]
    field: pa.Field

    @property
    def name(self) -> str:
        """The column's name."""
        return str(self.field.name)

    @abstractmethod
    def spans(self) -> list[Span]:
        """The column's spans, `start` counted from 0 within the column; empty for passthrough."""

    @abstractmethod
    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols.

        Args:
            values: An array of `field.type`, n values.

        Returns:
            Symbols with n rows and one column a symbol of `spans()`.
        """

    @abstractmethod
    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into an array of `field.type`; bins outside the grid are clipped to it."""

    def states_of(self, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """The states that a column's own symbols say.

        Args:
            bins: n × D_c symbols.

        Returns:
            uint8 array of shape (n,) of `State`; None if the column has no state symbol, or if it says in some
            row only that there is no ordinary value (-1): the states must then travel apart.
        """
        return None

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted, JSON-serializable, with `"kind"`, without the field itself."""

    @classmethod
    @abstractmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> Column:
        """Rebuilds the column from `to_json`'s result."""
