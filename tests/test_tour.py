"""Does a whole tour (train, encode, decode, evaluate) give back what it promises?"""

from __future__ import annotations

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
        "text": some(["ab"[i % 2] * rng.integers(0, 5) + "é🧪"[: i % 3] for i in range(rows)], pa.string()),
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


KEEPS = ("both", "corrections", "latents")
Archives = dict[str, Path]


@pytest.fixture(scope="module")
def archives(tables: tuple[Path, dict[str, pa.Table]], ray_session: None) -> Archives:
    """The dataset trained once, and encoded and decoded once for everything that an archive may keep."""
    from jobs.cli import main

    root, _ = tables
    work = root.parent
    config = work / "config.yaml"
    config.write_text(
        "columns: {image: {kind: vector, shape: [3, 4], error: 1}, f64: {error: 0}, i8: {error: 2},\n"
        "  text: {kind: sequence, max_length: 5}}\n"
    )
    paths = {"data": root, "model": work / "model", "work": work}
    train = ["train", root, "--model", paths["model"], "--passthrough", "label", "--passthrough", "key, with comma"]
    train += ["--config", config, "--latent", 4, "--epochs", 2, "--set", "network.hidden=[32]", "--effort", "fast"]
    assert main([str(word) for word in train]) == 0
    for keep in KEEPS:
        out, back = work / keep, work / f"{keep} decoded"
        paths |= {keep: out, f"{keep} decoded": back}
        encode = ["encode", root, "--model", paths["model"], "--out", out, "--keep", keep]
        for argv in (encode, ["decode", out, "--out", back]):
            assert main([str(word) for word in argv]) == 0
    return paths


@pytest.fixture(params=KEEPS)
def archive(request: pytest.FixtureRequest, archives: Archives) -> Archives:
    """One of the archives."""
    return {**archives, "archive": archives[request.param], "decoded": archives[f"{request.param} decoded"]}


@pytest.fixture
def both(archives: Archives) -> Archives:
    """The archive of latents and corrections."""
    return {**archives, "archive": archives["both"], "decoded": archives["both decoded"]}


