"""Is every damaged archive either decoded correctly or refused, without a crash, whatever was changed in it?"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.codec import Codec
from pipeline.codec.codec import CODEC_FILE, CODER_FILE
from pipeline.codec.sections import pack_cell, unpack_cell
from pipeline.columns import ColumnOptions
from pipeline.dataset import open_dataset, read_unit
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError, DatasetError, ModelError
from pipeline.model import ArchiveModel, codec_fingerprint
from pipeline.parts import PartReader, record_of
from pipeline.plan import fingerprint, minified
from pipeline.storage import Location
from tests import crafted
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


HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, -(2**63), 1e308, "", "x", "../../x", "/etc/passwd", "\0", [], {}, [[]], {"": 0}, [None]
)  # fmt: skip
"""What stands in JSON where something else is expected."""
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 100_000, '"\\ud800"', "\x00", "")
"""What is no JSON, or too much of it."""


@pytest.fixture
def small(bundle: Bundle, tmp_path: Path) -> Archive:
    place = Location(str(tmp_path))
    return encode_here(write(place), bundle, place.join("archive"), "both", "0", block_rows=128)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A document with another value at a path."""
    if not path:
        return value
    changed = copy.copy(document)
    changed[path[0]] = replaced(document[path[0]], path[1:], value)
    return changed


def hostile_documents(document: Any) -> Iterator[Any]:
    """Documents with one value of another kind, or without it."""
    for path in places(document):
        for value in HOSTILE:
            yield replaced(document, path, value)


def sealed_manifest(manifest: Any) -> bytes:
    """A manifest whose checksum fits, whatever it is."""
    if isinstance(manifest, dict):
        content = {name: value for name, value in manifest.items() if name != "crc32"}
        manifest = {**content, "crc32": zlib.crc32(minified(content))}
    return minified(manifest)


def test_is_a_manifest_of_wrong_values_refused_or_harmless(small: Archive) -> None:
    place = Path(small.location.path) / "_manifest.json"
    good = json.loads(place.read_bytes())
    refused = 0
    for document in itertools.islice(hostile_documents(good), 0, None, 3):
        place.write_bytes(sealed_manifest(document))
        try:
            found = Archive.open(small.location)
            assert found.schema.equals(small.schema)
            assert found.rows == small.rows
        except ArchiveError:
            refused += 1
    assert refused > 20
    for text in RAW:
        place.write_text(text)
        with pytest.raises(ArchiveError):
            Archive.open(small.location)


def test_is_a_plan_of_wrong_values_refused_or_harmless(small: Archive) -> None:
    root = Path(small.location.path)
    good, manifest = (json.loads((root / name).read_bytes()) for name in ("_plan.json", "_manifest.json"))
    for document in itertools.islice(hostile_documents(good), 0, None, 3):
        (root / "_plan.json").write_bytes(minified(document))
        (root / "_manifest.json").write_bytes(sealed_manifest({**manifest, "plan": fingerprint(document)}))
        with contextlib.suppress(ArchiveError):
            Archive.open(small.location).read(range(3))
    for text in RAW:
        (root / "_plan.json").write_text(text)
        with pytest.raises(ArchiveError):
            Archive.open(small.location)


def test_is_a_model_of_wrong_values_refused(bundle: Bundle) -> None:
    files = bundle.files()
    good = json.loads(files["bundle.json"])
    for document in hostile_documents(good):
        with contextlib.suppress(ModelError):
            found = Bundle.from_files({**files, "bundle.json": json.dumps(document).encode()}, "here")
            assert found.rows.schema.equals(bundle.rows.schema)
    for text in RAW:
        with pytest.raises(ModelError):
            Bundle.from_files({**files, "bundle.json": text.encode()}, "here")


def test_is_a_codec_of_wrong_values_refused_or_harmless(small: Archive) -> None:
    files = dict(small.model.files)
    name = next(name for name in files if name.endswith(".json") and name.startswith("codec"))
    good = json.loads(files[name])
    for document in hostile_documents(good):
        changed = {**files, name: json.dumps(document).encode()}
        codec = {key: data for key, data in changed.items() if key in (CODEC_FILE, CODER_FILE)}
        plan = dataclasses.replace(small.plan, codec=codec_fingerprint(codec))
        with contextlib.suppress(ModelError):
            assert ArchiveModel(changed, plan, small.schema).codec.rows.schema.equals(small.schema)
    for text in RAW:
        with pytest.raises(ModelError):
            _ = Codec.from_files({**files, name: text.encode()}, small.schema)


@pytest.mark.parametrize("what", [name for name in crafted.files() if name not in crafted.HARMLESS])
def test_is_a_crafted_file_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "crafted.parquet"
    path.write_bytes(crafted.files()[what])
    with pytest.raises(DatasetError, match=r"crafted\.parquet"):
        read_all(path)


def read_all(path: Path) -> int:
    dataset = open_dataset(Location(str(path)))
    batches = [batch for unit in dataset.units() for batch in read_unit(dataset.root, unit, None, 1024)]
    return sum(batch.num_rows for batch in batches)


def test_is_a_crafted_file_that_says_nothing_wrong_read(tmp_path: Path) -> None:
    path = tmp_path / "crafted.parquet"
    path.write_bytes(crafted.plain(7))
    assert read_all(path) == 7
    for what in crafted.HARMLESS:
        path.write_bytes(crafted.files()[what])
        assert read_all(path) == 3, what
