"""Does a part give back what was written, and is a damaged one an error and never garbage?"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cells import BlockCell
from pipeline.columns import State
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError
from pipeline.part_layout import PartShape, writer_options
from pipeline.parts import Block, PartFormat, PartReader, PartWriter, Wanted, record_of
from pipeline.plan import PartRecord, Plan, free_name
from pipeline.rows import Exceptions
from pipeline.storage import Location
from tests.small import as_stored, one_batch

UNIT = WorkUnit(3, "year=2024/a.parquet", 2, (5, 3), 100)
LATENTS = 3
Written = tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.float32]], Exceptions]


def latents_of(rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(rows, LATENTS)).astype(np.float32)


def a_plan(names: list[str], **changes: Any) -> Plan:
    taken = {"latent_column": free_name("latent", names), "corrections_column": free_name("corrections", names)}
    fixed = {"keep": "latents", "error": "none", "columns": {}, "effort": "", "request": "a" * 64, "bundle": "b" * 64}
    return Plan(**{**fixed, "codec": None, "unit_bytes": 1, "block_rows": 1, **taken, **changes})


@dataclasses.dataclass(frozen=True)
class Part:
    """A part that was written, and what reading it needs."""

    path: Path
    record: PartRecord
    form: PartFormat

    def reader(self, whole: bool = True) -> PartReader:
        return PartReader(Location(str(self.path)), self.record, self.form, whole)

    def read(self, whole: bool = True) -> list[Block]:
        plan = self.form.plan
        with self.reader(whole) as part:
            names = [name for name in part._types if name not in (plan.latent_column, plan.corrections_column)]
            return list(part.blocks(Wanted(names, True, True)))


def write(
    path: Path, schema: pa.Schema, names: list[str], blocks: list[Written], dataset_schema: pa.Schema | None = None
) -> Part:
    unit = dataclasses.replace(UNIT, row_groups=(sum(batch.num_rows for batch, _, _ in blocks),))
    form = PartFormat(schema if dataset_schema is None else dataset_schema, a_plan(names))
    modelled = tuple(name for name in schema.names if name not in names)
    writer = PartWriter(str(path), form, schema, PartShape(tuple(names), modelled, latent_dim=LATENTS), unit)
    for batch, latents, exceptions in blocks:
        writer.write(batch, {}, latents, BlockCell(exceptions=exceptions))
    writer.close()
    return Part(path, record_of(str(path), unit, form.plan, names), form)


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


def test_are_latents_alone_compressed_in_less_time() -> None:
    """Where a coder takes its time anyhow, they are compressed as hard as what is copied."""
    latent = pa.list_(pa.field("element", pa.float32(), nullable=False), LATENTS)
    schema = pa.schema([("key", pa.string()), ("latent", latent), ("corrections", pa.binary())])
    levels = {}
    for keep, codec in (("latents", None), ("both", "c" * 64)):
        plan = a_plan(["key"], keep=keep, error="0.01r" if codec else "none", codec=codec)
        levels[keep] = writer_options(schema, plan, PartShape(("key",), ("x",), latent_dim=LATENTS))[
            "compression_level"
        ]
    alone, both = (levels[keep]["latent.list.element"] for keep in ("latents", "both"))
    assert alone < both == levels["both"]["key"] == levels["latents"]["key"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_is_a_copied_column_equal_by_value_and_type(tmp_path: Path, kind: str, whole: bool) -> None:
    field = pa.field("c", TYPES[kind].type, metadata={"unit": "mm"})
    batch = pa.RecordBatch.from_arrays([TYPES[kind]], schema=pa.schema([field]))
    blocks: list[Written] = [(batch, latents_of(3), {}), (batch.slice(1), latents_of(2, 1), {})]
    part = write(tmp_path / "p.parquet", batch.schema, ["c"], blocks)
    for found, (expected, latents, _) in zip(part.read(whole), blocks, strict=True):
        assert found.carried["c"].type == field.type
        assert repr(found.carried["c"].to_pylist()) == repr(expected.column("c").to_pylist())
        assert found.latents is not None
        np.testing.assert_array_equal(found.latents, latents)
        assert found.cell.exceptions == {}


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
    found = write(tmp_path / "p.parquet", batch.schema, ["k"], blocks).read()
    assert [block.cell.exceptions.keys() for block in found] == [exceptions.keys(), {}.keys(), sliced.keys()]
    for block, (_, _, written) in zip(found, blocks, strict=True):
        for name, (expected_states, expected) in written.items():
            got_states, got = block.cell.exceptions[name]
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
    part = write(tmp_path / "p.parquet", table.schema, names, [(one_batch(table), latents_of(4), {})])
    assert (part.form.plan.latent_column, part.form.plan.corrections_column) == ("latent__", "corrections_")
    for whole in (True, False):
        (block,) = part.read(whole)
        assert {name: block.carried[name].to_pylist() for name in names} == table.to_pydict()
    footer = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
    sizes = [footer.column(i).total_compressed_size for i in range(7)]
    expected = {"latents": sizes[5], "corrections": sizes[6], "plain": 0, "passthrough": sum(sizes[:5])}
    assert part.record.sizes == expected


def test_are_only_the_columns_asked_for_read(tmp_path: Path) -> None:
    names = ["a", "a.b", "n"]
    nested = [{"x": i, "y": [i]} for i in range(4)]
    table = pa.table({"a": range(4), "a.b": range(4, 8), "n": nested})
    part = write(tmp_path / "p.parquet", table.schema, names, [(one_batch(table), latents_of(4), {})])
    footer = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
    data = bytearray(part.path.read_bytes())
    for index in range(footer.num_columns):
        if footer.column(index).path_in_schema != "a":
            data[footer.column(index).data_page_offset + 30] ^= 1
    part.path.write_bytes(bytes(data))
    with part.reader(whole=False) as opened:
        block = opened.block(0, Wanted(["a"], False, False))
        assert (block.carried["a"].to_pylist(), block.latents) == ([0, 1, 2, 3], None)
        for wanted in (Wanted(["a.b"], False, False), Wanted(["n"], False, False), Wanted([], True, False)):
            with pytest.raises(ArchiveError, match=r"block 0 of .*fails its checksum"):
                opened.block(0, wanted)


def test_may_there_be_no_column_to_copy(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1, 2])], ["modelled"])
    (block,) = write(tmp_path / "p.parquet", batch.schema, [], [(batch, latents_of(2), {})]).read()
    assert (block.rows, block.carried) == (2, {})
    assert block.latents is not None
    np.testing.assert_array_equal(block.latents, latents_of(2))


def test_may_a_part_have_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("k", pa.string())], {"who": "me"})
    batch = pa.RecordBatch.from_pylist([], schema)
    part = write(tmp_path / "p.parquet", schema, ["k"], [(batch, latents_of(0), {})])
    for whole in (True, False):
        assert part.read(whole) == []
        with part.reader(whole) as opened:
            assert opened.source_schema.equals(schema, check_metadata=True)


@pytest.mark.parametrize("same", [True, False])
def test_is_the_schema_of_the_source_kept_to_the_letter(tmp_path: Path, same: bool) -> None:
    fields = [
        pa.field("when", pa.timestamp("ns", "Asia/Kolkata"), nullable=False, metadata={"a": "b"}),
        pa.field("word", pa.dictionary(pa.int16(), pa.large_string(), ordered=True)),
        pa.field("k", pa.int8()),
    ]
    schema = pa.schema(fields, {"pandas": "{}", "ü": "ß"})
    arrays = [pa.array([1], fields[0].type), pa.array(["x"]).cast(fields[1].type), pa.array([1], pa.int8())]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    dataset = schema if same else schema.with_metadata({"of": "another file"})
    part = write(tmp_path / "p.parquet", schema, ["k"], [(batch, latents_of(1), {})], dataset)
    with part.reader() as opened:
        assert opened.source_schema.equals(schema, check_metadata=True)
    assert (b"parvae.schema" in pq.read_metadata(part.path).metadata) != same


def small_part(path: Path) -> tuple[Part, list[Written]]:
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


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", [{"request": "c" * 64}, {"bundle": "c" * 64}])
def test_is_a_part_of_another_archive_refused(tmp_path: Path, whole: bool, change: dict[str, str]) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    plan = dataclasses.replace(part.form.plan, **change)
    with pytest.raises(ArchiveError, match=r"p\.parquet is damaged: it belongs to another archive"):
        dataclasses.replace(part, form=PartFormat(part.form.schema, plan)).reader(whole)


@pytest.mark.parametrize("whole", [True, False])
def test_is_another_part_under_its_name_refused(tmp_path: Path, whole: bool) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    record = dataclasses.replace(part.record, sha256="0" * 64, guards=bytes(4) + part.record.guards[4:])
    with pytest.raises(ArchiveError, match=r"belongs to another archive \(format 1\.\d+, plan"):
        dataclasses.replace(part, record=record).reader(whole)
    other = dataclasses.replace(part.record, work_unit=dataclasses.replace(part.record.work_unit, index=4))
    with pytest.raises(ArchiveError, match="belongs to another archive or another place"):
        dataclasses.replace(part, record=other).reader(whole)


@pytest.mark.parametrize("whole", [True, False])
def test_is_a_missing_part_refused(tmp_path: Path, whole: bool) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    part.path.unlink()
    with pytest.raises(ArchiveError, match=r"p\.parquet is missing"):
        part.reader(whole)


def resealed(part: Part) -> Part:
    """A part with checksums for the file as it is now: what only reading it shows is left to be noticed."""
    return dataclasses.replace(
        part, record=record_of(str(part.path), part.record.work_unit, part.form.plan, ["k", "n"])
    )


def rewrite(part: Part, change: str) -> None:
    """Writes a part again with another order or number of rows, or other columns, its metadata kept."""
    table = pq.read_table(part.path)
    metadata = {key: value for key, value in pq.read_metadata(part.path).metadata.items() if key != b"ARROW:schema"}
    cells = table.schema.get_field_index("corrections")
    odd = [None] * 40 if change == "null latent" else [[float("inf")] * 3] * 40
    bad = pa.array([b"PVX2" + bytes(9)] + [None] * 39, pa.binary())
    tables = {
        "reordered": lambda: pa.concat_tables([table.slice(20), table.slice(0, 20)]),
        "removed": lambda: table.slice(0, 39),
        "missing": lambda: table.drop_columns(["corrections"]),
        "type": lambda: table.set_column(0, "k", pa.array(range(40))),
        "null latent": lambda: table.set_column(2, "latent", pa.array(odd, pa.list_(pa.float32(), 3))),
        "infinite latent": lambda: table.set_column(2, "latent", pa.array(odd, pa.list_(pa.float32(), 3))),
        "cell": lambda: table.set_column(cells, "corrections", bad),
        "no cell": lambda: table.set_column(cells, "corrections", pa.nulls(40, pa.binary())),
        "foreign": lambda: pa.table({"latent": [1] * 40, "corrections": [b""] * 40}),
    }
    changed = tables[change]()
    pq.write_table(changed.replace_schema_metadata(metadata), part.path, row_group_size=20)


CHANGES = ["reordered", "removed", "missing", "type", "null latent", "infinite latent", "cell", "no cell", "foreign"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_is_a_rewritten_part_refused(tmp_path: Path, change: str, whole: bool) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    rewrite(part, change)
    with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
        part.read(whole)
    if change not in ("removed",):
        with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
            resealed(part).read(whole)


@pytest.mark.parametrize("whole", [True, False])
def test_is_a_truncated_part_an_error_wherever_it_was_cut(tmp_path: Path, whole: bool) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    data = part.path.read_bytes()
    for cut in [0, 1, 4, 8, len(data) - 1, *range(0, len(data), 97)]:
        part.path.write_bytes(data[:cut])
        with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
            part.read(whole)
        lying = dataclasses.replace(part, record=dataclasses.replace(part.record, size=cut))
        with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
            lying.read(whole)


@pytest.mark.parametrize("whole", [True, False])
def test_is_every_flipped_byte_noticed(tmp_path: Path, whole: bool) -> None:
    """With few columns the rest of the file is not looked at: the first four bytes alone may change unseen."""
    part, _ = small_part(tmp_path / "p.parquet")
    data = part.path.read_bytes()
    draw = random.Random(11)
    places = [4, len(data) - 1, *(draw.randrange(4, len(data)) for _ in range(400))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        part.path.write_bytes(bytes(damaged))
        with pytest.raises(ArchiveError, match=r"p\.parquet is damaged"):
            part.read(whole)


def test_is_the_damaged_block_named(tmp_path: Path) -> None:
    part, _ = small_part(tmp_path / "p.parquet")
    data = bytearray(part.path.read_bytes())
    chunk = pq.read_metadata(part.path).row_group(1).column(0)
    data[chunk.data_page_offset + 20] ^= 8
    part.path.write_bytes(bytes(data))
    with pytest.raises(ArchiveError, match=r"p\.parquet is damaged: column 'k' of block 1 fails its checksum"):
        part.reader()
    with part.reader(whole=False) as opened:
        opened.block(0, Wanted(["k"], True, True))
        with pytest.raises(ArchiveError, match=r"block 1 of .*p\.parquet is damaged: column 'k'"):
            opened.block(1, Wanted(["k"], False, False))
