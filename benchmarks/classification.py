"""Latents as features for classifiers, beside a plain autoencoder, PCA of the same width and the raw columns.

usage: python -m benchmarks.classification FILE.parquet=LABEL … [--seeds N] [--width Z] [--set KEY=VALUE] … --out FOLDER

The rows with `split` = "test" are the test rows where there is such a column, else a seeded fifth. Every model is
trained on the training rows alone, labels left out, with the same settings for every dataset. `stored`, `mean` and
`mean+variance` are latents as an archive keeps them, not rounded, and with log-variances beside them (twice as wide, so
`pca-wide` is, too).
Beside accuracy: RMS error of reconstruction and trustworthiness (Venna & Kaski 2001, 5 neighbours), both of test rows
in the units of the raw matrix: numbers standardized, categories one-hot, vectors on one scale.

A result a dataset, seed and method is kept in FOLDER; started again, what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.bundle import Bundle
from pipeline.classifiers import fit
from pipeline.config import TrainConfig, load_config, parse_setting
from pipeline.design import DesignMatrix
from pipeline.features import encode_batch
from pipeline.fitting import column_options, empty_stats, fit_all
from pipeline.labelled import Matrix, Split
from pipeline.local import fit_table

Floats = npt.NDArray[np.float32]
SPLIT, TEST = "split", "test"
METHODS = ("stored", "mean", "mean+variance", "autoencoder", "pca", "pca-wide", "raw")
BATCH_ROWS = 8192
CLASSIFIERS = ("logistic", "boosting")
NEIGHBOURS, TRUSTED_ROWS = 5, 2000


@dataclass(frozen=True)
class Rows:
    """A dataset, split.

    Attributes:
        train: Training rows without the label.
        test: Test rows without the label.
        y_train: Classes of the training rows.
        y_test: Classes of the test rows.
    """

    train: pa.Table
    test: pa.Table
    y_train: npt.NDArray[np.int64]
    y_test: npt.NDArray[np.int64]


def read(path: Path, label: str, seed: int) -> Rows:
    """Reads and splits a dataset."""
    table = pq.read_table(path)
    if SPLIT in table.column_names:
        mask = pc.equal(table[SPLIT].cast(pa.string()), TEST).to_numpy()
        table = table.drop_columns([SPLIT])
    else:
        mask = np.random.default_rng(seed).random(table.num_rows) < 0.2
    _, y = np.unique(table[label].to_pandas().astype(str), return_inverse=True)
    table = table.drop_columns([label])
    return Rows(table.filter(pa.array(~mask)), table.filter(pa.array(mask)), y[~mask], y[mask])


def encode(bundle: Bundle, table: pa.Table, latents: Any) -> Floats:
    """The latents of a table."""
    batches = table.unify_dictionaries().to_batches(max_chunksize=BATCH_ROWS)
    return np.concatenate([encode_batch(bundle, batch, latents) for batch in batches])


def decoded(bundle: Bundle, latents: Floats) -> pa.Table:
    """What latents decode to."""
    return pa.table(bundle.rows.to_arrays(bundle.to_bins(latents), {}))


class Methods:
    """Every method on one split; what several share is made once.

    Args:
        rows: The split.
        config: How models are trained.
        width: Z.
    """

    def __init__(self, rows: Rows, config: TrainConfig, width: int) -> None:
        self._rows = rows
        options = column_options(rows.train.schema, (), config.columns, config.defaults)
        stats = empty_stats(rows.train.schema, options)
        for batch in rows.train.unify_dictionaries().to_batches():
            for name in rows.train.column_names:
                stats[name].observe(batch.column(name), np.arange(batch.num_rows, dtype=np.uint64))
        fitted = fit_all(rows.train.schema, stats, options, "the dataset")
        self._design = DesignMatrix(fitted.rows.columns).fit(rows.train)
        self.train, self.test = self._design.transform(rows.train), self._design.transform(rows.test)
        columns = sum(sum(span.width for span in c.spans() if span.role == "value") for c in fitted.rows.columns)
        self.width = min(width, columns)
        self._config = replace(config, network=replace(config.network, latent_dim=self.width))
        self._bundles: dict[bool, Bundle] = {}

    def features(self, method: str) -> tuple[Floats, Floats, Floats | None]:
        """Features of training and test rows, and the reconstruction of the test rows."""
        if method == "raw":
            return self.train, self.test, None
        if method.startswith("pca"):
            from sklearn.decomposition import PCA

            width = self.width if method == "pca" else min(2 * self.width, self.train.shape[1])
            pca = PCA(width, random_state=0).fit(self.train)
            test = pca.transform(self.test)
            return pca.transform(self.train), test, pca.inverse_transform(test)
        bundle = self._bundle(method == "autoencoder")
        latents = "mean" if method == "autoencoder" else method
        train, test = (encode(bundle, table, latents) for table in (self._rows.train, self._rows.test))
        back = self._design.transform(decoded(bundle, np.ascontiguousarray(test[:, : self.width])))
        return train, test, back

    def _bundle(self, autoencoder: bool) -> Bundle:
        if autoencoder not in self._bundles:
            network = replace(self._config.network, autoencoder=autoencoder)
            self._bundles[autoencoder] = fit_table(self._rows.train, replace(self._config, network=network))
        return self._bundles[autoencoder]


def measure(methods: Methods, rows: Rows, method: str, seed: int) -> dict[str, Any]:
    """Accuracy of every classifier, RMS error and trustworthiness of one method."""
    from sklearn.manifold import trustworthiness

    started = time.monotonic()
    train, test, back = methods.features(method)
    split = Split(train, rows.y_train, test, rows.y_test)
    classes = int(max(rows.y_train.max(), rows.y_test.max())) + 1
    figures: dict[str, Any] = {"width": train.shape[1], "features_seconds": time.monotonic() - started}
    for name in CLASSIFIERS:
        empty: Iterator[Any] = iter(())
        figures[name] = fit(name, Matrix(train.shape[1], lambda e=empty: e), split, classes, seed, 0)
    if back is not None:
        chosen = np.random.default_rng(seed).permutation(len(test))[:TRUSTED_ROWS]
        figures["rms_error"] = float(np.sqrt(np.mean(np.square(back - methods.test, dtype=np.float64))))
        figures["trustworthiness"] = float(trustworthiness(methods.test[chosen], test[chosen], n_neighbors=NEIGHBOURS))
    return figures | {"seconds": time.monotonic() - started}


def table_of(folder: Path) -> str:
    """All results as Markdown: means ± standard deviations over the seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault((result["dataset"], result["method"]), []).append(result)
    heads = "dataset | features | width | logistic regression | gradient boosting | RMS error | trustworthiness | seeds"
    lines = [f"| {heads} |", "|" + "---|" * 8]
    for (dataset, method), results in sorted(found.items(), key=lambda item: (item[0][0], METHODS.index(item[0][1]))):
        cells = [spread([r[name]["accuracy"] for r in results]) for name in CLASSIFIERS]
        cells += [spread([r[name] for r in results if name in r]) for name in ("rms_error", "trustworthiness")]
        lines.append(f"| {dataset} | {method} | {results[0]['width']} | {' | '.join(cells)} | {len(results)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


def main() -> int:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", metavar="FILE.parquet=LABEL")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--width", type=int, default=32, metavar="Z", help="or the number of columns, if smaller")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `parvae train`")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = dict(parse_setting(text) for text in options.set)
    for word in options.data:
        path, _, label = word.rpartition("=")
        for seed in range(options.seeds):
            run(Path(path), label, seed, settings, options)
    text = table_of(options.out)
    (options.out / "results.md").write_text(text + "\n")
    print(text)
    return 0


