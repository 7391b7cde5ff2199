"""Scoring: how anomalous every row of a dataset is under a model, file by file."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster, connected
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import ConfigError, DatasetError, JobError, OutputError
from pipeline.ledger import Ledger, open_ledger, recording
from pipeline.locate import check_output
from pipeline.lock import OutputLock, is_vacant, locked
from pipeline.neighbours import archive_latents, check_enough, sample_latents, share_of
from pipeline.plan import fingerprint
from pipeline.progress import Progress
from pipeline.score_files import ROW_GROUP, SCORE, FileFlagger, FileScorer, ScoreOptions, score_names
from pipeline.storage import Location
from pipeline.thresholds import WHOLE_FILES, Labels, best_f1, check_column, quantile, read_labels
from pipeline.units import run_units

LOG = logging.getLogger(__name__)
SUMMARY_FILE = "_scores.json"
SCORED_FOLDER = "_scored"
"""Where files wait for a threshold that all scores decide."""


@dataclass(frozen=True)
class Request:
    """A dataset to be scored, checked."""

    dataset: Dataset
    bundle: Bundle
    out: Location
    options: ScoreOptions
    keys: tuple[str, ...]
    labels: Labels | None
    reference: npt.NDArray[np.float32] | None
    run: str


def score(
    data: Location,
    model: Location,
    out: Location,
    options: ScoreOptions,
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes one file of scores for each file of a dataset, its rows in the same order.

    Scores depend on the model, the file's path and rows, and the seed: not on workers, nor on other files.

    Args:
        data: The dataset.
        model: A model's folder.
        out: Folder to write.
        options: What is asked for.
        workers: Scoring actors; None: as many as the cluster has CPUs (GPUs with `gpu`),
            and no more than the work is worth.
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether scores, or another run's unfinished ones, in the folder may be replaced.

    Returns:
        Figures: rows, files, threshold, rows above it, and how it does where there are labels.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed.
    """
    started = time.monotonic()
    request = _checked(data, model, out, options)
    check_folder(out, request.run, overwrite)
    with connected() as cluster, locked(out, "--out") as lock:
        count = cluster.workers_for(workers, gpu, request.dataset.size)
        ledger = _begin(out, request.run, overwrite, lock)
        with recording(ledger, out):
            figures = _Run(request, cluster, (count, gpu), ledger, lock).run()
        lock.check()
        out.join(SUMMARY_FILE).write_json({"format": "parvae-scores", "run": request.run, **figures})
        out.join(SCORED_FOLDER).remove()
        ledger.remove()
        out.remove_spools()
    return {**figures, "seconds": time.monotonic() - started}


