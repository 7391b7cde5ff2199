"""Which grid a column takes for its error bound, by the values of a sample.

Integers take the one grid that meets the bound. Floats have a choice: a bound of 0 needs a grid on which values
lie bit for bit, and a bound above 0 may be too narrow for the column's own precision. Candidates are compared by
the bits that a value would take. Values that repeat cost the same on any grid that holds them; the others cost
the more the finer the grid is where they lie; a value (of a vector a row) that the grid misses costs as much as
storing it exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.columns.arrays import Mask, Numbers, widen
from pipeline.columns.exact_grid import MAX_DISTINCT, DistinctGrid, FixedPointGrid, OrderedGrid, order
from pipeline.columns.grid import MAX_BINS, FloatGrid, Grid, IntGrid, bounded_grid, differs, misses_bound

_GRIDS: dict[str, type[Any]] = {
    grid.kind: grid for grid in (IntGrid, FloatGrid, FixedPointGrid, DistinctGrid, OrderedGrid)
}
_MOST_NUMBERS = 1 << 20
"""Numbers of a sample that are looked at."""
_MOST_DECIMALS = 9
_SHRINK = 1 - 2.0**-12
"""Keeps values that lie halfway between two bins from missing the bound by their last bit."""
_MARGIN = 8
"""Powers of two below the smallest magnitude of a sample that an `OrderedGrid` still holds."""
_STATE_BITS = 16
"""What an exactly stored value costs beside its own bits."""
_FEW = 256
_REPEATS = 8
"""A list of values has at most 256 of them, or one for each 8 values of the sample."""
_LEAST_SINGLE = 0.01
"""No column is taken to repeat more of its values than all but this share."""
_WORTH = 4.0
"""Bits a value that a list of values must save: it knows no value that the sample lacks."""


def choose_grid(
    bound: float,
    nominal: Grid,
    centre: int | float | None,
    bits: int = 64,
    sample: Numbers | None = None,
) -> Grid:
    """The grid of a column for an error bound.

    Args:
        bound: Largest absolute difference, finite, ≥ 0.
        nominal: The column's grid without a bound.
        centre: Where most values lie.
        bits: Bits of a float of the column's dtype.
        sample: Wide ordinary values of the column, rows × width, from anywhere in it; None = unknown.

    Raises:
        ValueError: If the bound is negative or not finite.
    """
    low, high = nominal.low, nominal.high
    if isinstance(nominal, IntGrid) or not bound >= 0:
        return bounded_grid(bound, low, high, centre)
    known = None if sample is None or not sample.size else sample[: max(1, _MOST_NUMBERS // sample.shape[1])]
    if known is None:
        return bounded_grid(bound, low, high, centre) if bound > 0 else _ordered(low, high, bits, None)
    patterns = _ordered(low, high, bits, known)
    cost = _Cost(known, bits, bound, patterns)
    candidates: list[Grid] = []
    if bound > 0:
        uniform = bounded_grid(bound, low, high, centre)
        if not cost.missed(uniform) and cost.log2_spacing(uniform) >= cost.log2_spacing(patterns):
            return uniform
        candidates = [uniform, *_narrower(bound, low, high, centre, bits)]
    best = min([*candidates, patterns, *_fixed_point(low, high, known, cost)], key=cost)
    listed = _distinct(known, bits)
    if listed is None or cost.of_list(listed) + _WORTH > cost.of_bins(best):
        return best
    return listed


def may_miss(grid: Grid, sample: Numbers) -> bool:
    """True for a list of values that the column may have others than: some were seen but once in the sample."""
    return isinstance(grid, DistinctGrid) and bool((np.bincount(grid.to_bins(sample).reshape(-1)) == 1).any())


def grid_from_json(data: Mapping[str, Any]) -> Grid:
    """Rebuilds any grid from its `to_json`.

    Raises:
        ValueError: If the description names an unknown kind of grid, or one that cannot be.
    """
    kind = _GRIDS.get(data["kind"])
    if kind is None:
        raise ValueError(f"unknown grid kind {data['kind']!r}: expected one of {', '.join(_GRIDS)}")
    types = {"int": int, "float": float, "str": str}
    wanted = {field.name: types[str(field.type)] for field in dataclasses.fields(kind)}
    grid: Grid = kind(**{name: convert(data[name]) for name, convert in wanted.items()})
    return grid


class _Cost:
    """What a grid costs, in bits a row; a row is one value, or a vector.

    Args:
        sample: Wide ordinary values, rows × width.
        bits: Bits of a float of the column's dtype.
        bound: The error bound.
        patterns: The grid of the bit patterns, whose values are taken to be equally likely.
    """

    def __init__(self, sample: Numbers, bits: int, bound: float, patterns: OrderedGrid) -> None:
        self._sample, self._bits, self._bound = sample, bits, bound
        self._width = int(sample.shape[1])
        self._dtype = np.dtype(f"f{bits // 8}")
        self._missed: dict[Grid, float] = {}
        values = sample.reshape(-1)
        _, places, counts = np.unique(order(values), return_index=True, return_counts=True)
        self._single = float((counts == 1).sum()) / len(values)
        alone = values[places[counts == 1]] if self._single else values[places]
        self._magnitudes = np.abs(alone[alone != 0]).astype(self._dtype)
        self._spread = math.log2(patterns.bins) + self.log2_spacing(patterns)

    def __call__(self, grid: Grid) -> float:
        """Compares grids that number whatever lies in a range."""
        single = max(self._single, _LEAST_SINGLE)
        held = self._width * single * max(0.0, self._spread - self.log2_spacing(grid))
        return self.missed(grid) * self._exact + (1 - self.missed(grid)) * held

    def of_bins(self, grid: Grid) -> float:
        """Compares such a grid with a list of values."""
        return self.missed(grid) * self._exact + self._width * math.log2(grid.bins)

    def of_list(self, grid: DistinctGrid) -> float:
        """The list itself, and a guess (Good and Turing's) at the share of rows that it lacks, included."""
        counts = np.bincount(grid.to_bins(self._sample).reshape(-1))
        lacking = min(1.0, float((counts == 1).sum()) / len(self._sample))
        stored = grid.bins * self._bits / len(self._sample)
        return lacking * self._exact + self._width * math.log2(grid.bins) + stored

    def missed(self, grid: Grid) -> float:
        """Share of the rows that the grid misses."""
        if grid not in self._missed:
            decoded = grid.to_values(grid.to_bins(self._sample)).astype(self._dtype)
            missed = bound_check(self._bound)(widen(decoded), self._sample)
            self._missed[grid] = float(missed.any(axis=1).mean())
        return self._missed[grid]

    @property
    def _exact(self) -> float:
        return float(self._bits * self._width + _STATE_BITS)

    def log2_spacing(self, grid: Grid) -> float:
        """Mean binary logarithm of the distance between neighbouring bins where values lie that do not repeat."""
        if not isinstance(grid, OrderedGrid) or not len(self._magnitudes):
            return math.log2(grid.width)
        exponents = np.frexp(self._magnitudes)[1].astype(np.int64)
        info = np.finfo(self._dtype)
        return float(np.maximum(exponents, info.minexp + 1).mean()) - info.nmant - 1


def bound_check(bound: float) -> Callable[[Numbers, Numbers], Mask]:
    """What says of decoded and original values which miss a bound: at 0 they must agree bit for bit."""
    return differs if bound == 0 else lambda decoded, original: misses_bound(decoded, original, bound)


def _narrower(bound: float, low: float, high: float, centre: float | None, bits: int) -> Iterator[Grid]:
    """Uniform grids that leave room for rounding to the column's dtype."""
    largest = np.array(max(abs(low), abs(high)), f"f{bits // 8}")
    rounding = float(np.spacing(np.nextafter(largest, np.zeros((), largest.dtype)))) / 2
    for narrower in (bound * _SHRINK, (bound - rounding) * _SHRINK):
        if 0 < narrower < bound:
            yield bounded_grid(narrower, low, high, centre)


def _fixed_point(low: float, high: float, sample: Numbers, cost: _Cost) -> Iterator[Grid]:
    for digits in range(_MOST_DECIMALS + 1):
        grid = FixedPointGrid.over(low, high, 10, digits)
        yield grid
        if not cost.missed(grid):
            break
    yield FixedPointGrid.over(low, high, 2, _binary_digits(sample))


def _binary_digits(sample: Numbers) -> int:
    """The fewest binary digits behind the point that all but one in a thousand values need."""
    numbers = sample[sample != 0]
    if not len(numbers):
        return 0
    mantissas, exponents = np.frexp(numbers)
    wholes = np.abs(np.ldexp(mantissas, 53)).astype(np.int64)
    lowest = np.frexp((wholes & -wholes).astype(np.float64))[1]
    digits = np.sort(54 - lowest - exponents)
    return int(min(digits[int(0.999 * (len(digits) - 1))], 1074))


def _distinct(sample: Numbers, bits: int) -> DistinctGrid | None:
    """A list of the sample's values, if they are few."""
    values = sample.astype(f"f{bits // 8}").reshape(-1)
    count = len(np.unique(order(values)))
    return DistinctGrid.of(values) if count <= min(max(_FEW, len(values) // _REPEATS), MAX_DISTINCT) else None


def _ordered(low: float, high: float, bits: int, sample: Numbers | None) -> OrderedGrid:
    """The bit patterns in [low, high], as many as `MAX_BINS` allows: those where most of the sample lies.

    Of a range around 0 the hole between the smallest negative and positive values of the sample is left out.
    """
    dtype = np.dtype(f"f{bits // 8}")
    below, above = order(np.abs(np.array([low, high], dtype))).tolist()
    around = low <= 0 <= high
    least = 1 if around else min(below, above)
    found: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    if sample is not None:
        found = np.sort(order(np.abs(sample[sample != 0]).astype(dtype)))
    if around and len(found):
        least = max(1, int(found[0]) - (_MARGIN << np.finfo(dtype).nmant))
    most = max(below, above)
    # one side of 0 has most - least + 2 bins, and 0 may stand alone on the other
    reach = MAX_BINS // (2 if low < 0 < high else 1) - 4
    if most - least > reach:
        start = most - reach
        if len(found):
            counts = np.searchsorted(found, found + reach, "right") - np.arange(len(found))
            start = int(found[counts.argmax()])
        least = min(max(start, least), most - reach)
        most = least + reach
    tiny, limit = _magnitudes([least, most], dtype)
    return OrderedGrid.over(max(low, -limit), min(high, limit), tiny, bits)


def _magnitudes(patterns: list[int], dtype: np.dtype[Any]) -> list[float]:
    own = np.array(patterns, f"i{dtype.itemsize}").view(dtype)
    numbers: list[float] = own.astype(np.float64).tolist()
    return numbers
