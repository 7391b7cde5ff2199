"""Do work units encode and decode to the letter, without Ray: blocks, row groups, layouts, damaged parts?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.archive_run import ArchiveRun, give_up
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.dataset import Dataset, open_dataset
from pipeline.decode import FileDecoder
from pipeline.errors import ArchiveError, DatasetError, JobError, ResourceError
from pipeline.ledger import Ledger, recording
from pipeline.lock import is_vacant
from pipeline.manifest import MANIFEST_FILE
from pipeline.parts import PartReader, Wanted
from pipeline.plan import PartRecord
from pipeline.storage import Location
from tests.small import as_stored, encode_here, prepare, tiny_bundle

ROWS = 300
COPIED = ["key", "nested", "blob", "dict copied", "latent", "corrections"]


def table(seed: int = 0, rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(seed)
    holes = rng.random(rows) < 0.2
    floats = rng.normal(size=rows)
    floats[::17] = np.nan
    words = np.array([f"word {i}" for i in range(40)])[rng.integers(0, 40, rows) * np.arange(rows) // rows]
    columns = {
        "key": pa.array([f"{seed}-{i}" for i in range(rows)]),
        "x": pa.array(floats, mask=holes),
        "i": pa.array(rng.integers(-5, 5, rows).astype(np.int8)),
        "word": pa.array(words, mask=holes).dictionary_encode(),
        "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * rows).astype(np.float32)), 2),
        "nested": pa.array([{"a": [i] * (i % 3)} for i in range(rows)]),
        "blob": pa.array([bytes([i % 256]) * (i % 5) for i in range(rows)]),
        "dict copied": pa.array(words, mask=np.roll(holes, 1)).dictionary_encode(),
        "latent": pa.array([[i] for i in range(rows)]),
        "corrections": pa.array(rng.random(rows) < 0.5),
    }
    fields = [pa.field(name, array.type, metadata={"n": name}) for name, array in columns.items()]
    fields[2] = fields[2].with_nullable(False)
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, {"origin": str(seed)}))


OPTIONS = {name: ColumnOptions(kind="passthrough") for name in COPIED}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(as_stored(table()), OPTIONS)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two Hive partitions of several row groups, and a file without rows."""
    for name, content, groups in (
        ("p=a/1.parquet", table(0), 70),
        ("p=b/1.parquet", table(1), 1000),
        ("p=b/2.parquet", table(2).slice(0, 0), 100),
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, tmp_path / "data" / name, row_group_size=groups)
    return open_dataset(Location(str(tmp_path / "data")))


SMALL = {"unit_bytes": 8000, "block_rows": 32}
"""Small units and small blocks, so that there are many of both."""


@pytest.fixture(params=["both", "corrections", "latents"])
def archive(request: pytest.FixtureRequest, dataset: Dataset, bundle: Bundle, tmp_path: Path) -> Archive:
    assert len(dataset.units(8000)) > 5
    return encode_here(dataset, bundle, Location(str(tmp_path / "archive")), request.param, **SMALL)


def decoder(archive: Archive, out: Path, columns: list[str] | None = None) -> FileDecoder:
    files = dict(archive.load_model().files)
    return FileDecoder(files, archive.form, archive.location, Location(str(out)), columns, "cpu", 1)


def items(archive: Archive) -> list[dict[str, Any]]:
    return [{"path": path, "parts": [part.to_json() for part in parts]} for path, parts in archive.by_file().items()]


def test_is_every_file_decoded_to_the_letter(
    dataset: Dataset, archive: Archive, bundle: Bundle, tmp_path: Path
) -> None:
    decode = decoder(archive, tmp_path / "back")
    assert sum(decode(item)["rows"] for item in items(archive)) == 2 * ROWS
    for file in dataset.files:
        one, two = (pq.ParquetFile(tmp_path / folder / file.path) for folder in ("data", "back"))
        assert two.schema_arrow.equals(one.schema_arrow, check_metadata=True)
        groups = [[f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] for f in (one, two)]
        assert [rows for rows in groups[0] if rows] == groups[1]
        left, right = one.read(), two.read()
        for name in COPIED:
            assert left[name].to_pylist() == right[name].to_pylist(), name
        for name in left.column_names:
            assert left[name].is_null().equals(right[name].is_null()), name
        assert set(right["word"].to_pylist()) <= {*(f"word {i}" for i in range(40)), None}
        if archive.plan.guaranteed:
            assert left["word"].equals(right["word"])
            assert left["i"].equals(right["i"])
            error = np.abs(left["x"].to_numpy() - right["x"].to_numpy())
            assert np.nanmax(error, initial=0) <= archive.model.bounds["x"]
        np.testing.assert_array_equal(np.isnan(left["x"].to_numpy()), np.isnan(right["x"].to_numpy()))


def test_are_only_the_columns_asked_for_decoded(archive: Archive, bundle: Bundle, tmp_path: Path) -> None:
    item = items(archive)[0]
    for columns in (["blob"], ["i"], ["corrections", "x"]):
        decoder(archive, tmp_path / "back", columns)(item)
        found = pq.read_schema(tmp_path / "back" / item["path"])
        assert found.equals(pa.schema([f for f in archive_schema(archive) if f.name in columns]))


