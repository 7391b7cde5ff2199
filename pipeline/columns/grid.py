"""Grids, and uniform ones: numbers ↔ bins, without overflow anywhere in int64, uint64 or float64.

A grid covers the closed range [low, high] with bins 0 … bins-1. Values outside it are clipped to it, and so
are bins; a value that comes back always lies in [low, high].

Integer grids compute with the offset from `low` modulo 2^64, so every integer is exact. Float grids compute
in float64; numbers near its largest are quartered first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.columns.arrays import Mask, Numbers, widen

MAX_BINS = 2**62
"""No grid has more bins, so that a bin and the sums of a few bins fit int64."""

_NOMINAL_BINS = 2**53
_BINS_PER_SCALE = 256
_LARGEST = float(np.finfo(np.float64).max)
SMALLEST = 5e-324
"""The smallest float64 above 0."""


class Grid(ABC):
    """A grid over [low, high]: numbered values in ascending order.

    Attributes:
        low: Smallest value; bin 0 holds it.
        high: Largest value; the last bin holds it.
        width: Distance between two neighbouring bins, on average if it is not always the same.
    """

    kind: ClassVar[str]
    low: int | float
    high: int | float
    width: int | float

    @property
    @abstractmethod
    def bins(self) -> int:
        """Number of bins, at least 1 and at most `MAX_BINS`."""

    @property
    @abstractmethod
    def origin(self) -> int | float:
        """The value that bin 0 stands for."""

    @abstractmethod
    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The bin of each value, in memory of its own; values outside are clipped.

        Args:
            values: Numbers of a wide dtype, or of one that `arrays.widen` makes it from: no value is lost by that.
        """

    @abstractmethod
    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The value of each bin, in a wide dtype; bins outside 0 … bins-1 are clipped."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description; `choose_grid.grid_from_json` gives an equal grid back."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class IntGrid(Grid):
    """A grid over integers, all within int64 or all within uint64."""

    kind: ClassVar[str] = "int"
    low: int
    high: int
    width: int

    def __post_init__(self) -> None:
        signed = -(2**63) <= self.low <= self.high < 2**63
        if not (signed or 0 <= self.low <= self.high < 2**64):
            raise ValueError(f"no 64-bit integer type holds the range {self.low} … {self.high}")
        if not 1 <= self.width < 2**64 or self.bins > MAX_BINS:
            raise ValueError(f"width {self.width} does not fit the range {self.low} … {self.high}")

    @property
    def bins(self) -> int:
        """Number of bins."""
        return (self.high - self.low) // self.width + 1

    @property
    def origin(self) -> int:
        """The middle of bin 0, at most `high`."""
        return min(self.low + self.width // 2, self.high)

    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The bin of each value; values outside are clipped."""
        wide = widen(values)
        if values.size and (int(values.min()) < self.low or int(values.max()) > self.high):
            wide = np.clip(wide, wide.dtype.type(self.low), wide.dtype.type(self.high))
        offsets = wide.view(np.uint64)
        if wide is values or self.low:  # never the caller's memory
            offsets = np.subtract(offsets, np.uint64(self.low % 2**64), out=None if wide is values else offsets)
        if self.width > 1:
            offsets //= np.uint64(self.width)
        return offsets.view(np.int64)

    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The middle of each bin, as int64 where the range allows it, else as uint64."""
        clipped: npt.NDArray[np.int64] = np.clip(bins, 0, self.bins - 1)
        offsets = clipped.view(np.uint64)
        if self.width > 1:
            offsets = offsets * np.uint64(self.width)
            offsets += np.minimum(np.uint64(self.high - self.low) - offsets, np.uint64(self.width // 2))
        values = offsets + np.uint64(self.low % 2**64)
        return values if self.high >= 2**63 else values.view(np.int64)


@dataclass(frozen=True)
class FloatGrid(Grid):
    """A grid over finite floats; `low` is the centre of bin 0."""

    kind: ClassVar[str] = "float"
    low: float
    high: float
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"not a finite range: {self.low} … {self.high}")
        if not (0 < self.width <= _LARGEST) or self._last > MAX_BINS - 1:
            raise ValueError(f"width {self.width} does not fit the range {self.low} … {self.high}")

    @property
    def _unit(self) -> float:
        """What everything is multiplied by first, so that no step of the arithmetic overflows."""
        return 0.25 if max(-self.low, self.high, self.width) > _LARGEST / 8 else 1.0

    @property
    def _last(self) -> float:
        """Number of the last bin, rounded to a float (infinite if far too many)."""
        unit = self._unit
        width = self.width * unit
        return float(np.rint((self.high * unit - self.low * unit) / width)) if width else math.inf

    @property
    def bins(self) -> int:
        """Number of bins."""
        return int(self._last) + 1

    @property
    def origin(self) -> float:
        """The centre of bin 0."""
        return self.low

    def to_bins(self, values: Numbers) -> npt.NDArray[np.int64]:
        """The bin whose centre is nearest to each value; values outside are clipped."""
        unit = self._unit
        places = np.clip(widen(values), self.low, self.high)
        if unit != 1.0:
            places *= unit
        places -= self.low * unit
        places /= self.width * unit
        np.rint(places, out=places)
        return np.minimum(places.astype(np.int64), self.bins - 1)

    def to_values(self, bins: npt.NDArray[np.int64]) -> Numbers:
        """The centre of each bin as float64, within [low, high]."""
        unit = self._unit
        places = np.clip(bins, 0, self.bins - 1).astype(np.float64)
        places *= self.width * unit
        places += self.low * unit
        if unit != 1.0:
            np.clip(places, self.low * unit, self.high * unit, out=places)
            places /= unit
        np.clip(places, self.low, self.high, out=places)
        return places


def nominal_grid(low: int | float, high: int | float, scale: float) -> Grid:
    """The grid of a column without an error bound.

    Integers keep width 1 while the range is below 2^53. Floats get 256 bins a scale unit, at most 2^53 bins.

    Args:
        low: Smallest value; an int makes an integer grid.
        high: Largest value.
        scale: Spread of the bulk of the values; of no use for integers.

    Returns:
        A grid over [low, high].
    """
    if isinstance(low, int) and isinstance(high, int):
        return IntGrid(low, high, max(1, -(-(high - low) // _NOMINAL_BINS)))
    # + 0.0 turns -0.0 into 0.0, so that the grid does not depend on which zero came first
    low, high = float(low) + 0.0, float(high) + 0.0
    if low == high:
        return FloatGrid(low, high, 1.0)
    width = max(scale / _BINS_PER_SCALE, high / _NOMINAL_BINS - low / _NOMINAL_BINS, SMALLEST)
    return FloatGrid(low, high, min(width, _LARGEST))


def bounded_grid(bound: float, low: int | float, high: int | float, centre: int | float | None = None) -> Grid:
    """The coarsest grid that meets an absolute error bound in exact arithmetic.

    Floats get width 2·bound, integers 2⌊bound⌋+1. If that would take more than `MAX_BINS` bins, the grid
    covers only the window around `centre` that `MAX_BINS` bins reach; values outside it miss the bound.

    Args:
        bound: Largest absolute difference, finite, ≥ 0; above 0 for floats.
        low: Smallest value; an int makes an integer grid.
        high: Largest value.
        centre: Where most values lie; the middle of the range if None.

    Returns:
        A grid over [low, high], or a window of it.

    Raises:
        ValueError: If the bound is negative or not finite, or 0 for floats.
    """
    if not 0 <= bound <= _LARGEST:
        raise ValueError(f"an error bound must be a finite number of at least 0, got {bound}")
    if isinstance(low, int) and isinstance(high, int):
        return _bounded_int(math.floor(bound), low, high, centre)
    if bound == 0:
        raise ValueError("no float grid is exact: the bound must be above 0")
    low, high = float(low) + 0.0, float(high) + 0.0
    width = min(2 * bound, _LARGEST)
    if low == high:
        width = max(width, math.ulp(low))
    elif high / 2 - low / 2 > width * 2.0**60:
        middle = low / 2 + high / 2 if centre is None else min(max(float(centre), low), high)
        width = max(width, math.ulp(middle))
        reach = width * 2.0**60
        low, high = max(low, middle - reach), min(high, middle + reach)
    return FloatGrid(low, high, width)


def _bounded_int(radius: int, low: int, high: int, centre: int | float | None) -> IntGrid:
    width = min(2 * radius + 1, high - low + 1, 2**64 - 1)
    if (high - low) // width + 1 > MAX_BINS:
        middle = (low + high) // 2 if centre is None else min(max(int(centre), low), high)
        low = max(low, middle - width * (MAX_BINS // 2))
        high = min(high, low + width * MAX_BINS - 1)
    return IntGrid(low, high, width)


def misses_bound(decoded: Numbers, original: Numbers, bound: float) -> Mask:
    """True where |decoded - original| > bound, decided exactly.

    Args:
        decoded: Wide numbers, after a round trip through the column's own dtype.
        original: Wide numbers of the same dtype, finite.
        bound: Largest absolute difference, ≥ 0.

    Returns:
        A mask of the values that miss the bound.
    """
    if original.dtype.kind != "f":
        larger = np.maximum(decoded, original).view(np.uint64)
        distance = larger - np.minimum(decoded, original).view(np.uint64)
        return np.asarray(distance > np.uint64(min(math.floor(bound), 2**64 - 1)), dtype=np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        # a - b = difference + rest without rounding (Knuth's two-sum); the rest decides a tie.
        difference = decoded - original
        part = difference - decoded
        rest = (decoded - (difference - part)) - (original + part)
        distance = np.abs(difference)
        beyond = (distance == bound) & (np.sign(rest) * np.sign(difference) > 0)
    return np.asarray((distance > bound) | beyond, dtype=np.bool_)


def differs(decoded: Numbers, original: Numbers) -> Mask:
    """True where two wide numbers of one dtype are not the same bit for bit: -0.0 is not 0.0."""
    if original.dtype.kind != "f":
        return np.asarray(decoded != original, dtype=np.bool_)
    return np.asarray(decoded.view(np.int64) != original.view(np.int64), dtype=np.bool_)
