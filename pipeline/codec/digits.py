"""One integer symbol as one or two digits of small alphabets and raw low bits.

A symbol with few possible values is its own digit. The values of another, 0 … N-1, are cut into ranges; the high
digit is the number of the range. What is left, value minus the start of its range, is divided by the range's step,
a power of two: the middle digit is the quotient, below 64, and the raw bits are the remainder. Networks give
probabilities to digits; raw bits cost what they are. Ranges are narrow where a sample has many values, and values
that are frequent in the sample but would need raw bits have a high digit of their own, above those of the ranges.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

MIDDLE = 64
"""Most values of a middle digit."""
_FREQUENT = (2, 16)
"""A value may have a digit of its own if it is at least 1/2, or 1/16, as frequent as a digit would be on average."""
_LEAST_COUNT = 4
_FREE = 8
"""Digits that single values leave for the ranges, as a part of all: one in eight."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """How the values of a symbol are split.

    Attributes:
        bins: Number of values, at most 2^63 - 1.
        starts: First value of every range, ascending, the first 0; empty = the value is the only digit.
        singles: Values that have a high digit of their own, ascending.
    """

    bins: int
    starts: tuple[int, ...] = ()
    singles: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bins < 1 << 63:
            raise ValueError(f"a symbol cannot have {self.bins} values")
        ascending = all(a < b for a, b in pairwise([*self.starts, self.bins]))
        if self.starts and (self.starts[0] != 0 or not ascending):
            raise ValueError(f"ranges do not cut 0 … {self.bins - 1} in ascending order")
        ascending = all(a < b for a, b in pairwise([-1, *self.singles, self.bins]))
        if self.singles and (not self.starts or not ascending):
            raise ValueError(f"single values do not lie in 0 … {self.bins - 1} in ascending order")

    @classmethod
    def fit(cls, values: Ints, bins: int, ordinal: bool = True, direct: int = 128, high: int = 64) -> Digits:
        """Chooses the digits of a symbol by a sample of its values.

        Args:
            values: The sample; none below 0.
            bins: Number of values that the symbol may have.
            ordinal: Whether neighbouring values are alike. If they are not, raw bits are worth no smoothness,
                and every value that fits the two digits is kept out of them.
            direct: Most values of a symbol that is its own digit.
            high: Most ranges.
        """
        if bins <= direct:
            return cls(bins)
        found, counts = np.unique(values, return_counts=True)
        cuts = set(range(0, bins, MIDDLE)) if not ordinal and bins <= MIDDLE * high // 2 else {0}
        tried: list[Digits] = []
        for places in _frequent(counts, high):
            rest = np.ones(len(found), np.bool_)
            rest[places] = False
            starts = _split_wide(found[rest], counts[rest], bins, cuts, max(1, high - len(places)))
            tried.append(cls(bins, tuple(starts), tuple(np.sort(found[places]).tolist())))
            if not tried[-1].raw_widths(tried[-1].split(found)[0]).any():
                break
        return min(tried, key=lambda digits: digits._cost(found, counts))

    def _cost(self, values: Ints, counts: Ints) -> float:
        """Bits that values take if digits are coded by their frequencies."""
        digits, _, widths = self.split(values)
        places = digits[:, 0] * MIDDLE + (digits[:, 1] if digits.shape[1] > 1 else 0)
        mass = np.bincount(places, counts)
        mass = mass[mass > 0]
        raw = 0.0 if widths is None else float((counts * widths).sum())
        return raw + float((mass * (np.log2(counts.sum()) - np.log2(mass))).sum()) if len(values) else 0.0

    @cached_property
    def alphabets(self) -> tuple[int, ...]:
        """Number of values of each digit, one or two."""
        if not self.starts:
            return (self.bins,)
        high = len(self.starts) + len(self.singles)
        return (high, self._middle) if self._middle > 1 else (high,)

    def split(self, values: Ints) -> tuple[Ints, npt.NDArray[np.uint64] | None, npt.NDArray[np.uint8] | None]:
        """Splits values.

        Args:
            values: n values, 0 … bins-1.

        Returns:
            Digits (n × 1 or 2), and raw bits and how many they are; None and None if no range has any.

        Raises:
            ValueError: If a value is out of range.
        """
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.bins:
            raise ValueError(f"values {int(values.min())} … {int(values.max())} of a symbol with {self.bins}")
        if not self.starts:
            return values.reshape(-1, 1).astype(np.int64), None, None
        ranges = np.searchsorted(self._starts, values, "right") - 1
        if self.singles:
            places = np.minimum(np.searchsorted(self._singles, values), len(self.singles) - 1)
            ranges = np.where(self._singles[places] == values, len(self.starts) + places, ranges)
        offsets = values - self._firsts[ranges]
        widths = self._bits[ranges]
        middle = offsets >> widths
        digits = np.stack([ranges, middle], 1)[:, : len(self.alphabets)]
        if not self._bits.any():
            return digits, None, None
        return digits, (offsets - (middle << widths)).astype(np.uint64), widths.astype(np.uint8)

    def join(self, digits: Ints, raw: npt.NDArray[np.uint64] | None = None) -> Ints:
        """The values of digits and raw bits: the inverse of `split`.

        Raises:
            ValueError: If no value has such digits.
        """
        self._check(digits)
        if not self.starts:
            return digits[:, 0].astype(np.int64)
        ranges = digits[:, 0]
        offsets = digits[:, 1] if digits.shape[1] > 1 else np.zeros(len(digits), np.int64)
        widths = self._bits[ranges]
        if (offsets > (self._sizes[ranges] - 1) >> widths).any():
            raise ValueError("a middle digit is beyond its range")
        offsets = offsets << widths
        if raw is not None:
            if (raw >> widths.astype(np.uint64)).any():
                raise ValueError("raw bits are more than their range has")
            offsets = offsets + raw.astype(np.int64)
        if (offsets >= self._sizes[ranges]).any():
            raise ValueError("raw bits are beyond their range")
        return self._firsts[ranges] + offsets

    def raw_widths(self, digits: Ints) -> npt.NDArray[np.uint8]:
        """How many raw bits belong to digits.

        Raises:
            ValueError: If a digit is out of its alphabet.
        """
        self._check(digits)
        if not self.starts:
            return np.zeros(len(digits), np.uint8)
        return self._bits[digits[:, 0]].astype(np.uint8)

    def to_json(self) -> list[Any]:
        """The number of values; with ranges also the sizes of all but the last, and the single values' distances."""
        if not self.starts:
            return [self.bins]
        return [self.bins, np.diff(self._starts).tolist(), np.diff(self._singles, prepend=np.int64(0)).tolist()]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Digits:
        """The inverse of `to_json`.

        Raises:
            ValueError: If the data describe no digits (or TypeError).
        """
        bins, *rest = data
        sizes, distances = rest or ([], [])
        if not all(type(number) is int for number in [bins, *sizes, *distances]):
            raise ValueError("the digits of a symbol are described by whole numbers")
        return cls(bins, tuple(accumulate([0, *sizes])) if rest else (), tuple(accumulate(distances)))

    def _check(self, digits: Ints) -> None:
        if digits.ndim != 2 or digits.shape[1] != len(self.alphabets):
            raise ValueError(f"{digits.shape} digits for alphabets of {self.alphabets}")
        if digits.size and ((digits < 0) | (digits >= np.array(self.alphabets))).any():
            raise ValueError(f"a digit is out of its alphabet {self.alphabets}")

    @cached_property
    def _starts(self) -> Ints:
        return np.array(self.starts, np.int64)

    @cached_property
    def _singles(self) -> Ints:
        return np.array(self.singles, np.int64)

    @cached_property
    def _firsts(self) -> Ints:
        """First value of every high digit."""
        return np.concatenate([self._starts, self._singles])

    @cached_property
    def _sizes(self) -> Ints:
        """Number of values of every high digit."""
        sizes = np.diff(self._starts, append=np.int64(self.bins))
        return np.concatenate([sizes, np.ones(len(self.singles), np.int64)])

    @cached_property
    def _bits(self) -> Ints:
        """Raw bits of every high digit: the fewest that leave a middle digit below `MIDDLE`."""
        longest = MIDDLE.bit_length() - 1
        return np.array([max(0, (size - 1).bit_length() - longest) for size in self._sizes.tolist()], np.int64)

    @cached_property
    def _middle(self) -> int:
        return int((((self._sizes - 1) >> self._bits) + 1).max())


