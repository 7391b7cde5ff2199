"""Does a block come back as the coding transform has it, whatever codes its columns, and is every damage noticed?"""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bounds import Bound, resolve_bounds
from pipeline.codec import CODEC_FILE, MODEL, Codec, EncodedBlock, general, single
from pipeline.codec.choose import PARQUET, choose
from pipeline.codec.general import RAW_METHODS, SYMBOL_METHODS
from pipeline.codec.model import UNKNOWN
from pipeline.codec.plain import ENCODINGS
from pipeline.codec.sections import CHECKS, FIRST_MODEL_ROLE, Key, Sections, pack_cell, unpack_cell
from pipeline.codec.single import is_exact_float
from pipeline.columns import ColumnOptions
from pipeline.errors import ModelError
from pipeline.rows import RowTransform
from tests.columns.cases import MODELLED, QUICK, Case, arrays
from tests.columns.oracle import fit as fit_column
from tests.columns.oracle import raw
from tests.small import fit, one_batch

BOUNDS = [Bound.parse(text) for text in ("0", "0.01r", "0.25")]
DAMAGE = (ValueError, LookupError, OverflowError, struct.error, lzma.LZMAError, pa.ArrowException)


def codec_of(rows: RowTransform, method: str, **others: str) -> Codec:
    coded = {column.name: others.get(column.name, method) for column in rows.modelled}
    return Codec(rows, coded, {name: "plain" for name, chosen in coded.items() if chosen == PARQUET})


@pytest.mark.parametrize("case", MODELLED, ids=str)
@QUICK
@given(data=st.data())
def test_does_a_column_come_back(case: Case, data: st.DataObject) -> None:
    fitted, values = data.draw(arrays(case.type)), data.draw(arrays(case.type))
    schema = pa.schema([case.field])
    rows = RowTransform(schema, (fit_column(fitted, case.options, case.field),))
    if not rows.modelled:
        return
    sample, batch = (pa.RecordBatch.from_arrays([array], schema=schema) for array in (fitted, values))
    coding = rows.with_bounds(resolve_bounds(rows, data.draw(st.sampled_from(BOUNDS)), {}), sample)
    expected = coding.to_arrays(*coding.from_batch(batch))["c"]
    methods = [PARQUET, *SYMBOL_METHODS, *RAW_METHODS * is_exact_float(coding.columns[0])]
    codec = codec_of(coding, data.draw(st.sampled_from(methods)))
    block = codec.encode_block(batch)
    stored = Codec.from_files(codec.files(), schema)
    assert stored.fingerprint == codec.fingerprint
    assert stored.encode_block(batch).cell == block.cell
    found = stored.decode_block(block, batch.num_rows)["c"]
    found.validate(full=True)
    assert found.type == values.type
    assert raw(found) == raw(expected)


def table(rows: int = 400, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    holes = rng.random(rows) < 0.1
    floats = np.round(rng.normal(size=rows), 2)
    floats[:4] = [np.nan, np.inf, -0.0, 1e300]
    return pa.table(
        {
            "key": [f"key {i}" for i in range(rows)],
            "i": pa.array(rng.integers(-50, 50, rows), mask=holes),
            "x": pa.array(floats, mask=np.roll(holes, 1)),
            "one": pa.array(np.full(rows, 7, np.int16)),
            "flag": pa.array(rng.random(rows) < 0.5, mask=holes),
            "word": pa.array(rng.choice(["a", "b", "c"], rows), mask=holes),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 9, 4 * rows, np.uint8)), 4),
            "wave": pa.array(np.sin(np.arange(rows) / 9).astype(np.float32)),
        }
    )


def coding_of(data: pa.Table, bound: str) -> RowTransform:
    rows = fit(data, {"v": ColumnOptions(shape=(2, 2)), "n": ColumnOptions(kind="numeric")})
    return rows.with_bounds(resolve_bounds(rows, Bound.parse(bound), {}), one_batch(data))


def test_is_the_smallest_tool_chosen_for_every_column() -> None:
    data = table(3000)
    coding = coding_of(data, "0.01r")
    codec = Codec.choose_general(coding, [one_batch(data)], 3000)
    assert codec.coded.keys() == {"i", "x", "one", "flag", "word", "v", "wave"}
    assert codec.coded["one"] == "const"
    block = codec.encode_block(one_batch(data))
    total = len(block.cell) + _parquet_bytes(block.plain)
    for method in ("pco", "xz"):
        assert total <= len(codec_of(coding, method).encode_block(one_batch(data)).cell)
    assert total <= _parquet_bytes(codec_of(coding, PARQUET).encode_block(one_batch(data)).plain)
    assert len(codec.files()[CODEC_FILE]) < 2000
    options = codec.writer_options()
    assert set(options["use_dictionary"]) | set(options["use_byte_stream_split"]) <= {item.name for item in codec.plain}


