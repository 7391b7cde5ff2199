"""The archive: layout, manifest, reader.

```
ARCHIVE/_manifest.json     version, schema, fingerprints, totals; written last
ARCHIVE/_parts.parquet     one row a part: source file and row groups, bytes, checksums
ARCHIVE/_plan.json         what encode decided before it started; written first
ARCHIVE/_model/            what decodes it: codec and, with latents, the model; written first
ARCHIVE/parts/*.parquet    copied and plain columns, latents, corrections; rows in source order
```
Readers go through the manifest, never through a listing.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipeline.bundle import schema_from_text, schema_to_text
from pipeline.decoder import Decoder, one_thread
from pipeline.errors import ArchiveError, ConfigError, ParvaeError, StoreError
from pipeline.model import MODEL_FOLDER, ArchiveModel
from pipeline.parts import VERSION, PartFormat, PartReader
from pipeline.plan import PLAN_FILE, ROLES, PartRecord, Plan, minified, read_plan, records_from_bytes, records_to_bytes
from pipeline.storage import Location

FORMAT = "parvae-archive"
MANIFEST_FILE = "_manifest.json"
PARTS_FILE = "_parts.parquet"
PARTS_FOLDER = "parts"
_CHECK = "crc32"


@dataclass(frozen=True)
class Archive:
    """A finished archive, opened through its manifest.

    Attributes:
        location: The folder.
        manifest: `_manifest.json`.
        plan: The plan it was encoded under.
        schema: The schema of the dataset, metadata of its first file included.
        parts: One record a part, in source order.
    """

    location: Location
    manifest: Mapping[str, Any]
    plan: Plan
    schema: pa.Schema
    parts: tuple[PartRecord, ...]

    @classmethod
    def open(cls, location: Location) -> Archive:
        """Opens an archive.

        Raises:
            ArchiveError: If there is none, its encode did not finish, or its description is damaged.
        """
        manifest = _read_manifest(location)
        try:
            data = location.join(PARTS_FILE).read_bytes()
            if hashlib.sha256(data).hexdigest() != manifest["parts_sha256"]:
                raise ArchiveError(f"{location}/{PARTS_FILE} does not match the manifest; restore it")
            parts = records_from_bytes(data)
            _check_records(location, parts)
            schema = schema_from_text(manifest["schema"])
        except (ArchiveError, StoreError):
            raise
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, ParvaeError) as error:
            raise ArchiveError(f"{location} is damaged: {error!r}; restore it or encode again") from error
        plan = read_plan(location)
        if plan.fingerprint != manifest["plan"]:
            raise ArchiveError(f"{location}/{PLAN_FILE} does not match the manifest; restore it")
        if sum(part.rows for part in parts) != manifest["rows"]:
            raise ArchiveError(f"{location}: the parts have not the rows of the manifest; encode again")
        return cls(location, manifest, plan, schema, parts)

    @property
    def rows(self) -> int:
        """Rows in the archive."""
        return int(self.manifest["rows"])

    @property
    def form(self) -> PartFormat:
        """What all parts share."""
        return PartFormat(self.schema, self.plan)

    def load_model(self, device: str = "cpu") -> ArchiveModel:
        """What decodes the archive.

        Raises:
            ArchiveError: If it is damaged or not the one that the plan names.
        """
        return ArchiveModel.load(self.location, self.plan, self.schema, device)

    @cached_property
    def model(self) -> ArchiveModel:
        """What decodes the archive, on the CPU."""
        return self.load_model()

    def read(self, rows: range | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Decodes a run of rows: only the blocks, and of them only the columns, that it needs.

        Args:
            rows: Numbers of consecutive rows of the archive; None = all.
            columns: Names of columns, None for all.

        Returns:
            A table with the columns in the dataset's order.

        Raises:
            ConfigError: If there are no such rows or columns.
            ArchiveError: If the archive is damaged where it was read.
        """
        wanted = range(self.rows) if rows is None else rows
        if wanted.step != 1 or not 0 <= wanted.start <= max(wanted.start, wanted.stop) <= self.rows:
            raise ConfigError(f"rows {wanted} are not consecutive rows of 0 to {self.rows}")
        self.check_columns(columns, "columns")
        names = self.schema.names if columns is None else [name for name in self.schema.names if name in columns]
        schema = pa.schema([self.schema.field(name) for name in names], self.schema.metadata)
        decoder, begun = Decoder(self.model, columns), 0
        batches: list[pa.RecordBatch] = []
        with one_thread():
            for record in self.parts:
                low, high = max(wanted.start, begun), min(wanted.stop, begun + record.rows)
                if low < high:
                    batches += self._read_part(record, range(low - begun, high - begun), decoder)
                begun += record.rows
        return pa.Table.from_batches([batch.cast(schema) for batch in batches], schema)

    def _read_part(self, record: PartRecord, rows: range, decoder: Decoder) -> list[pa.RecordBatch]:
        found, begun = [], 0
        with PartReader(self.part_location(record), record, self.form, whole=False) as part:
            for number, size in enumerate(part.block_rows):
                low, high = max(rows.start, begun), min(rows.stop, begun + size)
                if low < high:
                    found.append(decoder.batch(part, number).slice(low - begun, high - low))
                begun += size
        return found

    def check_columns(self, columns: Sequence[str] | None, what: str) -> None:
        """Refuses names of columns that there are not.

        Raises:
            ConfigError: Naming the first.
        """
        for name in columns or []:
            if name not in self.schema.names:
                listed = ", ".join(map(repr, self.schema.names[:50]))
                raise ConfigError(f"{what} names {name!r}, the archive has {listed}")

    def part_location(self, record: PartRecord) -> Location:
        """Where a part lies."""
        return self.location.join(PARTS_FOLDER, record.name)

    def sizes(self) -> dict[str, int]:
        """Bytes of the archive by what they are for, and their total."""
        by_part = {name: size for name, size in self.manifest["bytes"].items() if name != "total"}
        total = sum(stat.size for stat in self.location.files())
        return {**by_part, "description": total - sum(by_part.values()), "total": total}

    def check_parts(self) -> None:
        """Checks that every part is there with its size, before anything relies on it.

        Raises:
            ArchiveError: Naming the first part that is missing or of another size.
        """
        found = {stat.path: stat.size for stat in self.location.join(PARTS_FOLDER).files()}
        for part in self.parts:
            where = self.part_location(part)
            if part.name not in found:
                raise ArchiveError(f"the part {where} is missing; restore it or encode again")
            if found[part.name] != part.size:
                raise ArchiveError(
                    f"the part {where} has {found[part.name]} bytes, the manifest says {part.size}; restore it"
                )

    def by_file(self) -> dict[str, list[PartRecord]]:
        """The parts of each source file, in order."""
        files: dict[str, list[PartRecord]] = {}
        for part in self.parts:
            files.setdefault(part.path, []).append(part)
        return files


