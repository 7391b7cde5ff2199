"""Vectors and images: whole rows, restored with the types and names they had."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.columns import ColumnOptions, State
from pipeline.columns.vector import VectorColumn

from .oracle import fit, plain

RNG = np.random.default_rng(4)


def _lists(matrix: np.ndarray, data_type: pa.DataType | None = None) -> pa.Array:
    data_type = data_type or pa.list_(pa.from_numpy_dtype(matrix.dtype), matrix.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=data_type)


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.field("element", pa.float32()), 3),
        pa.list_(pa.field("x", pa.float32(), nullable=False, metadata={"a": "b"}), 3),
        pa.fixed_shape_tensor(pa.float32(), [3]),
        pa.fixed_shape_tensor(pa.float32(), [1, 3], dim_names=["H", "W"], permutation=[1, 0]),
    ],
    ids=["element", "not null", "tensor", "permuted tensor"],
)
def test_the_type_is_restored_with_names_and_nullability(data_type: pa.DataType) -> None:
    tensor = isinstance(data_type, pa.FixedShapeTensorType)
    storage_type = data_type.storage_type if tensor else data_type
    matrix = RNG.normal(size=(9, 3)).astype(np.float32)
    matrix[4, 1] = np.nan
    child = pa.array(matrix.reshape(-1))
    mask = pa.array([i == 2 for i in range(9)])
    values = pa.FixedSizeListArray.from_arrays(child, type=storage_type, mask=mask)
    if tensor:
        values = pa.ExtensionArray.from_storage(data_type, values)
    column = fit(values)
    assert column.kind == "vector"
    for part in (values, values[1:7], values[3:3], values[2:3]):
        decoded = column.to_values(column.from_values(part))
        decoded.validate(full=True)
        assert decoded.type == data_type
        assert decoded.is_null().equals(part.is_null())


def test_rows_with_odd_elements_are_stored_whole() -> None:
    child = pa.array([1.0, 2.0, None, 4.0, 5.0, float("nan"), float("inf"), -0.0, 9.0, 9.0])
    values = pa.FixedSizeListArray.from_arrays(child, 2, mask=pa.array([False, False, False, False, True]))
    column = fit(values)
    symbols = column.from_values(values)
    assert symbols.states is not None
    assert symbols.states.tolist() == [State.VALUE, *[State.EXACT] * 3, State.NULL]
    assert plain(column.to_values(symbols)) == plain(values)
    assert column.grid.high == 2.0  # type: ignore[attr-defined]


def test_elements_are_standardized_one_by_one_and_pixels_together() -> None:
    matrix = RNG.normal(size=(4000, 4)) * [1, 10, 100, 0] + [0, 5, 1000, 7]
    values = _lists(matrix)
    for shape, entries in ((None, 4), ((2, 2), 1)):
        column = fit(values, ColumnOptions(shape=shape))
        span = column.spans()[0]
        assert (span.shape, span.knee, span.components) == (shape, None, 1)
        assert len(span.step) == len(span.shift) == entries
        u = column.from_values(values).bins * np.array(span.step) + np.array(span.shift)
        u = u[:, :3] if shape is None else u.reshape(-1, 1)
        assert np.abs(u.mean(axis=0)).max() < 0.01
        np.testing.assert_allclose(u.std(axis=0), 1, atol=0.01)


def test_a_row_with_one_element_beyond_the_bound_is_exact_as_a_whole() -> None:
    column = fit(_lists(np.array([[0, 0], [9, 9]], np.int16)))
    assert isinstance(column, VectorColumn)
    values = _lists(np.array([[1, 2], [3, 30_000], [8, 9]], np.int16))
    symbols = column.with_bound(1).from_values(values)
    assert symbols.states is not None
    assert symbols.states.tolist() == [State.VALUE, State.EXACT, State.VALUE]
    decoded = column.with_bound(1).to_values(symbols)
    assert decoded[1].as_py() == [3, 30_000]


def test_uint8_images_are_exact_without_a_bound() -> None:
    values = _lists(RNG.integers(0, 256, (50, 784)).astype(np.uint8))
    column = fit(values, ColumnOptions(shape=(28, 28)))
    assert column.spans()[0].bins == 256
    assert column.to_values(column.from_values(values)).equals(values)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7e308, 5e-324])
def test_constant_vectors_come_back(value: float) -> None:
    values = _lists(np.full((5, 3), value))
    column = fit(values)
    assert np.isfinite([*column.spans()[0].step, *column.spans()[0].shift]).all()
    assert column.to_values(column.from_values(values)).equals(values)