def _frequent(counts: Ints, high: int) -> list[Ints]:
    """Which values might have a digit of their own: none, and ever more of the most frequent ones."""
    order = np.argsort(-counts, kind="stable")[: high - max(1, high // _FREE)]
    total = int(counts.sum())
    choices = [order[:0]]
    for part in _FREQUENT:
        often = (counts[order] * part * high >= total) & (counts[order] >= _LEAST_COUNT)
        if int(often.sum()) > len(choices[-1]):
            choices.append(order[often])
    return choices


def _split_wide(values: Ints, counts: Ints, bins: int, cuts: set[int], high: int) -> list[int]:
    """Cuts ranges where that saves the most raw bits, until there are `high` or none has any in the sample."""
    mass = np.concatenate([[0], np.cumsum(counts)])
    queue: list[tuple[float, int, int, int]] = []

    def offer(start: int, stop: int) -> None:
        gain, cut = _best_cut(values, mass, start, stop)
        if gain > 0:
            heapq.heappush(queue, (-gain, start, stop, cut))

    starts = sorted(cuts)
    for start, stop in zip(starts, [*starts[1:], bins], strict=True):
        offer(start, stop)
    while queue and len(cuts) < high:
        _, start, stop, cut = heapq.heappop(queue)
        cuts = cuts | {cut}
        offer(start, cut)
        offer(cut, stop)
    return sorted(cuts)


def _best_cut(values: Ints, mass: Ints, start: int, stop: int) -> tuple[float, int]:
    """Where to cut a range, and the raw bits that this saves in the whole sample.

    A range is cut before a value of the sample, or after one.
    """
    first, last = np.searchsorted(values, [start, stop]).tolist()
    if first == last:
        return 0.0, start
    inside = values[first:last]
    cuts = np.concatenate([inside, inside + 1])
    below = np.concatenate([mass[first:last], mass[first + 1 : last + 1]]) - mass[first]
    usable = (cuts > start) & (cuts < stop)
    cuts, below = cuts[usable], below[usable]
    if not len(cuts):
        return 0.0, start
    total = int(mass[last] - mass[first])
    cost = below * _raw_bits(cuts - start) + (total - below) * _raw_bits(stop - cuts)
    best = int(cost.argmin())
    saved = total * float(_raw_bits(np.array([stop - start]))[0]) - float(cost[best])
    return saved, int(cuts[best])


def _raw_bits(sizes: Ints) -> npt.NDArray[np.float64]:
    """Raw bits of ranges, as if there were fractions of bits."""
    bits: npt.NDArray[np.float64] = np.log2(sizes.astype(np.float64)) - np.log2(MIDDLE)
    return np.maximum(bits, 0.0)
