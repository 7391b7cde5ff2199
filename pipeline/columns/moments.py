"""Sums of floats that come out the same in any order, and the moments made from them.

A float sum depends on the order of its terms in the last bits; statistics that are merged as parallel tasks
finish would make every fit a little different. `OrderFreeSum` cuts each term into slices of fixed position
(multiples of 2^28k for whole k) whose sums are integers, keeps the three highest slices, and is therefore
exactly associative and commutative. The idea is that of reproducible summation (Demmel and Nguyen, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.columns.gathered import Arrays, inside, nested

_SLICE_BITS = 28
_SLICES = 3
_CHUNK = 2**18
_LARGEST = 1e300
_LARGEST_SQUARED = 1e150
_TRUSTED = 2.0**-40


@dataclass
class OrderFreeSum:
    """A sum of rows of `width` finite floats, the same whatever the order of the rows.

    Attributes:
        width: Number of elements a row.
        top: Number of the highest slice in use; None while every term was 0.
        slices: Slice number → int64 sums of the slice's digits.
    """

    width: int
    top: int | None = None
    slices: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, rows: npt.NDArray[np.float64]) -> None:
        """Adds n × width floats within ±1e300."""
        largest = float(max(rows.max(), -rows.min())) if rows.size else 0.0
        if not largest:
            return
        # A slice's digits are within ±2^27, so that |term| ≤ 2^(28·top + 27).
        top = -(-(math.frexp(largest)[1] + 1) // _SLICE_BITS) - 1
        self._raise_top(top)
        rest = rows
        for number in range(top, self._bottom - 1, -1):
            digits = np.rint(_shift(rest, -_SLICE_BITS * number))
            self._add_slice(number, digits.sum(axis=0).astype(np.int64))
            if number > self._bottom:
                rest = rest - _shift(digits, _SLICE_BITS * number)
                if not rest.any():
                    break

    def merge(self, other: OrderFreeSum) -> None:
        """Adds another sum of the same width."""
        if other.top is None:
            return
        self._raise_top(other.top)
        for number, digits in other.slices.items():
            if number >= self._bottom:
                self._add_slice(number, digits)

    def arrays(self) -> Arrays:
        """The sum so far; `take` of another sum of the same width gives it back."""
        if self.top is None:
            return {}
        numbers = sorted(self.slices)
        return {
            "top": np.array(self.top),
            "numbers": np.array(numbers, np.int64),
            "digits": np.array([self.slices[number] for number in numbers], np.int64).reshape(-1, self.width),
        }

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of the sum."""
        self.top = int(arrays["top"]) if arrays else None
        self.slices = dict(zip(arrays["numbers"].tolist(), arrays["digits"], strict=True)) if arrays else {}

    def divided(self, count: int) -> npt.NDArray[np.float64]:
        """The sum divided by `count`."""
        result = np.zeros(self.width)
        for number in sorted(self.slices):
            result += np.ldexp(self.slices[number] / count, _SLICE_BITS * number)
        return result

    @property
    def _bottom(self) -> int:
        return 0 if self.top is None else self.top - _SLICES + 1

    def _raise_top(self, top: int) -> None:
        if self.top is None or top > self.top:
            self.top = top
            self.slices = {k: digits for k, digits in self.slices.items() if k >= self._bottom}

    def _add_slice(self, number: int, digits: npt.NDArray[np.int64]) -> None:
        known = self.slices.get(number)
        self.slices[number] = digits if known is None else known + digits


@dataclass
class Moments:
    """Count, mean and standard deviation of rows of `width` numbers, independent of their order.

    Numbers beyond 1e300, and beyond 1e150 in the standard deviation, are taken as that.
    """

    width: int
    count: int = 0
    total: OrderFreeSum = field(init=False)
    squares: OrderFreeSum = field(init=False)

    def __post_init__(self) -> None:
        self.total = OrderFreeSum(self.width)
        self.squares = OrderFreeSum(self.width)

    def add(self, rows: npt.NDArray[np.generic]) -> None:
        """Adds n × width finite numbers."""
        self.count += len(rows)
        for chunk in _chunks(rows):
            values = np.clip(chunk.astype(np.float64), -_LARGEST, _LARGEST)
            self.total.add(values)
            np.clip(values, -_LARGEST_SQUARED, _LARGEST_SQUARED, out=values)
            self.squares.add(np.square(values, out=values))

    def merge(self, other: Moments) -> None:
        """Adds the moments of other rows."""
        self.count += other.count
        self.total.merge(other.total)
        self.squares.merge(other.squares)

    def arrays(self) -> Arrays:
        """What was gathered."""
        sums = nested("total", self.total.arrays()) | nested("squares", self.squares.arrays())
        return {"count": np.array(self.count), **sums}

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of what was gathered."""
        self.count = int(arrays["count"])
        self.total.take(inside("total", arrays))
        self.squares.take(inside("squares", arrays))

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of each element; zeros if there were no rows."""
        return self.total.divided(max(1, self.count))

    def std(self) -> npt.NDArray[np.float64]:
        """Standard deviation of each element; 0 where it drowns in the rounding of a much larger mean."""
        return _std(self.mean(), self.squares.divided(max(1, self.count)))

    def pooled(self) -> tuple[float, float]:
        """Mean and standard deviation over all elements of all rows."""
        mean = self.mean() / self.width
        square = self.squares.divided(max(1, self.count)) / self.width
        return float(mean.sum()), float(_std(mean.sum(keepdims=True), square.sum(keepdims=True))[0])


def _std(mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    variance = square - np.square(np.clip(mean, -_LARGEST_SQUARED, _LARGEST_SQUARED))
    return np.sqrt(np.where(variance > square * _TRUSTED, variance, 0.0))


def _chunks(rows: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.generic]]:
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _shift(values: npt.NDArray[np.float64], exponent: int) -> npt.NDArray[np.float64]:
    """`values` times 2^exponent."""
    return values * 2.0**exponent if abs(exponent) < 1000 else np.ldexp(values, exponent)
