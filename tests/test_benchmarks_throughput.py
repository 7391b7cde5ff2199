"""Do the rates and ratios of the throughput benchmark come from the right figures?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import bare
from benchmarks.compare import compare
from benchmarks.throughput import TOOLS, Bench, main, prepare, shown, table_of, written


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small.parquet"
    rows = np.arange(1000)
    pq.write_table(pa.table({"a": rows % 7, "b": rows * 0.5, "c": [f"k{i % 3}" for i in rows]}), path)
    return path


def test_is_a_dataset_cut_or_copied(source: Path, tmp_path: Path) -> None:
    whole = pq.read_table(source)
    for word, count, rows in ((f"cut={source}", 8, 1000), (f"copied={source}*3", 3, 3000)):
        name, data = prepare(word, tmp_path / "work")
        files = sorted(data.glob("*.parquet"))
        assert len(files) == count
        back = pa.concat_tables([pq.read_table(path) for path in files])
        assert back.num_rows == rows
        assert back.slice(0, 1000).equals(whole)
        bench = Bench(name, data, tmp_path / "work" / name, 1, 2, [])
        assert bench.rows == rows
        for tool in ("pcodec", "zstd"):
            found = bench.run(tool)
            assert found["bytes"] > 0
            assert found["rows_per_second"] == pytest.approx(rows / found["seconds"])


@pytest.mark.parametrize("tool", TOOLS)
def test_do_general_tools_take_every_type(tool: str) -> None:
    columns = {
        "u1": pa.array([1, 2, None], pa.uint8()),
        "f4": pa.array([1.5, None, 2.0], pa.float32()),
        "image": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.uint8(), 2)),
        "when": pa.array([0, 1, 2], pa.timestamp("us")),
        "word": pa.array(["a", None, "b"]),
    }
    assert TOOLS[tool](pa.table(columns)) > 0


def test_does_a_rate_leave_out_the_first_file(source: Path, tmp_path: Path) -> None:
    table = pq.read_table(source)
    for number, (rows, finished) in enumerate([(400, 100.0), (100, 102.0), (300, 104.0)]):
        path = tmp_path / "out" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table.slice(0, rows), path)
        os.utime(path, (finished, finished))
    assert written(tmp_path / "out", 1) == {"rows_per_second": 100.0, "seconds": 4.0}
    assert written(tmp_path / "out", 2) == {"rows_per_second": 150.0, "seconds": 2.0}
    clock = bare.Clock()
    clock._times, clock._rows = [0.0, 50.0, 52.0, 54.0], [0, 400, 100, 300]
    assert clock.figures() == {"rows_per_second": 100.0, "seconds": 4.0}


def test_does_a_bare_loop_train(source: Path, tmp_path: Path) -> None:
    from pipeline.config import load_config

    _, data = prepare(f"cut={source}", tmp_path)
    settings = {"training.epochs": 2, "training.batch_size": 100, "network.hidden": [8]}
    assert bare.train(data, load_config("", "--set", settings))["rows_per_second"] > 0


def test_are_ratios_those_of_rounds_not_of_medians() -> None:
    shared = {"rows": 10, "arrow_bytes": 40}
    taken = {"worker MB": 5.0, "driver MB": 2.0, "CPU µs/row": 7.0}
    ours = [{"rows_per_second": rate, **taken, **shared} for rate in (10.0, 20.0, 90.0)]
    others = [{"rows_per_second": rate, **shared} for rate in (20.0, 10.0, 30.0)]
    lines = table_of({("d", "encode"): ours, ("d", "encode bare"): others})
    assert lines[0] == {
        **{"dataset": "d", "contestant": "encode", "rows/s": 20.0},
        **{"MB/s": pytest.approx(8e-5), "rounds": 3, **taken},
    }
    assert lines[-1] == {"dataset": "d", "contestant": "encode / encode bare", "ratio": 2.0}
    rates, ratios = shown(lines).split("\n\n")
    assert (len(rates.splitlines()), len(ratios.splitlines())) == (4, 3)
    slower = [{**line, **({"ratio": 1.0} if "ratio" in line else {"rows/s": 10.0})} for line in lines]
    assert [line["new / old"] for line in compare(lines, slower)] == [0.5, 0.5, 0.5]
    assert compare([], lines) == []


def test_is_only_measured_what_is_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["throughput", f"cut={source}", "--repeats", "2", "--only", "zstd", "--threads", "64", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    first = capsys.readouterr()
    assert first.err.count("cut zstd") == 2
    assert main() == 0
    assert capsys.readouterr().out == first.out
    (line,) = json.loads((out / "throughput.json").read_text())
    assert (line["contestant"], line["rounds"]) == ("zstd", 2)
