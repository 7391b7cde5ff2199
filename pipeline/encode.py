"""Encoding: a dataset and a model become an archive, one part a work unit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archive import PARTS_FOLDER
from pipeline.archive_run import ArchiveRun, check_folder, give_up, open_run
from pipeline.blocks import gathered, read_blocks
from pipeline.cells import BlockCell
from pipeline.cluster import Cluster, connected
from pipeline.dataset import WorkUnit, read_file_schema
from pipeline.drift import Drift, sample_bits
from pipeline.errors import DatasetError, InputError, JobError
from pipeline.lock import OutputLock, locked
from pipeline.machine import keep_memory, one_thread, trim_memory, use_threads
from pipeline.model import ArchiveModel
from pipeline.parts import Latents, PartFormat, PartWriter, record_of
from pipeline.plan import PartRecord, Plan, part_name
from pipeline.progress import Progress
from pipeline.readahead import read_ahead, write_behind
from pipeline.request import QUARANTINE, EncodeOptions, check_request
from pipeline.rows import Exceptions, concat_exceptions
from pipeline.storage import Location
from pipeline.turns import Begun, Turns
from pipeline.units import run_units

Bins = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodeResult:
    """What encoding came to.

    Attributes:
        manifest: The archive's manifest.
        plan: Its plan.
        seconds: Wall time.
        rows: Rows that this run added, an earlier, killed run of it included.
        files: Files that it added.
        parts: Parts that it added.
        resumed: Parts that an earlier, killed run had finished.
        gone: Files of the archive that the dataset no longer has; they stay in the archive.
        quarantined: Files that could not be read, and why: path → reason.
        drift: New files that the model codes clearly worse than the archive's others.
    """

    manifest: dict[str, Any]
    plan: Plan
    seconds: float
    rows: int
    files: int
    parts: int
    resumed: int
    gone: tuple[str, ...]
    quarantined: Mapping[str, str]
    drift: tuple[Drift, ...]


def encode(
    data: Location,
    model: Location,
    out: Location,
    options: EncodeOptions = EncodeOptions(),  # noqa: B008 (frozen)
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> EncodeResult:
    """Encodes a dataset into an archive.

    A run that was killed continues when it is started again with the same arguments. If the archive is there
    already, the files of the dataset that it does not have are added to it.

    Args:
        data: Folder of Parquet files.
        model: A trained model's folder.
        out: Folder to write.
        options: What is kept, and how exactly.
        workers: Encoding actors; None: as many as the cluster has CPUs (GPUs with `gpu`),
            and no more than the work is worth.
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether an archive, or another run's parts, in the folder may be replaced.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed, or not every row arrived.
    """
    started = time.monotonic()
    request = check_request(data, model, out, options)
    check_folder(out, request, overwrite)
    with connected() as cluster, locked(out, "--out") as lock:
        count = cluster.workers_for(workers, gpu, request.dataset.size)
        run = open_run(out, request, overwrite, lock.generation, cluster)
        try:
            _encode_units(run, cluster, lock, count, gpu, options.on_error == QUARANTINE)
        except InputError as error:
            give_up(run, error)
        finally:
            run.ledger.flush()
        lock.check()
        drift = run.drift()
        manifest, records = run.finish()
    return EncodeResult(
        manifest,
        run.plan,
        time.monotonic() - started,
        sum(record.rows for record in records),
        len({record.path for record in records}),
        len(records),
        run.resumed,
        run.gone,
        dict(run.dataset.unreadable),
        drift,
    )


def _encode_units(
    run: ArchiveRun, cluster: Cluster, lock: OutputLock, workers: int, gpu: bool, quarantine: bool
) -> None:
    """Encodes the units that are not finished.

    Raises:
        DatasetError: If a file cannot be read, unless such files are left out.
        JobError: If a task failed, or another run has taken over the folder.
    """
    missing = [unit for unit in run.units if unit.index not in run.finished]
    arguments = {
        "files": dict(run.model.files),
        "form": PartFormat(run.dataset.schema if run.before is None else run.before.schema, run.plan),
        "root": run.dataset.root,
        "out": run.out,
        "device": "cuda" if gpu else "cpu",
        "threads": cluster.threads_per_worker(min(workers, max(1, len(missing)))),
        "quarantine": quarantine,
    }
    progress = Progress("encode", len(missing), run.dataset.size / max(1, run.dataset.rows))
    items = [unit.to_json() for unit in missing]
    overlap = cluster.overlap_for(run.dataset.size)
    for result in run_units(items, UnitEncoder, arguments, cluster, workers, gpu, overlap):
        lock.check()
        if "reason" in result:
            run.leave_out(result["path"], result["reason"])
            progress.advance(0)
        else:
            record = PartRecord.from_json(result["record"])
            run.add(record, result["seconds"])
            progress.advance(record.rows)
    if run.before is None and not run.dataset.files:
        path, reason = next(iter(run.dataset.unreadable.items()))
        raise DatasetError(f"no file of DATA can be read; {path}: {reason}")


class UnitEncoder:
    """Worker: encodes one work unit into one published part; units may overlap, in threads.

    Args:
        files: The files of the archive's model.
        form: What all parts share.
        root: The dataset's root folder.
        out: The archive.
        device: Torch device of the network.
        threads: Compute threads.
        quarantine: Whether a file that cannot be read is an answer, not an error.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        form: PartFormat,
        root: Location,
        out: Location,
        device: str,
        threads: int,
        quarantine: bool = False,
    ) -> None:
        self._turns = Turns(threads)
        self._model = ArchiveModel(files, form.plan, form.schema, device).loaded()
        use_threads(threads, load=self._model.encodes_by_network)
        if not form.plan.guaranteed:
            keep_memory()  # the coder of guaranteed archives gives memory back after every block instead
        self._form, self._root, self._out, self._quarantine = form, root, out, quarantine

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encodes the unit.

        Returns:
            Its part's `record` and the `seconds` it took, or the `path` of a file that cannot be read and the `reason`.
        """
        started = time.monotonic()
        unit = WorkUnit.from_json(item)
        location = self._out.join(PARTS_FOLDER, part_name(unit))
        try:
            with location.publishing() as spool:
                bits = self.encode_to(spool, unit)
                record = record_of(spool, unit, self._form.plan, self._model.rows.passthrough)
        except ValueError as error:
            raise JobError(f"{location}: {error}; run the job again") from error
        except DatasetError as error:
            if not self._quarantine:
                raise
            return {"path": unit.path, "reason": str(error)}
        if bits is not None:
            record = replace(record, bits_per_row=bits)
        return {"seconds": time.monotonic() - started, "record": record.to_json()}

    def encode_to(self, path: str, unit: WorkUnit) -> float | None:
        """Writes the unit's part to a local file; returns what a row costs if the part's size does not tell."""
        schema = read_file_schema(self._root.join(unit.path))
        writer = PartWriter(path, self._form, schema, self._model.shape, unit)
        with contextlib.closing(writer):
            if not self._form.plan.guaranteed:
                return self._encode_latents(writer, unit)
            self._encode_guaranteed(writer, unit)
        return None

    def _encode_guaranteed(self, writer: PartWriter, unit: WorkUnit) -> None:
        """Encodes block by block; the next is read while the coder has one."""
        with write_behind() as later:
            blocks = read_blocks(self._root, unit, self._form.plan.block_rows)
            with contextlib.closing(Begun(self._turns.read(blocks))) as source, self._turns.taken():
                for batch in read_ahead(source, depth=1):
                    later(writer.write, batch, *self._coded(batch))
                    trim_memory()  # what the coder took for a block must not add to what it takes for the next

    def _coded(self, batch: pa.RecordBatch) -> tuple[Mapping[str, pa.Array], Latents | None, BlockCell]:
        """What is written of a block beside its rows: plain columns, latents, and what the cell holds."""
        model, latents = self._model, None
        if self._form.plan.latents:
            latents = model.bundle.to_latents(model.bundle.rows.from_batch(batch)[0])
            trim_memory()  # a block's symbols, larger than its rows, must not stay while it is coded
        with one_thread():
            block = model.codec.encode_block(batch, latents)
        return block.plain, latents, BlockCell(block.cell)

    def _encode_latents(self, writer: PartWriter, unit: WorkUnit) -> float | None:
        """Encodes in pieces that fit a cache; the network has nothing but to encode, threads beside it do the rest.

        Returns:
            What a row costs, in bits, by the first rows: None where there are none.
        """
        bundle, block_rows = self._model.bundle, self._form.plan.block_rows
        rows = min(block_rows, bundle.piece_rows)
        transformed = ((b, bundle.rows.from_batch(b)) for b in read_blocks(self._root, unit, rows))
        bits: list[float] = []

        def judge(bins: Bins) -> None:
            with one_thread():
                bits.append(sample_bits(bundle, bins))

        with contextlib.closing(Begun(read_ahead(transformed))) as source, write_behind() as later:
            judged = False

            def encoded(
                piece: tuple[pa.RecordBatch, tuple[Bins, Exceptions]],
            ) -> tuple[pa.RecordBatch, tuple[Latents, Exceptions]]:
                nonlocal judged
                batch, (bins, exceptions) = piece
                if not judged:
                    judged = True
                    later(judge, bins)
                return batch, (bundle.to_latents(bins), exceptions)

            with contextlib.closing(self._turns.compute(source, encoded)) as pieces:
                for block, made in gathered(pieces, block_rows):
                    latents = np.concatenate([part for part, _ in made])
                    exceptions = concat_exceptions([(len(part), exceptions) for part, exceptions in made])
                    later(writer.write, block, {}, latents, BlockCell(exceptions=exceptions))
        return bits[0] if bits else None
