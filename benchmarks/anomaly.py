"""AUROC and average precision of parvae's anomaly scores beside scikit-learn's and PyOD's detectors.

usage: python -m benchmarks.anomaly DATA... --out FILE.json [--markdown FILE.md] [--seeds N] [--first-seed N]
       [--detectors NAME...]

Every DATA is a Parquet file with a label column (1 = anomaly). 70 % of the normal rows, drawn by the seed, are trained
on; the other normal rows and all anomalies are the test. parvae has one configuration for all datasets (`CONFIG`), the
others their libraries' defaults and the same seed where they take one. What is measured already, by dataset, seed and
detector, is kept in FILE.json and not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from jobs.inspect import format_table
from pipeline.anomaly import Scorer
from pipeline.columns import Bound
from pipeline.config import Optimization, TrainConfig
from pipeline.local import fit_table
from pipeline.neighbours import REFERENCE_ROWS, Neighbours
from vae_model.config import NetworkConfig

LOG = logging.getLogger(__name__)
Matrix = npt.NDArray[np.float64]
Scored = dict[str, Matrix]
CONFIG = TrainConfig(
    network=NetworkConfig(encoder_hidden=(256, 256)),
    training=Optimization(corruption=0.3),
    error=Bound.parse("none"),
)
SAMPLES, NEIGHBOURS = 16, 5
PARVAE = ("parvae", "parvae -ELBO", "parvae kNN")
PYOD = {"PyOD IForest": "iforest", "PyOD ECOD": "ecod", "PyOD PCA": "pca", "PyOD KNN": "knn", "PyOD VAE": "vae"}
CLASSES = {"iforest": "IForest", "ecod": "ECOD", "pca": "PCA", "knn": "KNN", "vae": "VAE"}
FOREST = "IsolationForest"
DETECTORS = (*PARVAE, FOREST, *PYOD)
BEST_OF = ("PyOD IForest", "PyOD ECOD", "PyOD PCA", "PyOD KNN")


def main(argv: list[str] | None = None) -> None:
    """Measures what is not measured yet and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--label", default="label")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="settings were chosen by seed 0")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="of parvae (default: by the size of the data)")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    found: list[dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        for path in options.data:
            done = {entry["detector"] for entry in found if (entry["dataset"], entry["seed"]) == (path.stem, seed)}
            missing = [name for name in options.detectors if name not in done]
            for entry in measure(path, options.label, seed, missing, options.epochs):
                found.append({"dataset": path.stem, "seed": seed, **entry})
                write(options.out, json.dumps(found, indent=1))
                LOG.info("%s, seed %d, %s: AUROC %.4f", path.stem, seed, entry["detector"], entry["auroc"])
    report = "\n\n".join(tables([entry for entry in found if entry["seed"] in seeds]))
    if options.markdown:
        write(options.markdown, report + "\n")
    print(report)


def write(path: Path, text: str) -> None:
    """Writes a file in one step."""
    spool = path.with_name(f".{path.name}.tmp")
    spool.write_text(text)
    os.replace(spool, path)


def split(path: Path, label: str, seed: int) -> tuple[pa.Table, pa.Table, npt.NDArray[np.bool_]]:
    """Training rows, test rows, and which test rows are anomalies."""
    table = pq.read_table(path)
    anomalous = table[label].to_numpy() == 1
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~anomalous))
    count = round(0.7 * len(normal))
    train, test = np.sort(normal[:count]), np.sort([*normal[count:], *np.flatnonzero(anomalous)])
    rows = table.drop_columns([label])
    return rows.take(train), rows.take(test), anomalous[test]


