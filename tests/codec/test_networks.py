"""Do networks code blocks losslessly, near their own code length, and only where they pay?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import fit
from pipeline.codec.codec import Codec
from pipeline.codec.elements import Geometry
from pipeline.codec.entropy import Decoder, pack_integers, unpack_integers
from pipeline.codec.fit_elements import fit_element_coder, geometry_of
from pipeline.codec.fit_rows import Effort, Symbol, depends_on_previous, fit_row_coder
from pipeline.codec.lanes import Lanes
from pipeline.codec.networks import Networks
from pipeline.codec.rowcoder import RowCoder
from pipeline.codec.shares import Shares
from pipeline.columns import ColumnOptions, ColumnStats, fit_column
from pipeline.errors import ModelError
from pipeline.rows import RowTransform

TINY = Effort(hidden=8, steps=12, knots=4, direct=16)


def walk(rows: int, bins: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = rng.integers(-2, 3, rows).cumsum()
    return np.abs(steps) % bins


def table(rows: int, seed: int = 0) -> tuple[np.ndarray, list[Symbol]]:
    """A state symbol with its gated value, a wide walk, a short number, and a column with values told apart."""
    rng = np.random.default_rng(seed)
    state = (rng.random(rows) < 0.2).astype(np.int64)
    gated = np.where(state == 0, rng.integers(0, 40, rows), -1)
    apart = np.where(rng.random(rows) < 0.1, -1, rng.integers(0, 5, rows))
    bins = np.stack([state, gated, walk(rows, 100_000, seed), rng.integers(0, 3, rows), apart], 1)
    symbols = [
        Symbol(0, 3, False, state=True),
        Symbol(1, 40, True, gate=0),
        Symbol(2, 100_000, True),
        Symbol(3, 3, False),
        Symbol(4, 5, False),
    ]
    return bins, symbols


def told_apart(bins: np.ndarray) -> np.ndarray:
    absent = np.zeros(bins.shape, np.bool_)
    absent[:, 4] = bins[:, 4] < 0
    return absent


def blank(bins: np.ndarray) -> np.ndarray:
    unknown = np.full_like(bins, -2)
    unknown[told_apart(bins)] = -1
    return unknown


@pytest.fixture(scope="module")
def coder() -> RowCoder:
    bins, symbols = table(3000)
    return fit_row_coder([bins[:1700], bins[1700:]], None, symbols, 3000, TINY)


@given(rows=st.integers(0, 3000), sequential=st.booleans())
def test_lanes_decode_every_row_once_after_its_previous(rows, sequential):
    lanes = Lanes.of(rows, sequential)
    order = lanes.order()
    assert sorted(order.tolist()) == list(range(rows))
    when = np.empty(rows, np.int64)
    for step in range(lanes.steps):
        when[lanes.at(step)] = step
    before = lanes.previous(order)
    assert (when[before[before >= 0]] == when[order[before >= 0]] - 1).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 255, 257, 2999])
def test_a_block_comes_back(coder, rows):
    assert coder.previous
    assert any(rule.delta for rule in coder.symbols)
    bins, _ = table(max(rows, 1), seed=9)
    bins = bins[:rows]
    streams = coder.encode(bins, told_apart(bins), None)
    found = blank(bins)
    coder.decode(streams, found, None)
    np.testing.assert_array_equal(found, bins)


def test_values_that_the_sample_lacks_come_back(coder):
    bins, _ = table(600, seed=4)
    bins[::7, 2] = 99_999
    bins[::5, 0], bins[::5, 1] = -1, -1  # a state that fitting did not see
    absent = told_apart(bins)
    absent[::5, 1] = True
    found = blank(bins)
    found[absent] = -1
    coder.decode(coder.encode(bins, absent, None), found, None)
    np.testing.assert_array_equal(found, bins)


def test_streams_are_as_long_as_the_code(coder):
    bins, _ = table(3000)
    streams = coder.encode(bins, told_apart(bins), None)
    actual = 8 * sum(map(len, streams.values()))
    ideal = coder.measure(bins, None).sum()
    assert ideal <= actual <= 1.02 * ideal + 64 * len(streams)


def test_known_columns_are_inputs_and_not_coded():
    bins, symbols = table(2000)
    bins[:, 3] = bins[:, 4].clip(0) // 2
    symbols = [dataclasses.replace(symbol, coded=symbol.symbol != 4) for symbol in symbols]
    coder = fit_row_coder([bins], None, symbols, 2000, dataclasses.replace(TINY, steps=200))
    found = blank(bins)
    found[:, 4] = bins[:, 4]
    coder.decode(coder.encode(bins, told_apart(bins), None), found, None)
    np.testing.assert_array_equal(found, bins)
    bits = dict(zip([rule.symbol for rule in coder.symbols], coder.measure(bins, None), strict=True))
    assert bits[4] == 0
    assert bits[3] < 0.4 * 2000


def test_only_what_is_wanted_is_decoded():
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 6, (500, 4))
    coder = fit_row_coder([bins], None, [Symbol(number, 6, False) for number in range(4)], 500, TINY)
    assert not coder.previous
    streams = coder.encode(bins, bins < 0, None)
    found = np.full_like(bins, -2)
    coder.decode({key: data for key, data in streams.items() if key // 2 < 2}, found, None, {0, 1})
    np.testing.assert_array_equal(found[:, :2], bins[:, :2])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_chunks_make_no_difference(coder, threads, monkeypatch):
    bins, _ = table(2500, seed=2)
    streams = coder.encode(bins, told_apart(bins), None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    monkeypatch.setattr("pipeline.codec.rowcoder.CHUNK", 7 * threads)
    try:
        assert coder.encode(bins, told_apart(bins), None) == streams
        found = blank(bins)
        coder.decode(streams, found, None)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, bins)


def test_latents_are_contexts():
    rng = np.random.default_rng(0)
    latents = rng.integers(-4, 5, (3000, 2))
    bins = np.stack([latents[:, 0] + 4, rng.integers(0, 4, 3000)], 1)
    symbols = [Symbol(0, 9, True), Symbol(1, 4, False)]
    effort = dataclasses.replace(TINY, steps=300, hidden=16)
    coder = fit_row_coder([bins], [latents], symbols, 3000, effort)
    assert coder.measure(bins, latents)[0] < 0.5 * 3000
    found = np.full_like(bins, -2)
    coder.decode(coder.encode(bins, bins < 0, latents), found, latents)
    np.testing.assert_array_equal(found, bins)
    with pytest.raises(ValueError, match="latents"):
        coder.decode(coder.encode(bins, bins < 0, latents), np.full_like(bins, -2), None)


def test_the_previous_row_is_seen_where_it_helps():
    rng = np.random.default_rng(0)
    noise, walked = rng.integers(0, 50, 4000), walk(4000, 50)
    assert not depends_on_previous([noise[:, None]], [Symbol(0, 50, True)])
    assert depends_on_previous([walked[:, None]], [Symbol(0, 50, True)])


def smooth_images(rows: int, side: int, bins: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    slopes = rng.integers(0, bins // 2 + 1, (rows, 2, 1, 1)) / (2 * side)
    down, right = np.mgrid[:side, :side]
    planes = slopes[:, 0] * down + slopes[:, 1] * right + rng.integers(0, bins // 3, (rows, 1, 1))
    noise = rng.integers(0, 2, planes.shape)
    return (planes.astype(np.int64) + noise).clip(0, bins - 1).reshape(rows, side * side)


@pytest.mark.parametrize("bins", [12, 256, 5000])
def test_vectors_come_back(bins):
    images = smooth_images(200, 8, bins)
    coder = fit_element_coder(images, None, 0, bins, (8, 8), 200, TINY)
    streams = coder.encode(images, None)
    np.testing.assert_array_equal(coder.decode(streams, 200, None), images)
    np.testing.assert_array_equal(coder.decode(coder.encode(images[:0], None), 0, None), images[:0])


def test_the_width_of_an_image_is_found():
    assert geometry_of(smooth_images(300, 12, 20), None, TINY).shape == (12, 12, 1)
    noise = np.random.default_rng(0).integers(0, 20, (300, 144))
    assert geometry_of(noise, None, TINY).shape == (1, 144, 1)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 40, 1), (6, 1, 2)])
def test_neighbours_come_before(shape):
    index = Geometry(shape, 20).index
    assert (index < np.arange(len(index))[:, None]).all()
    assert (index >= -1).all()


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-127, 127), max_size=50), min_size=1, max_size=5))
def test_whole_numbers_come_back(groups):
    arrays = [np.array(group, np.int16) for group in groups]
    parameters, words = pack_integers(arrays)
    found = unpack_integers([len(array) for array in arrays], parameters, words)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, found, strict=True))


def test_streams_of_odd_bytes_are_refused():
    for data in (b"abc", bytes(8)):
        with pytest.raises(ValueError, match="stream"):
            Decoder(data)


def coding(batch: pa.RecordBatch) -> RowTransform:
    columns = []
    for field in batch.schema:
        stats = ColumnStats.empty(field, ColumnOptions(), sample_size=4096)
        stats.observe(batch.column(field.name), np.arange(batch.num_rows, dtype=np.uint64))
        columns.append(fit_column(field, stats, ColumnOptions()))
    return RowTransform(batch.schema, tuple(columns)).with_bounds(dict.fromkeys(batch.schema.names, 0.0), batch)


def assert_same(decoded: dict[str, pa.Array], batch: pa.RecordBatch) -> None:
    """The same values; a dictionary may have its entries in another order."""
    for name in batch.schema.names:
        found, expected = decoded[name], batch.column(name)
        if pa.types.is_dictionary(expected.type):
            found, expected = found.dictionary_decode(), expected.dictionary_decode()
        assert found.equals(expected), name


def related(rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 30, rows)
    null = rng.random(rows) < 0.1
    image = pa.FixedSizeListArray.from_arrays(pa.array(smooth_images(rows, 10, 16).ravel().astype(np.uint8)), 100)
    return pa.record_batch(
        {
            "a": pa.array(a, mask=null),
            "b": pa.array((a * 7 + rng.integers(0, 2, rows)) % 31),
            "name": pa.array([f"n{value % 5}" for value in a]).dictionary_encode(),
            "image": image,
            "noise": pa.array(rng.random(rows)),
        }
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[pa.RecordBatch, fit.FittedCodec]:
    batch = related(3000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fit.EFFORTS, "balanced", Effort(hidden=24, steps=400, direct=64))
        return batch, fit.fit_codec(coding(batch), [batch], None, None, 3000, "balanced", 0)


def test_each_column_goes_to_what_codes_it_smallest(fitted):
    batch, found = fitted
    assert {"b", "name", "image"} <= {name for name, how in found.codec.coded.items() if how == "model"}
    for name, sizes in found.sizes.items():
        general = min(size for method, size in sizes.items() if method != "model")
        if found.codec.coded[name] == "model":
            assert sizes["model"] < general
    block = found.codec.encode_block(batch)
    general = Codec.choose_general(found.codec.rows, [batch], 3000)
    whole = len(block.cell) + found.model_bytes
    assert whole < len(general.encode_block(batch).cell) + sum(
        array.nbytes for array in general.encode_block(batch).plain.values()
    )


def test_a_codec_with_networks_survives_its_files(fitted):
    batch, found = fitted
    again = Codec.from_files(found.codec.files(), batch.schema)
    assert again.fingerprint == found.codec.fingerprint
    block = found.codec.encode_block(batch.slice(0, 700))
    assert again.encode_block(batch.slice(0, 700)).cell == block.cell
    decoded = again.decode_block(block, 700)
    assert_same(decoded, batch.slice(0, 700))
    only = again.decode_block(block, 700, columns={"b"})
    assert list(only) == ["b"]
    assert only["b"].equals(batch.column("b").slice(0, 700))


def test_bytes_of_a_cell_belong_to_columns(fitted):
    batch, found = fitted
    block = found.codec.encode_block(batch)
    sizes, rest = Shares(found.codec)(block.cell)
    assert sum(sizes.values()) + rest == len(block.cell)
    assert rest < 200
    assert sizes.keys() == set(batch.schema.names) - set(block.plain)
    for name, how in found.codec.coded.items():
        if how == "model":  # what was expected of it when coders were compared
            assert sizes[name] == pytest.approx(found.sizes[name]["model"], rel=0.05, abs=64), name


def test_damaged_networks_are_refused_or_noticed(fitted):
    batch, found = fitted
    files = found.codec.files()
    block = found.codec.encode_block(batch.slice(0, 100))
    data = files["coder.safetensors"]
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data), 60).tolist():
        broken = data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]
        try:
            decoded = Codec.from_files({**files, "coder.safetensors": broken}, batch.schema).decode_block(block, 100)
        except (ModelError, ValueError):
            continue
        assert_same(decoded, batch.slice(0, 100))


def test_networks_that_earn_nothing_are_left_out(monkeypatch):
    monkeypatch.setitem(fit.EFFORTS, "balanced", Effort(hidden=8, steps=60))
    rng = np.random.default_rng(0)
    batch = pa.record_batch({name: pa.array(rng.random(400)) for name in "abc"})
    found = fit.fit_codec(coding(batch), [batch], None, None, 400, "balanced", 0)
    assert found.codec.model is None
    assert found.model_bytes == 0


def test_two_fits_give_the_same_codec(monkeypatch):
    monkeypatch.setitem(fit.EFFORTS, "balanced", TINY)
    batch = related(400)
    first, second = (fit.fit_codec(coding(batch), [batch], None, None, 400, "balanced", 7) for _ in range(2))
    assert first.codec.fingerprint == second.codec.fingerprint
    assert isinstance(first.codec.model, Networks | None)


def test_a_stream_without_words_is_no_stream():
    """A column that never varies in a block, though it does elsewhere, takes no word; what follows it still decodes."""
    rng = np.random.default_rng(0)
    bins = np.stack([rng.integers(0, 10, 6000), (np.arange(6000) > 5000).astype(np.int64)], 1)
    effort = dataclasses.replace(TINY, steps=300)
    coder = fit_row_coder([bins], None, [Symbol(0, 10, True), Symbol(1, 2, False)], 6000, effort)
    block = bins[:4000]
    streams = {key: data for key, data in coder.encode(block, block < 0, None).items() if data}
    assert coder.previous
    found = np.full_like(block, -2)
    coder.decode(streams, found, None)
    np.testing.assert_array_equal(found, block)
