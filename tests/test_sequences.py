"""Do models and archives with texts as sequences keep what they promise?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.anomaly import Scorer
from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.config import load_config
from pipeline.dataset import Dataset, open_dataset
from pipeline.local import fit_table
from pipeline.storage import Location
from tests.small import encode_here, one_batch, tiny_bundle

OPTIONS = {"text": ColumnOptions(kind="sequence", max_length=6)}


def texts(rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(0)
    found = ["ab"[i % 2] * int(rng.integers(0, 6)) + "c" for i in range(rows)]
    found[:6] = [None, "", "e\u0301👩\u200d🔬", "longer than six", "z" * 5000, "a\0b"]
    return pa.table({"text": pa.array(found), "number": np.arange(rows) % 7})


def write(table: pa.Table, folder: Path) -> Dataset:
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "a.parquet", row_group_size=100)
    return open_dataset(Location(str(folder)))


@pytest.mark.parametrize("columns", [["text"], ["text", "number"]], ids=["alone", "beside a number"])
@pytest.mark.parametrize("keep", ["both", "corrections"])
def test_is_every_text_exact_where_a_bound_is_promised(keep: str, columns: list[str], tmp_path: Path) -> None:
    table = texts().select(columns)
    data = write(table, tmp_path / "data")
    # the model has seen half of the rows: others have tokens that it does not know
    bundle = tiny_bundle(table.slice(100), OPTIONS)
    archive = encode_here(data, bundle, Location(str(tmp_path / "archive")), keep, "0.01r")
    assert archive.read(None, ["text"]).equals(table.select(["text"]))
    assert archive.read(range(150, 160), ["text"]).equals(table.select(["text"]).slice(150, 10))


def test_are_texts_of_latents_alone_approximate_but_exact_where_the_model_cannot_say_them(tmp_path: Path) -> None:
    table = texts()
    data, bundle = write(table, tmp_path / "data"), tiny_bundle(texts().slice(100), OPTIONS)
    archive = encode_here(data, bundle, Location(str(tmp_path / "archive")), "latents")
    found = Archive.open(archive.location).read(None, ["text"])["text"].to_pylist()
    assert found[0] is None
    assert found[2:6] == table["text"].to_pylist()[2:6]
    assert all(set(text) <= set("abc") and len(text) <= 6 for text in found[6:])
    assert found != table["text"].to_pylist()


@pytest.fixture(scope="module")
def learned() -> Bundle:
    """Three words, which a network learns within seconds."""
    words = ["ab", "bab", "c"] * 100
    settings = {
        "columns.text": {"kind": "sequence"},
        "network.latent_dim": 2,
        "network.hidden": [32],
        "training.epochs": 40,
        "training.batch_size": 32,
        "training.beta": 0.3,
        "training.learning_rate": 0.01,
    }
    return fit_table(pa.table({"text": words}), load_config("", "test", settings), threads=1)


def test_does_a_network_learn_texts_and_find_others_strange(learned: Bundle) -> None:
    odd = ["bbb", "ba", "cab", "b", "", "d", "abab", None]
    table = pa.table({"text": ["ab", "bab", "c", *odd]})
    bins, _ = learned.rows.from_batch(one_batch(table))
    back = learned.rows.to_arrays(learned.to_bins(learned.to_latents(bins)), {})["text"].to_pylist()
    assert back[:3] == ["ab", "bab", "c"]
    scores = Scorer(learned, 8, 0)(one_batch(table), 0, 0)
    surprise = scores.surprise.sum(1)
    assert np.isfinite(surprise).all()
    assert surprise[3:].min() > surprise[:3].max()


def test_are_samples_texts_that_the_model_has_learned(learned: Bundle) -> None:
    noise = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        bins = learned.vae.sample(torch.randn(500, 2, generator=noise), noise).numpy()
    made = learned.rows.to_arrays(bins, {})["text"].to_pylist()
    assert sum(text in ("ab", "bab", "c") for text in made) > 350
    assert len(set(made)) > 2
    again, _ = learned.rows.from_batch(pa.record_batch([pa.array(made)], ["text"]))
    np.testing.assert_array_equal(again, bins)
