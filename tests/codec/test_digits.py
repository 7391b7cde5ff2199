"""Do digits say every value of a symbol, seen or not, and do skewed symbols come near their entropy?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.digits import MIDDLE, Digits

BINS = st.integers(1, 300) | st.integers(1, 10**5) | st.integers(1, 2**63 - 1) | st.just(2**63 - 1)


@st.composite
def fitted(draw: st.DrawFn) -> tuple[Digits, np.ndarray, int, int]:
    """Digits, and values that they must say: the sample's, others, and both ends."""
    bins = draw(BINS)
    value = st.integers(0, bins - 1)
    sample = draw(
        st.lists(value, max_size=30) | st.lists(st.sampled_from(draw(st.lists(value, min_size=1))), max_size=60)
    )
    direct, high = draw(st.sampled_from([(128, 64), (1, 8), (16, 16), (400, 64)]))
    digits = Digits.fit(np.array(sample, np.int64), bins, draw(st.booleans()), direct, high)
    values = np.array([*sample, *draw(st.lists(value, max_size=30)), 0, bins - 1], np.int64)
    return digits, values, direct, high


@given(case=fitted())
def test_do_values_come_back(case: tuple[Digits, np.ndarray, int, int]) -> None:
    digits, values, direct, high = case
    parts, raw, widths = digits.split(values)
    assert parts.shape == (len(values), len(digits.alphabets))
    assert (parts < digits.alphabets).all()
    if digits.bins <= direct:
        assert digits.alphabets == (digits.bins,)
    else:
        assert digits.alphabets[0] <= high
        assert (*digits.alphabets, 0)[1] <= MIDDLE
    if raw is None or widths is None:
        assert not digits.raw_widths(parts).any()
    else:
        np.testing.assert_array_equal(digits.raw_widths(parts), widths)
        assert not (raw >> widths.astype(np.uint64)).any()
    np.testing.assert_array_equal(digits.join(parts, raw), values)


@given(case=fitted())
def test_do_digits_survive_json(case: tuple[Digits, np.ndarray, int, int]) -> None:
    digits = case[0]
    assert Digits.from_json(json.loads(json.dumps(digits.to_json()))) == digits


@given(case=fitted(), data=st.data())
def test_are_impossible_digits_refused(case: tuple[Digits, np.ndarray, int, int], data: st.DataObject) -> None:
    """Any digits and raw bits are either a value of the symbol, or an error."""
    digits = case[0]
    parts = np.array([[data.draw(st.integers(0, size - 1)) for size in digits.alphabets]], np.int64)
    raw = np.array([data.draw(st.integers(0, 2 ** int(digits.raw_widths(parts)[0]) - 1))], np.uint64)
    try:
        value = int(digits.join(parts, raw)[0])
    except ValueError:
        return
    assert 0 <= value < digits.bins


def test_are_digits_out_of_range_refused() -> None:
    digits = Digits.fit(np.arange(1000), 100_000)
    parts, _, _ = digits.split(np.array([77, 99_999]))
    for place, wrong in ((0, -1), (0, digits.alphabets[0]), (1, -1), (1, digits.alphabets[1])):
        damaged = parts.copy()
        damaged[0, place] = wrong
        with pytest.raises(ValueError, match="alphabet"):
            digits.join(damaged, np.zeros(2, np.uint64))
        with pytest.raises(ValueError, match="alphabet"):
            digits.raw_widths(damaged)
    with pytest.raises(ValueError, match="raw bits are more"):
        digits.join(parts, np.full(2, 1 << 60, np.uint64))
    with pytest.raises(ValueError, match="digits for alphabets"):
        digits.join(parts[:, :1], np.zeros(2, np.uint64))
    for values in ([-1], [100_000]):
        with pytest.raises(ValueError, match="values"):
            digits.split(np.array(values))


@pytest.mark.parametrize(
    "data",
    [[0], [2**63], [10, [5]], [10, [10], []], [10, [0], []], [10, [-1], []], [10, [5], [10]], [10.0], [10, [5], ["1"]],
     [], [10, [5], [3, 0]], [True]],
    ids=str,
)  # fmt: skip
def test_is_damaged_json_refused(data: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Digits.from_json(data)


def entropy(rows: np.ndarray) -> float:
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize(
    ("name", "slack"), [("normal", 0.05), ("geometric", 0.01), ("zipf", 0.01), ("atoms", 0.01), ("laplace", 0.02)]
)
def test_do_skewed_symbols_come_near_their_entropy(name: str, slack: float) -> None:
    rng = np.random.default_rng(0)
    count = 50_000
    values, bins = {
        "normal": (np.clip(rng.normal(5000, 800, count), 0, 9999), 10_000),
        "geometric": (np.minimum(rng.geometric(0.01, count), 99_999), 100_000),
        "zipf": (np.minimum(rng.zipf(1.5, count), 999), 1000),
        "atoms": (rng.choice(rng.integers(0, 1 << 40, 40), count), 1 << 40),
        "laplace": (np.rint(rng.laplace(0, 30, count)).astype(np.int64) + (1 << 62), (1 << 63) - 1),
    }[name]
    values = values.astype(np.int64)
    digits = Digits.fit(values[:20_000], bins, ordinal=name != "zipf")
    parts, _, widths = digits.split(values)
    bits = entropy(parts) + (0.0 if widths is None else float(widths.mean()))
    assert bits <= entropy(values) + slack


def test_is_json_small() -> None:
    values = np.rint(np.exp(np.random.default_rng(0).normal(8, 1, 10_000))).astype(np.int64)
    assert len(json.dumps(Digits.fit(values, 10**6).to_json(), separators=(",", ":"))) < 300
