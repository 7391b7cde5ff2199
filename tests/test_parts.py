"""Does a part give back what was written, and is a damaged one an error and never garbage?"""

from __future__ import annotations

import datetime
import decimal
import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.columns import State
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError
from pipeline.parts import Block, PartColumns, PartReader, PartWriter
from pipeline.rows import Exceptions
from pipeline.storage import Location
from tests.small import as_stored, one_batch

UNIT = WorkUnit(3, "year=2024/a.parquet", 2, (5, 3), 100)
PLAN = "f" * 64
LATENTS = 3
Written = tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.float32]], Exceptions]


def latents_of(rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(rows, LATENTS)).astype(np.float32)


def write(path: Path, schema: pa.Schema, names: list[str], blocks: list[Written]) -> PartColumns:
    columns = PartColumns.beside(names)
    writer = PartWriter(str(path), schema, names, columns, LATENTS, UNIT.to_json(), PLAN)
    for batch, latents, exceptions in blocks:
        writer.write(batch, latents, exceptions)
    writer.close()
    assert writer.rows == sum(batch.num_rows for batch, _, _ in blocks)
    return columns


def read(path: Path, columns: PartColumns) -> list[Block]:
    with PartReader(Location(str(path)), columns, PLAN, UNIT) as part:
        blocks = list(part.blocks())
        assert part.rows == sum(len(block.latents) for block in blocks)
    return blocks


def value_types() -> dict[str, pa.Array]:
    """Three values of every type that Parquet can hold."""
    day = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    tensor = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    arrays = [
        pa.array(["a", None, ""]),
        pa.array(["a", None, "é"], pa.large_string()),
        pa.array(["a", None, "longer than twelve bytes"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.int8()), ["x", "y"], ordered=True),
        pa.array([b"\xff", None, b""]),
        pa.array([b"\xff", None, b""], pa.large_binary()),
        pa.array([b"ab", None, b"cd"], pa.binary(2)),
        pa.array([1, None, 2**64 - 1], pa.uint64()),
        pa.array([-128, None, 127], pa.int8()),
        pa.array(np.array([1.5, np.nan, -0.0], np.float16)),
        pa.array([1.5, float("nan"), float("-inf")]),
        pa.array([True, None, False]),
        pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-9.9")], pa.decimal32(5, 1)),
        pa.array([decimal.Decimal("1.5"), None, decimal.Decimal(10) ** 20], pa.decimal128(38, 10)),
        pa.array([decimal.Decimal("1.5"), None, decimal.Decimal(10) ** 60], pa.decimal256(76, 10)),
        pa.array([day, None, day], pa.timestamp("us", "Europe/Paris")),
        pa.array([day.date(), None, day.date()]),
        pa.array([1, None, 2], pa.time64("ns")),
        pa.array([1, None, 2], pa.duration("s")),
        pa.nulls(3),
        pa.array([[1, None], [], None]),
        pa.array([[1, None], [], None], pa.large_list(pa.int16())),
        pa.array([[1.0, None], None, [2.0, 3.0]], pa.list_(pa.float32(), 2)),
        pa.array([{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": []}]),
        pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        pa.StructArray.from_arrays([pa.array(["a", "b", "a"]).dictionary_encode()], ["inner"]),
        pa.FixedShapeTensorArray.from_numpy_ndarray(tensor),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16))),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", None, "{}"])),
    ]
    return {str(array.type): as_stored(pa.table({"c": array}))["c"].combine_chunks() for array in arrays}


TYPES = value_types()


@pytest.mark.parametrize("kind", TYPES)
def test_is_a_copied_column_equal_by_value_and_schema(tmp_path: Path, kind: str) -> None:
    field = pa.field("c", TYPES[kind].type, metadata={"unit": "mm"})
    batch = pa.RecordBatch.from_arrays([TYPES[kind]], schema=pa.schema([field]))
    blocks: list[Written] = [(batch, latents_of(3), {}), (batch.slice(1), latents_of(2, 1), {})]
    columns = write(tmp_path / "p.parquet", batch.schema, ["c"], blocks)
    for found, (expected, latents, _) in zip(read(tmp_path / "p.parquet", columns), blocks, strict=True):
        assert found.passthrough.schema.field("c").equals(field, check_metadata=True)
        assert repr(found.passthrough.to_pylist()) == repr(expected.to_pylist())
        np.testing.assert_array_equal(found.latents, latents)
        assert found.exceptions == {}


