"""Is an archive opened as it was written, and anything that is none refused in one clear message?"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import (
    MANIFEST_FILE,
    MODEL_FOLDER,
    PARTS_FILE,
    PLAN_FILE,
    VERSION,
    Archive,
    PartRecord,
    Plan,
    part_name,
    read_plan,
    records_from_table,
    records_to_table,
    write_manifest,
    write_plan,
)
from pipeline.bundle import WEIGHTS_FILE, Bundle, schema_to_text
from pipeline.dataset import WorkUnit
from pipeline.errors import ArchiveError, ParvaeError
from pipeline.storage import Location
from tests.small import tiny_bundle

TABLE = pa.table({"x": np.linspace(0, 1, 50), "key": [f"k{i}" for i in range(50)]})


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(TABLE)


def a_plan(bundle: Bundle) -> Plan:
    return Plan("latents", bundle.fingerprint, "d" * 64, 1 << 20, 4096, "latent", "corrections")


def a_record(unit: WorkUnit, **changes: Any) -> PartRecord:
    record = PartRecord(
        name=part_name(unit),
        unit=unit.index,
        rows=unit.rows,
        bytes=1000 + unit.index,
        sha256="a" * 64,
        latents=100,
        corrections=20,
        passthrough=3,
        path=unit.path,
        first_group=unit.first_group,
        first_row=unit.first_row,
        row_groups=unit.row_groups,
        source_size=5000,
    )
    return dataclasses.replace(record, **changes)


UNITS = [
    WorkUnit(0, "year=2023/a b,c.parquet", 0, (10, 20), 0),
    WorkUnit(1, "year=2023/a b,c.parquet", 2, (5,), 30),
    WorkUnit(2, "z.parquet", 0, (), 0),
]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty place, on the disk and in fsspec's object store in memory."""
    location = Location(f"memory://{uuid.uuid4().hex}/archive")
    yield location if request.param == "memory" else Location(str(tmp_path / "archive"))
    location.parent.remove()


def finish(folder: Location, bundle: Bundle, records: list[PartRecord]) -> dict[str, Any]:
    write_plan(folder, a_plan(bundle), bundle)
    return write_manifest(folder, a_plan(bundle), records, schema_to_text(TABLE.schema), 12_345)


@pytest.fixture
def archive(folder: Location, bundle: Bundle) -> Location:
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    return folder


def edit(location: Location, change: Callable[[dict[str, Any]], object]) -> None:
    data = location.read_json()
    change(data)
    location.write_json(data)


def test_is_an_archive_opened_as_it_was_written(folder: Location, bundle: Bundle) -> None:
    records = [a_record(unit) for unit in UNITS]
    manifest = finish(folder, bundle, records)
    opened = Archive.open(folder)
    assert opened.parts == tuple(records)
    assert [part.work_unit for part in opened.parts] == UNITS
    assert opened.plan == a_plan(bundle) == read_plan(folder)
    assert opened.manifest == manifest
    assert opened.rows == 35
    assert list(opened.by_file()) == ["year=2023/a b,c.parquet", "z.parquet"]
    assert opened.model().fingerprint == bundle.fingerprint
    assert opened.part_location(records[0]) == folder.join("parts", records[0].name)


def test_do_the_bytes_of_the_manifest_add_up(archive: Location) -> None:
    sizes = Archive.open(archive).manifest["bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert sizes["latents"] == 300
    assert sizes["model"] == sum(stat.size for stat in archive.join(MODEL_FOLDER).files())
    assert sizes["parts_table"] == archive.join(PARTS_FILE).stat().size


def test_does_the_table_of_parts_hold_every_field() -> None:
    records = [a_record(unit) for unit in UNITS]
    table = records_to_table(records)
    assert table.column_names == [field.name for field in dataclasses.fields(PartRecord)]
    assert records_from_table(table) == records
    assert records_from_table(records_to_table([])) == []


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
    write_plan(folder, a_plan(bundle), bundle)
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
        (lambda m: m.update(version="1.0"), "damaged"),
        (lambda m: m.update(version=[]), "damaged"),
        (lambda m: m.update(format="parvae-model"), "not a parvae archive"),
        (lambda m: m.update(rows=36), "have not the 36 rows"),
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
    with pytest.raises(ArchiveError, match="damaged"):
        Archive.open(archive)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../../etc/passwd"}, "is no part name"),
        ({"name": "000000-abc.parquet"}, "is no part name"),
        ({"name": "x/000000-0123456789ab.parquet"}, "is no part name"),
        ({"name": "000000-0123456789ab.parquet\n"}, "is no part name"),
        ({"path": "../outside.parquet"}, "no relative path"),
        ({"path": "/etc/outside.parquet"}, "no relative path"),
        ({"path": "a/../../x"}, "no relative path"),
        ({"path": ""}, "no relative path"),
        ({"rows": 31, "unit": 0}, "row groups have others"),
        ({"rows": -30, "row_groups": (-30,)}, "row groups have others|have not the"),
        ({"name": part_name(UNITS[1])}, "a part twice"),
        ({"name": None}, "damaged"),
        ({"row_groups": None}, "damaged"),
    ],
)
def test_are_hostile_part_records_refused(
    folder: Location, bundle: Bundle, changes: dict[str, Any], message: str
) -> None:
    finish(folder, bundle, [a_record(unit) for unit in UNITS])
    rows = records_to_table([a_record(unit) for unit in UNITS]).to_pylist()
    rows[0].update({k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()})
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, records_to_table([]).schema), sink)
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    folder.join(PARTS_FILE).write_bytes(sink.getvalue())
    edit(folder.join(MANIFEST_FILE), lambda m: m.update(parts_sha256=digest))
    with pytest.raises(ArchiveError, match=message):
        Archive.open(folder)


def test_is_another_model_in_the_archive_refused(archive: Location, bundle: Bundle) -> None:
    tiny_bundle(TABLE, seed=1).save(archive.join(MODEL_FOLDER))
    with pytest.raises(ArchiveError, match="not the model that wrote the archive"):
        Archive.open(archive).model()
    archive.join(MODEL_FOLDER, WEIGHTS_FILE).remove()
    with pytest.raises(ArchiveError, match=WEIGHTS_FILE):
        Archive.open(archive).model()


def test_does_any_cut_of_the_manifest_give_an_archive_error(tmp_path: Path, bundle: Bundle) -> None:
    folder = Location(str(tmp_path))
    manifest = finish(folder, bundle, [a_record(unit) for unit in UNITS])
    text = json.dumps(manifest)
    for cut in range(0, len(text), 7):
        (tmp_path / MANIFEST_FILE).write_text(text[:cut])
        with pytest.raises(ParvaeError) as caught:
            Archive.open(folder)
        assert isinstance(caught.value, ArchiveError)
