"""How far decoded values are from the original ones, column by column, in mergeable sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    """

    values: int = 0
    mismatches: int = 0
    numbers: int = 0
    squares: float = 0.0
    largest: float = 0.0

    def add(self, original: pa.Array, decoded: pa.Array) -> None:
        """Compares two arrays of one type and length."""
        left, right = _numbers(original), _numbers(decoded)
        if left is None or right is None or len(left) != len(right):
            self.values += len(original)
            self.mismatches += _count_unequal(original, decoded)
            return
        both = np.isfinite(left) & np.isfinite(right)
        with np.errstate(over="ignore"):
            difference = np.abs(left[both] - right[both])
            self.squares += float(np.square(difference).sum())
        self.values += len(left)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        self.mismatches += max(int((~same).sum()), _count_null_changes(original, decoded))
        self.numbers += int(both.sum())
        self.largest = max(self.largest, float(difference.max(initial=0.0)))

    def merge(self, other: ColumnError) -> None:
        """Adds the sums of other rows."""
        self.values += other.values
        self.mismatches += other.mismatches
        self.numbers += other.numbers
        self.squares += other.squares
        self.largest = max(self.largest, other.largest)

    def summary(self) -> dict[str, Any]:
        """Largest and RMS error (None where nothing is a number) and mismatch rate."""
        some = self.numbers > 0
        return {
            "max_error": _finite(self.largest) if some else None,
            "rms_error": _finite(math.sqrt(self.squares / self.numbers)) if some else None,
            "mismatch_rate": self.mismatches / self.values if self.values else 0.0,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(array: pa.Array) -> npt.NDArray[np.float64] | None:
    """The values (flattened, for vectors) as float64 with NaN for null; None if they are no numbers."""
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        return _numbers(array.storage)
    if pa.types.is_fixed_size_list(kind):
        whole = array.fill_null([None] * kind.list_size) if array.null_count else array
        return _numbers(whole.flatten())
    if pa.types.is_temporal(kind):
        wide = kind.bit_width == 64 if hasattr(kind, "bit_width") else True
        return _numbers(array.view(pa.int64() if wide else pa.int32()))
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal128(kind):
        values = pc.cast(array, pa.float64(), safe=False)
        return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    return None


def _count_null_changes(original: pa.Array, decoded: pa.Array) -> int:
    if not original.null_count and not decoded.null_count:
        return 0
    return int(pc.sum(pc.not_equal(original.is_null(), decoded.is_null())).as_py() or 0)


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
