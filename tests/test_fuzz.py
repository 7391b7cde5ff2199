"""Are golden archives that were damaged in any way decoded exactly or refused, and nothing else?"""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.fuzz import EXACT, GOLDEN, REFUSED, bits_of, fuzz, is_failure, same
from pipeline.bundle import schema_from_text
from pipeline.errors import ParvaeError


@pytest.mark.parametrize(("name", "numbers"), [("unordered", range(100)), ("images", range(100, 150))])
def test_is_every_damaged_archive_decoded_exactly_or_refused(name: str, numbers: range, tmp_path: Path) -> None:
    found = list(fuzz([GOLDEN / name], tmp_path, numbers, seed=1))
    assert [line for line in found if is_failure(line[2])] == []
    outcomes = Counter(outcome for _, _, outcome, _ in found)
    assert outcomes[REFUSED] > len(numbers) / 2
    assert outcomes[EXACT] > 0


def test_does_the_same_number_give_the_same_damage(tmp_path: Path) -> None:
    several = list(fuzz([GOLDEN / "unordered"], tmp_path / "a", range(8), seed=3))
    alone = list(fuzz([GOLDEN / "unordered"], tmp_path / "b", range(5, 6), seed=3))
    assert several[5] == alone[0]


def test_are_tables_compared_bit_for_bit() -> None:
    odd = pa.array([0x7FF8000000000123, 0x7FF8000000000000], pa.int64()).view(pa.float64())
    assert bits_of(odd)[0] != bits_of(odd)[1]
    assert bits_of(pa.array([0.0])) != bits_of(pa.array([-0.0]))
    zero, negative = pa.table({"x": [0.0, None]}), pa.table({"x": [-0.0, None]})
    assert same(zero, pa.table({"x": [0.0, None]}))
    assert not same(zero, negative)
    assert not same(zero, zero.replace_schema_metadata({"a": "b"}))
    assert not same(zero, zero.slice(1))


def test_does_a_damaged_schema_leave_no_memory_behind() -> None:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    damaged = base64.b64encode(b"\x28\xb5\x2f\xfd" + b"\xff" * 40).decode()
    before = int(status.read_text().split()[0])
    for _ in range(20):
        with pytest.raises(ParvaeError, match="cannot be read"):
            schema_from_text(damaged)
    assert int(status.read_text().split()[0]) - before < 1 << 16  # pages of 4 KiB