@pytest.mark.parametrize("kind", TYPES)
def test_are_exactly_stored_values_given_back(tmp_path: Path, kind: str) -> None:
    exact = TYPES[kind]
    states = np.array([State.EXACT, State.VALUE, State.EXACT, State.NULL, State.EXACT], np.uint8)
    batch = pa.RecordBatch.from_arrays([pa.array(range(5))], ["k"])
    exceptions: Exceptions = {"a:b, c": (states, exact), "none": (np.full(5, State.NAN, np.uint8), None)}
    sliced: Exceptions = {"a:b, c": (states[:4], exact.slice(1))}
    blocks: list[Written] = [
        (batch, latents_of(5), exceptions),
        (batch, latents_of(5), {}),
        (batch.slice(1), latents_of(4), sliced),
    ]
    columns = write(tmp_path / "p.parquet", batch.schema, ["k"], blocks)
    found = read(tmp_path / "p.parquet", columns)
    assert [block.exceptions.keys() for block in found] == [exceptions.keys(), {}.keys(), sliced.keys()]
    for block, (_, _, written) in zip(found, blocks, strict=True):
        for name, (expected_states, expected) in written.items():
            got_states, got = block.exceptions[name]
            np.testing.assert_array_equal(got_states, expected_states)
            if expected is None:
                assert got is None
            else:
                assert got is not None
                assert got.type == expected.type
                assert repr(got.to_pylist()) == repr(expected.to_pylist())


def test_may_data_have_columns_named_like_the_added_ones(tmp_path: Path) -> None:
    names = ["latent", "corrections", "latent_", "latent.list", "corrections.x"]
    table = pa.table({name: ["longer" * 20 + str(i)] * 4 for i, name in enumerate(names)})
    columns = write(tmp_path / "p.parquet", table.schema, names, [(one_batch(table), latents_of(4), {})])
    assert columns == PartColumns("latent__", "corrections_")
    (block,) = read(tmp_path / "p.parquet", columns)
    assert block.passthrough.to_pylist() == table.to_pylist()
    with PartReader(Location(str(tmp_path / "p.parquet")), columns, PLAN) as part:
        roles = part.bytes_by_role()
    footer = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
    sizes = [footer.column(i).total_compressed_size for i in range(7)]
    assert roles == {"latents": sizes[5], "corrections": sizes[6], "passthrough": sum(sizes[:5])}


def test_may_there_be_no_column_to_copy(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2])], ["modelled"])
    columns = write(tmp_path / "p.parquet", batch.schema, [], [(batch, latents_of(2), {})])
    (block,) = read(tmp_path / "p.parquet", columns)
    assert (block.passthrough.num_rows, block.passthrough.num_columns) == (2, 0)
    np.testing.assert_array_equal(block.latents, latents_of(2))


def test_may_a_part_have_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("k", pa.string())], {"who": "me"})
    batch = pa.RecordBatch.from_pylist([], schema)
    columns = write(tmp_path / "p.parquet", schema, ["k"], [(batch, latents_of(0), {})])
    with PartReader(Location(str(tmp_path / "p.parquet")), columns, PLAN, UNIT) as part:
        assert (part.rows, list(part.blocks())) == (0, [])
        assert part.source_schema.equals(schema, check_metadata=True)


def test_is_the_schema_of_the_source_kept_to_the_letter(tmp_path: Path) -> None:
    fields = [
        pa.field("when", pa.timestamp("ns", "Asia/Kolkata"), nullable=False, metadata={"a": "b"}),
        pa.field("word", pa.dictionary(pa.int16(), pa.large_string(), ordered=True)),
        pa.field("k", pa.int8()),
    ]
    schema = pa.schema(fields, {"pandas": "{}", "ü": "ß"})
    batch = pa.RecordBatch.from_arrays([pa.array([1], pa.int8())], ["k"])
    columns = write(tmp_path / "p.parquet", schema, ["k"], [(batch, latents_of(1), {})])
    with PartReader(Location(str(tmp_path / "p.parquet")), columns, PLAN) as part:
        assert part.source_schema.equals(schema, check_metadata=True)


def small_part(path: Path) -> tuple[PartColumns, list[Written]]:
    table = as_stored(
        pa.table({"k": [f"key {i}" for i in range(40)], "n": [{"a": [i]} for i in range(40)], "x": range(40)})
    )
    states = np.zeros(20, np.uint8)
    states[3] = State.EXACT
    exceptions: Exceptions = {"x": (states, pa.array([2**40]))}
    blocks: list[Written] = [
        (one_batch(table.slice(0, 20)), latents_of(20), exceptions),
        (one_batch(table.slice(20)), latents_of(20, 1), {}),
    ]
    return write(path, table.schema, ["k", "n"], blocks), blocks


