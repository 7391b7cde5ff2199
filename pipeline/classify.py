"""Classification: what the latents of an archive are worth beside PCA of the same width and the raw columns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.archive import Archive
from pipeline.classifiers import Classifier, fit
from pipeline.cluster import connected
from pipeline.errors import ConfigError, DatasetError
from pipeline.features import Features, LatentKind, load
from pipeline.labelled import Draw, FeatureSet, LabelledRows
from pipeline.labels import check_label
from pipeline.progress import Progress
from pipeline.storage import Location
from pipeline.units import run_units


@dataclass(frozen=True)
class ClassifyOptions:
    """What is classified, by what, from what.

    Attributes:
        label: Column of the classes.
        allow_modelled: Whether the label may be a column that the model saw.
        split: `(column, value)`: rows with that value in that column are the test rows; None: drawn.
        test_fraction: Share of the rows that are drawn as test rows.
        seeds: Repetitions; each draws its own split and its own random states.
        classifiers: Which classifiers.
        features: From which features.
        latents: Which latents; see `pipeline.features.load`.
        whiten: Whether latents are whitened.
        model: The model's folder, for an archive that keeps corrections alone.
        memory: Bytes that a matrix may take; larger ones are streamed.
    """

    label: str
    allow_modelled: bool = False
    split: tuple[str, str] | None = None
    test_fraction: float = 0.2
    seeds: int = 5
    classifiers: tuple[Classifier, ...] = ("logistic", "boosting")
    features: tuple[FeatureSet, ...] = ("latents", "pca", "raw")
    latents: LatentKind = "stored"
    whiten: bool = False
    model: Location | None = None
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"--test-fraction {self.test_fraction}: expected more than 0 and less than 1")


def classify(archive: Location, options: ClassifyOptions, workers: int | None = None) -> dict[str, Any]:
    """Trains classifiers on latents, on PCA of the same width and on the raw columns, on the same splits.

    Args:
        archive: The archive.
        options: What is classified, by what, from what.
        workers: Ray workers; None: one a CPU.

    Returns:
        Rows, classes, and for each features and classifier accuracy, macro-F1 and AUROC with their means and standard
        deviations over the seeds.

    Raises:
        InputError: Bad input, found before any work.
    """
    started = time.monotonic()
    opened = Archive.open(archive)
    opened.check_parts()
    label = check_label(opened, options.label, options.allow_modelled)
    features = _check(opened, options)
    latents = len(features.names)
    if opened.rows * (1 - options.test_fraction) <= latents:
        raise DatasetError(
            f"{archive} has {opened.rows} rows for {latents} latents; a classifier needs more rows than features"
        )
    items = [{"features": kind, "seed": seed} for kind in options.features for seed in range(options.seeds)]
    with connected() as cluster:
        count = min(cluster.workers_for(workers, False), len(items))
        arguments = {"archive": archive, "options": options, "threads": cluster.threads_per_worker(count)}
        progress = Progress("classify", len(items))
        found: list[dict[str, Any]] = []
        for result in run_units(items, ClassifyWorker, arguments, cluster, count, False):
            found += result["scores"]
            progress.advance(opened.rows)
    return {
        "rows": opened.rows,
        "label": options.label,
        "classes": dict(zip(label.names(), label.counts, strict=True)),
        "latents": latents,
        "seeds": options.seeds,
        "scores": summary(_sorted(found, options)),
        "seconds": time.monotonic() - started,
    }


def _sorted(found: list[dict[str, Any]], options: ClassifyOptions) -> list[dict[str, Any]]:
    """The scores in the order that was asked for, whichever worker was first."""

    def place(entry: dict[str, Any]) -> tuple[int, int, int]:
        return (
            options.features.index(entry["features"]),
            options.classifiers.index(entry["classifier"]),
            entry["seed"],
        )

    return sorted(found, key=place)


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each features and classifier: means and standard deviations over the seeds."""
    rows = []
    for kind, classifier in dict.fromkeys((entry["features"], entry["classifier"]) for entry in found):
        same = [entry for entry in found if (entry["features"], entry["classifier"]) == (kind, classifier)]
        row = {"features": kind, "classifier": classifier, "width": same[0]["width"], "streamed": same[0]["streamed"]}
        for name in ("accuracy", "macro_f1", "auroc"):
            values = [entry[name] for entry in same if entry[name] is not None]
            row[name] = float(np.mean(values)) if values else None
            row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return rows


def _check(archive: Archive, options: ClassifyOptions) -> Features:
    """Everything about the features that can be wrong before any work."""
    if options.split is not None:
        archive.check_columns([options.split[0]], "--split")
    return load(archive.location, latents=options.latents, model=options.model, whiten=options.whiten)


class ClassifyWorker:
    """Worker: all classifiers on one set of features and one split.

    Args:
        archive: The archive.
        options: What is classified, by what, from what.
        threads: Compute threads.
    """

    def __init__(self, archive: Location, options: ClassifyOptions, threads: int) -> None:
        import threadpoolctl
        import torch

        torch.set_num_threads(threads)
        self._limit = threadpoolctl.threadpool_limits(threads)
        self._archive, self._options = Archive.open(archive), options
        self._label = check_label(self._archive, options.label, options.allow_modelled)
        self._features = _check(self._archive, options)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns the scores of every classifier."""
        options, classes = self._options, len(self._label.classes)
        draw = Draw(options.split, options.test_fraction, int(item["seed"]))
        rows = LabelledRows(self._archive, self._features, self._label, draw)
        matrix = rows.of(item["features"])
        streamed = self._archive.rows * matrix.width * 4 > options.memory
        split = None if streamed else matrix.collect()
        scores = []
        for name in options.classifiers:
            started = time.monotonic()
            fitted = fit(name, matrix, split, classes, int(item["seed"]), options.memory)
            entry = {**item, "classifier": name, "width": matrix.width, "streamed": streamed, **fitted}
            scores.append({**entry, "seconds": time.monotonic() - started})
        return {"scores": scores}