def _checked(data: Location, model: Location, out: Location, options: ScoreOptions) -> Request:
    """Everything that can be wrong, before any work."""
    inputs = {"DATA": data, "--model": model}
    if options.reference is not None:
        inputs["--reference"] = options.reference
    check_output(out, "--out", inputs)
    bundle = Bundle.load(model)
    dataset = open_dataset(data)
    bundle.rows.check_schema(dataset.schema, f"DATA {data}")
    keys = tuple(bundle.rows.passthrough) if options.keys is None else options.keys
    for name in keys:
        check_column(dataset, name, "--keys")
    written = [*keys, *score_names(bundle, options)]
    twice = next((name for name in written if written.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two columns of the output would be called {twice!r}; choose other --keys")
    if options.waits and not dataset.rows:
        raise DatasetError(f"DATA {data} has no rows; there is nothing to choose a threshold by")
    labels = None if options.label is None else read_labels(dataset, options.label, "--threshold-label")
    reference, parts = None, None
    if options.reference is not None and options.neighbours is not None:
        reference = archive_latents(options.reference, bundle, options.seed)
        check_enough(len(reference), options.neighbours)
        parts = Archive.open(options.reference).manifest["parts_sha256"]
    elif options.neighbours is not None:
        check_enough(dataset.rows, options.neighbours)
    asked = [options.samples, options.contributions, keys, options.threshold, options.quantile, options.label]
    run = fingerprint(
        ["score", dataset.fingerprint(), bundle.fingerprint, *asked, options.neighbours, parts, options.seed]
    )
    return Request(dataset, bundle, out, options, keys, labels, reference, run)


class _Run:
    """One run of `score`, on a cluster."""

    def __init__(
        self, request: Request, cluster: Cluster, workers: tuple[int, bool], ledger: Ledger, lock: OutputLock
    ) -> None:
        self._request, self._cluster, self._ledger, self._lock = request, cluster, ledger, lock
        self._workers, self._gpu = workers
        self._units = request.dataset.units(WHOLE_FILES)
        self._resumed = 0

    def run(self) -> dict[str, Any]:
        """Scores, decides the threshold, flags; returns the figures."""
        request, options = self._request, self._request.options
        entries = self._stage("score", FileScorer, self._scoring)
        rows = sum(entry["rows"] for entry in entries)
        if rows != request.dataset.rows:
            raise JobError(f"{rows} rows were scored, the dataset has {request.dataset.rows}; run the job again")
        figures: dict[str, Any] = {"rows": rows, "files": len(entries), "samples": options.samples}
        threshold = options.threshold
        if options.waits:
            threshold, quality = self._threshold(rows)
            figures.update(quality)
            arguments = {"source": request.out.join(SCORED_FOLDER), "out": request.out, "threshold": threshold}
            entries = self._stage("flag", FileFlagger, lambda: arguments)
        if threshold is not None:
            anomalies = sum(entry["anomalies"] for entry in entries)
            figures.update(threshold=threshold, anomalies=anomalies, anomaly_share=anomalies / max(1, rows))
        return {**figures, "resumed": self._resumed}

    def _stage(self, stage: str, worker: type, arguments: Any) -> list[dict[str, Any]]:
        """Runs what an earlier run has not finished of a stage; returns an entry for every file."""
        done = self._finished(stage)
        self._resumed += len(done)
        items = [{**unit.to_json(), "stage": stage} for unit in self._units if unit.path not in done]
        if not items:
            return list(done.values())
        progress = Progress(stage, len(items), self._request.dataset.size / max(1, self._request.dataset.rows))
        entries = list(done.values())
        for result in run_units(items, worker, arguments(), self._cluster, self._workers, self._gpu):
            self._lock.check()
            self._ledger.add(result)
            entries.append(result)
            progress.advance(result["rows"])
        return entries

    def _finished(self, stage: str) -> dict[str, dict[str, Any]]:
        """Files of a stage that are in the ledger, and there with the size that was written."""
        found = {stat.path: stat.size for stat in self._request.out.files()}
        folder = f"{SCORED_FOLDER}/" if stage == "score" and self._request.options.waits else ""
        known = {unit.path for unit in self._units}
        return {
            entry["path"]: entry
            for entry in self._ledger.entries()
            if entry["stage"] == stage
            and entry["path"] in known
            and found.get(folder + entry["path"]) == entry["bytes"]
        }

    def _scoring(self) -> dict[str, Any]:
        """What scoring actors are given."""
        request, options = self._request, self._request.options
        reference = request.reference
        if options.neighbours is not None and reference is None:
            reference = sample_latents(
                request.dataset, request.bundle, options.seed, self._cluster, self._workers, self._gpu
            )
            check_enough(len(reference), options.neighbours)
        return {
            "files": dict(request.bundle.files()),
            "root": request.dataset.root,
            "out": request.out.join(SCORED_FOLDER) if options.waits else request.out,
            "options": options,
            "keys": request.keys,
            "reference": reference,
            "share": share_of(request.dataset) if request.reference is None else 0.0,
            "block_rows": request.dataset.block_rows,
            "device": "cuda" if self._gpu else "cpu",
        }

    def _threshold(self, rows: int) -> tuple[float, dict[str, Any]]:
        """The threshold that all scores decide, and what it was decided by."""
        options, labels = self._request.options, self._request.labels
        if labels is not None:
            verdict = best_f1(np.concatenate(list(self._scores())), labels)
            return verdict.threshold, {"anomaly_label": labels.anomaly, **verdict.figures}
        if options.quantile is None:
            raise ValueError("there is nothing to choose a threshold by")
        return quantile(self._scores, rows, options.quantile), {"quantile": options.quantile}

    def _scores(self) -> Iterator[npt.NDArray[np.float64]]:
        """The scores of all rows, in the dataset's order."""
        for unit in self._units:
            location = self._request.out.join(SCORED_FOLDER, unit.path)
            with location.open() as stream, pq.ParquetFile(stream) as file:
                for batch in file.iter_batches(batch_size=ROW_GROUP, columns=[SCORE], use_threads=False):
                    yield batch.column(0).to_numpy()


def check_folder(out: Location, run: str, overwrite: bool) -> None:
    """Refuses a folder that holds anything but unfinished scores of the same run.

    Raises:
        OutputError: Saying what is there and what to do.
    """
    if is_vacant(out):
        return
    found, finished = Ledger(out).run(), _summary(out)
    if found is None and finished is None:
        raise OutputError(f"--out {out} holds something that is no scores; choose an empty folder")
    if overwrite or found == run:
        return
    if found is not None:
        raise OutputError(
            f"--out {out} holds unfinished scores of other data or options; choose another folder, or give "
            "--overwrite to drop them"
        )
    raise OutputError(f"--out {out} holds scores already; choose another folder, or give --overwrite")


def _summary(out: Location) -> Mapping[str, Any] | None:
    try:
        found = out.join(SUMMARY_FILE).read_json()
        return found if found["format"] == "parvae-scores" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _begin(out: Location, run: str, overwrite: bool, lock: OutputLock) -> Ledger:
    """Clears what is to be overwritten; returns the ledger of this run, with what an earlier one finished."""
    check_folder(out, run, overwrite)
    return open_ledger(out, run, lock, "scores")
