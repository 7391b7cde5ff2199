"""Do datasets at the edges survive a tour: with hardly a row, with hardly a byte, with columns that tell each other?"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.conftest import Command
from tests.small import encode_here, tiny_bundle


@pytest.mark.parametrize("rows", [1, 2, 25])
def test_do_tiny_datasets_work(tmp_path: Path, parvae: Command, rows: int) -> None:
    (tmp_path / "data").mkdir()
    now = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    kind = pd.CategoricalDtype(["z", "b", "unused", "a"], ordered=True)
    for name, letters in (("a.parquet", ["a", "b", "z"]), ("b.parquet", ["b", "a"])):
        frame = pd.DataFrame({"x": np.arange(rows) * 1.5, "size": pd.Categorical(np.resize(letters, rows), dtype=kind)})
        table = pa.Table.from_pandas(frame).append_column("when", pa.array([now] * rows))
        pq.write_table(table.append_column("none", pa.nulls(rows, pa.string())), tmp_path / "data" / name)
    model, out, back = tmp_path / "model", tmp_path / "archive", tmp_path / "back"
    trained = parvae("train", tmp_path / "data", "--model", model, "--epochs", 1, "--latent", 2, "--effort", "fast")
    assert set(trained["codec_bytes"]) == {"both", "corrections"}
    parvae("encode", tmp_path / "data", "--model", model, "--out", out)
    parvae("decode", out, "--out", back)
    for name in ("a.parquet", "b.parquet"):
        table, decoded = (pq.read_table(folder / name) for folder in (tmp_path / "data", back))
        assert decoded.schema.equals(table.schema, check_metadata=True)
        assert decoded.drop_columns(["x"]).equals(table.drop_columns(["x"]))
        np.testing.assert_allclose(decoded["x"].to_numpy(), table["x"].to_numpy(), atol=0.01 * 1.5 * (rows - 1))
        assert decoded["size"].to_pandas().dtype == kind


def test_is_a_description_of_corrections_tiny(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 3000
    table = pa.table({f"column_{i}": rng.normal(size=rows).astype(np.float32) for i in range(7)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    dataset, out = open_dataset(Location(str(tmp_path / "data"))), Location(str(tmp_path / "archive"))
    sizes = encode_here(dataset, tiny_bundle(table), out, "corrections").manifest["bytes"]
    assert sizes["total"] - sizes["corrections"] - sizes["plain"] < 4000


def test_do_networks_code_columns_and_decode_in_any_piece(tmp_path: Path, parvae: Command) -> None:
    rng = np.random.default_rng(0)
    rows = 3000
    base = rng.integers(0, 12, rows)
    words = np.array(["red", "green", "blue", "mauve"])
    table = pa.table(
        {
            "a": base,
            "b": base * 2 + rng.integers(0, 2, rows),
            "c": pa.array(words[base % 4], mask=rng.random(rows) < 0.1),
            "d": base * 0.5 + rng.integers(0, 3, rows) * 0.1,
            "key": [f"k{i}" for i in range(rows)],
        }
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    argv = ["--model", tmp_path / "model", "--passthrough", "key", "--epochs", 1, "--latent", 2, "--error", "0"]
    trained = parvae("train", tmp_path / "data", *argv)
    assert set(trained["codec_bytes"]) == {"both", "corrections"}
    for keep in ("both", "corrections"):
        out = tmp_path / keep
        encoded = parvae("encode", tmp_path / "data", "--model", tmp_path / "model", "--out", out, "--keep", keep)
        assert (out / "_model" / "coder.safetensors").exists(), encoded
        assert (out / "_model" / "bundle.json").exists() == (keep == "both")
        assert parvae("evaluate", tmp_path / "data", out)["violations"] == 0
        opened = Archive.open(Location(str(out)))
        assert opened.read().equals(table)
        assert opened.read(range(700, 803), ["key", "c"]).equals(table.select(["c", "key"]).slice(700, 103))
