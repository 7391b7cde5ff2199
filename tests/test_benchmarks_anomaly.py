"""Does the anomaly benchmark split as it says, measure only what is missing, and add up?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.anomaly import FOREST, main, split, tables


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(320, 3))
    rows[300:] += 6
    columns = {name: rows[:, number] for number, name in enumerate("abc")}
    pq.write_table(pa.table({**columns, "label": np.arange(320) >= 300}).cast(_schema()), tmp_path / "tiny.parquet")
    return tmp_path / "tiny.parquet"


def _schema() -> pa.Schema:
    return pa.schema([*((name, pa.float64()) for name in "abc"), ("label", pa.uint8())])


def test_are_the_training_rows_normal_and_the_rest_the_test(path: Path) -> None:
    train, test, anomalous = split(path, "label", 0)
    assert (len(train), len(test), int(anomalous.sum())) == (210, 110, 20)
    values = [tuple(row.values()) for part in (train, test) for row in part.to_pylist()]
    whole = pq.read_table(path).drop_columns(["label"]).to_pylist()
    assert sorted(values) == sorted(tuple(row.values()) for row in whole)
    assert not train.equals(split(path, "label", 1)[0])
    assert train.equals(split(path, "label", 0)[0])


def test_is_only_measured_what_is_missing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, markdown = path.with_suffix(".json"), path.with_suffix(".md")
    given = [str(path), "--out", str(out), "--markdown", str(markdown), "--epochs", "3", "--detectors"]
    main([*given, FOREST, "--seeds", "1"])
    first = json.loads(out.read_text())
    first[0]["seconds"] = -1.0
    out.write_text(json.dumps(first))
    main([*given, FOREST, "parvae", "parvae kNN", "--seeds", "2"])
    found = json.loads(out.read_text())
    assert [(e["seed"], e["detector"]) for e in found] == [
        (1, FOREST),
        (1, "parvae"),
        (1, "parvae kNN"),
        (2, "parvae"),
        (2, "parvae kNN"),
        (2, FOREST),
    ]
    assert found[0] == first[0]
    others = [e["auroc"] for e in found if e["detector"] != "parvae kNN"]  # whose latents need more than 3 epochs
    assert min(others) > 0.95  # six deviations away in every column
    assert " ± " in markdown.read_text()
    assert markdown.read_text().strip() in capsys.readouterr().out


def test_do_the_tables_add_up() -> None:
    entry = {"dataset": "d", "detector": "parvae", "average_precision": 0.5}
    found = [{**entry, "seed": 0, "auroc": 0.9}, {**entry, "seed": 1, "auroc": 0.8}]
    found += [{**entry, "dataset": "e", "seed": 0, "auroc": 0.65}]
    auroc, precision = tables(found)
    assert "| d | 85.00 ± 7.07 |" in auroc
    assert "| e | 65.00 ± 0.00 |" in auroc
    assert "| mean | 75.00 |" in auroc
    assert "| mean | 50.00 |" in precision
