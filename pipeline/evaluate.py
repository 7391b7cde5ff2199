"""Evaluation: how well an archive gives its dataset back, and what it costs in bytes and bits."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archive import Archive
from pipeline.cluster import connected
from pipeline.compare import ColumnError
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.decoder import Decoder
from pipeline.elbo_terms import ElboTerms
from pipeline.errors import ArchiveError, DatasetError, JobError
from pipeline.machine import use_threads
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat, PartReader
from pipeline.plan import PartRecord
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.report.collect import DetailOptions, Details, PartDetails
from pipeline.report.options import ReportOptions
from pipeline.report.projection import ACTIVE_KL
from pipeline.storage import Location
from pipeline.units import run_units


def evaluate(
    data: Location,
    archive: Location,
    workers: int | None = None,
    gpu: bool = False,
    seed: int = 0,
    report: ReportOptions | None = None,
) -> dict[str, Any]:
    """Compares an archive with the dataset it was made from, streaming over both.

    Args:
        data: The dataset.
        archive: The archive.
        workers: Actors; None: as many as the cluster has CPUs (GPUs with `gpu`),
            and no more than the work is worth.
        gpu: Whether actors run the network on GPUs.
        seed: Seed of the latent noise that the ELBO is estimated with.
        report: The page that is to be written; None: none.

    Returns:
        Rows, bytes in and out by part, ratio, errors by column, and, where latents are kept, the terms of -ELBO in
        bits a row.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A value is further off than the archive promises.
    """
    started = time.monotonic()
    opened = Archive.open(archive)
    if report is not None:
        report.check(data, opened)
    model = opened.load_model()
    dataset = open_dataset(data, leave_out=opened.schema if opened.quarantined else None)
    model.rows.check_schema(dataset.schema, f"DATA {data}")
    _check_same_files(dataset, opened)
    opened.check_parts()
    details = None if report is None else DetailOptions.of(opened.rows, report.labels(opened), seed)
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu, dataset.size)
        arguments = {
            "files": dict(model.files),
            "form": opened.form,
            "root": dataset.root,
            "archive": archive,
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, len(opened.parts))),
            "seed": seed,
            "details": details,
        }
        progress = Progress("evaluate", len(opened.parts), dataset.size / max(1, dataset.rows))
        total = _Sums(model)
        items = [part.to_json() for part in opened.parts]
        for result in run_units(items, PartEvaluator, arguments, cluster, count, gpu):
            total.add(result)
            progress.advance(result["rows"])
    figures = {**_sizes(dataset, opened), **total.summary(), "seconds": time.monotonic() - started}
    if report is not None:
        _write(report, dataset, opened, figures, total)
    total.check(archive)
    return figures


def _write(report: ReportOptions, dataset: Dataset, archive: Archive, figures: dict[str, Any], total: _Sums) -> None:
    """Writes the page, and says in the figures where it is."""
    from pipeline.report.page import Subject, write_report

    subject = Subject(dataset, archive, total.model, figures, total.details, total.values, total.kl_nats)
    write_report(report, subject)
    figures["report"] = str(report.out)


class PartEvaluator:
    """Worker: compares one part with its rows of the dataset.

    Args:
        files: The files of the archive's model.
        form: What all parts share.
        root: The dataset's root folder.
        archive: The archive's folder.
        device: Torch device of the network.
        threads: Compute threads.
        seed: Seed of the latent noise.
        details: What a report needs beside the sums; None: nothing.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        form: PartFormat,
        root: Location,
        archive: Location,
        device: str,
        threads: int,
        seed: int,
        details: DetailOptions | None = None,
    ) -> None:
        self._model = ArchiveModel(files, form.plan, form.schema, device)
        use_threads(threads, load=self._model.encodes_by_network)
        self._form, self._root, self._archive, self._seed = form, root, archive, seed
        self._details = details
        self._bundle = self._model.bundle if form.plan.latents else None
        self._decoder = Decoder(self._model)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns mergeable sums of errors and ELBO terms."""
        record = PartRecord.from_json(item)
        errors = _errors(self._model)
        terms: Any = 0.0
        source = read_unit(self._root, record.work_unit, None, self._form.plan.block_rows)
        location = self._archive.join("parts", record.name)
        details = None if self._details is None else PartDetails(self._model, self._details, record)
        terms_of = None if self._bundle is None else ElboTerms(self._bundle, self._seed, record.work_unit.index)
        with PartReader(location, record, self._form) as part:
            for original, decoded in _aligned(read_ahead(source), self._decoder.batches(part), str(location)):
                for name, error in errors.items():
                    index = original.schema.get_field_index(name)
                    error.add(original.column(index), decoded.column(index))
                by_row = None
                if terms_of is not None:
                    sums, by_row = terms_of(original, details is not None)
                    terms = terms + sums
                if details is not None:
                    details.add(original, decoded, by_row)
            collected = {} if details is None else {"details": details.finish(part)}
        return {
            "rows": record.rows,
            "terms": np.asarray(terms).tolist(),
            "errors": {name: asdict(error) for name, error in errors.items()},
            **collected,
        }


class _Sums:
    """Everything that parts report, added up."""

    def __init__(self, model: ArchiveModel) -> None:
        self.model = model
        self._rows = 0
        self._terms: Any = 0.0
        self._errors = _errors(model)
        self.details = Details()

    @property
    def values(self) -> int:
        """Values that were compared."""
        return sum(error.values for error in self._errors.values())

    def add(self, result: dict[str, Any]) -> None:
        """Adds one part's sums."""
        if "details" in result:
            self.details.merge(result["details"])
        self._rows += result["rows"]
        self._terms = self._terms + np.asarray(result["terms"])
        for name, error in result["errors"].items():
            self._errors[name].merge(ColumnError(**error))

    def check(self, archive: Location) -> None:
        """Refuses an archive that breaks its promise.

        Raises:
            JobError: Naming the columns that are further off than their bounds.
        """
        broken = {name: error for name, error in self._errors.items() if error.violations}
        if broken:
            listed = "; ".join(
                f"column {name!r}: {error.violations:,} of {error.values:,} values beyond {error.bound!r}, "
                f"largest error {error.largest!r}"
                for name, error in list(broken.items())[:20]
            )
            raise JobError(f"{archive} does not keep to its error bounds: {listed}")

    def summary(self) -> dict[str, Any]:
        """The figures of the whole dataset."""
        guaranteed = self.model.plan.guaranteed
        columns = {
            column.name: {"kind": column.kind, **self._errors[column.name].summary()}
            for column in self.model.rows.columns
        }
        violations = sum(error.violations for error in self._errors.values()) if guaranteed else None
        return {**self._elbo(), "violations": violations, "columns": columns}

    @property
    def kl_nats(self) -> list[float]:
        """Mean KL of each latent; nothing where none are kept."""
        return self._mean_nats()[2:].tolist() if self.model.plan.latents else []

    def _mean_nats(self) -> npt.NDArray[np.float64]:
        """Means over the rows of reconstruction, KL, and KL by latent."""
        sums: npt.NDArray[np.float64] = self._terms + np.zeros(2 + self.model.bundle.latent_dim)
        return sums / max(1, self._rows)

    def _elbo(self) -> dict[str, Any]:
        """What the VAE says of the rows; nothing where it is not kept."""
        if not self.model.plan.latents:
            return {}
        latent_dim = self.model.bundle.latent_dim
        bits = self._mean_nats() / math.log(2)
        return {
            "minus_elbo_bits_per_row": bits[1] - bits[0],
            "minus_reconstruction_bits_per_row": -bits[0],
            "kl_bits_per_row": bits[1],
            "active_units": sum(nats > ACTIVE_KL for nats in self.kl_nats),
            "latent_dim": latent_dim,
        }


