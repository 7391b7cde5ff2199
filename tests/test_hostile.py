"""Is every damaged archive either decoded correctly or refused, without a crash, whatever was changed in it?"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.codec.sections import pack_cell, unpack_cell
from pipeline.columns import ColumnOptions
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError
from pipeline.parts import PartReader, record_of
from pipeline.storage import Location
from tests.small import encode_here, tiny_bundle
from tests.test_promise import table, write

MUTATIONS = int(os.environ.get("PARVAE_MUTATIONS", "120"))
"""Mutations a test and archive; PARVAE_MUTATIONS=3000 searches for bugs."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(table(), {"key": ColumnOptions(kind="passthrough")})


@pytest.fixture(params=["both", "corrections", "latents"])
def archive(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Archive:
    place = Location(str(tmp_path))
    return encode_here(write(place), bundle, place.join("archive"), request.param, "0", block_rows=128)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flipped bits, other bytes, a cut, or bytes too many."""
    damaged, kind, at = bytearray(data), draw.random(), draw.randrange(len(data))
    if kind < 0.6:
        damaged[at] ^= 1 << draw.randrange(8)
    elif kind < 0.8:
        stop = min(len(data), at + draw.randrange(1, 64))
        damaged[at:stop] = draw.randbytes(stop - at)
    elif kind < 0.9:
        del damaged[at:]
    else:
        damaged[at:at] = draw.randbytes(draw.randrange(1, 40))
    return bytes(damaged)


def test_is_a_damaged_file_refused_or_harmless(archive: Archive) -> None:
    draw, expected = random.Random(1), repr(archive.read().to_pylist())
    root = Path(archive.location.path)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and "_ledger" not in path.parts]
    refused = 0
    for _ in range(MUTATIONS):
        path = draw.choice(files)
        data = path.read_bytes()
        path.write_bytes(mutated(data, draw))
        try:
            assert repr(Archive.open(archive.location).read().to_pylist()) == expected, path
        except ArchiveError:
            refused += 1
        path.write_bytes(data)
    assert refused > MUTATIONS * 0.8


def test_is_a_cell_with_false_checksums_decoded_or_refused(archive: Archive, tmp_path: Path) -> None:
    """All checksums around what is damaged are made to fit: what is decoded then may be wrong, but nothing crashes."""
    draw, record, spool = random.Random(2), archive.parts[0], tmp_path / "part.parquet"
    place = Path(archive.part_location(record).path)
    stored, footer = pq.read_table(place), pq.read_metadata(place)
    metadata = {name: value for name, value in footer.metadata.items() if name != b"ARROW:schema"}
    cells = stored["corrections"].to_pylist()
    outer = unpack_cell(cells[0])
    decoder, refused = Decoder(archive.model), 0
    for _ in range(MUTATIONS):
        sections = {key: outer[key] for key in outer}
        key = draw.choice(list(sections))
        if archive.plan.guaranteed and key == (1, 0):
            inner = unpack_cell(sections[key])
            name = draw.choice([name for name in inner if inner[name]])
            sections[key] = pack_cell({**{k: inner[k] for k in inner}, name: mutated(inner[name], draw)})
        else:
            sections[key] = mutated(sections[key], draw)
        hostile = stored.set_column(
            stored.schema.get_field_index("corrections"),
            "corrections",
            pa.array([pack_cell(sections), *cells[1:]], pa.binary()),
        )
        pq.write_table(hostile.replace_schema_metadata(metadata), spool, row_group_size=128)
        resealed = record_of(str(spool), record.work_unit, archive.plan, ["key"])
        try:
            with PartReader(Location(str(spool)), resealed, archive.form) as part:
                assert sum(batch.num_rows for batch in decoder.batches(part)) == record.rows
        except ArchiveError as error:
            refused += "block 0 of" in str(error)
    assert refused > MUTATIONS // 2
