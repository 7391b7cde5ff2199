"""How alike two tables are: distances of the columns' distributions, and differences of the pairs' associations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
MOST_PAIRED = 100
_BINS, _NAMED = 24, 7
_TAIL = 0.005


@dataclass(frozen=True)
class ColumnDistance:
    """How far apart two distributions of a column are.

    Attributes:
        column: The column.
        measure: "KS": the largest difference of two cumulative distributions; "TV": the total variation, half the sum
            of the differences of all probabilities.
        distance: From 0 (equal) to 1. Nulls and NaN are values of their own: the distance is at least the difference
            of their shares.
    """

    column: str
    measure: str
    distance: float


@dataclass(frozen=True)
class PairDifference:
    """How far apart the associations of two columns are in two tables.

    Attributes:
        columns: The two columns.
        measure: "pearson" (two numbers), "cramer" (two categories: Cramér's V) or "ratio" (a category and a number:
            the correlation ratio η).
        first: The association in the first table.
        second: That in the second.
    """

    columns: tuple[str, str]
    measure: str
    first: float
    second: float

    @property
    def difference(self) -> float:
        """The absolute difference."""
        return abs(self.first - self.second)


@dataclass(frozen=True)
class Likeness:
    """What comparing two tables comes to.

    Attributes:
        columns: One distance a column.
        pairs: One difference a pair of columns that have an association in both tables.
    """

    columns: tuple[ColumnDistance, ...]
    pairs: tuple[PairDifference, ...]

    @property
    def mean_distance(self) -> float:
        """Mean distance of the columns; 0 if there are none."""
        return float(np.mean([column.distance for column in self.columns])) if self.columns else 0.0

    @property
    def mean_difference(self) -> float:
        """Mean difference of the pairs; 0 if there are none."""
        return float(np.mean([pair.difference for pair in self.pairs])) if self.pairs else 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures, JSON-serializable."""
        return {
            "mean_distance": self.mean_distance,
            "mean_difference": self.mean_difference,
            "columns": [{"column": c.column, "measure": c.measure, "distance": c.distance} for c in self.columns],
            "pairs": [
                {"columns": list(p.columns), "measure": p.measure, "first": p.first, "second": p.second}
                for p in self.pairs
            ],
        }


@dataclass(frozen=True)
class Marginals:
    """The shares of a column's values in two tables, side by side.

    Attributes:
        first: Shares in the first table, one a bin or category.
        second: Those in the second.
        edges: The borders of the bins of a number, one more than bins; None of a category.
        names: The categories, the most frequent first; the last one stands for all others where there are many.
    """

    first: Floats
    second: Floats
    edges: Floats | None
    names: tuple[str, ...] = ()


def marginals(first: pa.ChunkedArray, second: pa.ChunkedArray) -> Marginals:
    """How a column is distributed in two tables.

    The bins of numbers reach from the 0.5 % to the 99.5 % quantile of the first table's; the first and the last take
    what lies beyond. Whole numbers have bins of the same number of whole numbers each. Nulls are in no bin, but a
    category of their own.

    Args:
        first: The column in a table, with rows.
        second: The column of the same type in the other.
    """
    one, other = _both(first, second)
    if one.numbers is not None and other.numbers is not None:
        found = [values[np.isfinite(values)] for values in (one.numbers, other.numbers)]
        known = found[0] if len(found[0]) else np.zeros(1)
        edges = _edges(known)
        sizes = (len(one.numbers), len(other.numbers))
        clipped = (np.clip(values, edges[0], edges[-1]) for values in found)
        shares = [np.histogram(values, edges)[0] / size for values, size in zip(clipped, sizes, strict=True)]
        return Marginals(shares[0], shares[1], edges)
    texts = [["null" if value is None else str(value) for value in values.to_pylist()] for values in (first, second)]
    counts = [Counter(column) for column in texts]
    names = [name for name, _ in (counts[0] + counts[1]).most_common()]
    kept = names if len(names) <= _NAMED + 1 else names[:_NAMED]
    table = np.array([[count[name] for name in kept] for count in counts], np.float64)
    table /= np.array([[len(column)] for column in texts])
    if len(kept) < len(names):
        table = np.column_stack([table, 1 - table.sum(1)])
        kept = [*kept, f"{len(names) - len(kept):,} others"]
    return Marginals(table[0], table[1], None, tuple(kept))


def _edges(values: Floats) -> Floats:
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    if np.array_equal(values, np.round(values)) and high - low < 2**52:
        low, high = np.floor(low) - 0.5, np.ceil(high) + 0.5
        width = np.ceil((high - low) / _BINS)
        return np.asarray(low + width * np.arange(np.ceil((high - low) / width) + 1))
    return np.linspace(low, high, _BINS + 1)


