"""Grids of floats that give values back bit for bit: fixed-point numbers, a list of values, bit patterns.

Each covers a set of floats of one dtype. A value outside the set becomes the bin of another value: whoever
needs it exactly compares bits (`grid.differs`).
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.columns.arrays import Numbers, widen
from pipeline.columns.grid import MAX_BINS, SMALLEST, Grid

MAX_DISTINCT = 65_536
"""Most values that a `DistinctGrid` lists."""

_MOST_STEPS = 2**50
"""Fixed-point numbers count at most so many steps from 0."""


def order(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Floats as integers in the order of their values, neighbours one apart; -0.0 lies below 0.0."""
    patterns = values.view(f"i{values.dtype.itemsize}").astype(np.int64)
    largest = (1 << (8 * values.dtype.itemsize - 1)) - 1
    return np.where(patterns < 0, patterns ^ largest, patterns)


def from_order(codes: npt.NDArray[np.int64], bits: int) -> npt.NDArray[Any]:
    """The inverse of `order` for floats of `bits` bits."""
    patterns = np.where(codes < 0, codes ^ ((1 << (bits - 1)) - 1), codes)
    return patterns.astype(f"i{bits // 8}").view(f"f{bits // 8}")


def _check(grid: FixedPointGrid | DistinctGrid | OrderedGrid) -> None:
    """Refuses what no grid can be."""
    if not (math.isfinite(grid.low) and math.isfinite(grid.high) and grid.low <= grid.high):
        raise ValueError(f"not a finite range: {grid.low} … {grid.high}")
    if not 0 < grid.width < math.inf or not 1 <= grid.bins <= MAX_BINS:
        raise ValueError(f"{grid.bins} bins of width {grid.width} do not fit the range {grid.low} … {grid.high}")


@dataclass(frozen=True)
class FixedPointGrid(Grid):
    """The numbers k / base^digits for whole k: decimals, or multiples of a power of two.

    Attributes:
        base: 10 or 2.
        digits: Digits behind the point, 0 to 22 in base 10; in base 2 maybe below 0.
    """

    kind: ClassVar[str] = "fixed"
    low: float
    high: float
    width: float
    base: int
    digits: int

    def __post_init__(self) -> None:
        if not (self.base == 10 and 0 <= self.digits <= 22) and not (self.base == 2 and abs(self.digits) <= 1100):
            raise ValueError(f"no range of numbers has {self.digits} digits in base {self.base}")
        if max(abs(self._first), abs(self._last)) > _MOST_STEPS:
            raise ValueError(f"the range {self.low} … {self.high} has too many steps of {self.width}")
        _check(self)

    @classmethod
    def over(cls, low: float, high: float, base: int, digits: int) -> FixedPointGrid:
        """The grid over [low, high], as far as its steps can be counted."""
        one = 10.0**-digits if base == 10 else math.ldexp(1.0, -digits)
        limits = np.clip(np.array([low, high]), -_MOST_STEPS * one, _MOST_STEPS * one)
        steps = np.clip(_to_steps(limits, base, digits), -_MOST_STEPS, _MOST_STEPS)
        first, last = _from_steps(steps.astype(np.int64), base, digits).tolist()
        return cls(first, last, max(one, SMALLEST), base, digits)

    @cached_property
    def _first(self) -> int:
        return int(_to_steps(np.array([self.low]), self.base, self.digits)[0])

    @cached_property
    def _last(self) -> int:
        return int(_to_steps(np.array([self.high]), self.base, self.digits)[0])

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self._last - self._first + 1

    @property
    def origin(self) -> float:
        """The value of bin 0."""
        return self.low

    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The bin of the nearest value of the grid."""
        steps = _to_steps(np.clip(widen(values), self.low, self.high), self.base, self.digits)
        return np.clip(steps.astype(np.int64) - self._first, 0, self.bins - 1)

    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The value of each bin as float64."""
        return _from_steps(np.clip(bins, 0, self.bins - 1) + self._first, self.base, self.digits)


def _to_steps(values: Numbers, base: int, digits: int) -> Numbers:
    with np.errstate(over="ignore", under="ignore"):
        return np.rint(values * 10.0**digits if base == 10 else np.ldexp(values, digits))


def _from_steps(steps: npt.NDArray[np.int64], base: int, digits: int) -> Numbers:
    numbers = steps.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(numbers / 10.0**digits if base == 10 else np.ldexp(numbers, -digits))


