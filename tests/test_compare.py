"""Are the errors that `evaluate` reports those that a plain loop over the values finds?"""

from __future__ import annotations

import datetime
import decimal
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare import ColumnError
from tests.small import INTEGER_TYPES

NAN, INF = math.nan, math.inf


def compare(left: pa.Array, right: pa.Array) -> dict[str, Any]:
    error = ColumnError()
    error.add(left, right)
    return error.summary()


def exact(value: Any) -> Any:
    """A value as a number that Python subtracts without rounding."""
    if isinstance(value, float):
        return value
    return decimal.Decimal(value)


def about(figures: dict[str, Any]) -> dict[str, Any]:
    """What equals these figures but for the last digits; None alone equals None."""
    return {name: None if value is None else pytest.approx(value, rel=1e-12, abs=0) for name, value in figures.items()}


def brute(left: list[Any], right: list[Any]) -> dict[str, Any]:
    """The same figures from a loop over Python numbers."""
    gaps, mismatches = [], 0
    with decimal.localcontext(prec=100):
        for a, b in zip(left, right, strict=True):
            if a is None or b is None:
                mismatches += (a is None) != (b is None)
                continue
            both_nan = a != a and b != b
            mismatches += a != b and not both_nan
            if math.isfinite(a) and math.isfinite(b):
                gaps.append(abs(exact(a) - exact(b)))
        largest = float(max(gaps, default=0))
        rms = math.sqrt(math.fsum(float(gap) ** 2 for gap in gaps) / len(gaps)) if gaps else None
    return {
        "max_error": largest if gaps else None,
        "rms_error": rms,
        "mismatch_rate": mismatches / len(left) if left else 0.0,
    }


INTEGERS = {kind: (int(np.iinfo(str(kind)).min), int(np.iinfo(str(kind)).max)) for kind in INTEGER_TYPES}


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(INTEGERS)))
def test_are_integer_errors_exact_over_the_whole_range(data: st.DataObject, kind: pa.DataType) -> None:
    low, high = INTEGERS[kind]
    value = st.none() | st.integers(low, high) | st.sampled_from([low, high, high - 1])
    pairs = data.draw(st.lists(st.tuples(value, value), max_size=20))
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    assert compare(pa.array(left, kind), pa.array(right, kind)) == about(brute(left, right))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.sampled_from([16, 32, 64]))
def test_are_float_errors_those_of_a_loop(data: st.DataObject, width: int) -> None:
    bound = 1e100 if width == 64 else None
    number = st.floats(-bound, bound) if bound else st.floats(width=width, allow_nan=False, allow_infinity=False)
    value = st.none() | number | st.sampled_from([NAN, INF, -INF, -0.0])
    pairs = data.draw(st.lists(st.tuples(value, value), max_size=20))
    dtype = f"float{width}"
    left = [None if a is None else float(np.array(a, dtype)) for a, _ in pairs]
    right = [None if b is None else float(np.array(b, dtype)) for _, b in pairs]
    found = compare(pa.array(left, pa.float64()).cast(dtype), pa.array(right, pa.float64()).cast(dtype))
    assert found == about(brute(left, right))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(
        [
            pa.decimal32(7, 2),
            pa.decimal64(18, 4),
            pa.decimal128(38, 10),
            pa.decimal256(70, 3),
        ]
    ),
)
def test_are_decimal_errors_exact(data: st.DataObject, kind: pa.DataType) -> None:
    top = 10**kind.precision - 1
    unscaled = st.none() | st.integers(-top, top) | st.sampled_from([top, top - 1])
    pairs = data.draw(st.lists(st.tuples(unscaled, unscaled), max_size=20))
    with decimal.localcontext(prec=100):
        left, right = (
            [None if pair[i] is None else decimal.Decimal(pair[i]).scaleb(-kind.scale) for pair in pairs]
            for i in (0, 1)
        )
    assert compare(pa.array(left, kind), pa.array(right, kind)) == about(brute(left, right))


@pytest.mark.parametrize(
    "kind",
    [
        pa.date32(),
        pa.time32("ms"),
        pa.time64("ns"),
        pa.timestamp("us"),
        pa.timestamp("ns", "Europe/Paris"),
        pa.duration("ns"),
    ],
)
def test_are_times_compared_in_their_own_unit(kind: pa.DataType) -> None:
    storage = pa.int32() if kind.bit_width == 32 else pa.int64()
    big = 10**9 if kind.bit_width == 32 else 1_700_000_000_123_456_789
    left = [big, big, None, 5, None]
    right = [big + 1, big, None, None, 5]
    found = compare(pa.array(left, storage).view(kind), pa.array(right, storage).view(kind))
    assert found == {"max_error": 1.0, "rms_error": pytest.approx(math.sqrt(0.5)), "mismatch_rate": 3 / 5}


def test_are_nulls_and_nan_told_apart() -> None:
    left, right = pa.array([None, NAN, 1.0, None, NAN]), pa.array([NAN, None, 2.0, None, NAN])
    assert compare(left, right) == {"max_error": 1.0, "rms_error": 1.0, "mismatch_rate": 3 / 5}


def test_are_vectors_compared_by_element() -> None:
    kind = pa.list_(pa.float32(), 2)
    left = pa.array([[9, 9], [1, 2], None, [3, None], None, [1, NAN]], kind).slice(1)
    right = pa.array([[1, 4], None, [3, None], [None, None], [2, NAN]], kind)
    assert compare(left, right) == {
        "max_error": 2.0,
        "rms_error": pytest.approx(math.sqrt((0 + 4 + 0 + 1) / 4)),
        "mismatch_rate": (1 + 2 + 1) / 10,
    }


