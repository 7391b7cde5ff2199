"""Are sums of floats the same in any order, and right?"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns.moments import Moments, OrderFreeSum

quick = settings(max_examples=100, deadline=None, derandomize=True)
NUMBER = st.one_of(st.floats(-1e300, 1e300), st.floats(-1, 1), st.sampled_from([1e16, -1e16, 1.0, 5e-324]))


def _sum(values: list[float]) -> OrderFreeSum:
    total = OrderFreeSum(1)
    total.add(np.array(values).reshape(-1, 1))
    return total


@quick
@given(values=st.lists(NUMBER, min_size=1, max_size=12), data=st.data())
def test_any_order_and_any_grouping_give_the_same_sum(values: list[float], data: st.DataObject) -> None:
    expected = _sum(values).divided(len(values))
    shuffled = data.draw(st.permutations(values))
    cut = data.draw(st.integers(0, len(values)))
    total = OrderFreeSum(1)
    for value in shuffled[:cut]:
        total.merge(_sum([value]))
    other = _sum(shuffled[cut:])
    other.merge(total)
    assert other.divided(len(values)).tolist() == expected.tolist()


@quick
@given(values=st.lists(NUMBER, min_size=1, max_size=12))
def test_a_sum_is_right_to_50_bits_of_the_largest_term(values: list[float]) -> None:
    exact = sum(map(Fraction, values)) / len(values)
    found = Fraction(float(_sum(values).divided(len(values))[0]))
    assert abs(found - exact) <= Fraction(max(map(abs, values))) * Fraction(2) ** -50 + Fraction(5e-324)


def test_plain_float_sums_would_depend_on_the_order() -> None:
    values = [1e16, 1.0, -1e16, 1.0]
    assert sum(values) != sum(sorted(values))
    assert _sum(values).divided(1).tolist() == _sum(sorted(values)).divided(1).tolist() == [2.0]


def test_what_is_too_small_beside_the_largest_term_is_dropped_in_every_order() -> None:
    values = [1e300, -1e300, 1.0]
    small_last, small_first = _sum(values[:2]), _sum(values[2:])
    small_last.merge(_sum(values[2:]))
    small_first.merge(_sum(values[:2]))
    found = [total.divided(1).tolist() for total in (_sum(values), small_last, small_first)]
    assert found == [[0.0]] * 3


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_moments_are_those_of_numpy(dtype: str) -> None:
    rows = (np.random.default_rng(3).normal(size=(5000, 70)) * 40 + 100).astype(dtype)
    moments = Moments(70)
    moments.add(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(moments.mean(), wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std(), wide.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.pooled(), (wide.mean(), wide.std()), rtol=1e-9)
    assert moments.count == 5000


def test_a_deviation_lost_to_rounding_is_zero_and_not_noise() -> None:
    moments = Moments(1)
    moments.add(np.full((1000, 1), 0.1))
    assert moments.std().tolist() == [0.0]
    assert math.isclose(moments.mean()[0], 0.1)


@pytest.mark.parametrize("value", [1.7976931348623157e308, 5e-324])
def test_the_ends_of_float64_give_finite_moments(value: float) -> None:
    moments = Moments(2)
    moments.add(np.array([[value, -value], [-value, value]]))
    assert moments.mean().tolist() == [0.0, 0.0]
    assert np.isfinite(moments.std()).all()
