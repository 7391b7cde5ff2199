"""The manifest and the table of parts, which make an archive of a folder: written last, read first."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from pipeline.bundle import schema_to_text
from pipeline.errors import ArchiveError, JobError
from pipeline.model import MODEL_FOLDER
from pipeline.part_table import PartTable, read_records, records_from_bytes, records_to_bytes
from pipeline.parts import VERSION
from pipeline.plan import PLAN_FILE, ROLES, PartRecord, Plan, minified
from pipeline.storage import Location

FORMAT = "parvae-archive"
MANIFEST_FILE = "_manifest.json"
PARTS_FILE = "_parts.parquet"
NEXT_PARTS_FILE = "_parts-next.parquet"
_CHECK = "crc32"


class Description(Protocol):
    """What says what an archive holds, such as an open archive."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """`_manifest.json`."""

    @property
    def parts(self) -> PartTable:
        """One record a part."""


def write_manifest(
    location: Location,
    plan: Plan,
    records: Sequence[PartRecord],
    schema: pa.Schema,
    source_bytes: int,
    before: Description | None = None,
    quarantined: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Publishes the table of parts and the manifest: from here on the archive exists, or holds more parts.

    Args:
        location: The archive's folder.
        plan: Its plan.
        records: Its parts; with `before`, those that are new.
        schema: The dataset's schema.
        source_bytes: Bytes of the source files of `records`.
        before: The archive that parts are added to.
        quarantined: Source files that were left out, and why: path → reason.

    Returns:
        The manifest.

    Raises:
        JobError: If another run has published an archive here in the meantime.
    """
    table = records_to_bytes(records, None if before is None else before.parts)
    parts = records_from_bytes(table)
    manifest = {
        "format": FORMAT,
        "version": list(VERSION),
        "plan": plan.fingerprint,
        "schema": schema_to_text(schema),
        "rows": parts.rows,
        "files": parts.files,
        "parts": len(parts),
        "parts_sha256": hashlib.sha256(table).hexdigest(),
        "bytes_in": source_bytes + (0 if before is None else before.manifest["bytes_in"]),
        "bytes": _bytes_by_role(location, records, len(table), before),
    }
    if quarantined:
        manifest["quarantined"] = [{"path": path, "reason": reason} for path, reason in sorted(quarantined.items())]
    manifest[_CHECK] = zlib.crc32(minified(manifest))
    if before is None:
        location.join(PARTS_FILE).write_bytes(table)
        if not location.join(MANIFEST_FILE).create_bytes(minified(manifest)):
            raise JobError(f"another run has published an archive in {location}; this one ends, nothing is lost")
        return manifest
    location.join(NEXT_PARTS_FILE).write_bytes(table)
    location.join(MANIFEST_FILE).write_bytes(minified(manifest))
    location.join(PARTS_FILE).write_bytes(table)
    location.join(NEXT_PARTS_FILE).remove()
    return manifest


def _bytes_by_role(
    location: Location, records: Sequence[PartRecord], table_bytes: int, before: Description | None
) -> dict[str, int]:
    """Bytes of an archive by what they are for, and their total."""
    sizes = {role: sum(record.sizes[role] for record in records) for role in ROLES}
    sizes["parquet_footers"] = sum(record.size for record in records) - sum(sizes.values())
    if before is not None:
        sizes = {role: size + int(before.manifest["bytes"][role]) for role, size in sizes.items()}
    sizes["model"] = sum(stat.size for stat in location.join(MODEL_FOLDER).files())
    sizes["parts_table"] = table_bytes
    return {**sizes, "total": sum(sizes.values())}


def read_description(location: Location) -> tuple[dict[str, Any], PartTable]:
    """Reads the manifest and the table of parts that it names.

    Parts may be added while they are read, so a table that does not match is looked for again: as the next one,
    and under the manifest that is there by then.
    """
    for last in (False, True):
        manifest = _read_manifest(location)
        for name in (PARTS_FILE, NEXT_PARTS_FILE):
            try:
                with location.join(name).open() as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() == manifest["parts_sha256"]:
                        stream.seek(0)
                        return manifest, read_records(stream)
            except FileNotFoundError as error:
                if last and name == PARTS_FILE:
                    raise ArchiveError(f"{location}/{name} is missing; restore it or encode again") from error
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
                raise ArchiveError(f"{location}/{name} is damaged: {error!r}; restore it or encode again") from error
    raise ArchiveError(f"{location}/{PARTS_FILE} does not match the manifest; restore it")


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