def _errors(model: ArchiveModel) -> dict[str, ColumnError]:
    """What is to be added up for each column, with the bound that it must keep to."""
    bounds = model.bounds if model.plan.guaranteed else {}
    copied = dict.fromkeys(model.rows.passthrough, 0.0)
    return {name: ColumnError(bound=(bounds | copied).get(name)) for name in model.rows.schema.names}


def _sizes(dataset: Dataset, archive: Archive) -> dict[str, Any]:
    by_part = archive.sizes()
    total = by_part["total"]
    return {
        "rows": archive.rows,
        "keep": archive.plan.keep,
        "error": archive.plan.error,
        "guaranteed": archive.plan.guaranteed,
        "bytes_in": dataset.size,
        "bytes_out": total,
        "bytes_by_part": by_part,
        "ratio": dataset.size / total,
        "bits_per_row_stored": 8 * total / max(1, archive.rows),
    }


def _check_same_files(dataset: Dataset, archive: Archive) -> None:
    stored, left_out = archive.by_file(), archive.quarantined
    for file in dataset.files:
        if file.path in left_out:
            continue
        groups = tuple(rows for part in stored.get(file.path, []) for rows in part.row_groups)
        if file.path not in stored:
            raise DatasetError(
                f"{dataset.location} has the file {file.path!r}, which is not in {archive.location}; run the same "
                "`parvae encode` again to add it"
            )
        if groups != file.row_groups:
            raise DatasetError(
                f"{dataset.root}/{file.path} has {file.rows} rows in {len(file.row_groups)} row groups, the archive "
                f"has {sum(groups)} in {len(groups)}; it has changed since, encode again"
            )
    gone = sorted(set(stored) - {file.path for file in dataset.files})
    if gone:
        raise DatasetError(
            f"{dataset.location} lacks the file {gone[0]!r} of {archive.location}; there is nothing to compare it with"
        )


def _aligned(left: Any, right: Any, where: str) -> Any:
    """Pairs of slices with as many rows, from two streams of record batches over the same rows."""
    first, second = iter(left), iter(right)
    a: pa.RecordBatch | None = None
    b: pa.RecordBatch | None = None
    while True:
        a = a if a is not None and a.num_rows else next(first, None)
        b = b if b is not None and b.num_rows else next(second, None)
        if a is None or b is None:
            if (a is None) != (b is None):
                raise ArchiveError(f"{where} has another number of rows than the dataset; restore the part")
            return
        rows = min(a.num_rows, b.num_rows)
        yield a.slice(0, rows), b.slice(0, rows)
        a, b = a.slice(rows), b.slice(rows)
