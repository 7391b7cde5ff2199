"""Does an archive encoded in batches of 4096 by two threads decode to the same values everywhere?"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.fuzz import same
from pipeline.archive import Archive
from pipeline.blocks import sample_runs
from pipeline.codec import Codec, elements, fit, rowcoder
from pipeline.codec.fit_rows import Effort
from pipeline.codec_store import StoredCodec
from pipeline.columns import ColumnOptions
from pipeline.dataset import open_dataset
from pipeline.encode import UnitEncoder
from pipeline.errors import ArchiveError
from pipeline.fit_codec import CodecFitter
from pipeline.manifest import write_manifest
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat
from pipeline.plan import PartRecord, read_plan, write_plan
from pipeline.storage import Location
from tests.small import as_stored, request_of, tiny_bundle
from vae_model.exact import ExactDecoder
from vae_model.integer import IntegerCoder

BATCH = 4096
TINY = Effort(hidden=8, steps=60, knots=4, direct=128, neighbours=4)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def walks() -> pa.Table:
    """Columns that depend on the row before; more rows than a batch."""
    rng = np.random.default_rng(0)
    walk = np.abs(rng.integers(-2, 3, 4400).cumsum()) % 90
    names = np.array(["low", "middle", "high"])[walk // 30]
    return pa.table({"walk": walk, "name": names, "wide": walk * 50_000 + rng.integers(0, 50_000, 4400)})


def unordered() -> pa.Table:
    """Columns that depend on each other alone."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 50, 4400)
    return pa.table({"first": first, "second": first // 2 + rng.integers(0, 3, 4400)})


def images() -> pa.Table:
    """Images whose brightness is all that latents would say."""
    rng = np.random.default_rng(2)
    pixels = np.clip(rng.integers(0, 12, (150, 1)) + rng.integers(0, 4, (150, 16)), 0, 15).astype(np.uint8)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 16)
    return pa.table({"pixels": vectors, "ink": pixels.sum(1).astype(np.int32)})


TABLES: dict[str, Callable[[], pa.Table]] = {
    "walks": walks,
    "unordered": unordered,
    "images": lambda: as_stored(images()),
}


def encode(table: pa.Table, folder: Location) -> Archive:
    """An archive of networks alone, in blocks of 4300 rows; latents are kept where there are images."""
    with folder.join("data", "a.parquet").publishing() as spool:
        pq.write_table(table, spool)
    dataset, keep = open_dataset(folder.join("data")), "both" if "pixels" in table.column_names else "corrections"
    bundle = tiny_bundle(table, {"pixels": ColumnOptions(shape=(4, 4))})
    request = request_of(dataset, bundle, keep, "0")
    runs, errors = sample_runs(dataset, 10_000, 1 << 28, 0), request.promise.errors
    # as if there were more rows, so that networks earn their weights
    fitter = CodecFitter(bundle.files(), errors, dataset.root, runs, 4300, 10_000_000, "balanced", 0, 1)
    stored = StoredCodec.from_json(fitter({"keep": keep})["codec"])
    plan = request.plan(stored)
    plan = type(plan)(**{**vars(plan), "block_rows": 4300})
    out = folder.join("archive")
    model = ArchiveModel.of(bundle, stored.files, plan)
    write_plan(out, plan)
    model.save(out)
    with threads(2):
        work = UnitEncoder(dict(model.files), PartFormat(dataset.schema, plan), dataset.root, out, "cpu", 2)
        records = [PartRecord.from_json(work(unit.to_json())["record"]) for unit in dataset.units(plan.unit_bytes)]
    write_manifest(out, plan, records, dataset.schema, dataset.size)
    return Archive.open(out)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Archive]:
    patch = pytest.MonkeyPatch()
    patch.setattr(fit, "EFFORTS", {"balanced": TINY})
    fitted = fit._fit_elements

    def guided_only(sample, name, place, guided):
        coder, size = fitted(sample, name, place, guided)
        return (coder, size / 2) if guided else (None, 0.0)

    patch.setattr(fit, "_fit_elements", guided_only)
    made = {}
    for name, table in TABLES.items():
        with threads(1):
            made[name] = encode(table(), Location(str(tmp_path_factory.mktemp(name))))
    patch.undo()
    return made


