"""Decoding: an archive becomes the dataset again, file by file."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import Archive, PartRecord, Plan
from pipeline.bundle import Bundle
from pipeline.cluster import connected, run_units
from pipeline.columns import with_dictionary
from pipeline.errors import ArchiveError, ConfigError, InputError, JobError, OutputError
from pipeline.parts import Block, PartReader
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.storage import Location, check_output

LOG = logging.getLogger(__name__)
MARKER = "_decoding.json"


@dataclass(frozen=True)
class DecodeResult:
    """What decoding came to.

    Attributes:
        rows: Rows written.
        files: Files written.
        bytes: Bytes written.
        seconds: Wall time.
    """

    rows: int
    files: int
    bytes: int
    seconds: float


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
        workers: Decoding actors; None: as many as the cluster has CPUs (GPUs with `gpu`).
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
    bundle = opened.model()
    _check_columns(bundle, columns)
    request = {"plan": opened.plan.fingerprint, "columns": None if columns is None else list(columns)}
    continues = _check_output_folder(out, request, overwrite)
    files = opened.by_file()
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu)
        if not continues:
            out.remove()
        out.join(MARKER).write_json(request)
        done = {stat.path for stat in out.files()} & set(files)
        items = [{"path": path, "parts": [asdict(p) for p in parts]} for path, parts in files.items()]
        items = [item for item in items if item["path"] not in done]
        arguments = {
            "files": bundle.files(),
            "archive": archive,
            "plan": opened.plan,
            "out": out,
            "columns": request["columns"],
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, max(1, len(items)))),
        }
        progress = Progress("decode", len(items))
        rows = sum(part.rows for path in done for part in files[path])
        try:
            for result in run_units(items, FileDecoder, arguments, cluster, count, gpu):
                rows += result["rows"]
                progress.advance(result["rows"])
        except InputError:
            out.remove()  # a damaged archive: no partial output
            raise
    return DecodeResult(rows, len(files), _finish(out, opened, rows), time.monotonic() - started)


def _finish(out: Location, archive: Archive, rows: int) -> int:
    """Reconciles the rows and clears away what only a running decode needs; returns the bytes written."""
    if rows != archive.rows:
        raise JobError(f"{rows} rows were decoded, the archive has {archive.rows}; run the job again")
    out.join(MARKER).remove()
    out.remove_spools()
    written = {stat.path: stat.size for stat in out.files()}
    return sum(written[path] for path in archive.by_file())


class PartDecoder:
    """Turns the blocks of parts back into rows, without Ray.

    Args:
        bundle: The archive's model.
        plan: The archive's plan.
        columns: Columns to decode, None for all.
    """

    def __init__(self, bundle: Bundle, plan: Plan, columns: Sequence[str] | None = None) -> None:
        self._bundle, self._plan = bundle, plan
        self._columns = None if columns is None else set(columns)

    def schema_of(self, part: PartReader) -> pa.Schema:
        """The schema that decoded rows of a part have: the source file's, restricted to the columns asked for."""
        schema = part.source_schema
        if self._columns is None:
            return schema
        return pa.schema([field for field in schema if field.name in self._columns], schema.metadata)

    def batches(self, part: PartReader) -> Iterator[pa.RecordBatch]:
        """Decodes a part block by block."""
        schema = self.schema_of(part)
        for block in read_ahead(part.blocks(), depth=1):
            yield self._decode(block, schema)

    def _decode(self, block: Block, schema: pa.Schema) -> pa.RecordBatch:
        transform = self._bundle.rows
        modelled = {column.name for column in transform.modelled}
        arrays: dict[str, pa.Array] = {}
        if modelled & set(schema.names):
            arrays = transform.to_arrays(self._bundle.to_bins(block.latents), block.exceptions)
            for name, dictionary in block.dictionaries.items():
                arrays[name] = with_dictionary(arrays[name], dictionary)
        copied = block.passthrough
        columns = [
            arrays[name] if name in modelled else copied.column(copied.schema.get_field_index(name))
            for name in schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class FileDecoder:
    """Worker: decodes all parts of one source file into one published file.

    Args:
        files: The model's files.
        archive: The archive's folder.
        plan: Its plan.
        out: Folder to write.
        columns: Columns to decode, None for all.
        device: Torch device of the network.
        threads: Compute threads.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        archive: Location,
        plan: Plan,
        out: Location,
        columns: list[str] | None,
        device: str,
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._archive, self._plan, self._out = archive, plan, out
        self._decoder = PartDecoder(Bundle.from_files(files, "the archive's model", device), plan, columns)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Decodes the file; returns how many rows it has."""
        records = [PartRecord.from_json(p) for p in item["parts"]]
        location = self._out.join(item["path"])
        groups = [rows for record in records for rows in record.row_groups]
        with location.publishing() as spool:
            rows = self._write(spool, records, groups)
        expected = sum(record.rows for record in records)
        if rows != expected:
            raise ArchiveError(f"{location}: its parts hold {rows} rows, the manifest says {expected}")
        return {"rows": rows}

    def _write(self, path: str, records: list[PartRecord], groups: list[int]) -> int:
        writer: pq.ParquetWriter | None = None
        rows = 0
        try:
            for record in records:
                location = self._archive.join("parts", record.name)
                with PartReader(location, self._plan.columns, self._plan.fingerprint, record.work_unit) as part:
                    if writer is None:
                        schema = self._decoder.schema_of(part)
                        writer = pq.ParquetWriter(path, schema, compression="zstd")
                        regroup = _Regroup(writer, schema, groups)
                    if part.rows != record.rows:
                        raise ArchiveError(f"{location} has {part.rows} rows, the manifest says {record.rows}")
                    for batch in self._decoder.batches(part):
                        regroup.add(batch)
                        rows += batch.num_rows
            if writer is not None:
                regroup.finish()
        finally:
            if writer is not None:
                writer.close()
        return rows


class _Regroup:
    """Writes batches as row groups of given sizes."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, sizes: Sequence[int]) -> None:
        self._writer, self._schema = writer, schema
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

    def finish(self) -> None:
        """Writes what is left (nothing, unless sizes and rows disagree)."""
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))


def _check_columns(bundle: Bundle, columns: Sequence[str] | None) -> None:
    names = bundle.rows.schema.names
    for name in columns or []:
        if name not in names:
            raise ConfigError(f"--columns names {name!r}, the archive has {', '.join(map(repr, names[:50]))}")


def _check_output_folder(out: Location, request: dict[str, Any], overwrite: bool) -> bool:
    """Refuses a folder that holds anything but an unfinished decode; says whether it is one of the same."""
    if out.is_empty():
        return True
    marker = out.join(MARKER)
    if not marker.exists():
        raise OutputError(f"--out {out} is not empty; choose an empty folder")
    try:
        same = bool(marker.read_json() == request)
    except ValueError:
        same = False
    if not same and not overwrite:
        raise OutputError(
            f"--out {out} holds an unfinished decode of another archive or of other columns; choose another "
            "folder, or give --overwrite to drop it"
        )
    if same:
        LOG.info("continuing the unfinished decode in %s", out)
    return same