def test_is_a_tie_parquets() -> None:
    """A column that nothing else codes much smaller stays readable by anyone."""
    noise = pa.table({"n": np.random.default_rng(0).integers(0, 256, 60_000).astype(np.uint8)})
    codec = Codec.choose_general(coding_of(noise, "0"), [one_batch(noise)], 60_000)
    assert codec.coded == {"n": PARQUET}
    assert codec.encode_block(one_batch(noise)).plain["n"].equals(noise["n"].chunk(0))


def _parquet_bytes(columns: Mapping[str, pa.Array]) -> int:
    if not columns:
        return 0
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", compression_level=19)
    return int(sink.getvalue().size)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_are_writer_options_understood(encoding: str) -> None:
    data = table().select(["x", "wave", "v"] if encoding != "dictionary" else ["word", "i", "v"])
    coding = coding_of(data, "0")
    names = data.column_names
    codec = Codec(coding, dict.fromkeys(names, PARQUET), dict.fromkeys(names, encoding))
    sink = pa.BufferOutputStream()
    pq.write_table(data, sink, **codec.writer_options())
    group = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.row_group(0)
    wanted = {"split": "BYTE_STREAM_SPLIT", "dictionary": "RLE_DICTIONARY", "plain": "PLAIN"}[encoding]
    assert all(wanted in group.column(number).encodings for number in range(3))


@pytest.mark.parametrize("bound", ["0", "0.01r"])
def test_are_some_columns_decoded_without_the_others(bound: str) -> None:
    data = table()
    codec = codec_of(coding_of(data, bound), "pco", word="xz", flag=PARQUET)
    block = codec.encode_block(one_batch(data))
    whole = codec.decode_block(block, 400)
    assert list(whole) == ["i", "x", "one", "flag", "word", "v", "wave"]
    for wanted in ([], ["x"], ["wave", "word", "key"], ["flag", "v"]):
        alone = EncodedBlock({name: block.plain[name] for name in codec.needs(wanted) & {"flag"}}, block.cell)
        found = codec.decode_block(alone, 400, columns=wanted)
        assert set(found) == set(wanted) - {"key"}
        assert all(raw(values) == raw(whole[name]) for name, values in found.items())


def test_does_a_block_without_rows_come_back() -> None:
    codec = codec_of(coding_of(table(), "0"), "pco", v="xz_t", wave="pco_raw")
    block = codec.encode_block(one_batch(table()).slice(0, 0))
    assert {len(values) for values in codec.decode_block(block, 0).values()} == {0}


@pytest.mark.parametrize("method", ["pco", "xz"])
def test_is_every_flipped_bit_of_a_cell_noticed(method: str) -> None:
    data = table(20)
    codec = codec_of(coding_of(data, "0.01r"), method)
    cell = codec.encode_block(one_batch(data)).cell
    for place in range(len(cell)):
        damaged = bytearray(cell)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(DAMAGE):
            codec.decode_block(EncodedBlock({}, bytes(damaged)), 20)
        with pytest.raises(DAMAGE):
            codec.decode_block(EncodedBlock({}, cell[:place]), 20)
    for bad, rows in ((cell + b"\0", 20), (cell, 19), (cell, 21), (b"", 20)):
        with pytest.raises(DAMAGE):
            codec.decode_block(EncodedBlock({}, bad), rows)


