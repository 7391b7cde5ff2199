"""Reconstruction error of PCA, a plain autoencoder and the VAE with as many latents, on held-out rows.

usage: python -m benchmarks.reconstruction NAME=LATENTS... [--data DIR] [--epochs N] [--out FILE.json]

Every number is standardized with the training rows' mean and standard deviation: scalar columns and elements of
vectors one by one, an image as a whole. PCA and the networks see the same rows; the error is the RMS over all
standardized values of the held-out 10 %. Latents are not rounded.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.decomposition import PCA

from jobs.inspect import format_table
from pipeline.bundle import Bundle
from pipeline.cluster import connected
from pipeline.columns import ColumnOptions
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset, read_unit
from pipeline.sampling import held_out
from pipeline.storage import Location
from pipeline.train import train
from vae_model.config import NetworkConfig

Matrix = npt.NDArray[np.float64]
LABELS = {"label", "target", "class", "task", "split"}
IMAGES = {"mnist": (28, 28), "usps": (16, 16)}
SCALES = {"VAE": 0.1, "autoencoder": 0.1}


def main() -> None:
    """Measures every dataset named and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", metavar="NAME=LATENTS")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    rows = []
    with connected():
        for case in options.cases:
            name, latents = case.split("=")
            rows.append(measure(options.data / f"{name}.parquet", int(latents), options.epochs))
            print(format_table(rows), flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1))


def measure(path: Path, latents: int, epochs: int | None, seed: int = 0) -> dict[str, Any]:
    """RMS errors of one dataset."""
    dataset = open_dataset(Location(str(path.resolve())))
    labels = tuple(name for name in dataset.schema.names if name in LABELS)
    shape = IMAGES.get(path.stem)
    parts, masks = [], []
    for unit in dataset.units():
        parts.extend(read_unit(dataset.root, unit, None, dataset.block_rows))
        masks.append(held_out(seed, unit, 0.1))
    table, mask = pa.Table.from_batches(parts), np.concatenate(masks)
    values = as_matrix(table, labels)
    centre, scale = standardization(values[~mask], shape is not None)
    standardized = (values - centre) / scale
    pca = PCA(latents, random_state=seed).fit(standardized[~mask])
    test = standardized[mask]
    row: dict[str, Any] = {"dataset": path.stem, "rows": len(values), "values": values.shape[1], "latents": latents}
    row["PCA"] = rms(pca.inverse_transform(pca.transform(test)), test)
    for kind in ("autoencoder", "VAE"):
        bundle = fit(dataset.location, labels, shape, latents, kind, epochs, seed)
        decoded = reconstruct(bundle, table.filter(pa.array(mask)), labels)
        row[kind] = rms((decoded - centre) / scale, test)
    return {**row, "VAE / PCA": row["VAE"] / row["PCA"]}


def fit(
    data: Location,
    labels: tuple[str, ...],
    shape: tuple[int, ...] | None,
    latents: int,
    kind: str,
    epochs: int | None,
    seed: int,
) -> Bundle:
    """Trains one model as `parvae train` does, with a Gaussian likelihood and unrounded latents."""
    config = TrainConfig(
        passthrough=labels,
        columns={"image": ColumnOptions(kind="vector", shape=shape)} if shape else {},
        defaults=ColumnOptions(scaling="standard"),
        network=NetworkConfig(
            latent_dim=latents,
            hidden=(512, 256),
            encoder_hidden=(512, 256),
            likelihood="gaussian",
            decoder_scale=SCALES[kind],
            conv_channels=(),
            autoencoder=kind == "autoencoder",
        ),
        training=Optimization(epochs=epochs, rounding=False, learning_rate=1e-3),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(data, Location(f"{folder}/model"), config).bundle


def reconstruct(bundle: Bundle, table: pa.Table, labels: tuple[str, ...]) -> Matrix:
    """What the decoder makes of the posterior means, as values of the columns."""
    batch = table.drop_columns(list(labels)).combine_chunks().to_batches()[0]
    bins, exceptions = bundle.rows.from_batch(batch)
    arrays = bundle.rows.to_arrays(bundle.to_bins(bundle.to_latents(bins)), exceptions)
    return as_matrix(pa.table(arrays), ())


def as_matrix(table: pa.Table, labels: tuple[str, ...]) -> Matrix:
    """All numbers of the modelled columns, one row a row."""
    parts = []
    for name in table.column_names:
        if name not in labels:
            column = table[name].combine_chunks()
            flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
            parts.append(flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(table), -1))
    return np.concatenate(parts, axis=1)


def standardization(train: Matrix, whole: bool) -> tuple[Matrix, Matrix]:
    """Centre and scale of every value; one scale for all of an image."""
    centre, spread = train.mean(0), train.std(0)
    scale = np.full_like(spread, train.std()) if whole else np.where(spread > 0, spread, 1.0)
    return centre, scale


def rms(left: Matrix, right: Matrix) -> float:
    """Root of the mean squared difference."""
    return float(np.sqrt(np.mean((left - right) ** 2)))


if __name__ == "__main__":
    main()
