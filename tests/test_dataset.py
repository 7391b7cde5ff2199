"""Is a bad dataset refused in a message that names the file, and does each row land in one work unit?"""

from __future__ import annotations

import io
import random
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset import (
    Dataset,
    WorkUnit,
    open_dataset,
    read_file_schema,
    read_unit,
)
from pipeline.errors import DatasetError
from pipeline.footers import SourceFile
from pipeline.storage import Location


def table(rows: int = 10, first: int = 0) -> pa.Table:
    numbers = np.arange(first, first + rows)
    words = pa.array([f"w{i % 3}" for i in numbers], pa.string())
    return pa.table({"n": numbers, "word": words, "x": numbers * 0.5})


def parquet(content: pa.Table, row_group_size: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(content, sink, row_group_size=row_group_size)
    return sink.getvalue()


def put(location: Location, content: pa.Table, row_group_size: int | None = None) -> Location:
    location.write_bytes(parquet(content, row_group_size))
    return location


def rows_of(dataset: Dataset, column: str, unit_bytes: int, block_rows: int) -> list[object]:
    values: list[object] = []
    for unit in dataset.units(unit_bytes):
        for batch in read_unit(dataset.root, unit, None, block_rows):
            assert 0 < batch.num_rows <= block_rows
            values.extend(batch.column(column).to_pylist())
    return values


def test_is_a_missing_path_refused(folder: Location) -> None:
    with pytest.raises(DatasetError, match=r"DATA .*nowhere does not exist"):
        open_dataset(folder.join("nowhere"))


def test_is_an_empty_folder_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no Parquet file"):
        open_dataset(Location(str(tmp_path)))


def test_is_a_folder_without_parquet_refused(folder: Location) -> None:
    for name in ("a.csv", "_x.parquet", ".y.parquet", "_tmp/z.parquet", "parquet"):
        folder.join(name).write_bytes(b"1")
    with pytest.raises(DatasetError, match="holds no Parquet file"):
        open_dataset(folder)


def test_are_hidden_and_foreign_files_skipped(folder: Location) -> None:
    put(folder.join("b.parquet"), table(3))
    put(folder.join("a.PARQUET"), table(4))
    for name in ("_metadata", "_SUCCESS", ".crc.parquet", "_delta_log/0.parquet", "notes.txt", ".tmp-x/a.pq"):
        folder.join(name).write_bytes(b"no Parquet")
    dataset = open_dataset(folder)
    assert [(file.path, file.rows) for file in dataset.files] == [("a.PARQUET", 4), ("b.parquet", 3)]


def test_are_hive_paths_kept_and_sorted(folder: Location) -> None:
    names = [
        "year=2024/m=1/b.parquet",
        "year=2023/m=12/a.pq",
        "year=2024/m=1/a.parquet",
        "k=__HIVE_DEFAULT__/x.pq",
    ]
    for number, name in enumerate(names):
        put(folder.join(name), table(2, 10 * number))
    dataset = open_dataset(folder)
    assert [file.path for file in dataset.files] == sorted(names)
    assert dataset.schema.names == ["n", "word", "x"]
    assert rows_of(dataset, "n", 1, 100) == [30, 31, 10, 11, 20, 21, 0, 1]


def test_is_one_file_a_dataset(folder: Location) -> None:
    for name in ("only.parquet", "_odd name without suffix"):
        dataset = open_dataset(put(folder.join(name), table(7)))
        assert [file.path for file in dataset.files] == [name]
        assert rows_of(dataset, "n", 1 << 20, 3) == list(range(7))


def test_is_a_file_at_the_root_of_its_filesystem_a_dataset() -> None:
    location = put(Location(f"memory://{uuid.uuid4().hex}.parquet"), table(7))
    assert rows_of(open_dataset(location), "n", 1 << 20, 3) == list(range(7))
    location.remove()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["word"]), r"columns missing: \['word'\]"),
        (lambda t: t.append_column("new", t["n"]), r"columns extra: \['new'\]"),
        (lambda t: t.select(["word", "n", "x"]), "order differs"),
        (lambda t: t.rename_columns(["n", "word", "y"]), r"missing: \['x'\], columns extra: \['y'\]"),
        (
            lambda t: t.set_column(0, "n", t["n"].cast(pa.int32())),
            "column 'n' is int32 there and int64 here",
        ),
        (
            lambda t: t.cast(pa.schema([pa.field("n", pa.int64(), nullable=False), *list(t.schema)[1:]])),
            "column 'n' is int64 not null there and int64 here",
        ),
    ],
)
def test_does_the_message_on_mixed_schemas_name_file_and_column(folder: Location, change: object, message: str) -> None:
    put(folder.join("a.parquet"), table())
    put(folder.join("p=1/odd.parquet"), change(table()))  # type: ignore[operator]
    put(folder.join("z.parquet"), table())
    with pytest.raises(DatasetError, match=rf"different schemas: p=1/odd.parquet against a.parquet.*{message}"):
        open_dataset(folder)