def run(path: Path, label: str, seed: int, settings: dict[str, Any], options: argparse.Namespace) -> None:
    """Measures what is missing of one dataset and seed."""
    places = {method: options.out / f"{path.stem}-{seed}-{method}.json" for method in options.method or METHODS}
    missing = {method: place for method, place in places.items() if not place.exists()}
    if not missing:
        return
    rows = read(path, label, seed)
    config = replace(load_config("", "--set", columns_of(settings, path.stem)), seed=seed)
    methods = Methods(rows, config, options.width)
    for method, place in missing.items():
        figures = measure(methods, rows, method, seed)
        result = {"dataset": path.stem, "seed": seed, "method": method, "settings": settings, **figures}
        place.write_text(json.dumps(result, indent=1))
        shown = ", ".join(f"{name} {figures[name]['accuracy']:.4f}" for name in CLASSIFIERS)
        print(f"{path.stem} seed {seed} {method}: {shown} ({figures['seconds']:.0f} s)", file=sys.stderr, flush=True)


def columns_of(settings: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The settings for one dataset: `DATASET:KEY=VALUE` is for it alone (an image's shape, a column's kind)."""
    shared = {key: value for key, value in settings.items() if ":" not in key}
    own = {key.partition(":")[2]: value for key, value in settings.items() if key.startswith(f"{dataset}:")}
    return shared | own


if __name__ == "__main__":
    raise SystemExit(main())
