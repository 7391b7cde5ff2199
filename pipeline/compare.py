"""How far decoded values are from the original ones, column by column, in mergeable sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


@dataclass
class ColumnError:
    """Sums over the values of a column (elements, for a vector column).

    Attributes:
        values: Values compared.
        mismatches: Values that are not the same (NaN is the same as NaN, null as null).
        numbers: Pairs that are both finite numbers.
        squares: Sum of their squared differences, in the column's unit.
        largest: Their largest absolute difference.
        violations: Values that are further off than the bound, or another null, NaN or infinity, or another
            category; with a bound of 0 numbers that are not the same bit for bit.
        bound: Largest absolute difference that there may be; None: any.
    """

    values: int = 0
    mismatches: int = 0
    numbers: int = 0
    squares: float = 0.0
    largest: float = 0.0
    violations: int = 0
    bound: float | None = None

    def add(self, original: pa.Array, decoded: pa.Array) -> None:
        """Compares two arrays of one type and length."""
        left, right = _elements(original), _elements(decoded)
        if left is None or right is None:
            self.values += len(original)
            unequal = _count_unequal(original, decoded)
            self.mismatches += unequal
            self.violations += unequal if self.bound is not None else 0
            return
        same_validity = left.validity == right.validity
        both = (left.validity == _VALID) & (right.validity == _VALID)
        differ, distance = _compare(left.values, right.values)
        finite = both & np.isfinite(distance)
        with np.errstate(over="ignore"):
            self.squares += float(np.square(distance[finite]).sum())
        self.values += len(both)
        self.mismatches += int((~same_validity | (both & differ)).sum())
        self.numbers += int(finite.sum())
        self.largest = max(self.largest, float(distance[finite].max(initial=0.0)))
        if self.bound is not None:
            missed = _misses(left.values, right.values, differ, self.bound)
            self.violations += int((~same_validity | (both & missed)).sum())

    def merge(self, other: ColumnError) -> None:
        """Adds the sums of other rows."""
        self.values += other.values
        self.mismatches += other.mismatches
        self.numbers += other.numbers
        self.squares += other.squares
        self.largest = max(self.largest, other.largest)
        self.violations += other.violations

    def summary(self) -> dict[str, Any]:
        """Largest and RMS error (None where nothing is a number) and mismatch rate."""
        some = self.numbers > 0
        promised = {} if self.bound is None else {"bound": self.bound, "violations": self.violations}
        return {
            "max_error": _finite(self.largest) if some else None,
            "rms_error": _finite(math.sqrt(self.squares / self.numbers)) if some else None,
            "mismatch_rate": self.mismatches / self.values if self.values else 0.0,
            **promised,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class _Elements:
    """The numbers of a column: its values, or the elements of its vectors.

    Attributes:
        values: Integers, floats or decimals without nulls (0 where there was one).
        validity: Whether a number is `_VALID`, null, or in a vector that is null.
    """

    values: pa.Array
    validity: npt.NDArray[np.uint8]


_VALID, _NULL, _NULL_VECTOR = 0, 1, 2
_ANY_DECIMAL = 10**74


def _elements(array: pa.Array) -> _Elements | None:
    """The numbers of an array; None if it holds none."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _elements(array.storage)
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        below = _elements(array.values.slice(array.offset * width, len(array) * width))
        if below is None:
            return None
        validity = below.validity.copy()
        validity[np.repeat(_is_null(array), width)] = _NULL_VECTOR
        return _Elements(below.values, validity)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return _elements(array.view(pa.int64() if kind.bit_width == 64 else pa.int32()))
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        return None
    validity = np.where(_is_null(array), np.uint8(_NULL), np.uint8(_VALID))
    if array.null_count:
        array = pc.fill_null(array, pa.scalar(0, kind))
    return _Elements(array, validity)


def _is_null(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _compare(left: pa.Array, right: pa.Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which numbers are not the same, and by how much; NaN is the same as NaN, infinities are no distance.

    Integers and decimals are subtracted exactly: beyond 2^53 their difference is not that of their floats.
    """
    if pa.types.is_decimal(left.type):
        wide = pa.decimal256(75, left.type.scale)
        gap = pc.cast(pc.subtract(pc.cast(left, wide), pc.cast(right, wide)), pa.float64())
        unequal = np.asarray(pc.not_equal(left, right).to_numpy(zero_copy_only=False), np.bool_)
        return unequal, np.abs(gap.to_numpy())
    a, b = left.to_numpy(), right.to_numpy()
    if a.dtype.kind != "f":
        wrapped = np.where(a > b, a.astype(np.uint64) - b.astype(np.uint64), b.astype(np.uint64) - a.astype(np.uint64))
        return a != b, wrapped.astype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    distance = np.full(len(a), np.nan)
    with np.errstate(over="ignore"):
        distance[finite] = np.abs(a[finite] - b[finite])
    return (a != b) & ~(np.isnan(a) & np.isnan(b)), distance


def _misses(left: pa.Array, right: pa.Array, differ: npt.NDArray[np.bool_], bound: float) -> npt.NDArray[np.bool_]:
    """Which numbers are further apart than a bound, decided without rounding.

    Args:
        left: Original numbers, without nulls.
        right: Decoded numbers.
        differ: Where they are not the same.
        bound: Largest absolute difference; 0 = bit for bit.
    """
    if pa.types.is_decimal(left.type):
        scale = left.type.scale
        wide = pa.decimal256(75, scale)
        gap = pc.abs(pc.subtract(pc.cast(left, wide), pc.cast(right, wide)))
        most = math.floor(Decimal(repr(bound)).scaleb(scale)) if math.isfinite(bound) else _ANY_DECIMAL
        limit = pa.scalar(Decimal(min(most, _ANY_DECIMAL)).scaleb(-scale), wide)
        return np.asarray(pc.greater(gap, limit).to_numpy(zero_copy_only=False), np.bool_)
    a, b = left.to_numpy(), right.to_numpy()
    if a.dtype.kind != "f":
        gap = np.where(a > b, a.astype(np.uint64) - b.astype(np.uint64), b.astype(np.uint64) - a.astype(np.uint64))
        return np.asarray(gap > np.uint64(min(math.floor(bound), 2**64 - 1)), np.bool_)
    if bound == 0:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        return np.asarray(a.view(bits) != b.view(bits), np.bool_)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = a - b  # a - b = gap + rest without rounding
        part = gap - a
        rest = (a - (gap - part)) - (b + part)
        beyond = (np.abs(gap) > bound) | ((np.abs(gap) == bound) & (rest * np.sign(gap) > 0))
    return np.where(finite, beyond, differ)


def _count_unequal(original: pa.Array, decoded: pa.Array) -> int:
    if original.equals(decoded):
        return 0
    left, right = (
        pc.cast(array, array.type.value_type) if pa.types.is_dictionary(array.type) else array
        for array in (original, decoded)
    )
    try:
        same = pc.equal(left, right)
    except pa.ArrowNotImplementedError:
        return sum(not _same(a, b) for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True))
    nulls = pc.and_(left.is_null(), right.is_null())
    matched = pc.or_(pc.fill_null(same, False), nulls)
    return len(original) - int(pc.sum(matched).as_py() or 0)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
