"""Encoding: a dataset and a model become an archive, one part a work unit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import pyarrow as pa

from pipeline.archive import MANIFEST_FILE, PARTS_FILE, PARTS_FOLDER, write_manifest
from pipeline.blocks import read_blocks
from pipeline.cells import BlockCell
from pipeline.cluster import Cluster, connected, run_units
from pipeline.dataset import Dataset, WorkUnit, read_file_schema
from pipeline.errors import ArchiveError, InputError, JobError, OutputError
from pipeline.model import MODEL_FOLDER, ArchiveModel
from pipeline.parts import PartFormat, PartWriter, record_of
from pipeline.plan import PLAN_FILE, PartRecord, Plan, part_name, read_plan, write_plan
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.request import EncodeOptions, Request, check_request
from pipeline.rows import Exceptions
from pipeline.storage import Location

LOG = logging.getLogger(__name__)
LEDGER_FOLDER = "_ledger"


@dataclass(frozen=True)
class EncodeResult:
    """What encoding came to.

    Attributes:
        manifest: The archive's manifest.
        plan: Its plan.
        seconds: Wall time.
        resumed: Parts that an earlier, killed run had finished.
    """

    manifest: dict[str, Any]
    plan: Plan
    seconds: float
    resumed: int


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

    A run that was killed continues when it is started again with the same arguments.

    Args:
        data: Folder of Parquet files.
        model: A trained model's folder.
        out: Folder to write.
        options: What is kept, and how exactly.
        workers: Encoding actors; None: as many as the cluster has CPUs (GPUs with `gpu`).
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether an archive, or another run's parts, in the folder may be replaced.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed, or not every row arrived.
    """
    started = time.monotonic()
    request = check_request(data, model, out, options)
    _check_output_folder(out, request, overwrite)
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu)
        plan, archive_model = _begin(out, request, cluster)
        finished = _read_ledger(out, request.dataset.units(plan.unit_bytes))
        try:
            records = _encode_units(request.dataset, archive_model, out, finished, cluster, count, gpu)
        except InputError as error:
            _give_up(out, error)
    manifest = _finish(out, plan, request.dataset, records)
    return EncodeResult(manifest, plan, time.monotonic() - started, len(finished))


def _encode_units(
    dataset: Dataset,
    model: ArchiveModel,
    out: Location,
    finished: Mapping[int, PartRecord],
    cluster: Cluster,
    workers: int,
    gpu: bool,
) -> list[PartRecord]:
    """Encodes the units that are not finished; returns the records of all, in order."""
    units, records = dataset.units(model.plan.unit_bytes), dict(finished)
    missing = [unit for unit in units if unit.index not in records]
    arguments = {
        "files": dict(model.files),
        "form": PartFormat(dataset.schema, model.plan),
        "root": dataset.root,
        "out": out,
        "device": "cuda" if gpu else "cpu",
        "threads": cluster.threads_per_worker(min(workers, max(1, len(missing)))),
    }
    progress = Progress("encode", len(missing))
    for result in run_units([unit.to_json() for unit in missing], UnitEncoder, arguments, cluster, workers, gpu):
        record = PartRecord.from_json(result)
        records[record.work_unit.index] = record
        progress.advance(record.rows)
    return [records[unit.index] for unit in units]


