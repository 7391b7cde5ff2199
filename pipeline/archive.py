"""The archive: layout, reader.

```
ARCHIVE/_manifest.json     version, schema, fingerprints, totals; written last
ARCHIVE/_parts.parquet     a row a part: source, row groups, checksums (`_parts-next.parquet` while parts are added)
ARCHIVE/_plan.json         what encode decided before it started; written first
ARCHIVE/_model/            what decodes it: codec and, with latents, the model; written first
ARCHIVE/parts/*.parquet    copied and plain columns, latents, corrections; rows in source order
```
Readers go through the manifest, never through a listing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.bundle import schema_from_text
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError, ConfigError, ParvaeError
from pipeline.machine import one_thread
from pipeline.manifest import MANIFEST_FILE, PARTS_FILE, read_description
from pipeline.model import MODEL_FOLDER, ArchiveModel
from pipeline.part_table import PartTable
from pipeline.parts import PartFormat, PartReader
from pipeline.plan import PLAN_FILE, ROLES, PartRecord, Plan, read_plan
from pipeline.storage import FileStat, Location

PARTS_FOLDER = "parts"


@dataclass(frozen=True)
class Archive:
    """A finished archive, opened through its manifest.

    Attributes:
        location: The folder.
        manifest: `_manifest.json`.
        plan: The plan it was encoded under.
        schema: The schema of the dataset, metadata of its first file included.
        parts: One record a part, in the order of the archive's rows: by source file, files that were added later
            after the others.
    """

    location: Location
    manifest: Mapping[str, Any]
    plan: Plan
    schema: pa.Schema
    parts: PartTable

    @classmethod
    def open(cls, location: Location) -> Archive:
        """Opens an archive.

        Raises:
            ArchiveError: If there is none, its encode did not finish, or its description is damaged.
        """
        manifest, parts = read_description(location)
        try:
            schema = schema_from_text(manifest["schema"])
        except (ValueError, KeyError, TypeError, pa.ArrowException, ParvaeError) as error:
            raise ArchiveError(f"{location} is damaged: {error!r}; restore it or encode again") from error
        plan = read_plan(location)
        if plan.fingerprint != manifest["plan"]:
            raise ArchiveError(f"{location}/{PLAN_FILE} does not match the manifest; restore it")
        if parts.rows != manifest["rows"]:
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
        decoder, batches = Decoder(self.model, columns), list[pa.RecordBatch]()
        first = int(np.searchsorted(self.parts.row_ends, wanted.start, "right"))
        begun = int(self.parts.row_ends[first - 1]) if first else 0
        with one_thread():
            for number in range(first, len(self.parts)):
                record = self.parts[number]
                low, high = max(wanted.start, begun), min(wanted.stop, begun + record.rows)
                if begun >= wanted.stop:
                    break
                if low < high:
                    batches += self._read_part(record, range(low - begun, high - begun), decoder)
                begun += record.rows
        return pa.Table.from_batches([batch.cast(schema) for batch in batches], schema)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Decodes all rows as a stream, block by block.

        Args:
            columns: Names of columns, None for all.

        Yields:
            Record batches with the columns in the dataset's order.

        Raises:
            ConfigError: If there is no such column.
            ArchiveError: If the archive is damaged where it was read.
        """
        self.check_columns(columns, "columns")
        decoder = Decoder(self.model, columns)
        for record in self.parts:
            with PartReader(self.part_location(record), record, self.form, whole=False) as part:
                for number in range(len(part.block_rows)):
                    with one_thread():
                        batch = decoder.batch(part, number)
                    yield batch

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
        total = by_part.get("parquet_footers", 0) + sum(by_part[role] for role in ROLES)
        for stat in (*self.location.join(MODEL_FOLDER).files(), *self._description()):
            total += stat.size
        return {**by_part, "description": total - sum(by_part.values()), "total": total}

    def _description(self) -> list[FileStat]:
        """The files that say what the archive is."""
        places = [self.location.join(name) for name in (MANIFEST_FILE, PARTS_FILE, PLAN_FILE)]
        return [place.stat() for place in places if place.exists()]

    @property
    def quarantined(self) -> dict[str, str]:
        """Source files that were left out, and why: path → reason."""
        return {entry["path"]: entry["reason"] for entry in self.manifest.get("quarantined", [])}

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
        return {path: self.parts[numbers.start : numbers.stop] for path, numbers in self.parts.file_ranges()}
