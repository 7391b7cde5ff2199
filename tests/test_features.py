"""Are an archive's latents read as features by every library, streaming, with the right columns beside them?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.errors import ConfigError
from pipeline.features import load
from pipeline.storage import Location
from pipeline.whitening import Whitening
from tests.small import encode_here, train_here
from vae_model.config import NetworkConfig

ROWS = 900


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    return pa.table(
        {
            "x": x,
            "y": x * 2 + rng.normal(0, 0.1, ROWS),
            "c": pa.array(np.where(x > 0, "high", "low")).dictionary_encode(),
            "label": (x > 0.5).astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    work = tmp_path_factory.mktemp("features")
    (work / "data").mkdir()
    for number in range(3):
        pq.write_table(table().slice(number * 300, 300), work / "data" / f"{number}.parquet", row_group_size=100)
    config = TrainConfig(
        passthrough=("label",), network=NetworkConfig(latent_dim=3, hidden=(16,)), training=Optimization(epochs=5)
    )
    dataset = open_dataset(Location(str(work / "data")))
    bundle = train_here(dataset, config)
    bundle.save(Location(str(work / "model")))
    for keep in ("both", "corrections"):
        encode_here(dataset, bundle, Location(str(work / keep)), keep)
    return {name: work / name for name in ("data", "model", "both", "corrections")}


@pytest.fixture
def stored(places: dict[str, Path]) -> np.ndarray:
    bundle = Bundle.load(Location(str(places["model"])))
    parts = [bundle.rows.from_batch(batch)[0] for batch in table().combine_chunks().to_batches()]
    return bundle.to_latents(np.concatenate(parts))


def test_are_they_the_latents_of_the_model_in_row_order(places: dict[str, Path], stored: np.ndarray) -> None:
    features = load(str(places["both"]), ["label", "x"])
    assert features.rows == ROWS
    assert np.array_equal(features.to_numpy(), stored)
    values, labels = features.to_numpy(label="label")
    assert np.array_equal(values, stored)
    assert np.array_equal(labels, table()["label"].to_numpy())


def test_do_pandas_polars_and_arrow_agree(places: dict[str, Path], stored: np.ndarray) -> None:
    features = load(str(places["both"]), ["label", "x", "c"])
    names = ["latent0", "latent1", "latent2", "label", "x", "c"]
    frame, polars, arrow = features.to_pandas(), features.to_polars(), features.to_arrow()
    assert isinstance(frame, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert list(frame.columns) == polars.columns == arrow.column_names == names
    assert np.array_equal(frame[names[:3]].to_numpy(), stored)
    assert np.array_equal(polars.select(names[:3]).to_numpy(), stored)
    decoded = Archive.open(Location(str(places["both"]))).read(columns=["x", "c"])
    assert arrow["x"].equals(decoded["x"])
    assert frame["c"].tolist() == decoded["c"].to_pylist() == table()["c"].to_pylist()


def test_are_batches_streamed_part_by_part(places: dict[str, Path]) -> None:
    features = load(str(places["both"]), ["label"])
    batches = list(features.batches())
    assert sum(batch.num_rows for batch in batches) == ROWS
    assert len(batches) >= 3
    assert all(batch.schema == features.schema for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_does_torch_see_every_row_once(places: dict[str, Path], stored: np.ndarray, workers: int) -> None:
    dataset = load(str(places["both"]), ["label"]).to_torch("label")
    loader = DataLoader(
        dataset, batch_size=64, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    pairs = [
        (tuple(row.tolist()), int(label)) for rows, labels in loader for row, label in zip(rows, labels, strict=True)
    ]
    expected = zip(map(tuple, stored.tolist()), table()["label"].to_pylist(), strict=True)
    assert sorted(pairs) == sorted(expected)


def test_are_means_and_variances_those_of_the_decoded_rows(places: dict[str, Path], stored: np.ndarray) -> None:
    bundle = Bundle.load(Location(str(places["model"])))
    decoded = Archive.open(Location(str(places["both"]))).read()
    bins, _ = bundle.rows.from_batch(decoded.combine_chunks().to_batches()[0])
    mean, logvar = bundle.to_posterior(bins)
    features = load(str(places["both"]), latents="mean+variance")
    assert features.names == ["latent0", "latent1", "latent2", "logvar0", "logvar1", "logvar2"]
    np.testing.assert_allclose(features.to_numpy(), np.concatenate([mean, logvar], 1), atol=1e-5)
    np.testing.assert_allclose(load(str(places["both"]), latents="mean").to_numpy(), mean, atol=1e-5)


def test_does_an_archive_without_latents_need_its_model(places: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="keeps corrections alone"):
        load(str(places["corrections"]))
    bundle = Bundle.load(Location(str(places["model"])))
    decoded = Archive.open(Location(str(places["corrections"]))).read()
    bins, _ = bundle.rows.from_batch(decoded.combine_chunks().to_batches()[0])
    features = load(str(places["corrections"]), ["label"], model=str(places["model"]))
    values, labels = features.to_numpy(label="label")
    assert np.array_equal(values, bundle.to_latents(bins))
    assert np.array_equal(labels, table()["label"].to_numpy())


def test_does_whitening_give_mean_0_and_identity(places: dict[str, Path], stored: np.ndarray) -> None:
    values = load(str(places["both"]), whiten=True).to_numpy().astype(float)
    active = int((stored.std(0) > 0).sum())
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(values.T)[:active, :active], np.eye(active), atol=1e-3)
    narrow = load(str(places["both"]), width=1).to_numpy().astype(float)
    expected = np.linalg.eigvalsh(np.cov(stored.astype(float).T))[-1]
    np.testing.assert_allclose(narrow.var(0, ddof=1), [expected], rtol=1e-4)


def test_is_whitening_the_same_in_any_blocks_and_inverted() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 1e3
    whole, pieces = (Whitening.fit(np.array_split(values, n), 4) for n in (1, 7))
    np.testing.assert_allclose(whole.transform_double(values), pieces.transform_double(values), atol=1e-7)
    np.testing.assert_allclose(whole.inverse(whole.transform_double(values)), values, rtol=1e-9)
    with pytest.raises(ConfigError, match="4 rows are too few to whiten 4"):
        Whitening.fit([values[:4]], 4)


def test_are_mistakes_named(places: dict[str, Path]) -> None:
    archive = str(places["both"])
    with pytest.raises(ConfigError, match="'nope'"):
        load(archive, ["nope"])
    with pytest.raises(ConfigError, match="width = 4: expected 1 to 3"):
        load(archive, width=4)
    with pytest.raises(ConfigError, match="latents = 'some'"):
        load(archive, latents="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="label 'label' is not among"):
        load(archive).to_numpy(label="label")
    with pytest.raises(ConfigError, match="a tensor holds numbers"):
        load(archive, ["c"]).to_torch("c")