class UnitEncoder:
    """Worker: encodes one work unit into one published part.

    Args:
        files: The files of the archive's model.
        form: What all parts share.
        root: The dataset's root folder.
        out: The archive.
        device: Torch device of the network.
        threads: Compute threads.
    """

    def __init__(
        self, files: dict[str, bytes], form: PartFormat, root: Location, out: Location, device: str, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = ArchiveModel(files, form.plan, form.schema, device)
        self._form, self._root, self._out = form, root, out

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encodes the unit; returns its part's record."""
        started = time.monotonic()
        unit = WorkUnit.from_json(item)
        location = self._out.join(PARTS_FOLDER, part_name(unit))
        with location.publishing() as spool:
            self.encode_to(spool, unit)
            try:
                record = record_of(spool, unit, self._form.plan, self._model.rows.passthrough)
            except ValueError as error:
                raise JobError(f"{location}: {error}; run the job again") from error
        entry = {"seconds": time.monotonic() - started, "record": record.to_json()}
        self._out.join(LEDGER_FOLDER, f"{record.name}.json").write_json(entry)
        return record.to_json()

    def encode_to(self, path: str, unit: WorkUnit) -> None:
        """Writes the unit's part to a local file."""
        schema = read_file_schema(self._root.join(unit.path))
        writer = PartWriter(path, self._form, schema, self._model.shape, unit)
        with contextlib.closing(writer):
            for batch in read_ahead(read_blocks(self._root, unit, self._form.plan.block_rows), depth=1):
                self._write(writer, batch)

    def _write(self, writer: PartWriter, batch: pa.RecordBatch) -> None:
        plan, model = self._form.plan, self._model
        latents = None
        exceptions: Exceptions = {}
        if plan.latents:
            bins, exceptions = model.bundle.rows.from_batch(batch)
            latents = model.bundle.to_latents(bins)
        if not plan.guaranteed:
            writer.write(batch, {}, latents, BlockCell(exceptions=exceptions))
            return
        block = model.codec.encode_block(batch, latents)
        writer.write(batch, block.plain, latents, BlockCell(block.cell))


def _check_output_folder(out: Location, request: Request, overwrite: bool) -> None:
    """Refuses a folder that holds an archive, another run, or anything that is not parvae's."""
    if out.is_empty():
        return
    if not out.join(PLAN_FILE).exists() and not out.join(MANIFEST_FILE).exists():
        raise OutputError(f"--out {out} holds something that is no archive; choose an empty folder")
    if overwrite:
        return
    if out.join(MANIFEST_FILE).exists():
        out.join(LEDGER_FOLDER).remove()  # left by a run that was killed after its last step
        raise OutputError(f"--out {out} holds an archive already; choose another folder, or give --overwrite")
    if read_plan(out).request != request.fingerprint:
        raise OutputError(
            f"--out {out} holds an unfinished archive of other data, of another model or with another promise; "
            "choose another folder, or give --overwrite to drop it"
        )
    LOG.info("continuing the unfinished archive in %s", out)


def _begin(out: Location, request: Request, cluster: Cluster) -> tuple[Plan, ArchiveModel]:
    """Clears what is to be overwritten, then writes model and plan, unless a killed run of the same request did."""
    plan = _plan_of(out, request)
    if plan is not None:
        try:
            model = ArchiveModel.load(out, plan, request.bundle.rows.schema)
            out.join(MANIFEST_FILE).remove()
            return plan, model
        except ArchiveError:
            LOG.info("the model in %s is damaged: starting over", out)
    codec = request.codec(cluster) if request.promise.guaranteed else None
    plan = request.plan(codec)
    for name in (MANIFEST_FILE, PLAN_FILE, PARTS_FILE, LEDGER_FOLDER, PARTS_FOLDER, MODEL_FOLDER):
        out.join(name).remove()
    write_plan(out, plan)
    model = ArchiveModel.of(request.bundle, {} if codec is None else codec.files, plan)
    model.save(out)
    return plan, model


def _plan_of(out: Location, request: Request) -> Plan | None:
    """The plan that an unfinished run of the same request left."""
    try:
        plan = read_plan(out) if out.join(PLAN_FILE).exists() else None
    except ArchiveError:
        return None
    return plan if plan is not None and plan.request == request.fingerprint else None


def _give_up(out: Location, error: InputError) -> NoReturn:
    """Ends a run that met bad input: as if it had never begun if no part is finished, else keeping what is.

    Raises:
        InputError: The error itself, with nothing left behind.
        JobError: What it says, and that finished parts stay.
    """
    finished = len(out.join(LEDGER_FOLDER).files()) if out.join(LEDGER_FOLDER).exists() else 0
    if finished:
        raise JobError(
            f"{error}; {finished} finished parts stay in {out}: the same command continues if the dataset is as it "
            "was, otherwise start over with --overwrite"
        ) from error
    for name in (PARTS_FOLDER, LEDGER_FOLDER, MODEL_FOLDER, PLAN_FILE):
        out.join(name).remove()
    if out.is_empty():
        out.remove()
    raise error


def _read_ledger(out: Location, units: list[WorkUnit]) -> dict[int, PartRecord]:
    """The units that an earlier run finished under the same plan."""
    ledger = out.join(LEDGER_FOLDER)
    if not ledger.exists():
        return {}
    names = {part_name(unit): unit for unit in units}
    published = {stat.path: stat.size for stat in out.join(PARTS_FOLDER).files()}
    finished: dict[int, PartRecord] = {}
    for stat in ledger.files():
        name = stat.path.removesuffix(".json")
        if name in names:
            try:
                record = PartRecord.from_json(ledger.join(stat.path).read_json()["record"])
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if published.get(name) == record.size and record.work_unit == names[name]:
                finished[record.work_unit.index] = record
    return finished


def _finish(out: Location, plan: Plan, dataset: Dataset, records: list[PartRecord]) -> dict[str, Any]:
    """Reconciles the rows, removes orphans of killed runs, and publishes the manifest."""
    rows = sum(record.rows for record in records)
    if rows != dataset.rows:
        raise JobError(f"{rows} rows were encoded, DATA has {dataset.rows}; run the job again")
    expected = {record.name for record in records}
    for stat in out.join(PARTS_FOLDER).files():
        if stat.path not in expected:
            out.join(PARTS_FOLDER, stat.path).remove()
    manifest = write_manifest(out, plan, records, dataset.schema, dataset.size)
    out.join(LEDGER_FOLDER).remove()
    out.remove_spools()
    return manifest
