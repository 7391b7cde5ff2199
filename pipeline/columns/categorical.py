"""Categories: strings, dictionaries, and integers when asked.

One categorical symbol that counts through a vocabulary, and a state symbol if fitting saw nulls or values
outside it. A value outside the vocabulary is stored exactly, so unseen values survive. Dictionary arrays come
back with the index type, value type and orderedness they had; their dictionary holds the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns.arrays import States, check_type, valid_mask
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.keys import from_keys, key_type, keys_from_json, keys_to_json, look_up, to_keys
from pipeline.columns.options import ColumnOptions
from pipeline.columns.states import SeenStates, is_state, states_or_none
from pipeline.columns.stats import ColumnStats
from vae_model.layout import Span


@dataclass(frozen=True)
class CategoricalColumn(Column):
    """A fitted column of categories.

    Attributes:
        field: The Arrow field.
        categories: The vocabulary, most frequent first: JSON values (bytes that are no UTF-8 are lone
            surrogates in a string).
        seen: States that fitting saw.
    """

    kind: ClassVar[str] = "categorical"
    field: pa.Field
    categories: tuple[Any, ...]
    seen: SeenStates

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> CategoricalColumn:
        """Fits the column to statistics with at least one ordinary value and counts of distinct values."""
        vocabulary, rows = _vocabulary(stats, options.max_categories)
        seen = {state for state in State if stats.states[state]}
        if rows < stats.ordinary:
            seen.add(State.EXACT)
        return cls(field, tuple(keys_to_json(vocabulary)), SeenStates.of(seen))

    def spans(self) -> list[Span]:
        """The state symbol, if there is one, and the value symbol."""
        bins = len(self.categories)
        value = Span(self.name, "value", "categorical", start=self.seen.width, width=1, bins=bins)
        return [*self.seen.spans(self.name), value]

    def states_of(self, bins: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says."""
        return self.seen.states_of(bins)

    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols."""
        check_type(values, self.field)
        codes = look_up(values, self._vocabulary)
        bins = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        states = np.zeros(len(bins), np.uint8)
        states[bins < 0] = State.EXACT
        valid = valid_mask(codes)
        if valid is not None:
            states[~valid] = State.NULL
        exact = None
        unseen = is_state(states, State.EXACT)
        if unseen is not None:
            encoded = to_keys(values).filter(pa.array(unseen)).dictionary_encode()
            indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            exact = from_keys(encoded.dictionary, indices, self.field.type)
        known = states_or_none(states)
        return Symbols(self.seen.beside(bins.reshape(-1, 1), known), known, exact)

    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into values."""
        codes = np.clip(symbols.bins[:, -1], 0, len(self.categories) - 1)
        keys = self._vocabulary
        states = symbols.states
        if states is not None:
            codes[states == State.NULL] = -1
            rows = np.flatnonzero(states == State.EXACT)
            found = 0 if symbols.exact is None else len(symbols.exact)
            if found != len(rows):
                raise ValueError(f"{len(rows)} rows are stored exactly, but {found} exact values are given")
            if found:
                encoded = to_keys(symbols.exact).dictionary_encode()
                codes[rows] = len(keys) + encoded.indices.to_numpy(zero_copy_only=False)
                keys = pa.concat_arrays([keys, encoded.dictionary])
        return from_keys(keys, codes, self.field.type)

    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted."""
        return {"kind": self.kind, "categories": list(self.categories), "states": self.seen.to_json()}

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> CategoricalColumn:
        """Rebuilds the column from `to_json`'s result."""
        return cls(field, tuple(data["categories"]), SeenStates.from_json(data))

    @cached_property
    def _vocabulary(self) -> pa.Array:
        return keys_from_json(list(self.categories), self.field.type)


def _vocabulary(stats: ColumnStats, limit: int) -> tuple[pa.Array, int]:
    """The most frequent keys, ties by value, and how many rows they are.

    With too many distinct values to count, the most frequent of the sample are taken.
    """
    if stats.distinct is None:
        raise ValueError(f"column {stats.field.name!r} was observed without counting its distinct values")
    keys, counts = stats.distinct.most_frequent(limit)
    if keys is not None:
        return keys, int(counts.sum())
    if stats.sample is None or stats.sample.values is None:
        raise ValueError(f"column {stats.field.name!r} has no ordinary values to fit")
    values, sampled = np.unique(stats.sample.values, return_counts=True)
    order = np.argsort(-sampled, kind="stable")[:limit]
    # -1: some values are certainly outside, or they would have been counted
    return pa.array(values[order], key_type(stats.field.type)), stats.ordinary - 1