def test_is_damage_told_with_the_columns_name_and_only_where_it_is_read() -> None:
    data = table(50)
    codec = codec_of(coding_of(data, "0"), "pco")
    cell = codec.encode_block(one_batch(data)).cell
    damaged = EncodedBlock({}, cell[:-1] + bytes([cell[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"column 'wave': section .* fails its checksum"):
        codec.decode_block(damaged, 50)
    assert codec.decode_block(damaged, 50, columns=["i"])["i"].equals(data["i"].chunk(0))


def test_are_decoded_values_checked() -> None:
    """A section may be in order and yet say other values: that of another block."""
    data = table(50).drop(["key"])
    codec = codec_of(coding_of(data, "0"), "pco")
    others = data.take(np.arange(50)[::-1])
    cell, other = (unpack_cell(codec.encode_block(one_batch(part)).cell) for part in (data, others))
    mixed = pack_cell({**cell, (CHECKS, 0): other[CHECKS, 0]})
    with pytest.raises(ValueError, match="column 'i': the decoded values fail their checksum"):
        codec.decode_block(EncodedBlock({}, mixed), 50)


class StoreCoder:
    """A network's place holder: it stores its columns' symbols, mixed with what it must know before."""

    def __init__(self, rows: RowTransform, own: Collection[str], context: Collection[str]) -> None:
        self._own, self._context = tuple(own), set(context)
        spans = rows.layout().spans
        self._symbols = {
            name: [s for span in spans if span.column == name for s in range(span.start, span.stop)]
            for name in rows.schema.names
        }

    def _key(self, bins: np.ndarray) -> np.ndarray:
        known = [symbol for name in sorted(self._context) for symbol in self._symbols[name]]
        assert not (bins[:, known] == UNKNOWN).any()
        return bins[:, known].sum(axis=1, keepdims=True)

    def encode(self, bins_BD: np.ndarray, latents_BZ: np.ndarray | None) -> dict[Key, bytes]:
        key = self._key(bins_BD)
        return {
            (FIRST_MODEL_ROLE, place): (bins_BD[:, self._symbols[name]] + key).tobytes()
            for place, name in enumerate(self._own)
        }

    def decode(
        self,
        sections: Sections,
        bins_BD: np.ndarray,
        latents_BZ: np.ndarray | None,
        columns: Collection[str],
    ) -> None:
        for place, name in enumerate(self._own):
            if name in columns:
                part = bins_BD[:, self._symbols[name]]
                found = np.frombuffer(sections[FIRST_MODEL_ROLE, place], np.int64).reshape(part.shape)
                found = found - self._key(bins_BD)
                assert ((part == UNKNOWN) | (part == found)).all()
                bins_BD[:, self._symbols[name]] = found

    def needs(self, columns: Collection[str]) -> set[str]:
        return {*columns, *self._context}

    def to_bytes(self) -> bytes:
        return json.dumps(sorted(self._context)).encode()


def load(data: bytes, rows: RowTransform, coded: Mapping[str, str]) -> StoreCoder:
    return StoreCoder(rows, [name for name, method in coded.items() if method == MODEL], json.loads(data))


@pytest.mark.parametrize("bound", ["0", "0.01r"])
def test_does_a_network_see_the_columns_coded_otherwise(bound: str) -> None:
    data = table()
    coding = coding_of(data, bound)
    coded = {"i": MODEL, "x": "pco", "one": "const", "flag": PARQUET, "word": MODEL, "v": "xz_t", "wave": PARQUET}
    model = StoreCoder(coding, ["i", "word"], ["x", "wave"])
    codec = Codec(coding, coded, {"flag": "plain", "wave": "split"}, model)
    files = codec.files()
    assert files.keys() == {"codec.json", "coder.safetensors"}
    stored = Codec.from_files(files, data.schema, load)
    block = codec.encode_block(one_batch(data))
    found = stored.decode_block(block, 400)
    general = codec_of(coding, "pco")
    expected = general.decode_block(general.encode_block(one_batch(data)), 400)
    assert {name: raw(values) for name, values in found.items()} == {n: raw(v) for n, v in expected.items()}
    assert stored.needs(["word"]) == {"word", "x", "wave"}
    assert stored.needs(["flag"]) == {"flag"}
    part = EncodedBlock({"wave": block.plain["wave"]}, block.cell)
    assert raw(stored.decode_block(part, 400, columns=["word"])["word"]) == raw(expected["word"])
    with pytest.raises(ValueError, match="column 'wave': its section 'wave' is missing"):
        stored.decode_block(EncodedBlock({}, block.cell), 400, columns=["word"])
    with pytest.raises(ModelError):
        Codec.from_files(files, data.schema)
    with pytest.raises(ModelError, match="damaged"):
        Codec.from_files({**files, "coder.safetensors": b"{"}, data.schema, load)


def test_is_a_long_vocabulary_kept_small() -> None:
    data = pa.table({"word": np.repeat([f"N{i}\u00e4" for i in range(1000)], 2)})
    coding = fit(data, {"word": ColumnOptions(kind="categorical")})
    codec = codec_of(coding, "pco")
    (text,) = codec.files().values()
    assert len(text) < 4000
    assert Codec.from_files({CODEC_FILE: text}, data.schema).rows.to_json() == coding.to_json()
    for packed in ("", "x", "5:", "-1:abc", f"{2**40}:abc", "5:abc\u00e4", "2:" + "0" * 20):
        with pytest.raises(ModelError):
            Codec.from_files(_changed(text, categories=packed), data.schema)


def _changed(text: bytes, **changes: Any) -> dict[str, bytes]:
    data = json.loads(text)
    for name, value in changes.items():
        if name in data:
            data[name] = value
        else:
            data["columns"][0][name] = value
    return {CODEC_FILE: json.dumps(data).encode()}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 2},
        {"columns": []},
        {"columns": {}},
        {"copied": []},
        {"copied": ["key", "key"]},
        {"copied": ["key", "i"]},
        {"coded": "zip"},
        {"coded": "parquet"},
        {"coded": "pco_raw"},
        {"coded": "model"},
        {"encoding": "plain"},
        {"name": "x"},
        {"name": "nobody"},
        {"kind": "other"},
        {"grid": {"kind": "int", "low": 0, "high": -1, "width": 1}},
        {"states": ["ODD"]},
    ],
    ids=str,
)
def test_is_a_damaged_description_refused(changes: dict[str, Any]) -> None:
    data = table()
    files = codec_of(coding_of(data, "0"), "pco").files()
    with pytest.raises(ModelError):
        Codec.from_files(_changed(files[CODEC_FILE], **changes), data.schema)
    for bad in ({}, {CODEC_FILE: b""}, {CODEC_FILE: files[CODEC_FILE][:-1]}, {CODEC_FILE: b"[]"}):
        with pytest.raises(ModelError):
            Codec.from_files(bad, data.schema)


