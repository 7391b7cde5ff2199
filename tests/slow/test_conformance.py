"""Does no Parquet file, damaged or crafted, crash the process that reads it?"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.conformance import EQUAL, REFUSED, SLOW, check_all, parquet_files
from benchmarks.mutations import mutate_bytes
from tests import crafted

pytestmark = pytest.mark.slow
SHIPPED = Path(pa.__file__).parent / "tests" / "data" / "parquet"
DAMAGED = 60


def test_is_every_damaged_file_refused_or_read(tmp_path: Path) -> None:
    """In the bytes of the pages, or, for half of them, of the footer."""
    draw = random.Random(1)
    sources = [path.read_bytes() for path in parquet_files([SHIPPED])]
    for number in range(DAMAGED if sources else 0):
        data = draw.choice(sources)
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if number % 2 else 0
        damaged, _ = mutate_bytes(data[start:], draw)
        (tmp_path / f"{number:03d}.parquet").write_bytes(data[:start] + damaged)
    outcomes = Counter(found.outcome for found in check_all(parquet_files([tmp_path])))
    # without checksums in its pages a file may say other values than it did; what it says is decoded as it is
    assert set(outcomes) <= {EQUAL, REFUSED}, outcomes
    assert outcomes[REFUSED] > DAMAGED / 6 or not sources


def test_is_every_crafted_file_refused_or_read(tmp_path: Path) -> None:
    for number, data in enumerate(crafted.files().values()):
        (tmp_path / f"{number:03d}.parquet").write_bytes(data)
    outcomes = Counter(found.outcome for found in check_all(parquet_files([tmp_path])))
    assert outcomes == {EQUAL: len(crafted.HARMLESS), REFUSED: len(crafted.files()) - len(crafted.HARMLESS)}


def test_is_a_file_that_takes_too_long_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    path.write_bytes(crafted.plain())
    assert [found.outcome for found in check_all([path], seconds=0)] == [SLOW]