@dataclass(frozen=True)
class DistinctGrid(Grid):
    """A list of values; a bin is the place of a value in it.

    Attributes:
        bits: Bits of a value's dtype: 16, 32 or 64.
        packed: The values, ascending: base64 of zlib of the bytes of what each is, in `order`, above the one
            before (int64; first the lowest byte of each, then the next byte of each, …).
    """

    kind: ClassVar[str] = "distinct"
    low: float
    high: float
    width: float
    bits: int
    packed: str

    def __post_init__(self) -> None:
        values = from_order(self._codes, _float_bits(self.bits))
        if not 1 <= len(values) <= MAX_DISTINCT or (self._codes[1:] <= self._codes[:-1]).any():
            raise ValueError(f"{len(values)} values are no ascending list of 1 to {MAX_DISTINCT:,}")
        if not np.isfinite(values).all() or (self.low, self.high) != (values[0], values[-1]):
            raise ValueError(f"the values do not span the range {self.low} … {self.high}")
        _check(self)

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> DistinctGrid:
        """The grid of all values in an array of floats of the column's dtype, finite."""
        codes = np.unique(order(values))
        bits = 8 * values.dtype.itemsize
        low, high = from_order(codes[[0, -1]], bits).astype(np.float64).tolist()
        steps = np.diff(codes, prepend=np.int64(0)).astype("<i8")
        raw = np.ascontiguousarray(steps.view(np.uint8).reshape(-1, 8).T).tobytes()
        packed = base64.b64encode(zlib.compress(raw, 9)).decode()
        return cls(low, high, _mean_width(low, high, len(codes)), bits, packed)

    @cached_property
    def _codes(self) -> npt.NDArray[np.int64]:
        try:
            raw = zlib.decompress(base64.b64decode(self.packed, validate=True))
            steps = np.frombuffer(raw, np.uint8).reshape(8, -1).T
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"a list of values is damaged: {error}") from error
        return np.cumsum(np.ascontiguousarray(steps).view("<i8").reshape(-1), dtype=np.int64)

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        values = from_order(self._codes, self.bits).astype(np.float64)
        return order(values), values

    @property
    def bins(self) -> int:
        """Number of values."""
        return len(self._codes)

    @property
    def origin(self) -> float:
        """The smallest value."""
        return self.low

    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The place of each value; of one that is not listed, the place it would have."""
        places = np.searchsorted(self._sorted[0], order(widen(values)))
        return np.minimum(places, self.bins - 1).astype(np.int64)

    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The value at each place as float64."""
        return self._sorted[1][np.clip(bins, 0, self.bins - 1)]


@dataclass(frozen=True)
class OrderedGrid(Grid):
    """All floats of a dtype in [low, high] whose magnitude is 0 or at least `tiny`, one bin each.

    Attributes:
        tiny: Smallest magnitude above 0; values below it become 0 or -0.0.
        bits: Bits of the dtype: 16, 32 or 64.
    """

    kind: ClassVar[str] = "ordered"
    low: float
    high: float
    width: float
    tiny: float
    bits: int

    def __post_init__(self) -> None:
        ends = np.array([self.low, self.high, self.tiny])
        with np.errstate(over="ignore"):
            own = ends.astype(f"f{_float_bits(self.bits) // 8}")
        if (own != ends).any() or not 0 < self.tiny < math.inf:
            raise ValueError(f"not float{self.bits}: {self.low} … {self.high} above {self.tiny}")
        _check(self)

    @classmethod
    def over(cls, low: float, high: float, tiny: float, bits: int) -> OrderedGrid:
        """The grid over [low, high], which may be float32's or another dtype's; a 0 at its end is both zeros."""
        low, high = (-0.0 if low == 0 else low), high + 0.0
        grid = cls(low, high, 1.0, tiny, bits)
        return cls(low, high, _mean_width(low, high, grid.bins), tiny, bits)

    @cached_property
    def _first(self) -> int:
        return int(self._to_codes(np.array([self.low]))[0])

    @property
    def bins(self) -> int:
        """Number of bins."""
        return int(self._to_codes(np.array([self.high]))[0]) - self._first + 1

    @property
    def origin(self) -> float:
        """The value of bin 0."""
        return self.low

    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The bin of each value."""
        codes = self._to_codes(np.clip(widen(values), self.low, self.high))
        return np.asarray(np.clip(codes - self._first, 0, self.bins - 1), np.int64)

    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The value of each bin as float64."""
        codes = np.clip(bins, 0, self.bins - 1) + self._first
        above = np.where(codes < 0, ~codes, codes)
        magnitudes = np.where(above > 0, above + (self._least - 1), 0)
        return from_order(np.where(codes < 0, ~magnitudes, magnitudes), self.bits).astype(np.float64)

    @cached_property
    def _least(self) -> int:
        return int(order(np.array([self.tiny], f"f{self.bits // 8}"))[0])

    def _to_codes(self, values: Numbers) -> npt.NDArray[np.int64]:
        """0 for 0.0, -1 for -0.0, and outwards from there one a float whose magnitude is at least `tiny`."""
        codes = order(values.astype(f"f{self.bits // 8}"))
        above = np.maximum(np.where(codes < 0, ~codes, codes) - (self._least - 1), 0)
        return np.asarray(np.where(codes < 0, ~above, above), np.int64)


def _float_bits(bits: int) -> int:
    if bits not in (16, 32, 64):
        raise ValueError(f"there is no float of {bits} bits")
    return bits


def _mean_width(low: float, high: float, bins: int) -> float:
    """Distance between two bins on average; above 0 and finite."""
    return max(high / (bins - 1) - low / (bins - 1), SMALLEST) if bins > 1 else 1.0
