"""Do very wide tables and very many distinct strings work?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Command

pytestmark = pytest.mark.slow


def tour(parvae: Command, root: Path, table: pa.Table, *train: object) -> pa.Table:
    """Trains one epoch, encodes and decodes; returns what came back."""
    (root / "data").mkdir()
    pq.write_table(table, root / "data" / "rows.parquet")
    parvae("train", root / "data", "--model", root / "model", "--epochs", 1, "--latent", 4, "--effort", "fast", *train)
    parvae("encode", root / "data", "--model", root / "model", "--out", root / "archive")
    parvae("decode", root / "archive", "--out", root / "back")
    assert parvae("evaluate", root / "data", root / "archive")["violations"] == 0
    return pq.read_table(root / "back" / "rows.parquet")


def test_do_two_thousand_columns_work(tmp_path: Path, parvae: Command) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(500, 3))
    columns = {f"c{i}": base @ rng.normal(size=3) for i in range(1990)}
    columns.update({f"s{i}": rng.choice(["a", "b", "c"], 500) for i in range(10)})
    table = pa.table(columns)
    decoded = tour(parvae, tmp_path, table)
    assert decoded.schema.equals(table.schema)
    assert decoded.num_rows == 500


@pytest.mark.parametrize("kind", [None, "categorical"])
def test_do_a_hundred_thousand_distinct_strings_work(tmp_path: Path, parvae: Command, kind: str | None) -> None:
    names = [f"visitor {i:06d}" for i in range(100_000)]
    table = pa.table({"name": names, "x": np.arange(100_000) % 7})
    arguments = [] if kind is None else ["--set", f"columns.name.kind={kind}"]
    decoded = tour(parvae, tmp_path, table, *arguments)
    if kind is None:
        assert decoded["name"].equals(table["name"])
    else:
        assert decoded["name"].to_pylist() == names
