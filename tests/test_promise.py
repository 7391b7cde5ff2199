"""Is what an archive promises decided as it was asked for, and kept on a disk and on an object store alike?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.columns import Bound, ColumnOptions
from pipeline.compare import ColumnError
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import ArchiveError, ConfigError
from pipeline.promise import Errors, decide
from pipeline.storage import Location
from tests.small import encode_here, errors_of, tiny_bundle

ROWS = 400


def table(seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    floats = rng.normal(size=ROWS)
    floats[:5] = [np.nan, np.inf, -np.inf, -0.0, 5e-324]
    holes = rng.random(ROWS) < 0.1
    return pa.table(
        {
            "x": pa.array(floats, mask=holes),
            "f": floats.astype(np.float32),
            "i": pa.array([2**63 - 1, -(2**63), *rng.integers(-9, 9, ROWS - 2).tolist()]),
            "word": pa.array(rng.choice(["a", "b"], ROWS), mask=holes).dictionary_encode(),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 9, 4 * ROWS).astype(np.uint8)), 4),
            "key": [f"key {i}" for i in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(table(), {"key": ColumnOptions(kind="passthrough")})


def write(folder: Location) -> Dataset:
    for name in ("p=1/a.parquet", "p=2/a.parquet"):
        with folder.join("data", name).publishing() as spool:
            pq.write_table(table(), spool, row_group_size=90)
    return open_dataset(folder.join("data"))


def violations(archive: Archive, original: pa.Table, decoded: pa.Table) -> dict[str, int]:
    bounds: dict[str, Any] = {**archive.model.bounds, "key": 0.0}
    found = {}
    for name in original.column_names:
        error = ColumnError(bound=bounds[name])
        left, right = (part[name].unify_dictionaries().combine_chunks() for part in (original, decoded))
        error.add(left, right)
        found[name] = error.violations
    return found


@pytest.mark.parametrize("error", ["0", "0.001r", "0.05r", "2.5"])
@pytest.mark.parametrize("keep", ["both", "corrections"])
def test_is_the_promise_kept(tmp_path: Path, bundle: Bundle, keep: str, error: str) -> None:
    check_promise(Location(str(tmp_path)), bundle, keep, error)


@pytest.mark.parametrize("keep", ["both", "corrections"])
def test_is_the_promise_kept_on_every_store(folder: Location, bundle: Bundle, keep: str) -> None:
    check_promise(folder, bundle, keep, "0.01r")


def check_promise(folder: Location, bundle: Bundle, keep: str, error: str) -> None:
    """Every value of an archive within its bound, however rows and columns are picked from it."""
    dataset = write(folder)
    archive = encode_here(dataset, bundle, folder.join("archive"), keep, error, block_rows=64, unit_bytes=3000)
    assert len(archive.parts) > 4
    original = pa.concat_tables([table(), table()])
    decoded = archive.read()
    assert decoded.schema.equals(dataset.schema, check_metadata=True)
    assert set(violations(archive, original, decoded).values()) == {0}
    for rows in (range(0), range(63, 66), range(390, 410), range(799, 800), range(800)):
        for columns in (None, ["key"], ["word"], ["x", "v"]):
            expected = decoded.slice(rows.start, len(rows)).select(
                [name for name in decoded.column_names if columns is None or name in columns]
            )
            found = archive.read(rows, columns)
            assert found.schema.equals(expected.schema)
            assert repr(found.to_pylist()) == repr(expected.to_pylist())


@pytest.mark.parametrize("keep", ["both", "corrections", "latents"])
def test_are_rows_and_columns_that_do_not_exist_refused(folder: Location, bundle: Bundle, keep: str) -> None:
    archive = encode_here(write(folder), bundle, folder.join("archive"), keep)
    for rows in (range(801), range(-1, 3), range(0, 10, 2), range(900, 901)):
        with pytest.raises(ConfigError, match="are not consecutive rows"):
            archive.read(rows)
    with pytest.raises(ConfigError, match="columns names 'nowhere'"):
        archive.read(columns=["nowhere"])
    assert archive.read(range(5, 5)).num_rows == 0


def test_is_only_what_is_read_checked(folder: Location, bundle: Bundle) -> None:
    archive = encode_here(write(folder), bundle, folder.join("archive"), "corrections", block_rows=64)
    first = archive.part_location(archive.parts[0])
    data = first.read_bytes()
    footer = pq.read_metadata(pa.BufferReader(data))
    chunk = footer.row_group(2).column(footer.num_columns - 1)
    assert chunk.path_in_schema == "corrections"
    damaged = bytearray(data)
    damaged[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    first.write_bytes(bytes(damaged))
    assert archive.read(range(0, 128)).num_rows == 128
    assert archive.read(columns=["key"]).num_rows == 2 * ROWS
    with pytest.raises(ArchiveError, match=r"block 2 of .* is damaged: column 'corrections' fails its checksum"):
        archive.read(range(120, 140))


def test_does_another_codec_or_model_in_the_archive_show(folder: Location, bundle: Bundle) -> None:
    archive = encode_here(write(folder), bundle, folder.join("archive"), "both")
    place = archive.location.join("_model", "codec.json")
    text = place.read_bytes()
    place.write_bytes(text.replace(b'"version":1', b'"version":2'))
    with pytest.raises(ArchiveError, match=r"codec\.json is damaged or not the codec that wrote the archive"):
        archive.load_model()
    place.remove()
    with pytest.raises(ArchiveError, match=r"codec\.json is missing"):
        archive.load_model()
    place.write_bytes(text)
    tiny_bundle(table(), {"key": ColumnOptions(kind="passthrough")}, seed=2).save(archive.location.join("_model"))
    with pytest.raises(ArchiveError, match="is not the model that wrote the archive"):
        archive.load_model()


@pytest.mark.parametrize(
    ("trained", "keep", "error", "expected"),
    [
        ("0.01r", None, None, ("both", "0.01r")),
        ("0.01r", "corrections", None, ("corrections", "0.01r")),
        ("0.01r", "latents", None, ("latents", "none")),
        ("0.01r", None, "0", ("both", "0")),
        ("0.01r", None, "none", ("latents", "none")),
        ("none", None, None, ("latents", "none")),
        ("none", None, "0.5", ("both", "0.5")),
    ],
)
def test_is_it_decided_as_it_was_asked_for(
    bundle: Bundle, trained: str, keep: str | None, error: str | None, expected: tuple[str, str]
) -> None:
    found = decide(bundle.rows, errors_of(bundle, trained), keep, None if error is None else Bound.parse(error))
    assert (found.keep, str(found.errors.default)) == expected
    assert found.guaranteed == found.errors.guaranteed == (expected[0] != "latents")


def test_do_columns_keep_bounds_of_their_own(bundle: Bundle) -> None:
    trained = errors_of(bundle, "0.01r", {"x": "0", "v": "2"})
    found = decide(bundle.rows, trained, None, Bound.parse("0.5")).errors
    assert {name: found.absolute[name] for name in ("x", "v", "f", "i")} == {"x": 0, "v": 2, "f": 0.5, "i": 0.5}
    assert Errors.from_json(found.to_json()) == found
    assert decide(bundle.rows, trained, None, Bound.parse("0.01r")).errors is trained


def test_is_a_promise_without_a_bound_refused(bundle: Bundle) -> None:
    for keep in ("both", "corrections"):
        with pytest.raises(ConfigError, match="needs an error bound, but the model was trained with --error none"):
            decide(bundle.rows, errors_of(bundle, "none"), keep, None)
    with pytest.raises(ConfigError, match="expected both, corrections, latents"):
        decide(bundle.rows, errors_of(bundle, "0"), "everything", None)
    with pytest.raises(ConfigError, match="promises nothing"):
        decide(bundle.rows, errors_of(bundle, "0"), "latents", Bound.parse("0.1"))


def test_are_columns_named_that_keep_their_own_bound(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    name = next(iter(errors_of(bundle, "0.01r").absolute))
    decide(bundle.rows, errors_of(bundle, "0.01r", {name: "0.5"}), None, Bound.parse("0"))
    assert f"{name!r} keeps its own bound 0.5" in caplog.text
