"""Do the size benchmark's figures add up, does it notice broken bounds, and does it do only what is missing?"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.archives import code_lengths, part_sizes, violations
from benchmarks.peers import measure_peers, one_array, to_bins
from benchmarks.size import Results, main
from benchmarks.size_table import line, summary
from pipeline.bounds import Bound
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.small import as_stored, encode_here, tiny_bundle

ROWS = 400


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    floats = rng.normal(size=ROWS)
    floats[[3, 5, 8]] = np.nan, np.inf, -np.inf
    return pa.table(
        {
            "x": pa.array(rng.normal(size=ROWS).astype(np.float32)),
            "odd": pa.array(floats, mask=rng.random(ROWS) < 0.1),
            "i": pa.array(rng.integers(-(2**62), 2**62, ROWS)),
            "u": pa.array(rng.integers(0, 2**64, ROWS, np.uint64, endpoint=False)),
            "text": pa.array(rng.choice(["a", "b", "c"], ROWS)).dictionary_encode(),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=3 * ROWS).astype(np.float32)), 3),
            "same": pa.array(np.full(ROWS, 7.5)),
        }
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "tiny.parquet", row_group_size=150)
    return tmp_path / "tiny.parquet"


@pytest.mark.parametrize("text", ["0", "0.01r", "0.3", "0.2r"])
def test_bins_hold_the_bound(text: str) -> None:
    bound = Bound.parse(text)
    for name in ("x", "odd", "i", "u", "v", "same"):
        found = to_bins(one_array(table()[name]), bound)
        assert found is not None, name
        low, high = found.values.min(), found.values.max()
        if np.issubdtype(found.values.dtype, np.floating):
            if bound.exact:
                assert found.bins is found.values
                continue
            back = low.astype(np.float64) + found.bins * 2 * found.bound
            gap = np.abs(back - found.values)
            assert (gap <= found.bound * (1 + 1e-9) + 1e-12).all(), name
        else:
            step = 2 * int(bound.absolute(int(low), int(high))) + 1
            back = [int(low) + int(k) * step for k in found.bins]
            assert max(abs(a - int(b)) for a, b in zip(back, found.values, strict=True)) <= step // 2, name


def test_rows_without_an_ordinary_number_stay_exact() -> None:
    found = to_bins(one_array(table()["odd"]), Bound.parse("0.01r"))
    assert found is not None
    assert found.states is not None
    assert found.there is not None
    assert set(found.states.to_pylist()) == {0, 1, 2, 3, 4}
    assert len(found.bins) == found.there.sum() == found.states.to_pylist().count(0)
    assert to_bins(pa.array([1.0, None]), Bound.parse("0")).states == pa.array([False, True])  # type: ignore[union-attr]
    assert to_bins(pa.array(["a"]), Bound.parse("0")) is None
    assert to_bins(pa.array([], pa.float32()), Bound.parse("0")) is None


def test_tools_take_the_smallest_of_each_column() -> None:
    figures = measure_peers(table(), Bound.parse("0.01r"))
    tools = {name: text.split(" ")[0] for name, text in figures["columns"].items()}
    sizes = sum(int(text.split(" ")[1].replace(",", "")) for text in figures["columns"].values() if " " in text)
    assert figures["best"] == min(figures["exact_columns"] + sizes, figures["parquet_on_bins"])
    assert tools.keys() == {*table().column_names, "odd__null"}
    assert tools["text"] == "parquet"
    assert figures["best"] < figures["parquet"]
    bins = to_bins(one_array(table()["x"]), Bound.parse("0.01r"))
    assert bins is not None
    assert int(figures["columns"]["x"].split(" ")[1]) <= len(lzma.compress(bins.bins.tobytes(), preset=6))
    assert (figures["sz3"] is None) == bool(figures["sz3_note"] == "pysz is not installed")
    assert measure_peers(table(), Bound.parse("0"))["sz3_note"] == "SZ3 keeps no bound of 0"


def test_broken_bounds_are_counted(path: Path, tmp_path: Path) -> None:
    dataset, bundle = open_dataset(Location(str(path))), tiny_bundle(as_stored(table()))
    archive = encode_here(dataset, bundle, Location(str(tmp_path / "archive")), "corrections", "0.05r")
    kept = violations(dataset, archive, Bound.parse("0.05r"), {})
    assert kept == {"values": 9 * ROWS, "violations": 0, "violated": {}}
    broken = violations(dataset, archive, Bound.parse("0.001r"), {"x": Bound.parse("0.05r")})
    assert {"odd", "i", "v"} <= broken["violated"].keys()
    assert "x" not in broken["violated"]
    assert violations(dataset, archive, Bound.parse("0"), {})["violated"]["x"] > ROWS / 2


def test_parts_add_up(path: Path, tmp_path: Path) -> None:
    dataset, bundle = open_dataset(Location(str(path))), tiny_bundle(as_stored(table()))
    out = tmp_path / "archive"
    archive = encode_here(dataset, bundle, Location(str(out)), "corrections")
    sizes = part_sizes(archive)
    total = sizes.pop("total")
    assert total == sum(sizes.values()) == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert min(sizes.values()) >= 0
    assert code_lengths(dataset, archive) == {"coded": None, "ideal": None}


def test_size(path: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures"
    arguments = [str(path), "--error", "0.01r", "--effort", "fast", "--out", str(out)]
    assert main(arguments) == 0
    assert "0 violations in 3,600 values" in capsys.readouterr().out
    files = {file.name: file.stat().st_mtime_ns for file in out.iterdir() if file.name.startswith(("size", "peers"))}
    assert files.keys() == {"size-tiny-0.01r-corrections-fast.json", "peers-tiny-0.01r.json"}
    assert main(arguments) == 0
    for name, written in files.items():
        assert (out / name).stat().st_mtime_ns == written, "a finished line was measured again"
    (row,) = json.loads((out / "results.json").read_text())
    assert (row["rows"], row["violations"], row["coded"]) == (ROWS, 0, None)
    lines = (out / "results.md").read_text().splitlines()
    assert sum(line.startswith("| tiny |") for line in lines) == 1
    assert len({line.count("|") for line in lines[:3]}) == 1


def test_a_finished_line_counts_for_its_own_data_only(tmp_path: Path) -> None:
    Results(tmp_path, False).put("line", "these rows", {"total": 1})
    assert Results(tmp_path, False).find("line", "these rows") == {"total": 1}
    assert Results(tmp_path, False).find("line", "other rows") is None
    assert Results(tmp_path, False).find("other line", "these rows") is None
    again = Results(tmp_path, True)
    assert again.find("line", "these rows") is None
    again.put("line", "these rows", {"total": 2})
    assert again.find("line", "these rows") == {"total": 2}


def result(name: str, total: int, best: int | None, rows: int = 50_000) -> dict[str, Any]:
    parts = dict.fromkeys(("corrections", "plain", "latents", "weights", "model", "description"), 0)
    peers = {"parquet": 4 * total, "parquet_on_bins": 2 * total, "best": best, "sz3": None, "sz3_note": "no floats"}
    return {
        **{"data": name, "error": "0", "keep": "corrections", "effort": "fast", "rows": rows, **parts},
        **{"total": total, "values": 7, "violations": 0, "minus_elbo_bits_per_row": None, "coded": 102, "ideal": 100},
        **({} if best is None else {"peers": peers}),
    }


def test_the_table() -> None:
    rows = [
        result("a", 50_000, 100_000),
        result("b", 90_000, 100_000),
        result("c", 9_000, 1_000, 10),
        result("d", 110_000, 100_000, 10),
        result("e", 1, None),
    ]
    assert line(rows[0])["÷best"] == "0.500"
    assert line(rows[0])["÷SZ3"] == line(rows[4])["÷best"] == "–"
    assert line(rows[0])["coded/ideal"] == "1.0200"
    (text,) = summary(rows)
    assert "0 violations in 35 values" in text
    assert "median 0.700 of 2" in text
    assert "largest 9.000 (c)" in text
    assert text.endswith("worse than best: d")


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "figures")]) == 2
    with pytest.raises(SystemExit):
        main(["data", "--error", "none"])
    assert "nothing to compare" in capsys.readouterr().err
