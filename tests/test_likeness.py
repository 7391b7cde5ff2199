"""Does the comparison of two tables tell what it is said to tell?"""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import ks_2samp
from scipy.stats.contingency import association

from pipeline.likeness import compare, marginals


def table(rows: int, seed: int, together: bool = True) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = x + rng.normal(0, 0.5, rows) if together else rng.normal(0, np.sqrt(1.25), rows)
    c = np.where(x > 0, "high", "low") if together else rng.choice(["high", "low"], rows)
    d = rng.choice(["p", "q", "r"], rows)
    day = pa.array([datetime.date(2020, 1, 1) + datetime.timedelta(int(10 * v)) for v in x])
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 4)), 4)
    return pa.table({"x": x, "y": y, "c": pa.array(c).dictionary_encode(), "d": d, "day": day, "image": image})


def test_is_a_table_like_itself() -> None:
    one = table(500, 0)
    found = compare(one, one)
    assert found.mean_distance == found.mean_difference == 0.0
    assert {column.column: column.measure for column in found.columns} == {
        "x": "KS",
        "y": "KS",
        "c": "TV",
        "d": "TV",
        "day": "KS",
    }
    assert len(found.pairs) == 10


def test_are_the_measures_those_of_scipy() -> None:
    one, other = table(800, 0), table(500, 1, together=False)
    found = compare(one, other)
    distances = {column.column: column.distance for column in found.columns}
    assert distances["x"] == pytest.approx(ks_2samp(one["x"], other["x"]).statistic)
    counts = np.array([[np.mean(np.array(t["d"]) == name) for name in "pqr"] for t in (one, other)])
    assert distances["d"] == pytest.approx(np.abs(counts[0] - counts[1]).sum() / 2)
    pairs = {pair.columns: pair for pair in found.pairs}
    assert pairs["x", "y"].first == pytest.approx(np.corrcoef(one["x"], one["y"])[0, 1])
    c, d = (np.unique(one[name].to_pylist(), return_inverse=True)[1] for name in "cd")
    counted = np.zeros((2, 3), int)
    np.add.at(counted, (c, d), 1)
    assert pairs["c", "d"].first == pytest.approx(association(counted, "cramer"))
    x = one["x"].to_numpy()
    between = sum((c == k).sum() * (x[c == k].mean() - x.mean()) ** 2 for k in (0, 1))
    assert pairs["x", "c"].first == pytest.approx(np.sqrt(between / ((x - x.mean()) ** 2).sum()))


def test_is_lost_dependence_seen_though_columns_are_alike() -> None:
    found = compare(table(4000, 0), table(4000, 1, together=False))
    assert found.mean_distance < 0.05
    pairs = {pair.columns: pair.difference for pair in found.pairs}
    assert pairs["x", "y"] > 0.8
    assert pairs["x", "c"] > 0.7
    assert pairs["x", "d"] < 0.1


def test_do_missing_values_count() -> None:
    one = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "c": ["a", "a", "b", "b"]})
    other = pa.table({"x": [1.0, None, 3.0, float("nan")], "c": ["a", None, "b", "c"]})
    distances = {column.column: column.distance for column in compare(one, other).columns}
    assert distances["x"] >= 0.5
    assert distances["c"] == pytest.approx(0.5)


def test_are_constant_columns_left_out_of_pairs() -> None:
    one = pa.table({"x": [1.0, 1.0, 1.0], "y": [1.0, 2.0, 3.0], "c": ["a", "a", "a"]})
    found = compare(one, one)
    assert len(found.columns) == 3
    assert {pair.columns for pair in found.pairs} == {("y", "c")}
    with pytest.raises(ValueError, match="without rows"):
        compare(one, one.slice(0, 0))


def test_are_shares_of_numbers_those_of_a_histogram() -> None:
    first = pa.chunked_array([[*(number / 10 for number in range(1000)), None, float("nan")]])
    second = pa.chunked_array([[-1e9, 50.0, 1e9, None]])
    found = marginals(first, second)
    assert found.edges is not None
    assert found.edges[0] == pytest.approx(0.4995)
    assert found.edges[-1] == pytest.approx(99.4005)
    assert found.first.sum() == pytest.approx(1000 / 1002)
    assert found.second.sum() == pytest.approx(0.75)
    assert found.second[0] == found.second[-1] == 0.25
    assert found.second[np.searchsorted(found.edges, 50.0) - 1] == 0.25


def test_do_bins_of_whole_numbers_hold_as_many_each() -> None:
    few = marginals(pa.chunked_array([[1, 2, 2, 3]]), pa.chunked_array([[3, 9]]))
    assert few.edges is not None
    assert few.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert few.first.tolist() == [0.25, 0.5, 0.25]
    assert few.second.tolist() == [0.0, 0.0, 1.0]
    ages = marginals(pa.chunked_array([list(range(17, 91)) * 10]), pa.chunked_array([[17]]))
    assert ages.edges is not None
    assert set(np.diff(ages.edges)) == {4.0}


def test_is_a_number_that_never_varies_one_bin_wide() -> None:
    found = marginals(pa.chunked_array([[7, 7]]), pa.chunked_array([[7, 8]]))
    assert found.first.max() == 1.0
    assert found.second.sum() == 1.0


def test_are_shares_of_categories_ordered_and_the_rare_joined() -> None:
    words = [letter for number, letter in enumerate("abcdefghij") for _ in range(20 - number)] + [None]
    found = marginals(pa.chunked_array([words]), pa.chunked_array([["a", None, "new", "a"]]))
    assert found.edges is None
    assert found.names == ("a", *"bcdefg", "5 others")
    assert found.second.tolist() == [0.5, *[0.0] * 6, 0.5]
    assert found.first.sum() == pytest.approx(1.0)
    two = marginals(pa.chunked_array([["x", None, "x"]]), pa.chunked_array([["x", "x", "x"]]))
    assert two.names == ("x", "null")
    assert two.first.tolist() == pytest.approx([2 / 3, 1 / 3])
