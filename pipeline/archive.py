"""The archive: layout, plan, manifest, reader.

```
ARCHIVE/_manifest.json     version, fingerprints, totals; written last
ARCHIVE/_parts.parquet     one row a part: name, rows, bytes, checksum, source file and row groups
ARCHIVE/_plan.json         what encode decided before it started; written first
ARCHIVE/_model/            the model that decodes it; written first
ARCHIVE/parts/*.parquet    passthrough columns, latents, corrections; rows in source order
```
Readers go through the manifest, never through a listing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import Bundle
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError, ConfigError, ModelError
from pipeline.parts import PartColumns
from pipeline.storage import Location

FORMAT = "parvae-archive"
VERSION = (0, 1)
MANIFEST_FILE = "_manifest.json"
PARTS_FILE = "_parts.parquet"
PLAN_FILE = "_plan.json"
MODEL_FOLDER = "_model"
PARTS_FOLDER = "parts"
_PART_NAME = re.compile(r"[0-9]{6,}-[0-9a-f]{12}\.parquet")


@dataclass(frozen=True)
class Plan:
    """What `encode` decides before it starts; a rerun on the same archive must come to the same.

    Attributes:
        keep: What the archive holds of the modelled columns; `"latents"`: decoding is approximate.
        bundle: Fingerprint of the model.
        dataset: Fingerprint of the source dataset: names, sizes, versions, row groups.
        unit_bytes: Uncompressed bytes that a work unit aims at.
        block_rows: Rows of a block.
        latent_column: Name of the latent column in the parts.
        corrections_column: Name of the corrections column in the parts.
    """

    keep: str
    bundle: str
    dataset: str
    unit_bytes: int
    block_rows: int
    latent_column: str
    corrections_column: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def columns(self) -> PartColumns:
        """Names of the added columns."""
        return PartColumns(self.latent_column, self.corrections_column)


@dataclass(frozen=True)
class PartRecord:
    """One finished part.

    Attributes:
        name: File name under `parts/`.
        unit: Index of the work unit.
        rows: Rows in the part.
        bytes: Size of the file.
        sha256: Checksum of the file.
        latents: Compressed bytes of the latent column.
        corrections: Compressed bytes of the corrections column.
        passthrough: Compressed bytes of the passthrough columns.
        path: Source file, relative to the dataset.
        first_group: First row group of the source file.
        first_row: Row number in the source file of the first row.
        row_groups: Rows of each row group that the part covers.
        source_size: Bytes of the source file.
    """

    name: str
    unit: int
    rows: int
    bytes: int
    sha256: str
    latents: int
    corrections: int
    passthrough: int
    path: str
    first_group: int
    first_row: int
    row_groups: tuple[int, ...]
    source_size: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartRecord:
        """Rebuilds a record from `dataclasses.asdict`'s result, or from a row of `_parts.parquet`."""
        return cls(**{**data, "row_groups": tuple(data["row_groups"])})

    @property
    def work_unit(self) -> WorkUnit:
        """The work unit that the part holds."""
        return WorkUnit(self.unit, self.path, self.first_group, self.row_groups, self.first_row)


PARTS_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("unit", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("latents", pa.int64()),
        ("corrections", pa.int64()),
        ("passthrough", pa.int64()),
        ("path", pa.string()),
        ("first_group", pa.int64()),
        ("first_row", pa.int64()),
        ("row_groups", pa.list_(pa.int64())),
        ("source_size", pa.int64()),
    ]
)


def part_name(unit: WorkUnit) -> str:
    """The deterministic name of a unit's part."""
    digest = hashlib.sha256(json.dumps([unit.path, unit.first_group, unit.row_groups]).encode()).hexdigest()
    return f"{unit.index:06d}-{digest[:12]}.parquet"


def records_to_table(records: Sequence[PartRecord]) -> pa.Table:
    """Part records as the table of `_parts.parquet`."""
    rows = [{**asdict(record), "row_groups": list(record.row_groups)} for record in records]
    return pa.Table.from_pylist(rows, PARTS_SCHEMA)


def records_from_table(table: pa.Table) -> list[PartRecord]:
    """Part records from the table of `_parts.parquet`."""
    return [PartRecord.from_json(row) for row in table.to_pylist()]


