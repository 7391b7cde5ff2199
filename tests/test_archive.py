"""Is an archive opened as it was written, and anything that is none refused in one clear message?"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.bundle import WEIGHTS_FILE, Bundle
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError, ParvaeError
from pipeline.manifest import MANIFEST_FILE, PARTS_FILE, write_manifest
from pipeline.model import MODEL_FOLDER, ArchiveModel
from pipeline.part_table import PARTS_SCHEMA, records_from_bytes, records_to_bytes
from pipeline.parts import VERSION
from pipeline.plan import PLAN_FILE, PartRecord, Plan, minified, part_name, read_plan, write_plan
from pipeline.storage import Location
from tests.small import tiny_bundle

TABLE = pa.table({"x": np.linspace(0, 1, 50), "key": [f"k{i}" for i in range(50)]})


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(TABLE)


def a_plan(bundle: Bundle) -> Plan:
    return Plan("latents", "none", {}, "", "d" * 64, bundle.fingerprint, None, 1 << 20, 4096, "latent", "corrections")


def a_record(unit: WorkUnit, **changes: Any) -> PartRecord:
    sizes = {"latents": 100, "corrections": 20, "plain": 7, "passthrough": 3}
    record = PartRecord(unit, 1000 + unit.index, "a" * 64, b"1234", sizes)
    return dataclasses.replace(record, **changes)


UNITS = [
    WorkUnit(0, "year=2023/a b,c.parquet", 0, (10, 20), 0, "0123456789abcdef"),
    WorkUnit(1, "year=2023/a b,c.parquet", 2, (5,), 30, "0123456789abcdef"),
    WorkUnit(2, "z.parquet", 0, (), 0, "fedcba9876543210"),
]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty place, on the disk and in fsspec's object store in memory."""
    location = Location(f"memory://{uuid.uuid4().hex}/archive")
    yield location if request.param == "memory" else Location(str(tmp_path / "archive"))
    location.parent.remove()


def finish(folder: Location, bundle: Bundle, records: list[PartRecord]) -> dict[str, Any]:
    begin(folder, bundle)
    return write_manifest(folder, a_plan(bundle), records, TABLE.schema, 12_345)


def begin(folder: Location, bundle: Bundle) -> None:
    write_plan(folder, a_plan(bundle))
    ArchiveModel.of(bundle, {}, a_plan(bundle)).save(folder)


@pytest.fixture
def archive(folder: Location, bundle: Bundle) -> Location:
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    return folder


