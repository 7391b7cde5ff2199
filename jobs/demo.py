"""`parvae demo`: the whole tour on scikit-learn's digits, with a classifier on the latents."""

from __future__ import annotations

import argparse
import logging
import tempfile
from typing import TYPE_CHECKING, Any

from jobs.inspect import format_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.storage import Location

LOG = logging.getLogger("parvae.demo")
LATENTS = 16
FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--out", metavar="DIR", help="empty folder to work in (default: a new temporary one)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: by its size)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the tour; returns the figures of every step."""
    from pipeline.cluster import connected
    from pipeline.columns import ColumnOptions
    from pipeline.config import Optimization, TrainConfig
    from pipeline.decode import decode
    from pipeline.encode import encode
    from pipeline.errors import OutputError
    from pipeline.evaluate import evaluate
    from pipeline.features import load
    from pipeline.locate import locate
    from pipeline.report.options import ReportOptions, missing_libraries
    from pipeline.train import train
    from vae_model.config import NetworkConfig

    out = locate(options.out or tempfile.mkdtemp(prefix="parvae-demo-"), "--out")
    if not out.is_empty():
        raise OutputError(f"--out {out} is not empty; choose an empty folder")
    data, model, archive, decoded = (out.join(name) for name in ("data", "model", "archive", "decoded"))
    pixels, labels = write_digits(data)
    config = TrainConfig(
        passthrough=("label",),
        columns={"image": ColumnOptions(kind="vector", shape=(8, 8))},
        network=NetworkConfig(latent_dim=LATENTS, hidden=(128,), conv_channels=(8, 16)),
        training=Optimization(epochs=options.epochs),
    )
    with connected():
        trained = train(data, model, config)
        encoded = encode(data, model, archive)
        decode(archive, decoded)
        report = None if missing_libraries() else ReportOptions(out.join("report.html"))
        quality = evaluate(data, archive, report=report)
    latents = load(archive).to_numpy()
    accuracy = {"raw pixels": _accuracy(pixels, labels), "latents": _accuracy(latents, labels)}
    _show(out, quality, accuracy, latents.shape[1], pixels.shape[1])
    return {
        "out": str(out),
        "train_seconds": trained.seconds,
        "encode_seconds": encoded.seconds,
        "evaluate": quality,
        "accuracy": accuracy,
    }


def write_digits(folder: Location) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Writes the digits as a Parquet dataset (`image: fixed_size_list<uint8>[64]`, `label: uint8`).

    Returns:
        Pixels of shape (1797, 64), and labels.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.data.astype(np.uint8)
    image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), pixels.shape[1])
    table = pa.table({"image": image, "label": digits.target.astype(np.uint8)})
    with folder.join("digits.parquet").publishing() as spool:
        pq.write_table(table, spool, compression="zstd")
    return digits.data, digits.target


def _accuracy(features: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(cross_val_score(model, features, labels, cv=FOLDS).mean())


def _show(out: Location, quality: dict[str, Any], accuracy: dict[str, float], latents: int, pixels: int) -> None:
    image = quality["columns"]["image"]
    size = [
        {"what": "Parquet dataset", "bytes": quality["bytes_in"]},
        {"what": "archive, everything", "bytes": quality["bytes_out"]},
        *({"what": f"  {name}", "bytes": n} for name, n in quality["bytes_by_part"].items() if name != "total"),
    ]
    model = [
        {"what": "-ELBO, bits a row", "figure": quality["minus_elbo_bits_per_row"]},
        {"what": "  reconstruction", "figure": quality["minus_reconstruction_bits_per_row"]},
        {"what": "  KL", "figure": quality["kl_bits_per_row"]},
        {"what": "active latents", "figure": float(quality["active_units"])},
        {"what": "RMS error of a pixel (0 to 16)", "figure": image["rms_error"]},
        {"what": "label mismatches", "figure": quality["columns"]["label"]["mismatch_rate"]},
    ]
    classes = [
        {"logistic regression on": f"{pixels} raw pixels", "accuracy": accuracy["raw pixels"]},
        {"logistic regression on": f"{latents} latents", "accuracy": accuracy["latents"]},
    ]
    for title, rows in (("size", size), ("model", model), (f"classification, {FOLDS}-fold", classes)):
        print(f"\n{title}\n{format_table(rows)}")
    report = quality.get("report")
    drawn = f"report: {report}" if report else "no report was drawn: pip install 'parvae[report]'"
    print(f"\neverything lies in {out}\n{drawn}\n")


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("demo"))
