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
from pipeline.bundle import NETWORK_ROWS, Bundle
from pipeline.cluster import connected, run_units
from pipeline.compare import ColumnError
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError, DatasetError, JobError
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat, PartReader
from pipeline.plan import PartRecord
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.storage import Location

ACTIVE_KL = 0.01
"""Mean KL in nats above which a latent counts as active."""


def evaluate(
    data: Location, archive: Location, workers: int | None = None, gpu: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Compares an archive with the dataset it was made from, streaming over both.

    Args:
        data: The dataset.
        archive: The archive.
        workers: Actors; None: as many as the cluster has CPUs (GPUs with `gpu`).
        gpu: Whether actors run the network on GPUs.
        seed: Seed of the latent noise that the ELBO is estimated with.

    Returns:
        Rows, bytes in and out by part, ratio, errors by column, and, where latents are kept, the terms of -ELBO in
        bits a row.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A value is further off than the archive promises.
    """
    started = time.monotonic()
    opened = Archive.open(archive)
    model = opened.load_model()
    dataset = open_dataset(data, leave_out=opened.schema if opened.quarantined else None)
    model.rows.check_schema(dataset.schema, f"DATA {data}")
    _check_same_files(dataset, opened)
    opened.check_parts()
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu)
        arguments = {
            "files": dict(model.files),
            "form": opened.form,
            "root": dataset.root,
            "archive": archive,
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, len(opened.parts))),
            "seed": seed,
        }
        progress = Progress("evaluate", len(opened.parts), dataset.size / max(1, dataset.rows))
        total = _Sums(model)
        items = [part.to_json() for part in opened.parts]
        for result in run_units(items, PartEvaluator, arguments, cluster, count, gpu):
            total.add(result)
            progress.advance(result["rows"])
    total.check(archive)
    return {**_sizes(dataset, opened), **total.summary(), "seconds": time.monotonic() - started}


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
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = ArchiveModel(files, form.plan, form.schema, device)
        self._form, self._root, self._archive, self._seed = form, root, archive, seed
        self._bundle = self._model.bundle if form.plan.latents else None
        self._decoder = Decoder(self._model)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns mergeable sums of errors and ELBO terms."""
        record = PartRecord.from_json(item)
        errors = _errors(self._model)
        terms: Any = 0.0
        source = read_unit(self._root, record.work_unit, None, self._form.plan.block_rows)
        location = self._archive.join("parts", record.name)
        with PartReader(location, record, self._form) as part:
            for original, decoded in _aligned(read_ahead(source), self._decoder.batches(part), str(location)):
                for name, error in errors.items():
                    index = original.schema.get_field_index(name)
                    error.add(original.column(index), decoded.column(index))
                if self._bundle is not None:
                    bins, _ = self._bundle.rows.from_batch(original)
                    terms = terms + self._elbo_terms(self._bundle, bins, record.work_unit.index)
        return {
            "rows": record.rows,
            "terms": np.asarray(terms).tolist(),
            "errors": {name: asdict(error) for name, error in errors.items()},
        }

    def _elbo_terms(self, bundle: Bundle, bins_bd: npt.NDArray[np.int64], unit: int) -> npt.NDArray[np.float64]:
        """Sums over rows of reconstruction, KL, and KL by latent, in nats."""
        import torch

        from vae_model.elbo import Objective

        vae = bundle.vae
        generator = torch.Generator(device=bundle.device).manual_seed(self._seed * 1_000_003 + unit)
        sums = np.zeros(2 + bundle.latent_dim)
        with torch.inference_mode():
            for start in range(0, len(bins_bd), NETWORK_ROWS):
                chunk = torch.from_numpy(bins_bd[start : start + NETWORK_ROWS]).to(bundle.device)
                terms = vae(chunk, Objective(noise=vae.deployed_noise), generator)
                parts = torch.cat([terms.reconstruction[None], terms.kl[None], terms.kl_Z])
                sums += len(chunk) * parts.double().cpu().numpy()
        return sums


class _Sums:
    """Everything that parts report, added up."""

    def __init__(self, model: ArchiveModel) -> None:
        self._model = model
        self._rows = 0
        self._terms: Any = 0.0
        self._errors = _errors(model)

    def add(self, result: dict[str, Any]) -> None:
        """Adds one part's sums."""
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
        guaranteed = self._model.plan.guaranteed
        columns = {
            column.name: {"kind": column.kind, **self._errors[column.name].summary()}
            for column in self._model.rows.columns
        }
        violations = sum(error.violations for error in self._errors.values()) if guaranteed else None
        return {**self._elbo(), "violations": violations, "columns": columns}

    def _elbo(self) -> dict[str, Any]:
        """What the VAE says of the rows; nothing where it is not kept."""
        if not self._model.plan.latents:
            return {}
        latent_dim = self._model.bundle.latent_dim
        bits = (self._terms + np.zeros(2 + latent_dim)) / (max(1, self._rows) * math.log(2))
        return {
            "minus_elbo_bits_per_row": bits[1] - bits[0],
            "minus_reconstruction_bits_per_row": -bits[0],
            "kl_bits_per_row": bits[1],
            "active_units": int((bits[2:] * math.log(2) > ACTIVE_KL).sum()),
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
