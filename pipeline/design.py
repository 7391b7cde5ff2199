"""Raw columns as a matrix of numbers, as a classifier without latents would take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.columns import Column

Floats = npt.NDArray[np.float32]
MAX_CATEGORIES = 256
"""Categories of a column that get a number of their own; rarer ones share one."""


class DesignMatrix:
    """Numbers standardized, nulls filled in with the mean and flagged, categories one-hot, vectors on one scale.

    Args:
        columns: The modelled columns, without the label.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self.names = [column.name for column in columns]
        self._vectors = [column.name for column in columns if column.kind == "vector"]
        text = [column.name for column in columns if column.kind in ("categorical", "sequence")]
        numbers = [name for name in self.names if name not in {*self._vectors, *text}]
        self._scales: dict[str, tuple[npt.NDArray[np.float64], float]] = {}
        self._scalars = make_column_transformer(
            (make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler()), numbers),
            (
                OneHotEncoder(max_categories=MAX_CATEGORIES, handle_unknown="infrequent_if_exist", sparse_output=False),
                text,
            ),
        )
        self._numbers, self._text = numbers, text

    def fit(self, table: pa.Table) -> DesignMatrix:
        """Learns means, scales and categories from rows."""
        if self._numbers or self._text:
            self._scalars.fit(self._frame(table))
        for name in self._vectors:
            values = _vectors(table.column(name))
            mean = np.nanmean(values, axis=0, dtype=np.float64)
            self._scales[name] = (np.asarray(mean), float(np.nanstd(values - mean)) or 1.0)
        return self

    def transform(self, table: pa.Table) -> Floats:
        """The matrix of rows, of shape (rows, D)."""
        parts: list[Any] = []
        if self._numbers or self._text:
            parts.append(np.asarray(self._scalars.transform(self._frame(table)), np.float32))
        for name in self._vectors:
            mean, scale = self._scales[name]
            parts.append(np.nan_to_num((_vectors(table.column(name)) - mean) / scale).astype(np.float32))
        joined: Floats = np.concatenate(parts, axis=1)
        return joined

    def _frame(self, table: pa.Table) -> pd.DataFrame:
        columns: dict[str, Any] = {}
        for name in self._numbers:
            values = _numbers(table.column(name))
            columns[name] = np.where(np.isfinite(values), values, np.nan)
        for name in self._text:
            column = table.column(name)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            columns[name] = np.asarray(["\0null" if v is None else str(v) for v in column.to_pylist()], object)
        return pd.DataFrame(columns)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    kind = column.type
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        column = column.cast(pa.int32())
    elif pa.types.is_temporal(kind):
        column = column.cast(pa.int64())
    values: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """Vectors of shape (rows, elements); what is null is NaN."""
    rows = []
    for chunk in column.chunks:
        size = chunk.type.list_size
        # `values` keeps the elements of null rows, `flatten` drops them
        every = chunk.values  # noqa: PD011 (Arrow's)
        elements = every.slice(chunk.offset * size, len(chunk) * size).cast(pa.float64())
        values = np.array(elements.to_numpy(zero_copy_only=False)).reshape(len(chunk), size)
        values[~np.isfinite(values)] = np.nan
        values[chunk.is_null().to_numpy(zero_copy_only=False)] = np.nan
        rows.append(values)
    joined: npt.NDArray[np.float64] = np.concatenate(rows) if rows else np.zeros((0, column.type.list_size))
    return joined
