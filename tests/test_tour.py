"""Does a whole tour (train, encode, decode, evaluate) give back what it promises?"""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from tests.conftest import Command

ROWS = 600


def every_type(rows: int, seed: int) -> pa.Table:
    """A table with every kind of column, nulls and odd values included."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=rows)
    holes = rng.random(rows) < 0.1

    def some(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=holes)

    floats = base * 3 + rng.normal(size=rows)
    floats[:4] = [np.nan, np.inf, -np.inf, -0.0]
    when = np.datetime64("2024-01-01") + rng.integers(0, 10**6, rows).astype("timedelta64[s]")
    words = np.array(["red", "green", "blue"])[rng.integers(0, 3, rows)]
    image = rng.integers(0, 17, (rows, 12), np.uint8)
    vectors: list[Any] = list(rng.normal(size=(rows, 3)).astype(np.float32))
    vectors[0] = None
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(rows, 2, 2)).astype(np.float32))
    cents = [None if hole else decimal.Decimal(int(v * 1000)) / 100 for v, hole in zip(base, holes, strict=True)]
    columns = {
        "key, with comma": pa.array([f"row-{seed}-{i}" for i in range(rows)]),
        "i8": some((base * 20).clip(-128, 127).astype(np.int8), pa.int8()),
        "u64": some(rng.integers(0, 2**64 - 1, rows, np.uint64, endpoint=True), pa.uint64()),
        "i64": pa.array(np.where(holes, np.iinfo(np.int64).min, np.iinfo(np.int64).max - 3), pa.int64()),
        "f16": some(base.astype(np.float16), pa.float16()),
        "f32": some(floats.astype(np.float32), pa.float32()),
        "f64": pa.array(floats),
        "decimal": pa.array(cents, pa.decimal128(12, 2)),
        "flag": some(base > 0, pa.bool_()),
        "date": some(when.astype("datetime64[D]").astype(object), pa.date32()),
        "time": some(rng.integers(0, 86_400, rows), pa.int64()).cast(pa.int32()).cast(pa.time32("s")),
        "stamp": pa.array(when.astype("datetime64[us]"), pa.timestamp("us")).cast(pa.timestamp("us", "Europe/Paris")),
        "took": some(rng.integers(0, 10**9, rows), pa.int64()).cast(pa.duration("ns")),
        "word": some(words, pa.string()),
        "dict": some(words, pa.string()).dictionary_encode(),
        "image": pa.FixedSizeListArray.from_arrays(pa.array(image.ravel()), 12),
        "vector": pa.array(vectors, pa.list_(pa.float32(), 3)),
        "tensor": tensor,
        "nested": pa.array([{"a": [i, None], "b": {"c": str(i)}} for i in range(rows)]),
        "blob": pa.array([bytes([i % 256]) * (i % 5) for i in range(rows)], pa.binary()),
        "nothing": pa.nulls(rows),
        "empty": pa.nulls(rows, pa.float64()),
        "constant": pa.array([7] * rows, pa.int32()),
        "label": pa.array((base > 0).astype(np.uint8)),
    }
    fields = [pa.field(name, array.type, nullable=name != "constant") for name, array in columns.items()]
    fields[1] = fields[1].with_metadata({"unit": "mm"})
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, {"origin": "a test"}))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, pa.Table]]:
    """A Hive-partitioned dataset of three files (one without rows) with several row groups."""
    root = tmp_path_factory.mktemp("tour") / "data"
    tables = {
        "year=2023/a.parquet": every_type(ROWS, 1),
        "year=2024/a.parquet": every_type(ROWS // 2, 2),
        "year=2024/b.parquet": every_type(ROWS, 3).slice(0, 0),
    }
    for name, table in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name, row_group_size=250)
    return root, tables


@pytest.fixture(scope="module")
def archive(tables: tuple[Path, dict[str, pa.Table]], ray_session: None) -> dict[str, Path]:
    """The dataset trained, encoded and decoded once for all tests of this file."""
    from jobs.cli import main

    root, _ = tables
    work = root.parent
    config = work / "config.yaml"
    config.write_text("columns: {image: {kind: vector, shape: [3, 4]}}\n")
    model, out, back = work / "model", work / "archive", work / "back"
    train = ["train", root, "--model", model, "--passthrough", "label", "--passthrough", "key, with comma"]
    train += ["--config", config, "--latent", 4, "--epochs", 2, "--set", "network.hidden=[32]"]
    for argv in (train, ["encode", root, "--model", model, "--out", out], ["decode", out, "--out", back]):
        assert main([str(word) for word in argv]) == 0
    return {"data": root, "model": model, "archive": out, "decoded": back, "work": work}


def read(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read()


def test_are_schema_layout_and_row_groups_restored_to_the_letter(
    archive: dict[str, Path], tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    found = {str(path.relative_to(archive["decoded"])) for path in archive["decoded"].rglob("*") if path.is_file()}
    assert found == set(tables[1])
    for name in tables[1]:
        original, decoded = pq.ParquetFile(tables[0] / name), pq.ParquetFile(archive["decoded"] / name)
        assert decoded.schema_arrow.equals(original.schema_arrow, check_metadata=True), name
        groups = [
            [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups) if file.metadata.num_rows]
            for file in (original, decoded)
        ]
        assert groups[0] == groups[1]


def test_are_passthrough_columns_equal_by_value_and_order(
    archive: dict[str, Path], tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    for name, table in tables[1].items():
        decoded = read(archive["decoded"] / name)
        for column in ("key, with comma", "label", "nested", "blob", "nothing", "empty"):
            assert decoded[column].to_pylist() == table[column].to_pylist(), (name, column)


def test_do_nulls_and_non_finite_values_come_back_as_they_were(
    archive: dict[str, Path], tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    for name, table in tables[1].items():
        decoded = read(archive["decoded"] / name)
        for column in table.column_names:
            assert decoded[column].is_null().equals(table[column].is_null()), (name, column)
        for column in ("f32", "f64"):
            left, right = table[column].to_numpy(), decoded[column].to_numpy()
            odd = ~np.isfinite(left)
            np.testing.assert_array_equal(left[odd], right[odd])
            assert np.isfinite(right[~odd]).all()


def test_do_categories_and_constants_stay_within_what_was_seen(
    archive: dict[str, Path], tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    table, decoded = tables[1]["year=2023/a.parquet"], read(archive["decoded"] / "year=2023/a.parquet")
    for column in ("word", "dict", "flag", "constant"):
        assert set(decoded[column].to_pylist()) <= set(table[column].to_pylist())
    assert min(decoded["image"].combine_chunks().flatten().to_pylist()) >= 0


def test_does_evaluate_count_every_row_byte_and_error(archive: dict[str, Path], parvae: Command) -> None:
    figures = parvae("evaluate", archive["data"], archive["archive"])
    assert figures["rows"] == ROWS + ROWS // 2
    files = [path for path in archive["archive"].rglob("*") if path.is_file()]
    assert figures["bytes_out"] == sum(path.stat().st_size for path in files)
    assert figures["bytes_in"] == sum(path.stat().st_size for path in archive["data"].rglob("*.parquet"))
    minus_elbo = figures["minus_reconstruction_bits_per_row"] + figures["kl_bits_per_row"]
    assert figures["minus_elbo_bits_per_row"] == pytest.approx(minus_elbo)
    columns = figures["columns"]
    assert columns["nested"]["mismatch_rate"] == columns["label"]["mismatch_rate"] == 0
    decoded = np.concatenate(
        [read(p)["i8"].to_numpy(zero_copy_only=False) for p in sorted(archive["decoded"].rglob("*.parquet"))]
    )
    original = np.concatenate(
        [read(p)["i8"].to_numpy(zero_copy_only=False) for p in sorted(archive["data"].rglob("*.parquet"))]
    )
    errors = np.abs(original - decoded)
    assert columns["i8"]["max_error"] == np.nanmax(errors)
    assert columns["i8"]["rms_error"] == pytest.approx(np.sqrt(np.nanmean(errors**2)))


def test_is_latent_read_as_numbers_by_pandas_polars_and_duckdb(archive: dict[str, Path]) -> None:
    import duckdb
    import polars

    parts = archive["archive"] / "parts"
    frame = pd.read_parquet(parts)
    stacked = np.stack(frame["latent"].to_list())
    assert stacked.shape == (ROWS + ROWS // 2, 4)
    assert stacked.dtype == np.float32
    lazy = polars.read_parquet(parts / "*.parquet")["latent"].to_numpy()
    np.testing.assert_array_equal(lazy, stacked)
    query = f"select latent[1] as first, latent[4]::double + 1 as fourth from '{parts}/*.parquet'"
    rows = duckdb.sql(query).fetchall()
    assert sorted(row[0] for row in rows) == sorted(stacked[:, 0].tolist())
    assert np.isclose(sum(row[1] for row in rows), stacked[:, 3].astype(float).sum() + len(stacked))


def test_are_part_rows_in_source_order(archive: dict[str, Path], tables: tuple[Path, dict[str, pa.Table]]) -> None:
    parts = pads.dataset(sorted((archive["archive"] / "parts").glob("*.parquet")))
    keys = parts.to_table(columns=["key, with comma"])["key, with comma"].to_pylist()
    assert keys == [key for table in tables[1].values() for key in table["key, with comma"].to_pylist()]


def test_does_a_second_encode_refuse_and_overwrite_replace(
    archive: dict[str, Path], parvae: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    argv = ["encode", archive["data"], "--model", archive["model"], "--out", archive["archive"]]
    before = (archive["archive"] / "_manifest.json").read_bytes()
    assert main([str(word) for word in argv]) == 2
    assert "--overwrite" in capsys.readouterr().err
    figures = parvae(*argv, "--overwrite")
    assert figures["rows"] == ROWS + ROWS // 2
    assert (archive["archive"] / "_manifest.json").read_bytes() == before


def test_does_a_killed_encode_continue_with_what_is_missing(archive: dict[str, Path], parvae: Command) -> None:
    import shutil

    work = archive["work"] / "resumed"
    shutil.copytree(archive["archive"], work)
    manifest = json.loads((work / "_manifest.json").read_text())
    (work / "_manifest.json").unlink()
    parts = pq.read_table(work / "_parts.parquet").to_pylist()
    assert len(parts) == 3
    (work / "_ledger").mkdir()
    for part in parts[:2]:
        (work / "_ledger" / f"{part['name']}.json").write_text(json.dumps({"record": part}))
    kept = work / "parts" / parts[0]["name"]
    stamp = kept.stat().st_mtime_ns
    (work / "parts" / parts[1]["name"]).write_bytes(b"half-written")
    (work / "parts" / ".tmp-orphan").write_bytes(b"half-written")
    figures = parvae("encode", archive["data"], "--model", archive["model"], "--out", work)
    assert figures["parts_resumed"] == 1
    assert kept.stat().st_mtime_ns == stamp
    assert {p.name for p in (work / "parts").iterdir()} == {part["name"] for part in parts}
    assert json.loads((work / "_manifest.json").read_text())["rows"] == manifest["rows"]
    assert not (work / "_ledger").exists()


def test_does_decode_give_only_the_columns_asked_for(archive: dict[str, Path], parvae: Command) -> None:
    out = archive["work"] / "two columns"
    parvae("decode", archive["archive"], "--out", out, "--columns", "label", "--columns", "key, with comma")
    table = read(out / "year=2023" / "a.parquet")
    assert table.column_names == ["key, with comma", "label"]


def test_are_values_unseen_in_training_kept(archive: dict[str, Path], parvae: Command) -> None:
    root, out, back = (archive["work"] / name for name in ("new data", "new archive", "new decoded"))
    root.mkdir()
    table = every_type(50, 9)
    words = pa.array(["mauve"] * 25 + ["red"] * 25)
    index = table.schema.get_field_index("word")
    table = table.set_column(index, table.schema.field("word"), words)
    index = table.schema.get_field_index("i8")
    table = table.set_column(index, table.schema.field("i8"), pa.array([127] * 50, pa.int8()))
    pq.write_table(table, root / "new.parquet")
    parvae("encode", root, "--model", archive["model"], "--out", out)
    parvae("decode", out, "--out", back)
    decoded = read(back / "new.parquet")
    assert decoded["word"].to_pylist()[:25] == ["mauve"] * 25
    assert set(decoded["word"].to_pylist()[25:]) <= {"red", "green", "blue"}
    assert decoded.schema.equals(read(root / "new.parquet").schema, check_metadata=True)


def test_is_a_dataset_of_another_schema_refused_before_any_work(
    archive: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    root, out = archive["work"] / "other", archive["work"] / "other archive"
    root.mkdir()
    pq.write_table(every_type(5, 1).drop_columns(["i8"]), root / "x.parquet")
    assert main(["encode", str(root), "--model", str(archive["model"]), "--out", str(out)]) == 2
    assert "'i8'" in capsys.readouterr().err
    assert not out.exists()


def test_is_a_worker_count_beyond_the_cluster_refused(
    archive: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    out = archive["work"] / "never"
    for extra in (["--workers", "99"], ["--gpu"]):
        argv = ["encode", str(archive["data"]), "--model", str(archive["model"]), "--out", str(out), *extra]
        assert main(argv) == 2
        assert extra[0] in capsys.readouterr().err
        assert not out.exists()


@pytest.mark.parametrize("rows", [1, 2, 25])
def test_do_tiny_datasets_work(tmp_path: Path, parvae: Command, rows: int) -> None:
    (tmp_path / "data").mkdir()
    now = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    table = pa.table({"x": np.arange(rows) * 1.5, "when": [now] * rows, "none": pa.nulls(rows, pa.string())})
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    model, out, back = tmp_path / "model", tmp_path / "archive", tmp_path / "back"
    parvae("train", tmp_path / "data", "--model", model, "--epochs", 1, "--latent", 2)
    parvae("encode", tmp_path / "data", "--model", model, "--out", out)
    parvae("decode", out, "--out", back)
    decoded = read(back / "a.parquet")
    assert decoded.num_rows == rows
    assert decoded.schema.equals(table.schema)


def test_do_ordered_categories_keep_their_entries_and_order(tmp_path: Path, parvae: Command) -> None:
    (tmp_path / "data").mkdir()
    kind = pd.CategoricalDtype(["z", "b", "unused", "a"], ordered=True)
    for name, letters in (("1", ["a", "b", "z"]), ("2", ["b", "a"])):
        pd.DataFrame({"size": pd.Categorical(letters * 40, dtype=kind)}).to_parquet(
            tmp_path / "data" / f"{name}.parquet"
        )
    model, out, back = tmp_path / "model", tmp_path / "archive", tmp_path / "back"
    parvae("train", tmp_path / "data", "--model", model, "--epochs", 2, "--latent", 2)
    parvae("encode", tmp_path / "data", "--model", model, "--out", out)
    parvae("decode", out, "--out", back)
    for name in "12":
        assert pd.read_parquet(back / f"{name}.parquet")["size"].dtype == kind


def test_does_a_corrupt_page_leave_nothing_behind(
    archive: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    source = archive["data"] / "year=2023" / "a.parquet"
    chunk = pq.ParquetFile(source).metadata.row_group(0).column(0)
    (tmp_path / "data").mkdir()
    data = bytearray(source.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    out = tmp_path / "archive"
    assert main(["encode", str(tmp_path / "data"), "--model", str(archive["model"]), "--out", str(out)]) == 2
    assert "a.parquet" in capsys.readouterr().err
    assert not out.exists()
    assert main(["train", str(tmp_path / "data"), "--model", str(tmp_path / "model")]) == 2
    assert not (tmp_path / "model").exists()


def test_does_a_damaged_archive_leave_no_partial_output(
    archive: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from jobs.cli import main

    broken, back = tmp_path / "archive", tmp_path / "back"
    shutil.copytree(archive["archive"], broken)
    part = sorted((broken / "parts").iterdir())[1]
    whole = part.read_bytes()
    part.unlink()
    for command in (["decode", str(broken), "--out", str(back)], ["inspect", str(broken)]):
        assert main(command) == 2
        assert part.name in capsys.readouterr().err
    middle = len(whole) // 4
    part.write_bytes(whole[:middle] + bytes(256) + whole[middle + 256 :])
    assert main(["decode", str(broken), "--out", str(back)]) == 2
    assert part.name in capsys.readouterr().err
    assert not back.exists()


def test_does_a_killed_decode_continue(archive: dict[str, Path], tmp_path: Path, parvae: Command) -> None:
    import shutil

    from pipeline.archive import Archive
    from pipeline.storage import Location

    back = tmp_path / "back"
    shutil.copytree(archive["decoded"], back)
    plan = Archive.open(Location(str(archive["archive"]))).plan.fingerprint
    (back / "_decoding.json").write_text(json.dumps({"plan": plan, "columns": None}))
    (back / "year=2024" / "a.parquet").unlink()
    (back / "year=2024" / ".tmp-x").write_bytes(b"half-written")
    kept = (back / "year=2023" / "a.parquet").stat().st_mtime_ns
    parvae("decode", archive["archive"], "--out", back)
    assert (back / "year=2023" / "a.parquet").stat().st_mtime_ns == kept
    names = ("year=2024/a.parquet", "year=2023/a.parquet")
    assert all((back / name).read_bytes() == (archive["decoded"] / name).read_bytes() for name in names)
    assert {path.name for path in back.rglob("*") if path.is_file()} == {"a.parquet", "b.parquet"}
