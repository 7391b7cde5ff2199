"""Encoding: a dataset and a model become an archive, one part a work unit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import pyarrow as pa

from pipeline.archive import (
    MANIFEST_FILE,
    MODEL_FOLDER,
    PARTS_FILE,
    PARTS_FOLDER,
    PLAN_FILE,
    PartRecord,
    Plan,
    part_name,
    read_plan,
    write_manifest,
    write_plan,
)
from pipeline.bundle import Bundle, schema_to_text
from pipeline.cluster import connected, run_units
from pipeline.dataset import UNIT_BYTES, Dataset, WorkUnit, open_dataset, read_file_schema, read_unit
from pipeline.errors import ArchiveError, InputError, JobError, OutputError
from pipeline.parts import PartColumns, PartReader, PartWriter, sha256_file
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.storage import Location, check_output

LOG = logging.getLogger(__name__)
LEDGER_FOLDER = "_ledger"


@dataclass(frozen=True)
class EncodeResult:
    """What encoding came to.

    Attributes:
        manifest: The archive's manifest.
        seconds: Wall time.
        resumed: Parts that an earlier, killed run had finished.
    """

    manifest: dict[str, Any]
    seconds: float
    resumed: int


def encode(
    data: Location,
    model: Location,
    out: Location,
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> EncodeResult:
    """Encodes a dataset into an archive.

    A run that was killed continues when it is started again with the same dataset and model.

    Args:
        data: Folder of Parquet files.
        model: A trained model's folder.
        out: Folder to write.
        workers: Encoding actors; None: as many as the cluster has CPUs (GPUs with `gpu`).
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether an archive, or another run's parts, in the folder may be replaced.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed, or not every row arrived.
    """
    started = time.monotonic()
    check_output(out, "--out", {"DATA": data, "--model": model})
    bundle = Bundle.load(model)
    dataset = open_dataset(data)
    bundle.rows.check_schema(dataset.schema, f"DATA {data}")
    plan = make_plan(dataset, bundle)
    _check_output_folder(out, plan, overwrite)
    units = dataset.units(plan.unit_bytes)
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu)
        _begin(out, plan, bundle)
        finished = _read_ledger(out, units)
        records = dict(finished)
        arguments = {
            "files": bundle.files(),
            "root": dataset.root,
            "out": out,
            "plan": plan,
            "sizes": {file.path: file.size for file in dataset.files},
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, len(units))),
        }
        missing = [unit for unit in units if unit.index not in records]
        progress = Progress("encode", len(missing))
        try:
            for result in run_units([unit.to_json() for unit in missing], UnitEncoder, arguments, cluster, count, gpu):
                record = PartRecord.from_json(result)
                records[record.unit] = record
                progress.advance(record.rows)
        except InputError as error:
            _give_up(out, error)
    manifest = _finish(out, plan, dataset, [records[unit.index] for unit in units])
    return EncodeResult(manifest, time.monotonic() - started, len(finished))


def make_plan(dataset: Dataset, bundle: Bundle) -> Plan:
    """Decides how a dataset is encoded with a model."""
    names = PartColumns.beside(bundle.rows.passthrough)
    return Plan(
        "latents",
        bundle.fingerprint,
        dataset.fingerprint(),
        UNIT_BYTES,
        dataset.block_rows,
        names.latent,
        names.corrections,
    )


class UnitEncoder:
    """Worker: encodes one work unit into one published part.

    Args:
        files: The model's files.
        root: The dataset's root folder.
        out: The archive.
        plan: The plan.
        sizes: Bytes of each source file.
        device: Torch device of the network.
        threads: Compute threads.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        root: Location,
        out: Location,
        plan: Plan,
        sizes: dict[str, int],
        device: str,
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bundle = Bundle.from_files(files, "the model", device)
        self._root, self._out, self._plan, self._sizes = root, out, plan, sizes

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Encodes the unit; returns its part's record."""
        started = time.monotonic()
        unit = WorkUnit.from_json(item)
        location = self._out.join(PARTS_FOLDER, part_name(unit))
        with location.publishing() as spool:
            self.encode_to(spool, unit)
            with PartReader(Location(spool), self._plan.columns, self._plan.fingerprint, unit) as part:
                rows, roles = part.rows, part.bytes_by_role()
            checksum, size = sha256_file(spool), Location(spool).stat().size
        if rows != unit.rows:
            raise JobError(f"{location} has {rows} rows where {unit.path} has {unit.rows}; run the job again")
        record = PartRecord(
            name=location.name,
            unit=unit.index,
            rows=rows,
            bytes=size,
            sha256=checksum,
            path=unit.path,
            first_group=unit.first_group,
            first_row=unit.first_row,
            row_groups=unit.row_groups,
            source_size=self._sizes[unit.path],
            **roles,
        )
        entry = {"seconds": time.monotonic() - started, "record": asdict(record)}
        self._out.join(LEDGER_FOLDER, f"{record.name}.json").write_json(entry)
        return asdict(record)

    def encode_to(self, path: str, unit: WorkUnit) -> None:
        """Writes the unit's part to a local file."""
        transform, plan = self._bundle.rows, self._plan
        schema = read_file_schema(self._root.join(unit.path))
        writer = PartWriter(
            path,
            schema,
            transform.passthrough,
            plan.columns,
            self._bundle.latent_dim,
            unit.to_json(),
            plan.fingerprint,
        )
        with contextlib.closing(writer):
            for batch in read_ahead(self._blocks(unit)):
                bins, exceptions = transform.from_batch(batch)
                writer.write(batch, self._bundle.to_latents(bins), exceptions)

    def _blocks(self, unit: WorkUnit) -> Iterator[pa.RecordBatch]:
        yield from read_unit(self._root, unit, None, self._plan.block_rows)


def _check_output_folder(out: Location, plan: Plan, overwrite: bool) -> None:
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
    if read_plan(out) != plan:
        raise OutputError(
            f"--out {out} holds an unfinished archive of other data or of another model; choose another folder, "
            "or give --overwrite to drop it"
        )
    LOG.info("continuing the unfinished archive in %s", out)


def _begin(out: Location, plan: Plan, bundle: Bundle) -> None:
    """Clears what is to be overwritten, then writes model and plan (again, if they were there)."""
    out.join(MANIFEST_FILE).remove()
    if not _holds_plan(out, plan):
        for name in (PLAN_FILE, PARTS_FILE, LEDGER_FOLDER, PARTS_FOLDER, MODEL_FOLDER):
            out.join(name).remove()
    write_plan(out, plan, bundle)


def _holds_plan(out: Location, plan: Plan) -> bool:
    try:
        return out.join(PLAN_FILE).exists() and read_plan(out) == plan
    except ArchiveError:
        return False


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
            except (ValueError, TypeError, KeyError):
                continue
            if published.get(name) == record.bytes and record.work_unit == names[name]:
                finished[record.unit] = record
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
    manifest = write_manifest(out, plan, records, schema_to_text(dataset.schema), dataset.size)
    out.join(LEDGER_FOLDER).remove()
    out.remove_spools()
    return manifest
