"""Is an error bound read as it was written, and does every column get the number that it means?"""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bounds import Bound, overrides, parse_bound, resolve_bounds
from pipeline.columns import ColumnOptions
from pipeline.config import TrainConfig
from pipeline.errors import ConfigError
from pipeline.fitting import column_options
from tests.small import fit


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        ("0.01r", Bound(0.01, relative=True), "0.01r"),
        (" 1e-3r ", Bound(0.001, relative=True), "0.001r"),
        ("2r", Bound(2, relative=True), "2r"),
        ("0.5", Bound(0.5), "0.5"),
        (".5", Bound(0.5), "0.5"),
        ("+5.", Bound(5.0), "5.0"),
        (0.5, Bound(0.5), "0.5"),
        (7, Bound(7), "7"),
        (2**53 + 1, Bound(2**53 + 1), "9007199254740993"),
        ("0", Bound(0), "0"),
        ("0r", Bound(0), "0"),
        (0, Bound(0), "0"),
        (-0.0, Bound(0), "0"),
        ("1e-999", Bound(0), "0"),
        ("none", Bound(None), "none"),
    ],
)
def test_is_a_bound_read_and_written(value: str | float, bound: Bound, text: str) -> None:
    found = parse_bound(value, "--error")
    assert found == bound
    assert type(found.value) is type(bound.value)
    assert str(found) == text
    assert parse_bound(str(found), "--error") == found
    assert found.exact == (text == "0")


@pytest.mark.parametrize(
    "value",
    [
        *["", "r", "x", "1 r", "-1", "-0.1r", "nan", "inf", "1e999", "1_0", "0x1", "1R", "None", "1rr", "1%", "½"],
        *[-1, -0.5, float("nan"), float("inf"), True, False, None, [1], 10**400],
    ],
    ids=str,
)
def test_is_anything_else_refused_with_its_place(value: str | float) -> None:
    with pytest.raises(ConfigError, match=r"^--error: .* is no error bound: expected 0 \(exact\).*0\.01r.*none"):
        parse_bound(value, "--error")


FLOAT = st.floats(allow_nan=False, allow_infinity=False)


@given(
    share=st.one_of(st.floats(1e-9, 2), st.sampled_from([0.001, 0.01, 0.05, 0.07, 0.29])), ends=st.tuples(FLOAT, FLOAT)
)
def test_is_a_relative_bound_its_share_of_the_range(share: float, ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    found = Bound(share, relative=True).absolute(low, high)
    exact = Fraction(repr(share)) * (Fraction(high) - Fraction(low))
    assert 0 <= found < math.inf
    if exact < Fraction(1.7e308):
        assert abs(exact - Fraction(found)) <= exact * Fraction(1, 2**50) + Fraction(5e-324) * 4


def test_is_the_share_of_an_integer_range_that_of_its_own_product() -> None:
    assert Bound(0.01, relative=True).absolute(-(2**63), 2**63 - 1) == 0.01 * 2**64
    assert Bound(0.5, relative=True).absolute(-1.7e308, 1.7e308) == 1.7e308
    assert Bound(3, relative=True).absolute(-1.7e308, 1.7e308) == 1.7976931348623157e308
    assert Bound(7).absolute(0, 1) == 7
    with pytest.raises(ValueError, match="none"):
        Bound(None).absolute(0, 1)


def table() -> pa.Table:
    return pa.table(
        {
            "i": [-100, 0, 300],
            "x": pa.array([1.0, float("nan"), 3.5]),
            "price": pa.array([Decimal("1.00"), Decimal("30.00"), None], pa.decimal128(9, 2)),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(np.array([0, 1, 2, 5, 8, 10], np.float32)), 2),
            "when": pa.array([0, 10, 20]).cast(pa.timestamp("s")),
            "word": ["a", "b", "a"],
            "flag": [True, False, None],
            "key": ["x", "y", "z"],
        }
    )


PASSED = {"key": ColumnOptions(kind="passthrough")}


def test_which_columns_get_which_number() -> None:
    rows = fit(table(), PASSED)
    assert resolve_bounds(rows, Bound.parse("0.01r"), {}) == {"i": 4.0, "x": 0.025, "price": 0.29, "v": 0.1}
    own = {"x": Bound(0), "v": Bound(2), "i": Bound.parse("0.5r"), "word": Bound(0), "key": Bound(0)}
    assert resolve_bounds(rows, Bound(0.5), own) == {"i": 200.0, "x": 0, "price": 0.5, "v": 2}
    assert resolve_bounds(rows, Bound(None), {}) == {}


def test_is_a_bound_for_a_column_that_is_not_there_refused() -> None:
    with pytest.raises(ConfigError, match="the column 'nowhere'"):
        resolve_bounds(fit(table(), PASSED), Bound(0), {"nowhere": Bound(0)})


def options(**columns: ColumnOptions) -> dict[str, ColumnOptions]:
    return column_options(table().schema, ("key",), columns, ColumnOptions(error=Bound(0.5)))


def test_are_bounds_for_all_columns_no_mistake_for_those_that_are_exact() -> None:
    found = overrides(options(x=ColumnOptions(error=Bound(0)), word=ColumnOptions(error=Bound(0))))
    rows = fit(table(), PASSED)
    assert found == {"x": Bound(0), "word": Bound(0)}  # `defaults.error` is no column's own
    assert resolve_bounds(rows, Bound(9), found) == {"i": 9, "x": 0, "price": 9, "v": 9}


def test_is_the_default_of_all_columns_the_dataset_s_bound() -> None:
    assert TrainConfig(error=Bound(9)).bound == Bound(9)
    assert TrainConfig(error=Bound(9), defaults=ColumnOptions(error=Bound(0))).bound == Bound(0)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("word", None, "column 'word' .string. is categorical and always exact: its error cannot be 0.1r, only 0"),
        ("flag", None, "column 'flag' .bool. is boolean"),
        ("when", None, r"column 'when' .timestamp\[s\]. is temporal"),
        ("i", "categorical", "column 'i' .int64. is categorical"),
        ("x", "passthrough", "column 'x' .double. is passthrough"),
        ("key", None, "column 'key' .string. is passthrough"),
    ],
)
def test_is_a_bound_for_a_column_that_is_always_exact_refused(name: str, kind: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(**{name: ColumnOptions(kind=kind, error=Bound(0.1, relative=True))})
    options(**{name: ColumnOptions(kind=kind, error=Bound(0))})