def read(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read()


def test_are_schema_layout_and_row_groups_restored_to_the_letter(
    archive: Archives, tables: tuple[Path, dict[str, pa.Table]]
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
    archive: Archives, tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    for name, table in tables[1].items():
        decoded = read(archive["decoded"] / name)
        for column in ("key, with comma", "label", "nested", "blob", "nothing", "empty"):
            assert decoded[column].to_pylist() == table[column].to_pylist(), (name, column)


def test_do_nulls_and_non_finite_values_come_back_as_they_were(
    archive: Archives, tables: tuple[Path, dict[str, pa.Table]]
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
    archive: Archives, tables: tuple[Path, dict[str, pa.Table]]
) -> None:
    table, decoded = tables[1]["year=2023/a.parquet"], read(archive["decoded"] / "year=2023/a.parquet")
    for column in ("word", "dict", "flag", "constant"):
        assert set(decoded[column].to_pylist()) <= set(table[column].to_pylist())
    assert min(decoded["image"].combine_chunks().flatten().to_pylist()) >= 0


BOUNDS = {"i8": 2, "image": 1, "f64": 0}
EXACT = ("flag", "date", "time", "stamp", "took", "word", "dict", "text", "constant", "empty")


def elements(column: pa.ChunkedArray) -> list[Any]:
    """Numbers of a column as Python's, elements of vectors too."""
    values: list[Any] = []
    for value in column.to_pylist():
        values += list(np.asarray(value).ravel().tolist()) if isinstance(value, (list, np.ndarray)) else [value]
    return values


@pytest.mark.parametrize("keep", ["both", "corrections"])
def test_is_every_value_within_its_bound(
    archives: Archives, tables: tuple[Path, dict[str, pa.Table]], keep: str
) -> None:
    whole = pa.concat_tables([table for table in tables[1].values() if table.num_rows])
    for name, table in tables[1].items():
        decoded = read(archives[f"{keep} decoded"] / name)
        for column in EXACT:
            assert decoded[column].to_pylist() == table[column].to_pylist(), column
        for column in ("i8", "u64", "i64", "f16", "f32", "decimal", "image", "vector", "tensor"):
            numbers = [v for v in elements(whole[column]) if v is not None and v == v and abs(v) != float("inf")]
            bound = BOUNDS.get(column, float(max(numbers) - min(numbers)) * 0.01)
            pairs = zip(elements(table[column]), elements(decoded[column]), strict=True)
            missed = [(a, b) for a, b in pairs if a is not None and a == a and a != b and abs(a - b) > bound]
            assert missed == [], column
        left, right = (t["f64"].combine_chunks().to_numpy().view(np.int64) for t in (table, decoded))
        np.testing.assert_array_equal(left, right)


def test_does_evaluate_count_every_row_byte_and_error(archive: Archives, parvae: Command) -> None:
    figures = parvae("evaluate", archive["data"], archive["archive"])
    assert figures["rows"] == ROWS + ROWS // 2
    files = [path for path in archive["archive"].rglob("*") if path.is_file()]
    assert figures["bytes_out"] == sum(path.stat().st_size for path in files)
    assert figures["bytes_in"] == sum(path.stat().st_size for path in archive["data"].rglob("*.parquet"))
    if figures["keep"] != "corrections":
        minus_elbo = figures["minus_reconstruction_bits_per_row"] + figures["kl_bits_per_row"]
        assert figures["minus_elbo_bits_per_row"] == pytest.approx(minus_elbo)
    columns = figures["columns"]
    assert columns["nested"]["mismatch_rate"] == columns["label"]["mismatch_rate"] == 0
    assert figures["violations"] == (None if figures["keep"] == "latents" else 0)
    decoded, original = (
        np.concatenate([read(p)["i8"].to_numpy(zero_copy_only=False) for p in sorted(archive[name].rglob("*.parquet"))])
        for name in ("decoded", "data")
    )
    errors = np.abs(original - decoded)
    assert columns["i8"]["max_error"] == np.nanmax(errors)
    assert columns["i8"]["rms_error"] == pytest.approx(np.sqrt(np.nanmean(errors**2)))
    if figures["keep"] != "latents":
        assert (columns["i8"]["bound"], columns["f64"]["bound"], columns["word"]["bound"]) == (2, 0, 0)


def test_does_evaluate_fail_where_a_bound_is_broken(
    archives: Archives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from jobs.cli import main

    data = tmp_path / "data"
    shutil.copytree(archives["data"], data)
    path = data / "year=2024" / "a.parquet"
    changed = read(path)
    index = changed.schema.get_field_index("constant")
    changed = changed.set_column(index, changed.schema.field("constant"), pa.array([8] * (ROWS // 2), pa.int32()))
    pq.write_table(changed, path, row_group_size=250)
    assert main(["evaluate", str(data), str(archives["corrections"])]) == 1
    assert f"column 'constant': {ROWS // 2} of" in capsys.readouterr().err


@pytest.mark.parametrize("keep", KEEPS)
def test_does_verify_pass_and_name_what_is_damaged(
    archives: Archives, keep: str, tmp_path: Path, parvae: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from jobs.cli import main

    figures = parvae("verify", archives[keep])
    assert (figures["rows"], figures["parts"]) == (ROWS + ROWS // 2, 3)
    broken = tmp_path / "broken"
    shutil.copytree(archives[keep], broken)
    for part in sorted((broken / "parts").iterdir())[:2]:
        data = bytearray(part.read_bytes())
        data[len(data) // 3] ^= 16
        part.write_bytes(bytes(data))
    assert main(["verify", str(broken)]) == 2
    said = capsys.readouterr().err
    assert "2 of 3 parts" in said
    assert all(part.name in said for part in sorted((broken / "parts").iterdir())[:2])
    assert "block 0" in said


def test_does_an_approximate_archive_say_so(archives: Archives, tmp_path: Path, parvae: Command, caplog: Any) -> None:
    assert parvae("decode", archives["latents"], "--out", tmp_path / "a")["guaranteed"] is False
    assert "without a bound" in caplog.text
    assert parvae("decode", archives["corrections"], "--out", tmp_path / "b")["guaranteed"] is True


@pytest.mark.parametrize("error", ["0", "0.001r", "0.05r", "3"])
def test_may_encode_promise_another_bound(archives: Archives, tmp_path: Path, parvae: Command, error: str) -> None:
    out, back = tmp_path / "archive", tmp_path / "back"
    argv = ["encode", archives["data"], "--model", archives["model"], "--out", out, "--keep", "corrections"]
    figures = parvae(*argv, "--error", error, "--effort", "fast")
    assert (figures["error"], figures["guaranteed"]) == (error, True)
    found = parvae("evaluate", archives["data"], out)
    assert found["violations"] == 0
    assert (found["columns"]["i8"]["bound"], found["columns"]["f64"]["bound"]) == (2, 0)
    if error == "3":
        assert {found["columns"][name]["bound"] for name in ("f16", "f32", "u64", "decimal", "vector")} == {3}
    if error == "0":
        parvae("decode", out, "--out", back)
        for path in back.rglob("*.parquet"):
            left, right = read(path), read(archives["data"] / path.relative_to(back))
            for name in set(left.column_names) - {"i8", "image"}:
                assert repr(left[name].to_pylist()) == repr(right[name].to_pylist()), name


def test_do_two_encodes_give_the_same_bytes(archives: Archives, tmp_path: Path, parvae: Command) -> None:
    for keep in KEEPS:
        out = tmp_path / keep
        parvae("encode", archives["data"], "--model", archives["model"], "--out", out, "--keep", keep)
        files = [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
        assert {"_manifest.json", "_model", "parts"} <= {path.parts[0] for path in files}
        for path in files:
            assert (out / path).read_bytes() == (archives[keep] / path).read_bytes(), path


def test_does_a_dry_run_write_nothing(archives: Archives, tmp_path: Path, parvae: Command) -> None:
    for keep in ("both", "corrections"):
        out = tmp_path / "never"
        argv = ["encode", archives["data"], "--model", archives["model"], "--out", out, "--keep", keep, "--dry-run"]
        figures = parvae(*argv)
        assert not out.exists()
        assert (figures["dry_run"], figures["keep"], figures["pays_after_rows"]) == (True, keep, 0)
        assert (figures["expected_bytes"]["latents"] > 0) == (keep == "both")
        chosen = figures["columns"]["i8"]
        assert chosen["bytes"] == min(chosen["choices"].values())
        total = sum(size for name, size in figures["expected_bytes"].items() if name != "total")
        assert figures["expected_bytes"]["total"] == pytest.approx(total)


def test_is_latent_read_as_numbers_by_pandas_polars_and_duckdb(both: Archives) -> None:
    import duckdb
    import polars

    parts = both["archive"] / "parts"
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


def test_are_part_rows_in_source_order(both: Archives, tables: tuple[Path, dict[str, pa.Table]]) -> None:
    parts = pads.dataset(sorted((both["archive"] / "parts").glob("*.parquet")))
    keys = parts.to_table(columns=["key, with comma"])["key, with comma"].to_pylist()
    assert keys == [key for table in tables[1].values() for key in table["key, with comma"].to_pylist()]


def test_does_a_second_encode_add_nothing_and_overwrite_replace(both: Archives, parvae: Command) -> None:
    argv = ["encode", both["data"], "--model", both["model"], "--out", both["archive"]]
    before = (both["archive"] / "_manifest.json").read_bytes()
    again = parvae(*argv)
    assert again["added"] == {"rows": 0, "files": 0, "parts": 0}
    assert (both["archive"] / "_manifest.json").read_bytes() == before
    figures = parvae(*argv, "--overwrite")
    assert figures["rows"] == ROWS + ROWS // 2
    assert (both["archive"] / "_manifest.json").read_bytes() == before


def test_does_a_killed_encode_continue_with_its_codec_and_what_is_missing(
    both: Archives, parvae: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from pipeline.archive import Archive
    from pipeline.archive_run import run_fingerprint
    from pipeline.ledger import Ledger
    from pipeline.request import EncodeOptions, check_request
    from pipeline.storage import Location

    work = both["work"] / "resumed"
    shutil.copytree(both["archive"], work)
    parts = Archive.open(Location(str(work))).parts
    assert len(parts) == 3
    manifest = json.loads((work / "_manifest.json").read_text())
    (work / "_manifest.json").unlink()
    monkeypatch.setattr("pipeline.request.fit_codecs", None)
    monkeypatch.setattr("pipeline.request.load_codec", None)
    ledger = Ledger(Location(str(work)))
    request = check_request(
        Location(str(both["data"])), Location(str(both["model"])), Location(str(work)), EncodeOptions()
    )
    ledger.begin(run_fingerprint(request))
    for part in parts[:2]:
        record = {**part.to_json(), "sizes": {"latents": 1, "corrections": 1, "plain": 1, "passthrough": 1}}
        ledger.add({"record": record})
    ledger.flush()
    kept = work / "parts" / parts[0].name
    stamp = kept.stat().st_mtime_ns
    (work / "parts" / parts[1].name).write_bytes(b"half-written")
    (work / "parts" / ".tmp-orphan").write_bytes(b"half-written")
    figures = parvae("encode", both["data"], "--model", both["model"], "--out", work)
    assert figures["parts_resumed"] == 1
    assert kept.stat().st_mtime_ns == stamp
    assert {p.name for p in (work / "parts").iterdir()} == {part.name for part in parts}
    assert json.loads((work / "_manifest.json").read_text())["rows"] == manifest["rows"]
    assert not (work / "_ledger").exists()


def test_does_decode_give_only_the_columns_asked_for(both: Archives, parvae: Command) -> None:
    out = both["work"] / "two columns"
    figures = parvae("decode", both["archive"], "--out", out, "--columns", "label", "--columns", "key, with comma")
    assert figures["guaranteed"] is True
    table = read(out / "year=2023" / "a.parquet")
    assert table.column_names == ["key, with comma", "label"]


def test_are_values_unseen_in_training_kept(both: Archives, parvae: Command) -> None:
    root, out, back = (both["work"] / name for name in ("new data", "new archive", "new decoded"))
    root.mkdir()
    table = every_type(50, 9)
    words = pa.array(["mauve"] * 25 + ["red"] * 25)
    index = table.schema.get_field_index("word")
    table = table.set_column(index, table.schema.field("word"), words)
    index = table.schema.get_field_index("i8")
    table = table.set_column(index, table.schema.field("i8"), pa.array([127] * 50, pa.int8()))
    pq.write_table(table, root / "new.parquet")
    parvae("encode", root, "--model", both["model"], "--out", out)
    parvae("decode", out, "--out", back)
    decoded = read(back / "new.parquet")
    assert decoded["word"].to_pylist()[:25] == ["mauve"] * 25
    assert set(decoded["word"].to_pylist()[25:]) <= {"red", "green", "blue"}
    assert decoded.schema.equals(read(root / "new.parquet").schema, check_metadata=True)


def test_is_a_dataset_of_another_schema_refused_before_any_work(
    both: Archives, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    root, out = both["work"] / "other", both["work"] / "other archive"
    root.mkdir()
    pq.write_table(every_type(5, 1).drop_columns(["i8"]), root / "x.parquet")
    assert main(["encode", str(root), "--model", str(both["model"]), "--out", str(out)]) == 2
    assert "'i8'" in capsys.readouterr().err
    assert not out.exists()


def test_is_a_worker_count_beyond_the_cluster_refused(both: Archives, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.cli import main

    out = both["work"] / "never"
    for extra in (["--workers", "99"], ["--gpu"]):
        argv = ["encode", str(both["data"]), "--model", str(both["model"]), "--out", str(out), *extra]
        assert main(argv) == 2
        assert extra[0] in capsys.readouterr().err
        assert not out.exists()


def test_does_a_corrupt_page_leave_nothing_behind(
    both: Archives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    source = both["data"] / "year=2023" / "a.parquet"
    chunk = pq.ParquetFile(source).metadata.row_group(0).column(0)
    (tmp_path / "data").mkdir()
    data = bytearray(source.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    out = tmp_path / "archive"
    assert main(["encode", str(tmp_path / "data"), "--model", str(both["model"]), "--out", str(out)]) == 2
    assert "a.parquet" in capsys.readouterr().err
    assert not out.exists()
    assert main(["train", str(tmp_path / "data"), "--model", str(tmp_path / "model")]) == 2
    assert not (tmp_path / "model").exists()


def test_does_a_damaged_archive_leave_no_partial_output(
    both: Archives, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from jobs.cli import main

    broken, back = tmp_path / "archive", tmp_path / "back"
    shutil.copytree(both["archive"], broken)
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


def test_does_a_killed_decode_continue(both: Archives, tmp_path: Path, parvae: Command) -> None:
    import shutil

    from pipeline.archive import Archive
    from pipeline.decode import run_fingerprint
    from pipeline.ledger import Ledger
    from pipeline.storage import Location

    back = tmp_path / "back"
    shutil.copytree(both["decoded"], back)
    ledger = Ledger(Location(str(back)))
    ledger.begin(run_fingerprint(Archive.open(Location(str(both["archive"]))), None))
    for path in back.rglob("*.parquet"):
        name = path.relative_to(back).as_posix()
        ledger.add({"path": name, "rows": pq.read_metadata(path).num_rows, "bytes": path.stat().st_size})
    ledger.flush()
    (back / "year=2024" / "a.parquet").unlink()
    (back / "year=2024" / "b.parquet").write_bytes(b"half-written")
    (back / "year=2024" / ".tmp-x").write_bytes(b"half-written")
    kept = (back / "year=2023" / "a.parquet").stat().st_mtime_ns
    figures = parvae("decode", both["archive"], "--out", back)
    assert figures["resumed"] == figures["files"] - 2
    assert (back / "year=2023" / "a.parquet").stat().st_mtime_ns == kept
    names = ("year=2024/a.parquet", "year=2024/b.parquet", "year=2023/a.parquet")
    assert all((back / name).read_bytes() == (both["decoded"] / name).read_bytes() for name in names)
    assert {path.name for path in back.rglob("*") if path.is_file()} == {"a.parquet", "b.parquet"}
