"""What `encode` decides before it starts, and the record of a finished part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError
from pipeline.promise import CORRECTIONS, KEEPS, LATENTS
from pipeline.storage import Location

PLAN_FILE = "_plan.json"
ROLES = ("latents", "corrections", "plain", "passthrough")
"""What the bytes of a part are for."""


@dataclass(frozen=True)
class Plan:
    """What `encode` decides before it starts; a rerun of the same command continues under it.

    Attributes:
        keep: What the archive holds of the modelled columns; with `"latents"` decoding is approximate.
        error: The error bound as the user wrote it; `"none"`: nothing is promised.
        columns: Bounds of columns that have one of their own, as the user wrote them.
        effort: How hard was looked for what codes each column smallest.
        request: Fingerprint of what was asked for: model, keep, error, effort and seed.
        bundle: Fingerprint of the model.
        codec: Fingerprint of the codec; None where only latents are kept.
        unit_bytes: Uncompressed bytes that a work unit aims at.
        block_rows: Rows of a block.
        latent_column: Name of the latent column in the parts.
        corrections_column: Name of the corrections column in the parts.
    """

    keep: str
    error: str
    columns: Mapping[str, str]
    effort: str
    request: str
    bundle: str
    codec: str | None
    unit_bytes: int
    block_rows: int
    latent_column: str
    corrections_column: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan."""
        return fingerprint(asdict(self))

    @property
    def latents(self) -> bool:
        """Whether the parts have a latent column."""
        return self.keep != CORRECTIONS

    @property
    def guaranteed(self) -> bool:
        """Whether decoding keeps to error bounds."""
        return self.keep != LATENTS


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON-serializable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_plan(location: Location, plan: Plan) -> None:
    """Writes `_plan.json`."""
    location.join(PLAN_FILE).write_bytes(minified(asdict(plan)))


def read_plan(location: Location) -> Plan:
    """Reads `_plan.json`.

    Raises:
        ArchiveError: If it is damaged.
    """
    try:
        data = location.join(PLAN_FILE).read_json()
        plan = Plan(**{item.name: data[item.name] for item in fields(Plan)})
        if plan.keep not in KEEPS or plan.guaranteed != (plan.codec is not None) or plan.block_rows < 1:
            raise ValueError(f"keep = {plan.keep!r}")
        return plan
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"{location}/{PLAN_FILE} is damaged: {error!r}; restore it") from error


def minified(value: object) -> bytes:
    """A value as JSON without a needless byte."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def free_name(name: str, taken: Iterable[str]) -> str:
    """A name with underscores appended until no column has it."""
    used = set(taken)
    while name in used:
        name += "_"
    return name


@dataclass(frozen=True)
class PartRecord:
    """One finished part.

    Attributes:
        work_unit: The rows that it holds.
        size: Bytes of the file.
        sha256: Checksum of the file, 64 hexadecimal digits.
        guards: Checksums of the footer and of every column chunk; see `guards`.
        sizes: Compressed bytes by role; known while the archive is encoded, not kept.
        bits_per_row: What a row costs: bits of latents, corrections and plain columns, or, where latents alone are
            kept, −ELBO of a sample; None if it is not known.
    """

    work_unit: WorkUnit
    size: int
    sha256: str
    guards: bytes
    sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
    bits_per_row: float | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """File name under `parts/`: deterministic."""
        return part_name(self.work_unit)

    @property
    def rows(self) -> int:
        """Rows in the part."""
        return self.work_unit.rows

    @property
    def path(self) -> str:
        """Source file, relative to the dataset."""
        return self.work_unit.path

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group of the source file that the part covers."""
        return self.work_unit.row_groups

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        return {**asdict(self), "guards": self.guards.hex(), "sizes": dict(self.sizes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PartRecord:
        """Rebuilds a record from `to_json`'s result."""
        unit = WorkUnit.from_json(data["work_unit"])
        guards = bytes.fromhex(data["guards"])
        return cls(unit, data["size"], data["sha256"], guards, data["sizes"], data["bits_per_row"])


def part_name(unit: WorkUnit) -> str:
    """The deterministic name of a unit's part."""
    digest = hashlib.sha256(json.dumps([unit.path, unit.first_group, unit.row_groups]).encode()).hexdigest()
    return f"{unit.index:06d}-{digest[:12]}.parquet"
