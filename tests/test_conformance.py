"""Are Parquet files that others wrote decoded to equal ones at `--error 0`, or refused by a typed error?"""

from __future__ import annotations

import datetime
import decimal
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.conformance import EQUAL, REFUSED, check, parquet_files
from benchmarks.equality import bits_of, difference, same_field

SHIPPED = Path(pa.__file__).parent / "tests" / "data" / "parquet"
ROWS = 60
_rng = np.random.default_rng(0)


@pytest.mark.parametrize("path", parquet_files([SHIPPED]) if SHIPPED.is_dir() else [], ids=lambda path: path.name)
def test_is_a_file_that_pyarrow_ships_decoded_to_an_equal_one(path: Path, tmp_path: Path) -> None:
    found = check(path, tmp_path)
    assert (found.outcome, found.reason) == (EQUAL, "")


def nested() -> dict[str, pa.Array]:
    """Columns that are copied, of nested types."""
    lists = pa.array([[1, None, row] if row % 3 else None for row in range(ROWS)], pa.list_(pa.int32()))
    odd = pa.array([0x7FF8000000000123] * ROWS).view(pa.float64())
    named = pa.list_(pa.field("array", pa.float64(), nullable=False))
    return {
        "lists": lists,
        "named": pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), odd, type=named),
        "maps": pa.array(
            [[("a", row), ("b", None)] if row % 2 else [] for row in range(ROWS)], pa.map_("string", "int64")
        ),
        "structs": pa.array([{"a": row, "b": [{"c": "x"}, None]} if row % 5 else None for row in range(ROWS)]),
        "deep": pa.array([[[[row]], []], None][: 1 + row % 2] for row in range(ROWS)),
        "bytes": pa.array([bytes([row, 255]) for row in range(ROWS)]),
        "fixed": pa.array([bytes(16)] * ROWS, pa.binary(16)),
        "wide": pa.array([decimal.Decimal(10**60 + row) for row in range(ROWS)], pa.decimal256(70, 0)),
        "nothing": pa.nulls(ROWS),
    }


def flat() -> dict[str, pa.Array]:
    """Columns that are modelled, of types that Parquet stores in several ways."""
    moment = datetime.datetime(2020, 1, 1)
    moments = [moment + datetime.timedelta(microseconds=row**5) for row in range(ROWS)]
    return {
        "times": pa.array(moments, pa.timestamp("ns")),
        "small": pa.array([decimal.Decimal(row) / 100 for row in range(ROWS)], pa.decimal128(7, 2)),
        "middle": pa.array([decimal.Decimal(row) * 10**9 for row in range(ROWS)], pa.decimal128(16, 4)),
        "large": pa.array([decimal.Decimal(row) * 10**20 for row in range(ROWS)], pa.decimal128(36, 8)),
        "half": pa.array(_rng.normal(size=ROWS).astype(np.float16)),
        "words": pa.array(["a", None, "b"] * (ROWS // 3)),
        "flags": pa.array([True, False, None] * (ROWS // 3)),
        "bytes": pa.array(_rng.integers(0, 255, ROWS).astype(np.uint8)),
        "zeros": pa.array(np.where(_rng.random(ROWS) < 0.5, -0.0, 0.0)),
    }


WAYS: dict[str, dict[str, Any]] = {
    "version 1.0": {"version": "1.0"},
    "page 2.0": {"data_page_version": "2.0", "compression": "zstd"},
    "int96": {"use_deprecated_int96_timestamps": True},
    "integers": {"store_decimal_as_integer": True},
    "no Arrow schema": {"store_schema": False},
    "gzip": {"compression": "gzip", "data_page_size": 64, "write_batch_size": 5},
    "groups": {"row_group_size": 7, "write_page_index": True, "write_page_checksum": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("columns", [nested, flat])
def test_is_every_way_of_writing_a_type_decoded_to_an_equal_file(
    way: str, columns: Callable[[], dict[str, pa.Array]], tmp_path: Path
) -> None:
    table = pa.table({**columns(), "row": pa.array(range(ROWS))})
    path = tmp_path / "data.parquet"
    pq.write_table(table, path, use_compliant_nested_type=False, **WAYS[way])
    found = check(path, tmp_path)
    assert (found.outcome, found.reason) == (EQUAL, "")


@pytest.mark.parametrize(
    "encoding", ["PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]
)
def test_is_every_encoding_read(encoding: str, tmp_path: Path) -> None:
    column = pa.array([f"word {row}" for row in range(ROWS)]) if "BYTE_ARRAY" in encoding else pa.array(range(ROWS))
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"x": column}), path, use_dictionary=False, column_encoding=encoding)
    assert check(path, tmp_path).outcome == EQUAL


def test_is_a_file_with_nothing_to_model_refused_and_its_columns_copied(tmp_path: Path) -> None:
    pq.write_table(pa.table({"bytes": nested()["bytes"]}), tmp_path / "data.parquet")
    found = check(tmp_path / "data.parquet", tmp_path)
    assert found.outcome == REFUSED
    assert "nothing to model (beside a column of numbers: equal)" in found.reason


def test_are_files_found_by_name_and_by_magic_and_once(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    for number, name in enumerate(("a.parquet", "b.parq", "no_suffix", "c.parquet.encrypted")):
        (tmp_path / name).write_bytes(sink.getvalue() + b" " * number)
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "text.txt").write_text("PAR")
    names = [path.name for path in parquet_files([tmp_path])]
    assert names == ["a.parquet", "b.parq", "c.parquet.encrypted", "no_suffix"]


def test_does_the_comparison_see_every_bit(tmp_path: Path) -> None:
    odd = pa.array([0x7FF8000000000123]).view(pa.float64())
    plain = pa.array([float("nan")])
    for wrap in (
        lambda x: x,
        lambda x: pa.ListArray.from_arrays([0, 1], x),
        lambda x: pa.StructArray.from_arrays([x], ["x"]),
    ):
        assert bits_of(wrap(odd)) != bits_of(wrap(plain))
    empty, null = pa.array([[], [1]], pa.list_(pa.int8())), pa.array([None, [1]], pa.list_(pa.int8()))
    assert bits_of(empty) != bits_of(null)
    assert bits_of(pa.array([[1], [2]])) != bits_of(pa.array([[1, 2], []]))
    assert bits_of(pa.array([[("a", 1)]], pa.map_("string", "int8"))) != bits_of(
        pa.array([[("a", 2)]], pa.map_("string", "int8"))
    )
    one, two = (pa.field("x", pa.list_(pa.field(name, pa.int8()))) for name in ("item", "array"))
    assert same_field(one, one)
    assert not same_field(one, two)
    assert not same_field(one, pa.field("x", pa.list_(pa.int8(), 2)))
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a", row_group_size=1)
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "b")
    assert difference(tmp_path / "a", tmp_path / "b").startswith("row groups")
    assert difference(tmp_path / "a", tmp_path / "a") == ""
