"""Ways to damage an archive: of bytes as they lie on a disk, and with all checksums around the damage made to fit."""

from __future__ import annotations

import dataclasses
import io
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import Archive
from pipeline.codec.codec import CODEC_FILE, CODER_FILE
from pipeline.codec.sections import pack_cell, unpack_cell
from pipeline.guards import mark
from pipeline.manifest import MANIFEST_FILE, PARTS_FILE, write_manifest
from pipeline.model import MODEL_FOLDER, codec_fingerprint
from pipeline.parts import VERSION, record_of
from pipeline.plan import PLAN_FILE, PartRecord, Plan, write_plan
from pipeline.storage import Location

_MODEL_FILES = (f"{MODEL_FOLDER}/{CODEC_FILE}", f"{MODEL_FOLDER}/{CODER_FILE}")
_CODED = (1, 0)


@dataclass(frozen=True)
class Damage:
    """What is to be written over an archive.

    Attributes:
        files: Path → its bytes, None to remove it.
        what: What was done, for people.
    """

    files: Mapping[str, bytes | None]
    what: str


def mutate(files: Mapping[str, bytes], draw: random.Random) -> Damage:
    """Damages one or two files: bits, bytes, cuts, insertions, swapped ranges, swapped or removed files."""
    name = draw.choice(list(files))
    kind = draw.random()
    if kind < 0.04:
        other = draw.choice(list(files))
        return Damage({name: files[other], other: files[name]}, f"swapped {name} and {other}")
    if kind < 0.06:
        return Damage({name: None}, f"removed {name}")
    data, what = mutate_bytes(files[name], draw)
    return Damage({name: data}, f"{what} {name}")


def mutate_bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Damaged bytes, and how they were damaged."""
    found, at = bytearray(data), draw.randrange(max(1, len(data)))
    kind = draw.choice(["flip", "flip", "flips", "overwrite", "extreme", "cut", "insert", "remove", "swap", "repeat"])
    stop = min(len(data), at + draw.choice([1, 4, 8, 64, 1024]))
    if kind == "flip" and data:
        found[at] ^= 1 << draw.randrange(8)
    elif kind == "flips" and data:
        for _ in range(draw.randint(2, 20)):
            found[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "overwrite":
        found[at:stop] = draw.randbytes(stop - at)
    elif kind == "extreme":
        found[at:stop] = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * (stop - at)
    elif kind == "cut":
        del found[at:]
    elif kind == "insert":
        found[at:at] = draw.randbytes(draw.randrange(1, 64))
    elif kind == "remove":
        del found[at:stop]
    elif kind == "swap":
        size = min(stop - at, len(data) // 2)
        other = draw.randrange(max(1, len(data) - size + 1))
        if abs(other - at) >= size and max(at, other) + size <= len(data):
            found[at : at + size], found[other : other + size] = data[other : other + size], data[at : at + size]
    else:
        found[at:at] = data[at:stop]
    return bytes(found), f"{kind} at {at} of"


def forge(archive: Archive, files: Mapping[str, bytes], draw: random.Random) -> Damage:
    """Damages a section of a cell or a file of the codec, and makes every checksum around it fit."""
    changed: dict[str, bytes | None] = {}
    plan = archive.plan
    cells = True
    what = "cells"
    if draw.random() < 0.4:
        name = draw.choice([name for name in _MODEL_FILES if name in files])
        data, how = mutate_bytes(files[name], draw)
        changed[name], what, cells = data, f"{how} {name}", False
        codec = {path.split("/")[1]: changed.get(path, files.get(path)) for path in _MODEL_FILES if path in files}
        plan = dataclasses.replace(plan, codec=codec_fingerprint({k: v for k, v in codec.items() if v is not None}))
    place = draw.randrange(len(archive.parts)) if cells else -1
    records = []
    for number, record in enumerate(archive.parts):
        if cells and number != place:
            records.append(dataclasses.replace(record, sizes=_no_sizes()))
            continue
        part, how = _resealed(archive, record, files[f"parts/{record.name}"], plan, draw if cells else None)
        changed[f"parts/{record.name}"], what = part.read_bytes(), how or what
        records.append(record_of(str(part), record.work_unit, plan, archive.model.rows.passthrough))
        part.unlink()
    with tempfile.TemporaryDirectory() as text:
        folder = Location(text)
        write_plan(folder, plan)
        write_manifest(folder, plan, records, archive.schema, 0)
        for name in (PLAN_FILE, PARTS_FILE, MANIFEST_FILE):
            changed[name] = folder.join(name).read_bytes()
    return Damage(changed, f"forged: {what}")


def _no_sizes() -> dict[str, int]:
    return dict.fromkeys(("latents", "corrections", "plain", "passthrough"), 0)


def _resealed(
    archive: Archive, record: PartRecord, data: bytes, plan: Plan, draw: random.Random | None
) -> tuple[Path, str]:
    """A part under a plan, one section of one of its cells damaged if there is a draw."""
    stored, footer = pq.read_table(io.BytesIO(data)), pq.read_metadata(io.BytesIO(data))
    column, what = plan.corrections_column, ""
    if draw is not None:
        cells = stored[column].to_pylist()
        at = draw.choice([row for row, cell in enumerate(cells) if cell])
        cells[at], what = _damaged_cell(cells[at], draw)
        stored = stored.set_column(stored.schema.get_field_index(column), column, pa.array(cells, pa.binary()))
    metadata = {name: value for name, value in (footer.metadata or {}).items() if name != b"ARROW:schema"}
    unit = record.work_unit.index
    metadata[b"parvae"] = mark(VERSION, plan.fingerprint, plan.bundle, plan.codec, unit).encode()
    with tempfile.NamedTemporaryFile(suffix=".parquet", delete=False) as spool:
        path = Path(spool.name)
    with pq.ParquetWriter(path, stored.schema.remove_metadata()) as writer:
        begun = 0
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            writer.write_table(stored.slice(begun, rows).replace_schema_metadata(None), row_group_size=rows)
            begun += rows
        writer.add_key_value_metadata(metadata)
    return path, what


def _damaged_cell(cell: bytes, draw: random.Random) -> tuple[bytes, str]:
    outer = dict(unpack_cell(cell))
    if _CODED not in outer or draw.random() < 0.1:
        key = draw.choice(list(outer))
        outer[key], how = mutate_bytes(outer[key], draw)
        return pack_cell(outer), f"{how} section {key}"
    inner = dict(unpack_cell(outer[_CODED]))
    key = draw.choice(list(inner))
    if draw.random() < 0.1:
        inner[key], how = inner[draw.choice(list(inner))], "copied into"
    else:
        inner[key], how = mutate_bytes(inner[key], draw)
    outer[_CODED] = pack_cell(inner)
    return pack_cell(outer), f"{how} coded section {key}"