def test_is_a_part_of_another_plan_refused(tmp_path: Path) -> None:
    columns, _ = small_part(tmp_path / "p.parquet")
    with pytest.raises(ArchiveError, match="belongs to another archive"):
        PartReader(Location(str(tmp_path / "p.parquet")), columns, "e" * 64)


def test_is_a_part_under_another_parts_name_refused(tmp_path: Path) -> None:
    columns, _ = small_part(tmp_path / "p.parquet")
    for other in (WorkUnit(4, UNIT.path, 2, (5, 3), 100), WorkUnit(3, UNIT.path, 2, (3, 5), 100)):
        with pytest.raises(ArchiveError, match="holds other rows than its name says"):
            PartReader(Location(str(tmp_path / "p.parquet")), columns, PLAN, other)


def test_is_a_missing_part_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"p\.parquet is missing"):
        PartReader(Location(str(tmp_path / "p.parquet")), PartColumns("latent", "corrections"), PLAN)


def test_is_a_foreign_parquet_file_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"latent": [1], "corrections": [b""]}), tmp_path / "p.parquet")
    with pytest.raises(ArchiveError, match="is damaged"):
        PartReader(Location(str(tmp_path / "p.parquet")), PartColumns("latent", "corrections"), PLAN)


@pytest.mark.parametrize("change", ["order", "type", "missing", "null latent", "infinite latent"])
def test_is_a_part_with_other_columns_refused(tmp_path: Path, change: str) -> None:
    columns, _ = small_part(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    odd = [None] * 40 if change == "null latent" else [[float("inf")] * 3] * 40
    replaced = {
        "order": table.select(["k", "corrections", "latent", "n"]),
        "type": table.set_column(2, "latent", table["k"]),
        "missing": table.drop_columns(["corrections"]),
        "null latent": table.set_column(2, "latent", pa.array(odd, pa.list_(pa.float32(), 3))),
        "infinite latent": table.set_column(2, "latent", pa.array(odd, pa.list_(pa.float32(), 3))),
    }
    pq.write_table(replaced[change], tmp_path / "p.parquet", row_group_size=20)
    with pytest.raises(ArchiveError, match="damaged"):
        read(tmp_path / "p.parquet", columns)


def test_is_a_truncated_part_an_error_wherever_it_was_cut(tmp_path: Path) -> None:
    columns, _ = small_part(tmp_path / "p.parquet")
    whole = (tmp_path / "p.parquet").read_bytes()
    for cut in [0, 1, 4, 8, len(whole) - 1, *range(0, len(whole), 97)]:
        (tmp_path / "p.parquet").write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
            read(tmp_path / "p.parquet", columns)


def test_does_a_flipped_byte_give_an_archive_error_and_never_other_values(tmp_path: Path) -> None:
    """Data pages carry checksums, so only what a footer says of names and types may change unseen."""
    columns, blocks = small_part(tmp_path / "p.parquet")
    whole = (tmp_path / "p.parquet").read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    draw, noticed = random.Random(uuid.UUID(int=11).int), 0
    for number in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            data[draw.randrange(len(whole) - footer - 8 if number % 3 else len(whole))] ^= 1 << draw.randrange(8)
        (tmp_path / "p.parquet").write_bytes(bytes(data))
        try:
            found = read(tmp_path / "p.parquet", columns)
        except ArchiveError:
            noticed += 1
            continue
        if bytes(data[-footer - 8 :]) != whole[-footer - 8 :]:
            continue
        for block, (batch, latents, exceptions) in zip(found, blocks, strict=True):
            np.testing.assert_array_equal(block.latents, latents)
            assert block.passthrough.to_pylist() == batch.select(["k", "n"]).to_pylist()
            assert block.exceptions.keys() == exceptions.keys()
    assert noticed > 100


def test_is_a_damaged_corrections_cell_noticed(tmp_path: Path) -> None:
    columns, _ = small_part(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    cell = table["corrections"][0].as_py()
    draw = random.Random(5)
    for number in range(60):
        damaged = bytearray(cell)
        damaged[draw.randrange(len(cell))] ^= 1 << draw.randrange(8)
        bad = [bytes(damaged), cell[: len(cell) - number - 1], cell + b"\0", b""][min(number % 8, 3)]
        cells = pa.array([bad] + [None] * 39, pa.binary())
        pq.write_table(table.set_column(3, "corrections", cells), tmp_path / "p.parquet", row_group_size=20)
        with pytest.raises(ArchiveError, match="block 0 of"):
            read(tmp_path / "p.parquet", columns)