def archive_schema(archive: Archive) -> pa.Schema:
    first = archive.parts[0]
    with PartReader(archive.part_location(first), first, archive.form) as part:
        return part.source_schema


def test_are_parts_bit_for_bit_the_same_when_encoded_again(
    dataset: Dataset, archive: Archive, bundle: Bundle, tmp_path: Path
) -> None:
    again = Location(str(tmp_path / "again"))
    work = prepare(dataset, bundle, again, archive.plan.keep, **SMALL)
    for part in archive.parts:
        assert work(part.work_unit.to_json())["record"]["sha256"] == part.sha256


def test_does_no_block_exceed_what_the_plan_allows(archive: Archive) -> None:
    for record in archive.parts:
        with PartReader(archive.part_location(record), record, archive.form) as part:
            rows = [block.rows for block in part.blocks(Wanted([], False, True))]
        assert sum(rows) == record.rows
        assert all(0 < count <= 32 for count in rows)


def test_do_the_records_count_every_byte(archive: Archive) -> None:
    for record in archive.parts:
        path = Path(archive.part_location(record).path)
        assert record.size == path.stat().st_size
    sizes = archive.manifest["bytes"]
    assert min(sizes["latents"] > 0, sizes["corrections"] > 0, sizes["passthrough"] > 0) == (
        archive.plan.keep != "corrections"
    )
    assert sizes["total"] + archive.sizes()["description"] == archive.sizes()["total"]


def test_is_a_file_that_vanishes_or_changes_before_its_unit_an_error(
    dataset: Dataset, bundle: Bundle, tmp_path: Path
) -> None:
    out = Location(str(tmp_path / "new"))
    work = prepare(dataset, bundle, out, "both", **SMALL)
    before = [stat.path for stat in out.files()]
    unit = dataset.units(1)[0]
    path = Path(dataset.root.join(unit.path).path)
    pq.write_table(table(0), path, row_group_size=50)
    with pytest.raises(DatasetError, match="it has changed since"):
        work(unit.to_json())
    path.unlink()
    with pytest.raises(DatasetError, match="cannot read"):
        work(unit.to_json())
    assert [stat.path for stat in out.files()] == before


def test_are_swapped_missing_and_damaged_parts_noticed(archive: Archive, bundle: Bundle, tmp_path: Path) -> None:
    decode = decoder(archive, tmp_path / "back")
    item = items(archive)[0]
    first, second = (Path(archive.part_location(part).path) for part in archive.parts[:2])
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    with pytest.raises(ArchiveError, match=f"{first.name} is damaged"):
        decode(item)
    first.write_bytes(one[:50] + b"\0" * 200 + one[250:])
    with pytest.raises(ArchiveError, match=f"{first.name} is damaged"):
        decode(item)
    first.unlink()
    with pytest.raises(ArchiveError, match=f"{first.name} is missing"):
        decode(item)
    assert not [path for path in (tmp_path / "back").rglob("*") if path.is_file()]


def unfinished(archive: Archive, dataset: Dataset, ledger: Ledger) -> ArchiveRun:
    """A finished archive, as it was just before its manifest was published."""
    archive.location.join(MANIFEST_FILE).remove()
    return ArchiveRun(archive.location, dataset, archive.plan, archive.model, ledger)


def with_sizes(archive: Archive) -> list[PartRecord]:
    """The records of an archive's parts, with made-up sizes by role."""
    sizes = dict.fromkeys(("latents", "corrections", "plain", "passthrough"), 1)
    return [dataclasses.replace(record, sizes=sizes) for record in archive.parts]


def test_does_the_ledger_give_back_only_what_is_finished(dataset: Dataset, archive: Archive, tmp_path: Path) -> None:
    earlier = Ledger(archive.location, 1)
    run = unfinished(archive, dataset, earlier)
    for record in with_sizes(archive):
        run.add(record, 0.5)
        earlier.flush()
    ledger = tmp_path / "archive" / "_ledger"
    files = sorted(ledger.iterdir())
    assert len(files) == len(archive.parts)
    files[0].write_text("{")
    files[1].write_text('[{}, {"record": {}}, {"record": null}]')
    files[2].unlink()
    other = dataclasses.replace(archive.parts[3].work_unit, source="f" * 16)
    files[3].write_text(
        json.dumps([{"record": dataclasses.replace(with_sizes(archive)[3], work_unit=other).to_json()}])
    )
    (tmp_path / "archive" / "parts" / archive.parts[4].name).write_bytes(b"short")
    again = unfinished(archive, dataset, Ledger(archive.location, 2))
    again.read_ledger(quarantine=False)
    assert again.finished == {part.work_unit.index: part for part in archive.parts[5:]}
    assert again.resumed == len(archive.parts) - 5
    nothing = unfinished(archive, dataset, Ledger(Location(str(tmp_path / "nowhere"))))
    nothing.read_ledger(quarantine=True)
    assert nothing.finished == {}


