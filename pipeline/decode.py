"""Decoding: an archive becomes the dataset again, file by file."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import Archive
from pipeline.cluster import Cluster, connected
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError, JobError, OutputError
from pipeline.ledger import Ledger, open_ledger, recording
from pipeline.locate import check_output
from pipeline.lock import OutputLock, is_vacant, locked
from pipeline.machine import trim_memory, use_threads
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat, PartReader
from pipeline.plan import PartRecord, fingerprint
from pipeline.progress import Progress
from pipeline.readahead import write_behind
from pipeline.storage import Location
from pipeline.turns import Begun, Turns
from pipeline.units import run_units

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeResult:
    """What decoding came to.

    Attributes:
        rows: Rows written.
        files: Files written.
        bytes: Bytes written.
        guaranteed: Whether every value is within its error bound; if not, the archive keeps latents alone.
        seconds: Wall time.
        resumed: Files that an earlier, killed run had finished.
    """

    rows: int
    files: int
    bytes: int
    guaranteed: bool
    seconds: float
    resumed: int


def decode(
    archive: Location,
    out: Location,
    columns: Sequence[str] | None = None,
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> DecodeResult:
    """Decodes an archive to Parquet files with the original schema, row order and file layout.

    Args:
        archive: An archive's folder.
        out: Folder to write.
        columns: Columns to decode, None for all.
        workers: Decoding actors; None: as many as the cluster has CPUs (GPUs with `gpu`),
            and no more than the work is worth.
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether another decode's unfinished output in the folder may be replaced.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed, or not every row arrived.
    """
    started = time.monotonic()
    check_output(out, "--out", {"ARCHIVE": archive})
    opened = Archive.open(archive)
    opened.check_parts()
    opened.check_columns(columns, "--columns")
    model = opened.load_model()
    run = run_fingerprint(opened, columns)
    check_folder(out, run, overwrite)
    if not opened.plan.guaranteed:
        LOG.warning("%s keeps latents alone: modelled columns come back approximately, without a bound", archive)
    with connected() as cluster, locked(out, "--out") as lock:
        count = cluster.workers_for(workers, gpu, opened.manifest["bytes_in"])
        ledger = _begin(out, run, overwrite, lock)
        with recording(ledger, out):
            rows, resumed = _decode_files(opened, model, out, columns, cluster, (count, gpu), ledger, lock)
        lock.check()
        written = _finish(out, opened, rows, ledger)
    return DecodeResult(rows, opened.parts.files, written, opened.plan.guaranteed, time.monotonic() - started, resumed)


def _decode_files(
    opened: Archive,
    model: ArchiveModel,
    out: Location,
    columns: Sequence[str] | None,
    cluster: Cluster,
    workers: tuple[int, bool],
    ledger: Ledger,
    lock: OutputLock,
) -> tuple[int, int]:
    """Decodes the files that are not there yet; returns the rows that are, and how many files an earlier run made."""
    count, gpu = workers
    files = opened.by_file()
    done = _finished(out, ledger, files)
    items = [{"path": path, "parts": [part.to_json() for part in parts]} for path, parts in files.items()]
    items = [item for item in items if item["path"] not in done]
    arguments = {
        "files": dict(model.files),
        "form": opened.form,
        "archive": opened.location,
        "out": out,
        "columns": None if columns is None else list(columns),
        "device": "cuda" if gpu else "cpu",
        "threads": cluster.threads_per_worker(min(count, max(1, len(items)))),
    }
    progress = Progress("decode", len(items), opened.manifest["bytes_in"] / max(1, opened.rows))
    rows = sum(part.rows for path in done for part in files[path])
    overlap = cluster.overlap_for(opened.manifest["bytes_in"])
    for result in run_units(items, FileDecoder, arguments, cluster, count, gpu, overlap):
        lock.check()
        ledger.add(result)
        rows += result["rows"]
        progress.advance(result["rows"])
    return rows, len(done)


def _finished(out: Location, ledger: Ledger, files: Mapping[str, Sequence[PartRecord]]) -> set[str]:
    """The files that an earlier run finished: in its ledger, and there with the size that it wrote."""
    entries = ledger.entries()
    if not entries:
        return set()
    found = {stat.path: stat.size for stat in out.files()}
    paths = {str(entry.get("path")) for entry in entries if found.get(str(entry.get("path"))) == entry.get("bytes")}
    return paths & set(files)


def _finish(out: Location, archive: Archive, rows: int, ledger: Ledger) -> int:
    """Reconciles the rows and clears away what only a running decode needs; returns the bytes written."""
    if rows != archive.rows:
        raise JobError(f"{rows} rows were decoded, the archive has {archive.rows}; run the job again")
    written = {stat.path: stat.size for stat in out.files()}
    ledger.remove()
    out.remove_spools()
    return sum(written[path] for path, _ in archive.parts.file_ranges())


class FileDecoder:
    """Worker: decodes all parts of one source file into one published file; files may overlap, in threads.

    Args:
        files: The files of the archive's model.
        form: What all parts share.
        archive: The archive's folder.
        out: Folder to write.
        columns: Columns to decode, None for all.
        device: Torch device of the network.
        threads: Compute threads.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        form: PartFormat,
        archive: Location,
        out: Location,
        columns: list[str] | None,
        device: str,
        threads: int,
    ) -> None:
        self._turns = Turns(threads)
        self._archive, self._form, self._out = archive, form, out
        self._whole = columns is None
        model = ArchiveModel(files, form.plan, form.schema, device)
        use_threads(threads, load=model.decodes_by_network)
        self._decoder = Decoder(model, columns)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Decodes the file; returns its path, rows and bytes, and the seconds it took."""
        started = time.monotonic()
        records = [PartRecord.from_json(p) for p in item["parts"]]
        location = self._out.join(item["path"])
        groups = [rows for record in records for rows in record.row_groups]
        with location.publishing() as spool:
            rows, expected = self._write(spool, records, groups), sum(record.rows for record in records)
            if rows != expected:
                raise ArchiveError(f"{location}: its parts hold {rows} rows, the manifest says {expected}")
            size = os.path.getsize(spool)
        return {"path": item["path"], "rows": rows, "bytes": size, "seconds": round(time.monotonic() - started, 3)}

    def _write(self, path: str, records: list[PartRecord], groups: list[int]) -> int:
        with contextlib.ExitStack() as stack:
            regroup: _Regroup | None = None
            rows = 0
            for record in records:
                if regroup is not None:
                    trim_memory()  # what a part took must not add to what the next takes
                location = self._archive.join("parts", record.name)
                with PartReader(location, record, self._form, self._whole) as part:
                    if regroup is None:
                        regroup = stack.enter_context(_Regroup(path, self._decoder.schema_of(part), groups))
                        later = stack.enter_context(write_behind())
                    blocks = Begun(self._decoder.blocks(part))
                    with self._turns.taken():
                        for block in blocks:
                            batch = self._decoder.decoded(part, block)
                            later(regroup.add, batch)
                            rows += batch.num_rows
        return rows


class _Regroup:
    """Writes batches to a file as row groups of given sizes; a context manager, which closes the file."""

    def __init__(self, path: str, schema: pa.Schema, sizes: Sequence[int]) -> None:
        # list elements keep their names, which Parquet's newer rules would make "element"
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_compliant_nested_type=False)
        self._schema = schema
        self._sizes = [size for size in sizes if size]
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes rows, and writes every row group that is full."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        while self._sizes and self._rows >= self._sizes[0]:
            table = pa.Table.from_batches(self._waiting, self._schema).unify_dictionaries()
            size = self._sizes.pop(0)
            self._writer.write_table(table.slice(0, size), row_group_size=size)
            self._waiting = table.slice(size).to_batches()
            self._rows -= size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Writes what is left (nothing, unless sizes and rows disagree or nothing more will come), and the footer."""
        try:
            if self._rows and kind is None:
                self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        finally:
            self._writer.close()


def run_fingerprint(archive: Archive, columns: Sequence[str] | None) -> str:
    """Identifies a decode: of which archive, and which columns."""
    wanted = None if columns is None else list(columns)
    return fingerprint([archive.manifest["parts_sha256"], archive.plan.fingerprint, wanted])


def check_folder(out: Location, run: str, overwrite: bool) -> None:
    """Refuses a folder that holds anything but an unfinished decode of the same archive.

    Raises:
        OutputError: Saying what is there and what to do.
    """
    if is_vacant(out):
        return
    found = Ledger(out).run()
    if found is None:
        raise OutputError(f"--out {out} is not empty (a decode that has finished, perhaps); choose an empty folder")
    if found != run and not overwrite:
        raise OutputError(
            f"--out {out} holds an unfinished decode of another archive or of other columns; choose another "
            "folder, or give --overwrite to drop it"
        )


def _begin(out: Location, run: str, overwrite: bool, lock: OutputLock) -> Ledger:
    """Clears what is to be overwritten; returns the ledger of this run, with what an earlier one finished."""
    check_folder(out, run, overwrite)
    return open_ledger(out, run, lock, "decode")