@pytest.fixture(params=list(TABLES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def again(archive: Archive) -> Archive:
    """The archive, opened afresh: nothing is kept of what was built before."""
    return Archive.open(archive.location)


def test_are_the_archives_what_the_other_tests_need(archives: dict[str, Archive]) -> None:
    codecs = {name: archive.model.codec for name, archive in archives.items()}
    assert all("model" in codec.coded.values() for codec in codecs.values())
    assert codecs["walks"].model.rows.previous
    assert not codecs["unordered"].model.rows.previous
    assert codecs["images"].model.elements["pixels"].guided
    assert rowcoder.CHUNK == elements.CHUNK == BATCH


@pytest.mark.parametrize("count", [1, 2])
def test_whatever_the_threads(archives, name, count, monkeypatch) -> None:
    for module in ("archive", "decoder"):
        monkeypatch.setattr(f"pipeline.{module}.one_thread", contextlib.nullcontext)
    used, own = set(), Codec.decode_block

    def watched(*arguments):
        used.add(torch.get_num_threads())
        return own(*arguments)

    monkeypatch.setattr(Codec, "decode_block", watched)
    with threads(count):
        assert same(again(archives[name]).read(), TABLES[name]())
    assert used == {count}


def test_is_one_thread_the_rule(archives, name, monkeypatch) -> None:
    used, own = set(), Codec.decode_block
    monkeypatch.setattr(Codec, "decode_block", lambda *a: (used.add(torch.get_num_threads()), own(*a))[1])
    with threads(2):
        again(archives[name]).read(range(10))
        assert torch.get_num_threads() == 2
    assert used == {1}


@pytest.mark.parametrize("batch", [1, 7])
def test_whatever_the_batch(archives, name, batch, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.codec.rowcoder.CHUNK", batch)
    monkeypatch.setattr("pipeline.codec.elements.CHUNK", batch)
    monkeypatch.setattr("pipeline.codec.guide._ROWS", batch)
    monkeypatch.setattr("vae_model.exact._ROWS", batch)
    archive = again(archives[name])
    rows = range(4300, 4400) if archive.rows > 4300 and batch == 1 else range(archive.rows)
    assert same(archive.read(rows), TABLES[name]().slice(rows.start))


def numpy_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    product = np.matmul(left.double().numpy(), right.double().numpy())
    return torch.from_numpy(product).to(left.dtype)


def test_whoever_multiplies(archives, name, monkeypatch) -> None:
    monkeypatch.setattr(
        "vae_model.integer.IntegerCoder", functools.partial(IntegerCoder, matmul=numpy_product), raising=True
    )
    own = ExactDecoder.parameters
    monkeypatch.setattr(
        ExactDecoder, "parameters", lambda self, k, beyond=0: own(self, k, beyond, multiply=numpy_product)
    )
    assert same(again(archives[name]).read(), TABLES[name]())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(archives, name, monkeypatch) -> None:
    monkeypatch.setattr("vae_model.integer.IntegerCoder", functools.partial(IntegerCoder, device="cuda"))
    assert same(again(archives[name]).read(), TABLES[name]())


def test_whatever_rows_are_read(archives, name) -> None:
    archive, table = again(archives[name]), TABLES[name]()
    for rows in (range(1), range(archive.rows - 60, archive.rows), range(40, 90)):
        assert same(archive.read(rows), table.slice(rows.start, len(rows)))


def test_another_batch_encodes_to_the_same_bytes(archives, name, monkeypatch) -> None:
    archive = again(archives[name])
    monkeypatch.setattr("pipeline.codec.rowcoder.CHUNK", 11)
    monkeypatch.setattr("pipeline.codec.elements.CHUNK", 11)
    batch = TABLES[name]().slice(0, 120).combine_chunks().to_batches()[0]
    latents = None
    if archive.plan.latents:
        latents = archive.model.bundle.to_latents(archive.model.bundle.rows.from_batch(batch)[0])
    with threads(1):
        one = archive.model.codec.encode_block(batch, latents)
    monkeypatch.undo()
    with threads(2):
        two = again(archive).model.codec.encode_block(batch, latents)
    assert one.cell == two.cell


def test_is_a_changed_weight_noticed_by_its_hash(archives, name) -> None:
    archive = archives[name]
    place = Path(archive.location.path) / "_model" / "coder.safetensors"
    data = place.read_bytes()
    changed = bytearray(data)
    changed[-5] ^= 1
    place.write_bytes(bytes(changed))
    try:
        with pytest.raises(ArchiveError, match=r"is damaged or not the codec that wrote the archive"):
            again(archive).read()
    finally:
        place.write_bytes(data)


def test_is_a_wrongly_decoded_block_noticed_by_its_checksum(archives, monkeypatch) -> None:
    archive = again(archives["unordered"])
    right = IntegerCoder.weights
    monkeypatch.setattr(IntegerCoder, "weights", lambda *arguments: right(*arguments).roll(1, 1))
    monkeypatch.setattr("pipeline.codec.entropy.Decoder.finish", lambda self: None)
    with pytest.raises(ArchiveError) as caught:
        archive.read()
    assert f"block 0 of {archive.part_location(archive.parts[0])} is damaged" in str(caught.value)
    assert "the decoded values fail their checksum" in str(caught.value)
    assert read_plan(archive.location).codec == archive.plan.codec
