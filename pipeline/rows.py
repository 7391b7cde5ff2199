"""Whole rows ↔ symbols: all columns of a dataset together.

`RowTransform` turns record batches into the symbol matrix `bins_BD` of `vae_model` and back; what bins cannot
say (nulls, non-finite values, unseen categories) travels beside it as `Exceptions`, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns import Column, Symbols, column_from_json
from pipeline.columns.numeric import NumericColumn
from pipeline.columns.sequence import SequenceColumn
from pipeline.columns.vector import VectorColumn
from pipeline.errors import ConfigError, DatasetError
from vae_model.layout import FeatureLayout

Exceptions = dict[str, tuple[npt.NDArray[np.uint8] | None, pa.Array | None]]
"""Column name → (states, exactly stored values), for the columns of a batch that need it.

The states are None only after `RowTransform.split_exceptions`: the symbols say them."""
_NARROW = 2
"""Symbols of a column, at most, for rows to lie symbol after symbol in memory."""


def concat_exceptions(parts: Sequence[tuple[int, Exceptions]]) -> Exceptions:
    """The exceptions of batches one after the other.

    Args:
        parts: Rows and exceptions of each batch, as `RowTransform.from_batch` gives them.
    """
    whole: Exceptions = {}
    for name in dict.fromkeys(name for _, exceptions in parts for name in exceptions):
        found = [exceptions.get(name, (None, None)) for _, exceptions in parts]
        states = [
            np.zeros(rows, np.uint8) if states is None else states
            for (rows, _), (states, _) in zip(parts, found, strict=True)
        ]
        exact = [values for _, values in found if values is not None]
        whole[name] = (np.concatenate(states), pa.concat_arrays(exact) if exact else None)
    return whole


@dataclass(frozen=True)
class RowTransform:
    """The fitted columns of a dataset, in schema order.

    Attributes:
        schema: The Arrow schema that rows have.
        columns: One fitted column for each field.
    """

    schema: pa.Schema
    columns: tuple[Column, ...]

    @property
    def modelled(self) -> list[Column]:
        """The columns that the model sees."""
        return [column for column in self.columns if column.kind != "passthrough"]

    @property
    def passthrough(self) -> list[str]:
        """Names of the columns that are copied as they are."""
        return [column.name for column in self.columns if column.kind == "passthrough"]

    @cached_property
    def _widths(self) -> list[int]:
        """The number of symbols of each modelled column."""
        return [sum(span.width for span in column.spans()) for column in self.modelled]

    def layout(self) -> FeatureLayout:
        """Where each modelled column's symbols stand in a row."""
        return FeatureLayout.assemble(span for column in self.modelled for span in column.spans())

    def from_batch(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], Exceptions]:
        """Turns rows into `bins_BD` and what they cannot say.

        Args:
            batch: Rows with at least the modelled columns.

        Returns:
            An int64 array of shape (rows, D), and the exceptions. Where no column has more than two symbols it lies
            symbol after symbol in memory, otherwise row after row.
        """
        exceptions: Exceptions = {}
        schema, widths = batch.schema, self._widths
        narrow = all(width <= _NARROW for width in widths)
        bins = np.empty((batch.num_rows, sum(widths)), np.int64, order="F" if narrow else "C")
        position = 0
        for column, width in zip(self.modelled, widths, strict=True):
            symbols = column.from_values(batch.column(schema.get_field_index(column.name)))
            bins[:, position : position + width] = symbols.bins  # at once: columns' own arrays do not pile up
            position += width
            if symbols.states is not None:
                exceptions[column.name] = (symbols.states, symbols.exact)
        return bins, exceptions

    def with_bounds(self, bounds: Mapping[str, float], samples: pa.RecordBatch | None = None) -> RowTransform:
        """The coding transform: the same columns on grids that meet error bounds.

        Categorical and boolean columns are exact as they are, temporal ones are made exact, sequences become
        categories. The network never sees these grids: they are for corrections alone.

        Args:
            bounds: Absolute bound of every numeric and vector column, in its own unit; 0 = bit for bit.
            samples: Rows from anywhere in the dataset, which choose grids and state symbols.

        Raises:
            ConfigError: If a bound is negative, not finite, or missing.
        """
        columns: list[Column] = []
        for column in self.columns:
            bounded = column
            if isinstance(column, NumericColumn | VectorColumn):
                bound = 0.0 if column.kind == "temporal" else bounds.get(column.name)
                if bound is None:
                    raise ConfigError(f"column {column.name!r} ({column.field.type}) has no error bound")
                bounded = column.with_bound(bound, None if samples is None else samples.column(column.name))
            elif isinstance(column, SequenceColumn):
                bounded = column.as_categories(None if samples is None else samples.column(column.name))
            columns.append(bounded)
        return RowTransform(self.schema, tuple(columns))

    def split_exceptions(self, bins_bd: npt.NDArray[np.int64], exceptions: Exceptions) -> Exceptions:
        """The exceptions without the states that the symbols say by themselves.

        Args:
            bins_bd: The symbols of the rows.
            exceptions: The exceptions of the same rows, from `from_batch`.

        Returns:
            Exceptions from which `join_exceptions` makes the given ones again.
        """
        rest: Exceptions = {}
        for column, symbols in self._parts(bins_bd):
            states, exact = exceptions.get(column.name, (None, None))
            told = column.states_of(symbols)
            if states is not None and told is not None and np.array_equal(states, told):
                states = None
            if states is not None or exact is not None:
                rest[column.name] = (states, exact)
        return rest

    def join_exceptions(self, bins_bd: npt.NDArray[np.int64], exceptions: Exceptions) -> Exceptions:
        """The inverse of `split_exceptions`."""
        whole: Exceptions = {}
        for column, symbols in self._parts(bins_bd):
            states, exact = exceptions.get(column.name, (None, None))
            if states is None:
                states = column.states_of(symbols)
            if states is not None and states.any():
                whole[column.name] = (states, exact)
            elif exact is not None:
                raise ValueError(f"column {column.name!r} has exact values, but no row is stored exactly")
        return whole

    def to_arrays(self, bins_bd: npt.NDArray[np.int64], exceptions: Exceptions) -> dict[str, pa.Array]:
        """Turns symbols back into one array a modelled column."""
        arrays: dict[str, pa.Array] = {}
        for column, symbols in self._parts(bins_bd):
            states, exact = exceptions.get(column.name, (None, None))
            arrays[column.name] = column.to_values(Symbols(symbols, states, exact))
        return arrays

    def _parts(self, bins_bd: npt.NDArray[np.int64]) -> Iterator[tuple[Column, npt.NDArray[np.int64]]]:
        """Each modelled column and its symbols."""
        position = 0
        for column, width in zip(self.modelled, self._widths, strict=True):
            yield column, bins_bd[:, position : position + width]
            position += width

    def check_schema(self, schema: pa.Schema, what: str) -> None:
        """Refuses a dataset whose columns are not those the model was fitted to.

        Raises:
            DatasetError: Naming the first column that differs.
        """
        if schema.equals(self.schema, check_metadata=False):
            return
        for field in self.schema:
            if field.name not in schema.names:
                raise DatasetError(f"{what} lacks the column {field.name!r} ({field.type}) of the model")
            other = schema.field(field.name)
            if not other.equals(field):
                raise DatasetError(
                    f"{what}: column {field.name!r} is {other.type}{_nullability(other)}, the model was trained "
                    f"on {field.type}{_nullability(field)}; cast it, or train a model for this dataset"
                )
        extra = [name for name in schema.names if name not in self.schema.names]
        if extra:
            raise DatasetError(f"{what} has the column {extra[0]!r} that the model has never seen; drop it")
        raise DatasetError(f"{what} has the model's columns in another order: {schema.names}")

    def to_json(self) -> list[dict[str, Any]]:
        """The columns as JSON, in schema order."""
        return [{"name": column.name, **column.to_json()} for column in self.columns]

    @classmethod
    def from_json(cls, schema: pa.Schema, data: Sequence[Mapping[str, Any]]) -> RowTransform:
        """Rebuilds the transform from `to_json`'s result."""
        return cls(schema, tuple(column_from_json(schema.field(item["name"]), item) for item in data))


def _nullability(field: pa.Field) -> str:
    return "" if field.nullable else " not null"