def measure(path: Path, label: str, seed: int, names: list[str], epochs: int | None) -> Iterator[dict[str, Any]]:
    """Figures of detectors on one split, as they come."""
    if not names:
        return
    train, test, anomalous = split(path, label, seed)
    ours, others = [name for name in names if name in PARVAE], [[name] for name in names if name not in PARVAE]
    for wanted in [ours, *others] if ours else others:
        started = time.monotonic()
        if wanted is ours:
            scores = parvae_scores(train, test, seed, epochs)
        else:
            scores = {wanted[0]: other_scores(wanted[0], train, test, seed)}
        seconds = time.monotonic() - started
        for name in wanted:
            auroc = float(roc_auc_score(anomalous, scores[name]))
            precision = float(average_precision_score(anomalous, scores[name]))
            yield {"detector": name, "auroc": auroc, "average_precision": precision, "seconds": seconds}


def parvae_scores(train: pa.Table, test: pa.Table, seed: int, epochs: int | None) -> Scored:
    """The scores of `parvae score` for the test rows."""
    config = dataclasses.replace(CONFIG, seed=seed, training=dataclasses.replace(CONFIG.training, epochs=epochs))
    bundle = fit_table(train, config, threads=1)
    scorer = Scorer(bundle, SAMPLES, seed, expected=False)
    batch = test.combine_chunks().to_batches()[0]
    starts = range(0, len(test), scorer.chunk_rows)
    chunks = [scorer(batch.slice(start, scorer.chunk_rows), 0, number) for number, start in enumerate(starts)]
    bins, _ = bundle.rows.from_batch(train.combine_chunks().to_batches()[0])
    chosen = np.random.default_rng(seed).permutation(len(bins))[:REFERENCE_ROWS]
    neighbours = Neighbours(bundle.to_latents(bins[chosen]), NEIGHBOURS)
    latents = np.concatenate([chunk.latents for chunk in chunks])
    return {
        "parvae": np.concatenate([chunk.anomaly_score for chunk in chunks]),
        "parvae -ELBO": np.concatenate([chunk.minus_elbo for chunk in chunks]),
        "parvae kNN": neighbours(latents, np.zeros(len(latents), np.bool_)),
    }


def other_scores(name: str, train: pa.Table, test: pa.Table, seed: int) -> Matrix:
    """The scores of another library's detector, with its defaults."""
    import torch

    torch.set_num_threads(1)
    first, second = (np.column_stack([c.to_numpy().astype(np.float64) for c in t.columns]) for t in (train, test))
    if name == FOREST:
        from sklearn.ensemble import IsolationForest

        return np.asarray(-IsolationForest(random_state=seed).fit(first).score_samples(second), np.float64)
    module = PYOD[name]
    detector = getattr(importlib.import_module(f"pyod.models.{module}"), CLASSES[module])
    seeded = {"random_state": seed} if module in ("iforest", "vae") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(detector(**seeded).fit(first).decision_function(second), np.float64)


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    """AUROC and average precision as Markdown, mean ± standard deviation over seeds in percent, then the goals."""
    datasets = list(dict.fromkeys(entry["dataset"] for entry in found))
    names = [name for name in DETECTORS if any(entry["detector"] == name for entry in found)]
    means: dict[tuple[str, str, str], float] = {}
    for figure, title in (("auroc", "AUROC"), ("average_precision", "Average precision")):
        lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for dataset in datasets:
            cells = []
            for name in names:
                values = [100 * e[figure] for e in found if (e["dataset"], e["detector"]) == (dataset, name)]
                means[figure, dataset, name] = float(np.mean(values)) if values else float("nan")
                spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
                cells.append(f"{means[figure, dataset, name]:.2f} ± {spread:.2f}" if values else "")
            lines.append(f"| {dataset} | {' | '.join(cells)} |")
        overall = [np.mean([means[figure, dataset, name] for dataset in datasets]) for name in names]
        lines.append(f"| mean | {' | '.join(f'{value:.2f}' for value in overall)} |")
        yield "\n".join(lines)
    if {PARVAE[0], *BEST_OF} <= set(names):
        wins = [
            {
                "dataset": dataset,
                PARVAE[0]: means["auroc", dataset, PARVAE[0]],
                "best of IForest, ECOD, PCA, KNN": max(means["auroc", dataset, name] for name in BEST_OF),
            }
            for dataset in datasets
        ]
        yield format_table(wins)


if __name__ == "__main__":
    main()
