"""Does every archive that a released format wrote still decode to the same values, bit for bit?

Nothing here, or anywhere else, writes these archives again; see `tests/golden/README.md`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fuzz import same
from pipeline.archive import Archive
from pipeline.codec.entropy import Decoder
from pipeline.errors import ArchiveError
from pipeline.parts import VERSION
from pipeline.storage import Location

FOLDER = Path(__file__).parent / "golden" / "v1"
NAMES = ("scalars", "unordered", "images")


def listed() -> dict[str, str]:
    return dict(json.loads((FOLDER / "sha256.json").read_text()))


def test_are_the_golden_files_those_that_were_committed() -> None:
    found = {
        str(path.relative_to(FOLDER)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.name != "sha256.json"
    }
    assert found == listed()


@pytest.mark.parametrize("name", NAMES)
def test_does_a_golden_archive_decode_bit_for_bit(name: str) -> None:
    archive = Archive.open(Location(str(FOLDER / name)))
    assert archive.manifest["version"][0] == VERSION[0] == 1
    expected = pq.ParquetFile(FOLDER / f"{name}.parquet").read()
    assert archive.schema.equals(expected.schema, check_metadata=True)
    assert same(archive.read(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_do_some_rows_and_columns_of_it_decode_alone(name: str) -> None:
    archive = Archive.open(Location(str(FOLDER / name)))
    expected = pq.ParquetFile(FOLDER / f"{name}.parquet").read()
    last = archive.rows
    for number, column in enumerate(archive.schema.names):
        if number % 5 == 0:
            rows = range(last - 7, last)
            assert same(archive.read(rows, [column]), expected.slice(rows.start).select([column])), column


def test_does_a_reader_of_a_later_minor_version_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("manifest", "parts"):
        monkeypatch.setattr(f"pipeline.{module}.VERSION", (VERSION[0], VERSION[1] + 1))
    for whole in (None, range(3)):
        assert Archive.open(Location(str(FOLDER / "unordered"))).read(whole).num_rows == (640 if whole is None else 3)


def test_does_a_reader_of_another_major_version_refuse_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.manifest.VERSION", (0, 9))
    with pytest.raises(ArchiveError, match=r"has archive format 1\.0, this library reads up to 0; upgrade parvae"):
        Archive.open(Location(str(FOLDER / "unordered")))


class PlainAns:
    """The entropy decoder as `docs/format.md` describes it, number by number."""

    def __init__(self, words: list[int]) -> None:
        self.words = list(words)
        self.state = 0
        for _ in range(min(2, len(self.words))):
            self.state = self.state << 32 | self.words.pop()

    def pull(self, weights: list[float]) -> int:
        scale = float(2**24 - len(weights)) / sum(weights)
        left, total = [], 0.0
        for place, weight in enumerate(weights):
            left.append(int(total * scale) + place)
            total += weight
        left.append(2**24)
        quantile = self.state % 2**24
        digit = max(place for place in range(len(weights)) if left[place] <= quantile)
        self.state = (self.state >> 24) * (left[digit + 1] - left[digit]) + quantile - left[digit]
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return digit


@pytest.mark.parametrize("alphabet", [2, 3, 64, 255])
def test_is_the_entropy_coder_the_one_that_is_described(alphabet: int) -> None:
    rng = np.random.default_rng(alphabet)
    weights = np.maximum(1, np.floor(2.0 ** rng.uniform(0, 32, (300, alphabet))))
    digits = rng.integers(0, alphabet, 300)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(digits.astype(np.int32), constriction.stream.model.Categorical(perfect=False), weights)
    words = coder.get_compressed()
    plain = PlainAns(words.tolist())
    assert [plain.pull(row) for row in weights.tolist()] == digits.tolist()
    assert plain.state == 0
    assert not plain.words
    assert Decoder(words.astype("<u4").tobytes()).pull(weights).tolist() == digits.tolist()


def described(name: str) -> Any:
    return Archive.open(Location(str(FOLDER / name))).model.codec


def test_do_they_hold_what_they_are_there_for() -> None:
    methods = {method for name in NAMES for method in described(name).coded.values()}
    assert methods == {"model", "parquet", "const", "pco", "pco_t", "xz", "xz_t", "pco_raw", "xz_raw"}
    rows = [described(name).model.rows for name in NAMES]
    assert {coder.previous for coder in rows} == {True, False}
    assert any(coder.latents for coder in rows)
    assert any(rule.delta and rule.coded for coder in rows for rule in coder.symbols)
    assert any(rule.digits.singles and rule.coded for coder in rows for rule in coder.symbols)
    assert {coder.guided for coder in described("images").model.elements.values()} == {True, False}


def test_do_dictionaries_keep_their_entries_and_order() -> None:
    found = Archive.open(Location(str(FOLDER / "scalars"))).read(range(712, 720), ["colour"])["colour"]
    assert found.type.ordered
    assert {tuple(chunk.dictionary.to_pylist()) for chunk in found.chunks} == {("red", "green")}