def compare(first: pa.Table, second: pa.Table, columns: Sequence[str] | None = None) -> Likeness:
    """Compares two tables column by column and pair by pair.

    Numbers and times are compared as numbers, texts, dictionaries and booleans as categories. Columns of vectors and
    whatever else is no single value are left out. Of wide tables the first 100 columns are paired.

    Args:
        first: A table, with rows.
        second: Another one with the same types.
        columns: Names of columns, None for all that are in both.

    Raises:
        ValueError: If a table has no rows.
    """
    if not first.num_rows or not second.num_rows:
        raise ValueError("a table without rows is like nothing")
    names = [name for name in first.column_names if name in second.column_names and (not columns or name in columns)]
    found = [(name, *_both(first[name], second[name])) for name in names if is_single(first.schema.field(name).type)]
    distances = [ColumnDistance(name, *_distance(one, other)) for name, one, other in found]
    pairs = []
    for (name, one, other), (with_name, one_with, other_with) in itertools.combinations(found[:MOST_PAIRED], 2):
        (measure, in_first), (_, in_second) = _association(one, one_with), _association(other, other_with)
        if np.isfinite(in_first) and np.isfinite(in_second):
            pairs.append(PairDifference((name, with_name), measure, in_first, in_second))
    return Likeness(tuple(distances), tuple(pairs))


@dataclass(frozen=True)
class _Values:
    """A column: numbers (NaN where there is none), or codes of categories (those of both tables)."""

    numbers: Floats | None = None
    codes: Codes | None = None


def is_single(kind: pa.DataType) -> bool:
    """Whether columns of a type can be compared: not vectors, nor whatever else is no single value."""
    return not pa.types.is_nested(kind) and not isinstance(kind, pa.BaseExtensionType) and not pa.types.is_null(kind)


def _both(first: pa.ChunkedArray, second: pa.ChunkedArray) -> tuple[_Values, _Values]:
    kind = first.type
    if pa.types.is_dictionary(kind):
        first, second = (values.cast(kind.value_type) for values in (first, second))
        kind = kind.value_type
    if not pa.types.is_boolean(kind) and (pa.types.is_primitive(kind) or pa.types.is_decimal(kind)):
        return _Values(_numbers(first)), _Values(_numbers(second))
    known = pa.chunked_array([*first.chunks, *second.chunks], kind).unique().drop_null()
    codes = (pc.fill_null(pc.index_in(values, value_set=known), -1) for values in (first, second))
    one, other = (values.to_numpy().astype(np.int64) for values in codes)
    return _Values(codes=one), _Values(codes=other)


def _numbers(values: pa.ChunkedArray) -> Floats:
    kind = values.type
    if pa.types.is_temporal(kind):
        values = values.cast(pa.int64() if kind.bit_width == 64 else pa.int32()).cast(pa.int64())
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def _distance(one: _Values, other: _Values) -> tuple[str, float]:
    if one.numbers is not None and other.numbers is not None:
        missing = abs(np.isnan(one.numbers).mean() - np.isnan(other.numbers).mean())
        first, second = (np.sort(values[~np.isnan(values)]) for values in (one.numbers, other.numbers))
        if not len(first) or not len(second):
            return "KS", float(missing)
        places = np.concatenate([first, second])
        below = (np.searchsorted(part, places, "right") / len(part) for part in (first, second))
        return "KS", float(max(missing, np.abs(next(below) - next(below)).max()))
    assert one.codes is not None
    assert other.codes is not None
    size = int(max(one.codes.max(), other.codes.max())) + 2
    shares = [np.bincount(codes + 1, minlength=size) / len(codes) for codes in (one.codes, other.codes)]
    return "TV", float(np.abs(shares[0] - shares[1]).sum() / 2)


def _association(one: _Values, other: _Values) -> tuple[str, float]:
    """How two columns of one table go together; NaN if one of them never varies."""
    if one.numbers is not None and other.numbers is not None:
        both = np.isfinite(one.numbers) & np.isfinite(other.numbers)
        x, y = one.numbers[both], other.numbers[both]
        if len(x) < 2 or not x.std() > 0 or not y.std() > 0:
            return "pearson", float("nan")
        return "pearson", float(np.corrcoef(x, y)[0, 1])
    if one.codes is not None and other.codes is not None:
        return "cramer", _cramer(one.codes, other.codes)
    codes, numbers = (one.codes, other.numbers) if one.codes is not None else (other.codes, one.numbers)
    assert codes is not None
    assert numbers is not None
    there = np.isfinite(numbers)
    return "ratio", _ratio(codes[there], numbers[there])


def _cramer(one: Codes, other: Codes) -> float:
    """Cramér's V, from 0 to 1, nulls as a category of their own."""
    first, one = np.unique(one, return_inverse=True)
    second, other = np.unique(other, return_inverse=True)
    if min(len(first), len(second)) < 2:
        return float("nan")
    counts = np.zeros((len(first), len(second)))
    np.add.at(counts, (one, other), 1)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    chi = float((np.square(counts - expected) / expected).sum())
    return float(np.sqrt(chi / (counts.sum() * (min(counts.shape) - 1))))


def _ratio(codes: Codes, numbers: Floats) -> float:
    """The correlation ratio η: the share of a number's deviation that lies between categories, from 0 to 1."""
    if len(numbers) < 2 or not numbers.std() > 0:
        return float("nan")
    _, codes = np.unique(codes, return_inverse=True)
    counts = np.bincount(codes)
    centred = numbers - numbers.mean()
    means = np.bincount(codes, weights=centred) / counts
    between = float((counts * np.square(means)).sum())
    return float(np.sqrt(min(1.0, between / float(np.square(centred).sum()))))
