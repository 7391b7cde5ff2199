"""Are golden archives that were damaged in any way decoded exactly or refused, and nothing else?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.fuzz import EXACT, GOLDEN, REFUSED, bits_of, fuzz, is_failure, same


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
