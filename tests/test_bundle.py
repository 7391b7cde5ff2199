"""Is a model read back as it was saved, and a damaged or foreign one refused?"""

from __future__ import annotations

import dataclasses
import json
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.bundle import BUNDLE_FILE, VERSION, WEIGHTS_FILE, Bundle, schema_from_text, schema_to_text
from pipeline.columns import ColumnOptions
from pipeline.errors import ModelError, ParvaeError
from pipeline.storage import Location
from tests.small import one_batch, tiny_bundle


def table() -> pa.Table:
    rng = np.random.default_rng(3)
    fields = [
        pa.field("x", pa.float64(), metadata={"unit": "mm"}),
        pa.field("word", pa.dictionary(pa.int8(), pa.string())),
        pa.field("when", pa.timestamp("us", "Europe/Paris")),
        pa.field("key", pa.binary()),
        pa.field("v", pa.list_(pa.float32(), 2)),
    ]
    columns = [
        pa.array(rng.normal(size=100), mask=rng.random(100) < 0.1),
        pa.array(rng.choice(["a", "b"], 100)).dictionary_encode().cast(fields[1].type),
        pa.array(rng.integers(0, 10**12, 100)).cast(fields[2].type),
        pa.array([bytes([i]) for i in range(100)]),
        pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=200).astype(np.float32)), 2),
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, {"origin": "test"}))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle(table())


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """An empty place, on the disk and in fsspec's object store in memory."""
    location = Location(f"memory://{uuid.uuid4().hex}/model")
    yield location if request.param == "memory" else Location(str(tmp_path / "model"))
    location.parent.remove()


def test_is_a_model_read_back_as_it_was_saved(bundle: Bundle, folder: Location) -> None:
    bundle.save(folder)
    loaded = Bundle.load(folder)
    assert loaded.rows.schema.equals(bundle.rows.schema, check_metadata=True)
    assert loaded.rows.to_json() == bundle.rows.to_json()
    assert loaded.weights == bundle.weights
    assert loaded.training == bundle.training
    assert loaded.fingerprint == bundle.fingerprint
    assert loaded.files() == bundle.files()
    bins, _ = bundle.rows.from_batch(one_batch(table()))
    latents = bundle.to_latents(bins)
    assert latents.shape == (100, bundle.latent_dim)
    assert latents.any()
    np.testing.assert_array_equal(loaded.to_latents(bins), latents)
    np.testing.assert_array_equal(loaded.to_bins(latents), bundle.to_bins(latents))


def test_does_an_encoder_care_how_rows_lie_in_memory(bundle: Bundle) -> None:
    bins, _ = bundle.rows.from_batch(one_batch(table()))
    latents = bundle.to_latents(np.ascontiguousarray(bins))
    np.testing.assert_allclose(bundle.to_latents(np.asfortranarray(bins)), latents, atol=1e-5)
    for few in (slice(0, 1), slice(10, 20)):
        np.testing.assert_allclose(bundle.to_latents(np.asfortranarray(bins)[few]), latents[few], atol=1e-5)


def test_is_the_description_written_last(bundle: Bundle) -> None:
    assert list(bundle.files()) == [WEIGHTS_FILE, BUNDLE_FILE]