def test_does_finishing_remove_orphans_and_reconcile_rows(dataset: Dataset, archive: Archive, tmp_path: Path) -> None:
    parts = tmp_path / "archive" / "parts"
    (parts / "000001-0123456789ab.parquet").write_bytes(b"orphan")
    (parts / ".tmp-abc").write_bytes(b"half")
    run = unfinished(archive, dataset, Ledger(archive.location, 1))
    records = with_sizes(archive)
    for record in records[1:]:
        run.add(record, 0.5)
    with pytest.raises(JobError, match=f"DATA has {2 * ROWS}"):
        run.finish()
    run.add(records[0], 0.5)
    run.finish()
    assert {path.name for path in parts.iterdir()} == {record.name for record in records}
    assert not (tmp_path / "archive" / "_ledger").exists()
    assert list(Archive.open(archive.location).parts) == records


def test_is_a_file_left_out_in_the_middle_and_the_rest_decoded(
    dataset: Dataset, archive: Archive, tmp_path: Path
) -> None:
    run = unfinished(archive, dataset, Ledger(archive.location, 1))
    first = dataset.files[0].path
    for record in with_sizes(archive):
        run.add(record, 0.5)
    run.leave_out(first, "a page is damaged")
    run.finish()
    opened = Archive.open(archive.location)
    assert opened.quarantined == {first: "a page is damaged"}
    assert opened.rows == dataset.files[1].rows
    assert next(iter(opened.parts)).work_unit.index > 0
    assert opened.read(range(3)).num_rows == 3
    decode = decoder(opened, tmp_path / "back")
    assert [decode(item)["path"] for item in items(opened)] == [file.path for file in dataset.files[1:]]


@pytest.mark.parametrize(
    ("quarantine", "repaired", "left_out"),
    [(True, "", True), (False, "", False)] + [(True, field, False) for field in ("size", "version", "source")],
)
def test_is_a_file_left_out_again_only_if_it_is_as_it_was_and_may_be(
    dataset: Dataset, archive: Archive, quarantine: bool, repaired: str, left_out: bool
) -> None:
    run = unfinished(archive, dataset, Ledger(archive.location, 1))
    first = dataset.files[0].path
    for _ in range(2):  # two of its units say so
        run.leave_out(first, "a page is damaged")
    run.ledger.flush()
    changed = {"": {}, "size": {"size": 1}, "version": {"version": "later"}, "source": {"source": "f" * 16}}[repaired]
    files = (dataclasses.replace(dataset.files[0], **changed), *dataset.files[1:])  # type: ignore[arg-type]
    again = ArchiveRun(
        archive.location,
        dataclasses.replace(dataset, files=files),
        archive.plan,
        archive.model,
        Ledger(archive.location),
    )
    again.read_ledger(quarantine)
    assert (first not in [file.path for file in again.dataset.files]) == left_out
    assert again.dataset.unreadable == ({first: "a page is damaged"} if left_out else {})


def test_does_an_addition_that_fails_at_once_leave_nothing(dataset: Dataset, archive: Archive) -> None:
    before = {stat.path: stat.version for stat in archive.location.files()}
    run = ArchiveRun(archive.location, dataset, archive.plan, archive.model, Ledger(archive.location, 1), archive)
    archive.location.join("parts", "000099-0123456789ab.parquet").write_bytes(b"of a unit that ended after the error")
    run.ledger.add({"path": "x", "reason": "y"})
    run.ledger.flush()
    run.ledger.add({"path": "z", "reason": "y"})
    with pytest.raises(DatasetError, match="broken"):
        give_up(run, DatasetError("a page is broken"))
    run.ledger.flush()
    assert {stat.path: stat.version for stat in archive.location.files()} == before


def test_do_runs_with_the_same_lock_number_keep_each_others_entries(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    for run in "abc":
        ledger = Ledger(folder, 1)
        for number in range(3):
            ledger.add({"path": f"{run}{number}"})
            ledger.flush()
    assert sorted(entry["path"] for entry in Ledger(folder).entries()) == [f"{r}{n}" for r in "abc" for n in range(3)]


@pytest.mark.parametrize(
    ("error", "stays"), [(ArchiveError("damaged"), False), (ResourceError("no GPU"), True), (JobError("full"), True)]
)
def test_does_what_is_finished_stay_unless_the_input_is_bad(tmp_path: Path, error: Exception, stays: bool) -> None:
    folder = Location(str(tmp_path))
    ledger = Ledger(folder, 1)
    ledger.begin("run")
    folder.join("finished.parquet").write_bytes(b"rows")

    def run() -> None:
        with recording(ledger, folder):
            for number in range(3):
                ledger.add({"path": str(number)})
            raise error

    with pytest.raises(type(error)):
        run()
    assert folder.join("finished.parquet").exists() == stays
    assert [entry["path"] for entry in Ledger(folder).entries()] == (["0", "1", "2"] if stays else [])
    assert is_vacant(folder) != stays