def edit(location: Location, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file, and its checksum where it has one."""
    data = location.read_json()
    check = data.pop("crc32", None)
    change(data)
    if check is not None:
        data["crc32"] = zlib.crc32(minified(data))
    location.write_json(data)


def test_is_an_archive_opened_as_it_was_written(folder: Location, bundle: Bundle) -> None:
    records = [a_record(unit) for unit in UNITS]
    manifest = finish(folder, bundle, records)
    opened = Archive.open(folder)
    assert list(opened.parts) == records
    assert [part.work_unit for part in opened.parts] == UNITS
    assert opened.plan == a_plan(bundle) == read_plan(folder)
    assert opened.manifest == manifest
    assert opened.rows == 35
    assert list(opened.by_file()) == ["year=2023/a b,c.parquet", "z.parquet"]
    assert opened.model.bundle.fingerprint == bundle.fingerprint
    assert opened.schema.equals(TABLE.schema, check_metadata=True)
    assert opened.part_location(records[0]) == folder.join("parts", records[0].name)


def test_do_the_bytes_of_the_manifest_add_up(archive: Location) -> None:
    sizes = Archive.open(archive).manifest["bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert sizes["latents"] == 300
    assert sizes["model"] == sum(stat.size for stat in archive.join(MODEL_FOLDER).files())
    assert sizes["parts_table"] == archive.join(PARTS_FILE).stat().size


def test_does_the_table_of_parts_tell_every_record() -> None:
    records = [a_record(unit, bits_per_row=1.5) for unit in UNITS]
    found = records_from_bytes(records_to_bytes(records))
    assert list(found) == records
    assert [record.bits_per_row for record in found] == [1.5] * 3
    assert list(found.file_ranges()) == [(UNITS[0].path, range(2)), (UNITS[2].path, range(2, 3))]
    assert found.sources() == {UNITS[0].path: UNITS[0].source, UNITS[2].path: UNITS[2].source}
    assert (found.rows, found.files, found.next_unit) == (35, 2, 3)
    assert found[-1] == records[-1]
    assert found[1:] == records[1:]
    with pytest.raises(IndexError):
        found[3]
    nothing = records_from_bytes(records_to_bytes([]))
    assert (len(nothing), nothing.rows, nothing.files, nothing.next_unit) == (0, 0, 0, 0)
    assert nothing.bits_per_row() is None
    assert list(nothing.file_ranges()) == []


def test_do_parts_keep_their_numbers_when_one_is_left_out() -> None:
    records = [a_record(unit) for unit in UNITS]
    found = records_from_bytes(records_to_bytes([records[0], records[2]]))
    assert [record.work_unit.index for record in found] == [0, 2]
    assert found.next_unit == 3
    more = a_record(WorkUnit(3, "later.parquet", 0, (7,), 0, "00" * 8))
    both = records_from_bytes(records_to_bytes([more], found))
    assert [record.work_unit.index for record in both] == [0, 2, 3]
    assert both[2] == more
    assert both.row_ends.tolist() == [30, 30, 37]


@pytest.mark.parametrize("group_rows", [1, 2, 100])
@pytest.mark.parametrize("last", [(), (7,)])
def test_is_a_table_of_parts_read_that_has_many_row_groups(group_rows: int, last: tuple[int, ...]) -> None:
    records = [*(a_record(unit) for unit in UNITS), a_record(WorkUnit(3, "later.parquet", 0, last, 0, "00" * 8))]
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(records_to_bytes(records))), sink, row_group_size=group_rows)
    found = records_from_bytes(sink.getvalue())
    assert list(found) == records
    assert found.row_ends.tolist() == [30, 35, 35, 35 + sum(last)]
    more = records_from_bytes(records_to_bytes([a_record(WorkUnit(9, "more.parquet", 0, (1,), 0, "00" * 8))], found))
    assert list(more)[:4] == records
    assert more.rows == found.rows + 1


def test_is_a_table_of_parts_of_format_1_0_read() -> None:
    records = [a_record(dataclasses.replace(unit, source="")) for unit in UNITS]
    table = pq.read_table(io.BytesIO(records_to_bytes(records))).select(PARTS_SCHEMA.names[:4])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    found = records_from_bytes(sink.getvalue())
    assert list(found) == records
    assert set(found.sources().values()) == {""}


def test_is_an_archive_read_at_every_moment_of_an_addition(
    folder: Location, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    before, seen = Archive.open(folder), list[int]()
    write = Location.write_bytes

    def write_and_look(self: Location, data: bytes) -> None:
        seen.append(Archive.open(folder).rows)
        write(self, data)
        seen.append(Archive.open(folder).rows)

    more = [a_record(WorkUnit(3, "later.parquet", 0, (7,), 0, "00" * 8))]
    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", write_and_look)
        write_manifest(folder, a_plan(bundle), more, TABLE.schema, 500, before)
    assert seen == [35, 35, 35, 42, 42, 42]
    after = Archive.open(folder)
    assert [part.work_unit for part in after.parts] == [*UNITS, more[0].work_unit]
    assert after.manifest["bytes_in"] == before.manifest["bytes_in"] + 500
    assert after.manifest["bytes"]["latents"] == 400
    assert not folder.join("_parts-next.parquet").exists()


def test_is_the_table_of_parts_small() -> None:
    assert len(records_to_bytes([a_record(UNITS[0])])) < 750


def test_are_part_names_deterministic_and_apart() -> None:
    assert part_name(UNITS[0]) == part_name(WorkUnit.from_json(UNITS[0].to_json()))
    variants = [
        UNITS[0],
        dataclasses.replace(UNITS[0], path="other.parquet"),
        dataclasses.replace(UNITS[0], first_group=1),
        dataclasses.replace(UNITS[0], row_groups=(10, 21)),
        dataclasses.replace(UNITS[0], index=1_000_000),
    ]
    assert len({part_name(unit) for unit in variants}) == len(variants)
    assert part_name(variants[-1]).startswith("1000000-")


def test_is_a_missing_archive_refused(folder: Location) -> None:
    with pytest.raises(ArchiveError, match="does not exist"):
        Archive.open(folder)
    folder.join("x").write_bytes(b"")
    with pytest.raises(ArchiveError, match=f"is no parvae archive: it holds no {MANIFEST_FILE}"):
        Archive.open(folder)


def test_is_an_unfinished_archive_refused(folder: Location, bundle: Bundle) -> None:
    begin(folder, bundle)
    with pytest.raises(ArchiveError, match="not encoded to the end; run the same `parvae encode` again"):
        Archive.open(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"3", b'{"format": "zarr"}', b"\xff", b"{}"])
@pytest.mark.parametrize("name", [MANIFEST_FILE, PLAN_FILE])
def test_is_foreign_json_refused(archive: Location, name: str, text: bytes) -> None:
    archive.join(name).write_bytes(text)
    with pytest.raises(ArchiveError, match=name):
        Archive.open(archive)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=[VERSION[0] + 1, 0]), f"archive format {VERSION[0] + 1}.*upgrade parvae"),
        (lambda m: m.update(version=[0, 1]), "archive format 0.1, which was never released"),
        (lambda m: m.update(version="1.0"), "damaged"),
        (lambda m: m.update(version=[]), "damaged"),
        (lambda m: m.update(format="parvae-model"), "not a parvae archive"),
        (lambda m: m.update(rows=36), "have not the rows"),
        (lambda m: m.update(plan="0" * 64), f"{PLAN_FILE} does not match"),
        (lambda m: m.update(parts_sha256="0" * 64), f"{PARTS_FILE} does not match"),
        *((lambda m, name=name: m.pop(name), "damaged") for name in ("rows", "plan", "parts_sha256", "bytes")),
        (lambda m: m.pop("bytes_in"), "damaged"),
        (lambda m: m.update(bytes=None), "damaged"),
    ],
)
def test_is_a_changed_manifest_refused(
    archive: Location, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(archive.join(MANIFEST_FILE), change)
    with pytest.raises(ArchiveError, match=message):
        Archive.open(archive)


def test_is_a_newer_minor_version_read(archive: Location) -> None:
    edit(archive.join(MANIFEST_FILE), lambda m: m.update(version=[VERSION[0], VERSION[1] + 1], news="x"))
    assert Archive.open(archive).rows == 35


def test_is_a_changed_plan_refused(archive: Location) -> None:
    edit(archive.join(PLAN_FILE), lambda plan: plan.update(latent_column="other"))
    with pytest.raises(ArchiveError, match=f"{PLAN_FILE} does not match"):
        Archive.open(archive)


def test_is_a_missing_or_damaged_parts_table_refused(archive: Location) -> None:
    data = archive.join(PARTS_FILE).read_bytes()
    archive.join(PARTS_FILE).write_bytes(data[:-1])
    with pytest.raises(ArchiveError, match=f"{PARTS_FILE} does not match"):
        Archive.open(archive)
    archive.join(PARTS_FILE).remove()
    with pytest.raises(ArchiveError, match=f"{PARTS_FILE} is missing"):
        Archive.open(archive)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../outside.parquet"}, "no relative path"),
        ({"path": "/etc/outside.parquet"}, "no relative path"),
        ({"path": "a/../../x"}, "no relative path"),
        ({"path": ""}, "no relative path"),
        ({"path": "z.parquet"}, "do not follow each other"),
        ({"row_groups": [31]}, "have not the rows"),
        ({"row_groups": [-30]}, "damaged"),
        ({"row_groups": [2**62]}, "damaged"),
        ({"checksums": b"short"}, "damaged"),
        ({"checksums": b""}, "damaged"),
    ],
)
def test_are_hostile_part_records_refused(
    folder: Location, bundle: Bundle, changes: dict[str, Any], message: str
) -> None:
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    rows = pq.read_table(io.BytesIO(folder.join(PARTS_FILE).read_bytes())).to_pylist()
    rows[0].update(changes)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, PARTS_SCHEMA), sink)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    folder.join(PARTS_FILE).write_bytes(sink.getvalue())
    edit(folder.join(MANIFEST_FILE), lambda m: m.update(parts_sha256=digest))
    with pytest.raises(ArchiveError, match=message):
        Archive.open(folder)


def test_is_every_flipped_byte_of_the_description_noticed(tmp_path: Path, bundle: Bundle) -> None:
    folder = Location(str(tmp_path))
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    draw = random.Random(3)
    for name in (MANIFEST_FILE, PARTS_FILE, PLAN_FILE):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            (tmp_path / name).write_bytes(bytes(damaged))
            with pytest.raises(ArchiveError):
                Archive.open(folder)
        (tmp_path / name).write_bytes(whole)
    assert Archive.open(folder).rows == 35


def test_is_another_model_in_the_archive_refused(archive: Location, bundle: Bundle) -> None:
    tiny_bundle(TABLE, seed=1).save(archive.join(MODEL_FOLDER))
    with pytest.raises(ArchiveError, match="not the model that wrote the archive"):
        Archive.open(archive).load_model()
    archive.join(MODEL_FOLDER, WEIGHTS_FILE).remove()
    with pytest.raises(ArchiveError, match=WEIGHTS_FILE):
        Archive.open(archive).load_model()


def test_does_any_cut_of_the_manifest_give_an_archive_error(tmp_path: Path, bundle: Bundle) -> None:
    folder = Location(str(tmp_path))
    manifest = finish(folder, bundle, [a_record(unit) for unit in UNITS])
    text = json.dumps(manifest)
    for cut in range(0, len(text), 7):
        (tmp_path / MANIFEST_FILE).write_text(text[:cut])
        with pytest.raises(ParvaeError) as caught:
            Archive.open(folder)
        assert isinstance(caught.value, ArchiveError)