def test_may_files_differ_in_metadata(folder: Location) -> None:
    put(folder.join("a.parquet"), table().replace_schema_metadata({"who": "me"}))
    put(folder.join("b.parquet"), table())
    dataset = open_dataset(folder)
    assert dataset.schema.metadata[b"who"] == b"me"
    assert read_file_schema(folder.join("b.parquet")).metadata is None


@pytest.mark.parametrize("other", [pa.int64(), pa.string()])
def test_are_doubled_column_names_refused(folder: Location, other: pa.DataType) -> None:
    doubled = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2]), pa.array([None], other)], names=["same", "one", "same"]
    )
    put(folder.join("a.parquet"), doubled)
    with pytest.raises(DatasetError, match=r"a\.parquet has several columns named 'same'"):
        open_dataset(folder)
    put(folder.join("A.parquet"), pa.table({"same": [1], "one": [1]}))
    with pytest.raises(DatasetError, match=r"a\.parquet has several columns named 'same'"):
        open_dataset(folder)


def test_is_a_file_without_columns_refused(folder: Location) -> None:
    put(folder.join("a.parquet"), pa.table({}))
    with pytest.raises(DatasetError, match="no columns"):
        open_dataset(folder)


def test_is_a_truncated_file_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = parquet(table(200), 50)
    location = Location(str(tmp_path)).join("cut.parquet")
    for cut in sorted({0, 1, 3, 4, 7, 8, 11, 12, len(whole) - 1, len(whole) - 4, *range(0, len(whole), 41)}):
        location.write_bytes(whole[:cut])
        with pytest.raises(DatasetError, match=r"cut\.parquet is not a readable Parquet file"):
            open_dataset(location.parent)


def test_is_garbage_refused(folder: Location) -> None:
    noise = random.Random(0).randbytes(5000)
    put(folder.join("a.parquet"), table())
    for content in (noise, b"PAR1" + noise + b"PAR1", noise + b"\xff\xff\xff\x7fPAR1", b"PAR1" * 100):
        folder.join("bad.parquet").write_bytes(content)
        with pytest.raises(DatasetError, match=r"bad\.parquet is not a readable Parquet file"):
            open_dataset(folder)


def test_is_a_broken_link_refused(tmp_path: Path) -> None:
    put(Location(str(tmp_path / "a.parquet")), table())
    (tmp_path / "b.parquet").symlink_to(tmp_path / "gone.parquet")
    with pytest.raises(DatasetError, match=r"b\.parquet is not a readable"):
        open_dataset(Location(str(tmp_path)))


def test_is_a_dataset_of_links_read(tmp_path: Path) -> None:
    put(Location(str(tmp_path / "blobs" / "1")), table(4))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").symlink_to("../blobs/1")
    assert rows_of(open_dataset(Location(str(tmp_path / "data"))), "n", 1, 10) == [0, 1, 2, 3]


def test_does_any_flipped_byte_give_a_dataset_error_or_readable_rows(tmp_path: Path) -> None:
    whole = parquet(table(200), 50)
    location = Location(str(tmp_path)).join("flipped.parquet")
    draw, refusals = random.Random(7), []
    for _ in range(200):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        location.write_bytes(bytes(data))
        try:
            dataset = open_dataset(location.parent)
            for unit in dataset.units(1):
                for batch in read_unit(dataset.root, unit, None, 1000):
                    batch.validate()
        except DatasetError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all("flipped.parquet" in refusal for refusal in refusals)


def test_is_a_corrupt_data_page_an_error_that_names_the_file(folder: Location) -> None:
    whole = bytearray(parquet(table(5000)))
    start = 200
    whole[start : start + 2000] = b"\xff" * 2000
    folder.join("bad.parquet").write_bytes(bytes(whole))
    dataset = open_dataset(folder)
    with pytest.raises(DatasetError, match=r"cannot read .*bad\.parquet \(row groups 0 to 0\)"):
        rows_of(dataset, "n", 1, 100)


def test_are_files_and_row_groups_without_rows_covered(folder: Location) -> None:
    put(folder.join("a.parquet"), table(0))
    put(folder.join("b.parquet"), table(3))
    dataset = open_dataset(folder)
    assert dataset.rows == 3
    assert rows_of(dataset, "n", 1, 10) == [0, 1, 2]
    units = dataset.units()
    assert [(unit.path, unit.rows) for unit in units] == [("a.parquet", 0), ("b.parquet", 3)]
    assert list(read_unit(dataset.root, units[0], None, 10)) == []


def test_is_a_dataset_without_rows_opened(folder: Location) -> None:
    put(folder.join("a.parquet"), table(0))
    dataset = open_dataset(folder)
    assert (dataset.rows, len(dataset.units())) == (0, 1)
    assert dataset.block_rows >= 1
    assert dataset.fingerprint()


