"""Evaluation: how well an archive gives its dataset back, and what it costs in bytes and bits."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archive import Archive, PartRecord, Plan
from pipeline.bundle import NETWORK_ROWS, Bundle
from pipeline.cluster import connected, run_units
from pipeline.compare import ColumnError
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.decode import PartDecoder
from pipeline.errors import ArchiveError, DatasetError
from pipeline.parts import PartReader
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
        Rows, bytes in and out by part, ratio, errors by column, and the terms of -ELBO in bits a row.

    Raises:
        InputError: Bad input, found before any work.
    """
    started = time.monotonic()
    opened = Archive.open(archive)
    bundle = opened.model()
    dataset = open_dataset(data)
    bundle.rows.check_schema(dataset.schema, f"DATA {data}")
    _check_same_files(dataset, opened)
    opened.check_parts()
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu)
        arguments = {
            "files": bundle.files(),
            "root": dataset.root,
            "archive": archive,
            "plan": opened.plan,
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, len(opened.parts))),
            "seed": seed,
        }
        progress = Progress("evaluate", len(opened.parts))
        total = _Sums(bundle)
        for result in run_units([asdict(part) for part in opened.parts], PartEvaluator, arguments, cluster, count, gpu):
            total.add(result)
            progress.advance(result["rows"])
    return {**_sizes(dataset, opened), **total.summary(), "seconds": time.monotonic() - started}


class PartEvaluator:
    """Worker: compares one part with its rows of the dataset.

    Args:
        files: The model's files.
        root: The dataset's root folder.
        archive: The archive's folder.
        plan: Its plan.
        device: Torch device of the network.
        threads: Compute threads.
        seed: Seed of the latent noise.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        root: Location,
        archive: Location,
        plan: Plan,
        device: str,
        threads: int,
        seed: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bundle = Bundle.from_files(files, "the archive's model", device)
        self._root, self._archive, self._plan, self._seed = root, archive, plan, seed
        self._decoder = PartDecoder(self._bundle, plan)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns mergeable sums of errors and ELBO terms."""
        record = PartRecord.from_json(item)
        errors = {name: ColumnError() for name in self._bundle.rows.schema.names}
        terms = np.zeros(2 + self._bundle.latent_dim)
        source = read_unit(self._root, record.work_unit, None, self._plan.block_rows)
        location = self._archive.join("parts", record.name)
        with PartReader(location, self._plan.columns, self._plan.fingerprint, record.work_unit) as part:
            for original, decoded in _aligned(read_ahead(source), self._decoder.batches(part), str(location)):
                for name, error in errors.items():
                    index = original.schema.get_field_index(name)
                    error.add(original.column(index), decoded.column(index))
                bins, _ = self._bundle.rows.from_batch(original)
                terms += self._elbo_terms(bins, record.unit)
        return {
            "rows": record.rows,
            "terms": terms.tolist(),
            "errors": {name: asdict(error) for name, error in errors.items()},
        }

    def _elbo_terms(self, bins_bd: npt.NDArray[np.int64], unit: int) -> npt.NDArray[np.float64]:
        """Sums over rows of reconstruction, KL, and KL by latent, in nats."""
        import torch

        from vae_model.elbo import Objective

        vae = self._bundle.vae
        rounded = bool((vae.latent_step_Z > 0).any())
        noise: Any = "none" if vae.config.autoencoder else "uniform" if rounded else "gaussian"
        generator = torch.Generator(device=self._bundle.device).manual_seed(self._seed * 1_000_003 + unit)
        sums = np.zeros(2 + self._bundle.latent_dim)
        with torch.inference_mode():
            for start in range(0, len(bins_bd), NETWORK_ROWS):
                chunk = torch.from_numpy(bins_bd[start : start + NETWORK_ROWS]).to(self._bundle.device)
                terms = vae(chunk, Objective(noise=noise), generator)
                parts = torch.cat([terms.reconstruction[None], terms.kl[None], terms.kl_Z])
                sums += len(chunk) * parts.double().cpu().numpy()
        return sums


class _Sums:
    """Everything that parts report, added up."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._rows = 0
        self._terms = np.zeros(2 + bundle.latent_dim)
        self._errors = {name: ColumnError() for name in bundle.rows.schema.names}

    def add(self, result: dict[str, Any]) -> None:
        """Adds one part's sums."""
        self._rows += result["rows"]
        self._terms += np.asarray(result["terms"])
        for name, error in result["errors"].items():
            self._errors[name].merge(ColumnError(**error))

    def summary(self) -> dict[str, Any]:
        """The figures of the whole dataset."""
        bits = self._terms / (max(1, self._rows) * math.log(2))
        columns = {
            column.name: {"kind": column.kind, **self._errors[column.name].summary()}
            for column in self._bundle.rows.columns
        }
        return {
            "minus_elbo_bits_per_row": bits[1] - bits[0],
            "minus_reconstruction_bits_per_row": -bits[0],
            "kl_bits_per_row": bits[1],
            "active_units": int((bits[2:] * math.log(2) > ACTIVE_KL).sum()),
            "latent_dim": self._bundle.latent_dim,
            "columns": columns,
        }


def _sizes(dataset: Dataset, archive: Archive) -> dict[str, Any]:
    by_part = archive.sizes()
    total = by_part["total"]
    return {
        "rows": archive.rows,
        "error": "none",
        "bytes_in": dataset.size,
        "bytes_out": total,
        "bytes_by_part": by_part,
        "ratio": dataset.size / total,
        "bits_per_row_stored": 8 * total / max(1, archive.rows),
    }


def _check_same_files(dataset: Dataset, archive: Archive) -> None:
    stored = archive.by_file()
    for file in dataset.files:
        groups = tuple(rows for part in stored.get(file.path, []) for rows in part.row_groups)
        if file.path not in stored:
            raise DatasetError(f"{dataset.location} has the file {file.path!r}, which is not in {archive.location}")
        if groups != file.row_groups:
            raise DatasetError(
                f"{dataset.root}/{file.path} has {file.rows} rows in {len(file.row_groups)} row groups, the archive "
                f"has {sum(groups)} in {len(groups)}; it has changed since, encode again"
            )
    gone = sorted(set(stored) - {file.path for file in dataset.files})
    if gone:
        raise DatasetError(f"{dataset.location} lacks the file {gone[0]!r} of {archive.location}")


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
