"""Exact counts of distinct values, up to a limit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns.gathered import Arrays, from_arrow, to_arrow

_PENDING = 2**15
_MAX_BYTES = 2**24


@dataclass
class DistinctCounts:
    """How often each distinct value was seen; nothing but `overflow` once there are too many.

    Whether there are too many is a property of the set of values, so it does not depend on their order.

    Attributes:
        limit: Most distinct values that are counted.
        overflow: True if more were seen, or if their bytes would be more than 16 MiB.
        chunks: (values, counts) not yet added up; the first chunk's values are distinct.
    """

    limit: int
    overflow: bool = False
    chunks: list[tuple[pa.Array, npt.NDArray[np.int64]]] = field(default_factory=list)

    def add(self, keys: pa.Array) -> None:
        """Counts values, none of them null."""
        if self.overflow or not len(keys):
            return
        counted = keys.value_counts()
        counts = counted.field("counts").to_numpy(zero_copy_only=False).astype(np.int64)
        self.add_counted(counted.field("values"), counts)

    def add_counted(self, values: pa.Array, counts: npt.NDArray[np.int64]) -> None:
        """Adds distinct values, none of them null, that were counted already."""
        if self.overflow or not len(values):
            return
        self.chunks.append((values, counts))
        self._compact_if_due()

    def merge(self, other: DistinctCounts) -> None:
        """Adds the counts of other rows."""
        self.overflow |= other.overflow
        self.chunks = [] if self.overflow else self.chunks + other.chunks
        self._compact_if_due()

    def __len__(self) -> int:
        """Number of distinct values counted; 0 after an overflow."""
        self.compact()
        return len(self.chunks[0][0]) if self.chunks else 0

    def most_frequent(self, limit: int) -> tuple[pa.Array | None, npt.NDArray[np.int64]]:
        """The most frequent values, ties by value, and their counts; None if there are none."""
        self.compact()
        if not self.chunks:
            return None, np.zeros(0, np.int64)
        values, counts = self.chunks[0]
        by_value = pc.array_sort_indices(values).to_numpy(zero_copy_only=False)
        order = by_value[np.argsort(-counts[by_value], kind="stable")][:limit]
        return values.take(pa.array(order)), counts[order]

    def arrays(self) -> Arrays:
        """The counts."""
        self.compact()
        found: Arrays = {"overflow": np.array(self.overflow)}
        for values, counts in self.chunks:  # one, if any
            found |= {"values": from_arrow(values), "counts": counts}
        return found

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of the counts."""
        self.overflow = bool(arrays["overflow"])
        self.chunks = [(to_arrow(arrays["values"]), arrays["counts"])] if "values" in arrays else []

    def compact(self) -> None:
        """Adds up what is pending."""
        if len(self.chunks) > 1:
            encoded = pa.concat_arrays([values for values, _ in self.chunks]).dictionary_encode()
            weights = np.concatenate([counts for _, counts in self.chunks])
            indices = encoded.indices.to_numpy(zero_copy_only=False)
            # bincount adds in float64: exact below 2^53 rows
            counts = np.bincount(indices, weights, len(encoded.dictionary)).astype(np.int64)
            self.chunks = [(encoded.dictionary, counts)]
        if self.chunks and self._too_many(self.chunks[0][0]):
            self.overflow, self.chunks = True, []

    def _compact_if_due(self) -> None:
        base = len(self.chunks[0][0]) if self.chunks else 0
        pending = sum(len(values) for values, _ in self.chunks[1:])
        if pending > max(base, _PENDING) or base > self.limit:
            self.compact()

    def _too_many(self, values: pa.Array) -> bool:
        if len(values) > self.limit:
            return True
        if not pa.types.is_large_binary(values.type):
            return False
        return int(pc.sum(pc.binary_length(values)).as_py() or 0) > _MAX_BYTES