def test_are_columns_read_by_name_whatever_the_name(folder: Location) -> None:
    odd = pa.table({"a.b": [1], "a": [{"b": 2}], "c, d": [3], "": [4], "é'": [5]})
    put(folder.join("a.parquet"), odd)
    dataset = open_dataset(folder)
    for name in odd.column_names:
        batch = next(read_unit(dataset.root, dataset.units()[0], [name], 10))
        assert batch.column(name).to_pylist() == odd[name].to_pylist()


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, "cannot read"),
        (parquet(table(5), 5), r"row groups of \[5\] rows where \[5, 5\] were listed"),
        (parquet(table(10), 10), r"row groups of \[10\] rows where \[5, 5\] were listed"),
        (parquet(table(8), 4), r"row groups of \[4, 4\] rows where \[5, 5\] were listed"),
        (parquet(table(10).drop_columns(["word"]), 5), "has lost the column 'word'"),
        (b"garbage", "cannot read"),
    ],
)
def test_is_a_file_that_changes_between_listing_and_reading_noticed(
    folder: Location, replacement: bytes | None, message: str
) -> None:
    location = put(folder.join("a.parquet"), table(10), 5)
    unit = open_dataset(folder).units()[0]
    location.remove()
    if replacement is not None:
        location.write_bytes(replacement)
    with pytest.raises(DatasetError, match=rf"a\.parquet.*{message}|{message}.*a\.parquet"):
        list(read_unit(folder, unit, ["n", "word"], 100))


def test_is_a_missing_file_an_error_when_its_schema_is_read(folder: Location) -> None:
    with pytest.raises(DatasetError, match="gone"):
        read_file_schema(folder.join("gone.parquet"))


@settings(deadline=None)
@given(
    layouts=st.lists(st.lists(st.integers(0, 40), max_size=8), min_size=1, max_size=4),
    row_bytes=st.integers(1, 1000),
    unit_bytes=st.integers(1, 50_000),
)
def test_does_every_row_lie_in_one_unit(layouts: list[list[int]], row_bytes: int, unit_bytes: int) -> None:
    schema = pa.schema([("n", pa.int64())])
    files = tuple(
        SourceFile(f"{i:03d}.parquet", 1, "v", tuple(groups), sum(groups) * row_bytes)
        for i, groups in enumerate(layouts)
    )
    place = Location("/nowhere")
    units = Dataset(place, place, schema, files).units(unit_bytes)
    assert [unit.index for unit in units] == list(range(len(units)))
    for file in files:
        mine = [unit for unit in units if unit.path == file.path]
        assert mine, "a file without rows has a unit, so that it comes back"
        group = row = 0
        for unit in mine:
            assert (unit.first_group, unit.first_row) == (group, row)
            group += len(unit.row_groups)
            row += unit.rows
            assert len(unit.row_groups) == 1 or unit.rows * row_bytes <= unit_bytes + 1e-6 or len(mine) == 1
        assert tuple(rows for unit in mine for rows in unit.row_groups) == file.row_groups
    for unit in units:
        assert WorkUnit.from_json(unit.to_json()) == unit


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    unit_bytes=st.integers(1, 3000),
    block_rows=st.integers(1, 40),
)
def test_are_the_rows_of_real_files_read_once_in_order(
    tmp_path: Path, groups: list[int], unit_bytes: int, block_rows: int
) -> None:
    location = Location(str(tmp_path)).join(uuid.uuid4().hex, "a.parquet")
    content = table(sum(groups))
    with location.publishing() as spool, pq.ParquetWriter(spool, content.schema) as writer:
        start = 0
        for rows in groups:
            writer.write_table(content.slice(start, rows))
            start += rows
    dataset = open_dataset(location.parent)
    assert dataset.files[0].row_groups == tuple(groups)
    assert rows_of(dataset, "n", unit_bytes, block_rows) == content["n"].to_pylist()


def test_do_block_rows_shrink_as_rows_widen() -> None:
    place = Location("/nowhere")

    def block_rows(kind: pa.DataType, rows: int, size: int) -> int:
        files = (SourceFile("a", size, "v", (rows,), size),)
        return Dataset(place, place, pa.schema([("x", kind)]), files).block_rows

    assert block_rows(pa.int64(), 10**6, 10**7) == 65_536
    assert block_rows(pa.list_(pa.float32(), 10_000), 10**4, 10) < 500, "a vector that compresses to nothing"
    assert block_rows(pa.binary(), 1000, 10**9) == 256


def test_does_the_fingerprint_tell_datasets_apart(folder: Location) -> None:
    location = put(folder.join("a.parquet"), table(10))
    first = open_dataset(folder)
    assert open_dataset(folder).fingerprint() == first.fingerprint()
    assert first.size == len(parquet(table(10)))
    put(location, table(10, first=1))
    changed = open_dataset(folder).fingerprint()
    assert changed != first.fingerprint()
    put(folder.join("b.parquet"), table(10))
    assert open_dataset(folder).fingerprint() not in (changed, first.fingerprint())