def write_manifest(
    location: Location, plan: Plan, records: Sequence[PartRecord], schema: pa.Schema, source_bytes: int
) -> dict[str, Any]:
    """Publishes the table of parts, then the manifest: from here on the archive exists.

    Returns:
        The manifest.
    """
    table = records_to_bytes(records)
    location.join(PARTS_FILE).write_bytes(table)
    model_bytes = sum(stat.size for stat in location.join(MODEL_FOLDER).files())
    part_bytes = sum(record.size for record in records)
    sizes = {role: sum(record.sizes[role] for record in records) for role in ROLES}
    manifest = {
        "format": FORMAT,
        "version": list(VERSION),
        "plan": plan.fingerprint,
        "schema": schema_to_text(schema),
        "rows": sum(record.rows for record in records),
        "files": len({record.path for record in records}),
        "parts": len(records),
        "parts_sha256": hashlib.sha256(table).hexdigest(),
        "bytes_in": source_bytes,
        "bytes": {
            **sizes,
            "parquet_footers": part_bytes - sum(sizes.values()),
            "model": model_bytes,
            "parts_table": len(table),
            "total": part_bytes + model_bytes + len(table),
        },
    }
    manifest[_CHECK] = zlib.crc32(minified(manifest))
    location.join(MANIFEST_FILE).write_bytes(minified(manifest))
    return manifest


def _check_records(location: Location, parts: Sequence[PartRecord]) -> None:
    """Refuses source paths that lead out of a folder or come again after another one."""
    table, seen, last = f"{location}/{PARTS_FILE}", set[str](), None
    for part in parts:
        try:
            location.join(part.path)
        except ConfigError as error:
            raise ArchiveError(f"{table} names the file {part.path!r}, which is no relative path") from error
        if part.path != last and part.path in seen:
            raise ArchiveError(f"{table}: the parts of {part.path!r} do not follow each other; restore it")
        seen.add(part.path)
        last = part.path


def _read_manifest(location: Location) -> dict[str, Any]:
    if not location.exists():
        raise ArchiveError(f"the archive {location} does not exist")
    if not location.join(MANIFEST_FILE).exists():
        unfinished = location.join(PLAN_FILE).exists()
        raise ArchiveError(
            f"{location} was not encoded to the end; run the same `parvae encode` again to continue"
            if unfinished
            else f"{location} is no parvae archive: it holds no {MANIFEST_FILE}"
        )
    try:
        manifest = dict(location.join(MANIFEST_FILE).read_json())
        _check_version(location, manifest)
        check = manifest.pop(_CHECK)
        if zlib.crc32(minified(manifest)) != check:
            raise ValueError("it fails its checksum")
        missing = [name for name in ("plan", "schema", "rows", "files", "parts", "bytes_in") if name not in manifest]
        if missing or not isinstance(manifest["bytes"]["total"], int):
            raise ValueError(f"it lacks {missing}")
        return {**manifest, _CHECK: check}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArchiveError(f"{location}/{MANIFEST_FILE} is damaged: {error!r}; restore it") from error


def _check_version(location: Location, manifest: Mapping[str, Any]) -> None:
    """Refuses what is no archive, and an archive of another major version."""
    if manifest["format"] != FORMAT:
        raise ArchiveError(f"{location}/{MANIFEST_FILE} is not a parvae archive's")
    major, minor = manifest["version"]
    if major > VERSION[0]:
        raise ArchiveError(
            f"{location} has archive format {major}.{minor}, this library reads up to {VERSION[0]}; upgrade parvae"
        )
    if major < VERSION[0]:
        raise ArchiveError(
            f"{location} has archive format {major}.{minor}, which was never released; encode the dataset again"
        )
