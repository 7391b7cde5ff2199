"""Is each column given the kind that its type and data call for, and are wrong wishes refused clearly?"""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.columns import ColumnOptions, as_array, check_options, column_from_json, explain, fit_column
from pipeline.errors import ConfigError

from .oracle import fit, observe

WORDS = [f"w{i}" for i in range(100)]
VECTOR = pa.list_(pa.uint8(), 6)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (pa.array([3, None, 1272, 0], pa.int16()), {}, "numeric: int16, 0 … 1272, 1 null"),
        (pa.array([1.5, float("nan")]), {}, "numeric: double, 1.5 … 1.5, 1 NaN"),
        (
            pa.array([Decimal("-0.05"), Decimal("10.00")], pa.decimal128(9, 2)),
            {},
            "numeric: decimal128(9, 2), -0.05 … 10.00",
        ),
        (pa.array([Decimal(10**30)]), {}, "passthrough: decimal128(31, 0), values wider than 64 bits"),
        (pa.array([True, None, None]), {}, "boolean: bool, 2 nulls"),
        (pa.array([0, 1], pa.date32()), {}, "temporal: date32[day], 1970-01-01 … 1970-01-02"),
        (
            pa.array([0, 86_400_000], pa.int64()).view(pa.date64()),
            {},
            "temporal: date64[ms], 1970-01-01 … 1970-01-02",
        ),
        (pa.array([0, 5], pa.duration("ms")), {}, "temporal: duration[ms], 0 ms … 5 ms"),
        (pa.array(["a", "b"]), {}, "categorical: string, 2 categories"),
        (pa.array(WORDS * 4), {}, "categorical: string, 100 categories"),
        (pa.array(WORDS * 3), {}, "passthrough: string, 100 distinct of 300 values"),
        (
            pa.array(WORDS * 9),
            {"max_categories": 99},
            "passthrough: string, 100 distinct of 900 values",
        ),
        (
            pa.array(WORDS * 3),
            {"kind": "categorical", "max_categories": 20},
            "categorical: string, 20 categories",
        ),
        (pa.array([None, None], pa.string()), {}, "passthrough: string, all null"),
        (pa.array([None], pa.int8()), {"kind": "numeric"}, "passthrough: int8, all null"),
        (pa.array([float("nan")]), {}, "passthrough: double"),
        (pa.nulls(2), {}, "passthrough: null, all null"),
        (pa.array([1, 2]), {"kind": "passthrough"}, "passthrough: int64"),
        (pa.array([1, 2], pa.int8()), {"kind": "categorical"}, "categorical: int8, 2 categories"),
        (
            pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.uint8()), 6),
            {"shape": (2, 3)},
            "vector: fixed_size_list<item: uint8>[6], image 2×3, 0 … 11",
        ),
        (pa.array([b"x"]), {}, "passthrough: binary"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_kinds_and_their_explanations(values: pa.Array, options: dict[str, Any], expected: str) -> None:
    stats = observe(values, ColumnOptions(**options))
    column = fit_column(stats.field, stats, ColumnOptions(**options))
    assert explain(column, stats) == expected
    assert column_from_json(stats.field, column.to_json()) == column


def test_no_rows_at_all() -> None:
    for data_type in (pa.int8(), pa.string(), pa.bool_(), VECTOR, pa.float16()):
        assert fit(pa.array([], data_type)).kind == "passthrough"


@pytest.mark.parametrize(
    ("data_type", "options", "message"),
    [
        (
            pa.string(),
            {"kind": "numeric"},
            "column 'c' (string) cannot be 'numeric'; possible: categorical, sequence, pass",
        ),
        (pa.int8(), {"kind": "boolean"}, "possible: numeric, categorical, passthrough"),
        (pa.float32(), {"kind": "nonsense"}, "cannot be 'nonsense' (unknown kind); possible: numeric"),
        (pa.binary(), {"kind": "categorical"}, "possible: passthrough"),
        (VECTOR, {"shape": (2, 2)}, "shape must be [H, W] or [H, W, C] with product 6, got [2, 2]"),
        (VECTOR, {"shape": (6,)}, "shape must be [H, W] or [H, W, C] with product 6, got [6]"),
        (VECTOR, {"shape": (-2, -3)}, "got [-2, -3]"),
        (pa.int8(), {"shape": (1, 1)}, "column 'c' (int8) is no vector and has no shape"),
        (pa.string(), {"max_categories": 0}, "max_categories must be at least 1, got 0"),
        (pa.int8(), {"scaling": "log"}, "scaling must be 'robust' or 'standard', got 'log'"),
    ],
)
def test_wrong_options_are_refused(data_type: pa.DataType, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_options(pa.field("c", data_type), ColumnOptions(**options))
    assert message in str(error.value)


def test_an_unknown_stored_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'wavelet'"):
        column_from_json(pa.field("c", pa.int8()), {"kind": "wavelet"})


def test_one_row_of_every_kind() -> None:
    for value in (3, 0.5, "x", True, Decimal("1.5"), np.datetime64(7, "us")):
        values = pa.array([value])
        column = fit(values)
        assert column.kind != "passthrough"
        assert column.to_values(column.from_values(values)).equals(values)


def test_as_array_joins_chunks() -> None:
    for data_type in (pa.int8(), pa.string(), pa.dictionary(pa.int8(), pa.string()), VECTOR):
        empty = as_array(pa.chunked_array([], data_type))
        assert (len(empty), empty.type) == (0, data_type)
    assert as_array(pa.chunked_array([[1], [2]])).to_pylist() == [1, 2]
    assert as_array(pa.array([1])).to_pylist() == [1]


def test_columns_need_neither_ray_nor_torch() -> None:
    code = "import sys, pipeline.columns; print(*{'ray', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
