"""Columns that are copied as they are: keys, labels, free text, nested, binary, all-null, unknown types.

They have no symbols; whoever writes and reads archives copies their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.columns.arrays import check_type
from pipeline.columns.base import Column, Symbols
from pipeline.columns.options import ColumnOptions
from pipeline.columns.stats import ColumnStats
from vae_model.layout import Span


@dataclass(frozen=True)
class PassthroughColumn(Column):
    """A column that is not modelled.

    Attributes:
        field: The Arrow field.
    """

    kind: ClassVar[str] = "passthrough"
    field: pa.Field

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> PassthroughColumn:
        """There is nothing to fit."""
        return cls(field)

    def spans(self) -> list[Span]:
        """No symbols."""
        return []

    def from_values(self, values: pa.Array) -> Symbols:
        """Symbols without a column."""
        check_type(values, self.field)
        return Symbols(np.zeros((len(values), 0), np.int64))

    def to_values(self, symbols: Symbols) -> pa.Array:
        """There is nothing to decode from.

        Raises:
            TypeError: Always; the values must be copied.
        """
        raise TypeError(f"column {self.name!r} is passed through: copy its values instead of decoding them")

    def to_json(self) -> dict[str, Any]:
        """The kind alone."""
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> PassthroughColumn:
        """Rebuilds the column from `to_json`'s result."""
        return cls(field)