def test_are_tensors_compared_by_element() -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    left = pa.FixedShapeTensorArray.from_numpy_ndarray(numbers)
    right = pa.FixedShapeTensorArray.from_numpy_ndarray(numbers[:, ::-1].copy())
    assert compare(left, right) == {"max_error": 2.0, "rms_error": 2.0, "mismatch_rate": 1.0}
    assert compare(left.slice(1), left.slice(1))["mismatch_rate"] == 0


CASES: list[tuple[pa.Array, pa.Array, int]] = [
    (pa.array(["a", None, "b"]), pa.array(["a", "x", None]), 2),
    (pa.array([True, None, False]), pa.array([False, None, False]), 1),
    (pa.array(["a", "b", None]).dictionary_encode(), pa.array(["b", "b", None]).dictionary_encode(), 1),
    (pa.array([1, 2, None]).dictionary_encode(), pa.array([1, 3, 4]).dictionary_encode(), 2),
    (pa.array([b"a", b"\xff"], pa.large_binary()), pa.array([b"a", b"\xfe"], pa.large_binary()), 1),
    (pa.array(["a", "b"], pa.string_view()), pa.array(["a", "c"], pa.string_view()), 1),
    (pa.array([b"ab", None], pa.binary(2)), pa.array([b"ab", b"cd"], pa.binary(2)), 1),
    (pa.nulls(3), pa.nulls(3), 0),
    (pa.array([[1], [], None]), pa.array([[1], None, None]), 1),
    (pa.array([{"a": 1.0, "b": [NAN]}, None]), pa.array([{"a": 1.0, "b": [NAN]}, {"a": 1.0, "b": None}]), 1),
    (
        pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        pa.array([[("k", 2)], []], pa.map_(pa.string(), pa.int64())),
        1,
    ),
    (
        pa.array([[True, False]], pa.list_(pa.bool_(), 2)),
        pa.array([[True, True]], pa.list_(pa.bool_(), 2)),
        1,
    ),
    (
        pa.array([datetime.date(2020, 1, 1)], pa.date64()),
        pa.array([datetime.date(2020, 1, 1)], pa.date64()),
        0,
    ),
]


@pytest.mark.parametrize(("left", "right", "mismatches"), CASES, ids=lambda case: str(getattr(case, "type", case)))
def test_are_mismatches_of_every_other_type_counted(left: pa.Array, right: pa.Array, mismatches: int) -> None:
    assert compare(left, right)["mismatch_rate"] == mismatches / len(left)
    assert compare(left, left)["mismatch_rate"] == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=30), st.integers(0, 30))
def test_do_merged_sums_equal_those_of_all_rows(pairs: list[tuple[float, float]], cut: int) -> None:
    left, right = (pa.array([pair[i] for pair in pairs], pa.float64()) for i in (0, 1))
    whole, first, second = (ColumnError(bound=0.5) for _ in range(3))
    whole.add(left, right)
    first.add(left.slice(0, cut), right.slice(0, cut))
    second.add(left.slice(cut), right.slice(cut))
    first.merge(ColumnError(**asdict(second)))
    assert asdict(first) == pytest.approx(asdict(whole), rel=1e-12)


@pytest.mark.parametrize(
    ("left", "right", "bound", "violations"),
    [
        (pa.array([1.0, 2.0, NAN, INF]), pa.array([1.5, 2.6, NAN, INF]), 0.5, 1),
        (pa.array([NAN, 1.0, INF]), pa.array([1.0, NAN, -INF]), 1e300, 3),
        (pa.array([0.3]), pa.array([0.1 + 0.1 + 0.1]), 0.0, 1),
        (pa.array([0.0, NAN, 1.0]), pa.array([-0.0, NAN, 1.0]), 0.0, 1),
        (pa.array([0.0]), pa.array([-0.0]), 1e-300, 0),
        (pa.array([1.0]), pa.array([1.0 + 2**-52]), 2**-52, 0),
        (pa.array([2.0**53]), pa.array([0.5]), 2.0**53 - 0.5, 0),
        (pa.array([2.0**53]), pa.array([0.25]), 2.0**53 - 1, 1),
        (pa.array([1.7e308]), pa.array([-1.7e308]), 1e308, 1),
        (pa.array([2**63 - 1, -(2**63)]), pa.array([-(2**63), 2**63 - 1]), 2.0**64, 0),
        (pa.array([2**53 + 1]), pa.array([2**53]), 0.5, 1),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([2**64 - 3], pa.uint64()), 1.9, 1),
        (pa.array([1, None]), pa.array([None, 1]), 5.0, 2),
        (pa.array([decimal.Decimal("1.25")]), pa.array([decimal.Decimal("1.00")]), 0.25, 0),
        (pa.array([decimal.Decimal("1.26")]), pa.array([decimal.Decimal("1.00")]), 0.25, 1),
        (
            pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
            pa.array([[1.0, 3.0], None], pa.list_(pa.float32(), 2)),
            0.5,
            1,
        ),
        (pa.array(["a", "b"]), pa.array(["a", "c"]), 0.0, 1),
    ],
)
def test_is_every_value_beyond_its_bound_counted(
    left: pa.Array, right: pa.Array, bound: float, violations: int
) -> None:
    error = ColumnError(bound=bound)
    error.add(left, right)
    assert error.summary()["violations"] == violations
    assert "violations" not in compare(left, right)


def test_are_the_figures_of_nothing_and_of_overflow_none() -> None:
    assert ColumnError().summary() == {"max_error": None, "rms_error": None, "mismatch_rate": 0.0}
    assert compare(pa.array([NAN, INF]), pa.array([NAN, -INF]))["max_error"] is None
    found = compare(pa.array([1.7e308]), pa.array([-1.7e308]))
    assert found == {"max_error": None, "rms_error": None, "mismatch_rate": 1.0}