@dataclass(frozen=True)
class Archive:
    """A finished archive, opened through its manifest.

    Attributes:
        location: The folder.
        manifest: `_manifest.json`.
        plan: The plan it was encoded under.
        parts: One record a part, in source order.
    """

    location: Location
    manifest: Mapping[str, Any]
    plan: Plan
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
            parts = records_from_table(pq.read_table(io.BytesIO(data)))
            _check_records(location, parts)
            plan = read_plan(location)
            rows = manifest["rows"]
            if plan.fingerprint != manifest["plan"]:
                raise ArchiveError(f"{location}/{PLAN_FILE} does not match the manifest; restore it")
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ArchiveError(f"{location} is damaged: {error!r}; restore it or encode again") from error
        if sum(part.rows for part in parts) != rows:
            raise ArchiveError(f"{location}: the parts have not the {rows} rows of the manifest; encode again")
        return cls(location, manifest, plan, tuple(parts))

    @property
    def rows(self) -> int:
        """Rows in the archive."""
        return int(self.manifest["rows"])

    def model(self, device: str = "cpu") -> Bundle:
        """The model that decodes the archive.

        Raises:
            ArchiveError: If it is damaged or not the one that the plan names.
        """
        try:
            bundle = Bundle.load(self.location.join(MODEL_FOLDER), device)
        except ModelError as error:
            raise ArchiveError(str(error)) from error
        if bundle.fingerprint != self.plan.bundle:
            raise ArchiveError(f"{self.location}/{MODEL_FOLDER} is not the model that wrote the archive")
        return bundle

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
            if found[part.name] != part.bytes:
                raise ArchiveError(
                    f"the part {where} has {found[part.name]} bytes, the manifest says {part.bytes}; restore it"
                )

    def by_file(self) -> dict[str, list[PartRecord]]:
        """The parts of each source file, in order."""
        files: dict[str, list[PartRecord]] = {}
        for part in self.parts:
            files.setdefault(part.path, []).append(part)
        return files


def write_plan(location: Location, plan: Plan, bundle: Bundle) -> None:
    """Writes model and plan: what must stand before the first part."""
    bundle.save(location.join(MODEL_FOLDER))
    location.join(PLAN_FILE).write_json(asdict(plan))


def read_plan(location: Location) -> Plan:
    """Reads `_plan.json`.

    Raises:
        ArchiveError: If it is damaged.
    """
    try:
        data = location.join(PLAN_FILE).read_json()
        return Plan(**{field.name: data[field.name] for field in fields(Plan)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{location}/{PLAN_FILE} is damaged: {error!r}; restore it") from error


def write_manifest(
    location: Location, plan: Plan, records: Sequence[PartRecord], schema_text: str, source_bytes: int
) -> dict[str, Any]:
    """Publishes the table of parts, then the manifest: from here on the archive exists.

    Returns:
        The manifest.
    """
    sink = io.BytesIO()
    pq.write_table(records_to_table(records), sink, compression="zstd")
    location.join(PARTS_FILE).write_bytes(sink.getvalue())
    model_bytes = sum(stat.size for stat in location.join(MODEL_FOLDER).files())
    part_bytes = sum(record.bytes for record in records)
    sizes = {
        role: sum(getattr(record, role) for record in records) for role in ("latents", "corrections", "passthrough")
    }
    manifest = {
        "format": FORMAT,
        "version": list(VERSION),
        "plan": plan.fingerprint,
        "bundle": plan.bundle,
        "schema": schema_text,
        "rows": sum(record.rows for record in records),
        "files": len({record.path for record in records}),
        "parts": len(records),
        "parts_sha256": hashlib.sha256(sink.getvalue()).hexdigest(),
        "bytes_in": source_bytes,
        "bytes": {
            **sizes,
            "parquet_footers": part_bytes - sum(sizes.values()),
            "model": model_bytes,
            "parts_table": len(sink.getvalue()),
            "total": part_bytes + model_bytes + len(sink.getvalue()),
        },
    }
    location.join(MANIFEST_FILE).write_json(manifest)
    return manifest


def _check_records(location: Location, parts: Sequence[PartRecord]) -> None:
    """Refuses names that are no parts' names, and source paths that lead out of a folder."""
    table = f"{location}/{PARTS_FILE}"
    for part in parts:
        if not _PART_NAME.fullmatch(part.name):
            raise ArchiveError(f"{table} names {part.name!r}, which is no part name; restore it")
        if part.rows < 0 or part.rows != sum(part.row_groups):
            raise ArchiveError(f"{table} gives {part.name} {part.rows} rows, its row groups have others; restore it")
        try:
            location.join(part.path)
        except ConfigError as error:
            raise ArchiveError(f"{table} names the file {part.path!r}, which is no relative path") from error
    if len({part.name for part in parts}) != len(parts):
        raise ArchiveError(f"{table} names a part twice; restore it")


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
        manifest = location.join(MANIFEST_FILE).read_json()
        if manifest["format"] != FORMAT:
            raise ArchiveError(f"{location}/{MANIFEST_FILE} is not a parvae archive's")
        major = manifest["version"][0]
        if major > VERSION[0]:
            raise ArchiveError(
                f"{location} has archive format {major}, this library reads up to {VERSION[0]}; upgrade parvae"
            )
        missing = [name for name in ("plan", "schema", "rows", "files", "parts", "bytes_in") if name not in manifest]
        if missing or not isinstance(manifest["bytes"]["total"], int):
            raise ValueError(f"it lacks {missing}")
        return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArchiveError(f"{location}/{MANIFEST_FILE} is damaged: {error!r}; restore it") from error