@pytest.mark.parametrize(
    ("sizes", "calm", "hurried"),
    [
        ({"pco": 1000.0, "xz": 950.0, "parquet/plain": 2000.0}, "xz", "pco"),
        ({"pco": 1000.0, "xz": 899.0, "parquet/plain": 2000.0}, "xz", "xz"),
        ({"pco": 1000.0, "xz": 1100.0}, "pco", "pco"),
        ({"xz_raw": 1000.0, "xz_t": 990.0, "pco_raw": 1050.0}, "xz_t", "pco_raw"),
        ({"xz": 1000.0, "parquet/plain": 1001.0}, PARQUET, PARQUET),
        ({"xz": 1000.0, "parquet/plain": 2000.0}, "xz", "xz"),
    ],
)
def test_must_a_slow_tool_be_worth_its_time_in_a_hurry(sizes: dict[str, float], calm: str, hurried: str) -> None:
    assert choose({"c": sizes}, 1.0)[0] == {"c": calm}
    assert choose({"c": sizes}, 1.0, hurry=True)[0] == {"c": hurried}


@pytest.mark.parametrize("kind", ["noise", "runs", "burst", "constant", "few"])
def test_are_symbols_coded_by_what_codes_them_smallest(kind: str) -> None:
    rng, rows = np.random.default_rng(0), 200_000
    symbols = {
        "noise": (rng.random(rows) < 0.3).astype(np.int64),
        "runs": np.tile(rng.integers(0, 2, 500), rows // 500),
        "burst": np.where(np.abs(np.arange(rows) - 30_000) < 2_000, rng.integers(0, 2, rows), 0),
        "constant": np.zeros(rows, np.int64),
        "few": rng.integers(0, 2, 50),
    }[kind].reshape(-1, 1)
    best = min(len(general.encode(method, symbols)) for method in ("pco", "xz"))
    body = single.smallest(symbols)
    assert len(body) == best
    np.testing.assert_array_equal(general.decode(body, len(symbols), 1, 2), symbols)


@pytest.mark.parametrize(("period", "method"), [(100, "pco"), (20, "xz")])
def test_must_xz_be_worth_its_time_on_many_states(period: int, method: str) -> None:
    """Nulls at places that repeat: xz sees it; where nulls are rare, that is worth too little."""
    rng, rows = np.random.default_rng(3), 200_000
    block = np.zeros(2_000, np.int64)
    block[rng.choice(2_000, 2_000 // period, replace=False)] = 1
    states = np.tile(block, rows // 2_000).reshape(-1, 1)
    sizes = {name: len(general.encode(name, states)) for name in ("pco", "xz")}
    assert sizes["xz"] < sizes["pco"]
    assert single.smallest(states) == general.encode(method, states)


def test_are_the_same_states_coded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table()
    holes = data.column("i").is_null()
    data = data.append_column("j", pc.if_else(holes, None, 3.0 * np.arange(len(data))))
    batch = one_batch(data.select(["i", "j", "word", "x"]))
    codec = codec_of(coding_of(pa.table(batch), "0.01r"), "pco")
    coded: list[bytes] = []
    smallest = single.smallest
    monkeypatch.setattr(single, "smallest", lambda states: coded.append(smallest(states)) or coded[-1])
    block = codec.encode_block(batch)
    assert len(coded) == 2, "i, j and word lack values in the same rows, x in others"
    for name, values in codec.decode_block(block, batch.num_rows).items():
        assert values.is_null().equals(batch.column(name).is_null())


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("order", ["C", "F"])
def test_is_the_checksum_that_of_symbols_row_by_row(width: int, order: Literal["C", "F"]) -> None:
    bins = np.random.default_rng(0).integers(-1, 2**40, (20_000, width))
    assert single.checksum(np.asarray(bins, order=order)) == zlib.crc32(bins.astype("<i8").tobytes())