def test_does_the_fingerprint_tell_models_apart(bundle: Bundle) -> None:
    same = Bundle(bundle.rows, bundle.weights, {"other": "history"})
    assert same.fingerprint == bundle.fingerprint
    others = [
        tiny_bundle(table(), seed=1),
        tiny_bundle(table().slice(50)),
        tiny_bundle(table().rename_columns(["y", "word", "when", "key", "v"])),
        Bundle(bundle.rows, bundle.weights + b"\0"),
    ]
    assert len({bundle.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_is_a_missing_or_unfinished_model_refused(bundle: Bundle, folder: Location) -> None:
    with pytest.raises(ModelError, match="does not exist; `parvae train"):
        Bundle.load(folder)
    folder.join("_train", "run.json").write_json({})
    with pytest.raises(ModelError, match=f"holds no {BUNDLE_FILE}: training has not finished"):
        Bundle.load(folder)
    bundle.save(folder)
    folder.join(WEIGHTS_FILE).remove()
    with pytest.raises(ModelError, match=f"lacks {WEIGHTS_FILE}"):
        Bundle.load(folder)


def test_are_damaged_weights_refused(bundle: Bundle) -> None:
    files = bundle.files()
    weights = bytearray(files[WEIGHTS_FILE])
    weights[-5] ^= 1
    for damaged in (bytes(weights), files[WEIGHTS_FILE][:-1], b""):
        with pytest.raises(ModelError, match=r"the model: the fingerprint does not match"):
            Bundle.from_files({**files, WEIGHTS_FILE: damaged}, "the model")


def test_are_weights_that_are_none_refused(bundle: Bundle) -> None:
    for weights in (b"", b"garbage", bundle.weights[:100]):
        files = Bundle(bundle.rows, weights).files()
        with pytest.raises(ModelError, match="cannot be read"):
            _ = Bundle.from_files(files, "the model").vae


def test_are_the_weights_of_other_columns_refused(bundle: Bundle) -> None:
    other = tiny_bundle(table().select(["x"]))
    files = Bundle(bundle.rows, other.weights).files()
    with pytest.raises(ModelError, match="different columns"):
        _ = Bundle.from_files(files, "the model").vae


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=VERSION + 1), f"format version {VERSION + 1}.*upgrade parvae"),
        (lambda d: d.update(version="1"), "damaged"),
        (lambda d: d.update(format="something"), "no parvae model"),
        (lambda d: d.pop("format"), "damaged"),
        (lambda d: d.pop("columns"), "damaged"),
        (lambda d: d.update(columns=[]), "fingerprint"),
        (lambda d: d.update(columns=None), "damaged"),
        (lambda d: d.update(columns=d["columns"][:2]), "fingerprint"),
        (lambda d: d["columns"][0].update(name="nowhere"), "damaged"),
        (lambda d: d["columns"][0].update(kind="unheard of"), "damaged"),
        (lambda d: d["columns"][0].pop("grid"), "damaged"),
        (lambda d: d.update(schema="AAAA"), "damaged"),
        (lambda d: d.update(schema="ä"), "damaged"),
        (lambda d: d.update(schema=3), "damaged"),
        (lambda d: d.update(training=3), "damaged"),
        (lambda d: d.update(fingerprint="0" * 64), "fingerprint"),
        (lambda d: d.update(fingerprint=None), "fingerprint"),
    ],
)
def test_is_a_damaged_description_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    description = json.loads(bundle.files()[BUNDLE_FILE])
    change(description)
    files = {**bundle.files(), BUNDLE_FILE: json.dumps(description).encode()}
    with pytest.raises(ModelError, match=message):
        Bundle.from_files(files, "the model")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_is_a_description_that_is_no_object_refused(bundle: Bundle, text: bytes) -> None:
    with pytest.raises(ModelError, match="the model"):
        Bundle.from_files({**bundle.files(), BUNDLE_FILE: text}, "the model")


def test_does_any_flipped_byte_of_the_description_give_a_model_error_or_the_same_model(bundle: Bundle) -> None:
    whole, refused = bundle.files()[BUNDLE_FILE], 0
    draw = random.Random(1)
    for _ in range(200):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            found = Bundle.from_files({**bundle.files(), BUNDLE_FILE: bytes(data)}, "the model")
            assert found.fingerprint == bundle.fingerprint
        except ModelError:
            refused += 1
    assert refused > 100


def test_is_a_schema_restored_to_the_letter_from_text() -> None:
    fields = [
        pa.field("a", pa.list_(pa.field("item", pa.int8(), nullable=False), 3), metadata={"k": "v"}),
        pa.field("b", pa.dictionary(pa.uint16(), pa.large_string(), ordered=True), nullable=False),
        pa.field("c", pa.fixed_shape_tensor(pa.float32(), [2, 2])),
        pa.field("", pa.decimal256(60, 5)),
    ]
    schema = pa.schema(fields, {"é": "ß"})
    assert schema_from_text(schema_to_text(schema)).equals(schema, check_metadata=True)
    for bad in ("", "!!", "AAAA", schema_to_text(schema)[:-8], "ä"):
        with pytest.raises(ParvaeError, match="stored schema cannot be read"):
            schema_from_text(bad)


def test_does_a_map_column_from_a_parquet_file_leave_the_fingerprint_alone(tmp_path) -> None:
    """Arrow names the parts of a map otherwise when it reads one from Parquet, and forgets that in a schema."""
    values = pa.array([[("k", 1)]] * 20, pa.map_(pa.string(), pa.int32()))
    pq.write_table(pa.table({"x": np.arange(20.0), "m": values}), tmp_path / "map.parquet")
    bundle = tiny_bundle(pq.read_table(tmp_path / "map.parquet"), {"m": ColumnOptions(kind="passthrough")})
    assert Bundle.from_files(bundle.files(), "the model").fingerprint == bundle.fingerprint


@pytest.mark.parametrize(
    ("width", "on_cpu", "rows"), [(1, 4096, 65_536), (100, 1310, 65_536), (784, 1024, 10_699), (100_000, 1024, 1024)]
)
def test_do_symbols_stay_within_a_size(width: int, on_cpu: int, rows: int) -> None:
    values = pa.array(np.arange(3 * width, dtype=np.float32))
    bundle = tiny_bundle(pa.table({"v": pa.FixedSizeListArray.from_arrays(values, width)}))
    assert (bundle.network_rows, bundle.encoder_rows) == (1024, on_cpu)
    assert bundle.piece_rows % on_cpu == 0
    on_gpu = dataclasses.replace(bundle, device="cuda")
    assert on_gpu.network_rows == on_gpu.encoder_rows == rows
    assert on_gpu.piece_rows % rows == 0
    assert 8 * width * on_gpu.piece_rows <= max(64 << 20, 8 * width * 1024)
