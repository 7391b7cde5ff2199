"""Does training in this process give what `parvae train` gives, and leave the process as it was?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.config import Optimization, TrainConfig
from pipeline.errors import ConfigError, DatasetError
from pipeline.local import fit_table
from pipeline.storage import Location
from tests.conftest import Command
from vae_model.config import NetworkConfig

CONFIG = TrainConfig(
    passthrough=("key",),
    network=NetworkConfig(latent_dim=3, hidden=(16,)),
    training=Optimization(epochs=4, batch_size=64),
)


def table(rows: int = 600, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return pa.table(
        {
            "key": np.arange(rows),
            "x": x,
            "y": x * 2 + rng.normal(0, 0.1, rows),
            "c": np.where(x > 0, "high", "low"),
        }
    )


def test_is_the_model_that_of_train(parvae: Command, tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "data").mkdir()
    pq.write_table(table(), folder / "data" / "a.parquet")
    settings = ["network.latent_dim=3", "network.hidden=[16]", "training.epochs=4", "training.batch_size=64"]
    argv = [word for setting in settings for word in ("--set", setting)]
    parvae("train", folder / "data", "--model", folder / "model", "--passthrough", "key", *argv, "--error", "none")
    trained = Bundle.load(Location(str(folder / "model")))
    local = fit_table(pq.read_table(folder / "data" / "a.parquet"), CONFIG)
    assert local.rows.to_json() == trained.rows.to_json()
    mine, other = local.vae.state_dict(), trained.vae.state_dict()
    for name, weights in other.items():
        torch.testing.assert_close(mine[name], weights, rtol=1e-3, atol=1e-3, msg=name)


def test_is_the_process_left_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen: list[int] = []
    fit_table(table(), CONFIG, threads=1, listen=lambda message: seen.append(message["epoch"]))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert seen == [0, 1, 2, 3]


def test_does_the_same_seed_give_the_same_weights() -> None:
    one, two = (fit_table(table(), CONFIG, threads=1).weights for _ in range(2))
    assert one == two


def test_does_the_model_decode_what_it_encodes() -> None:
    rows = table(2000)
    bundle = fit_table(rows, TrainConfig(passthrough=("key",), network=CONFIG.network), threads=1)
    bins, _ = bundle.rows.from_batch(rows.to_batches()[0])
    decoded = bundle.rows.to_arrays(bundle.to_bins(bundle.to_latents(bins)), {})
    assert np.corrcoef(decoded["x"].to_numpy(), rows["x"].to_numpy())[0, 1] > 0.9
    assert np.mean(decoded["c"].to_numpy(zero_copy_only=False) == rows["c"].to_numpy()) > 0.95


def test_are_mistakes_named() -> None:
    with pytest.raises(DatasetError, match="no rows"):
        fit_table(table().slice(0, 0), CONFIG)
    with pytest.raises(ConfigError, match="'nope'"):
        fit_table(table(), TrainConfig(passthrough=("nope",)))
    with pytest.raises(ConfigError, match="every column is passed through"):
        fit_table(table(), TrainConfig(defaults=ColumnOptions(kind="passthrough")))
