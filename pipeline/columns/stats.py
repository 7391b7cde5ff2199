"""What fitting must know of a column, gathered in one pass by parallel tasks and merged in any order.

Whatever is kept (counts, exact extremes, order-free sums, the rows of lowest priority) is a function of the
set of rows alone: batches, tasks and the order of merging do not matter, so a fit is reproducible.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.arrays import Numbers, States, as_array, read_scalars
from pipeline.columns.base import State
from pipeline.columns.distinct import DistinctCounts
from pipeline.columns.gathered import Arrays, inside, nested
from pipeline.columns.keys import to_keys
from pipeline.columns.kinds import family
from pipeline.columns.lists import read_rows, storage_type
from pipeline.columns.moments import Moments
from pipeline.columns.options import ColumnOptions
from pipeline.columns.sample import RowSample
from pipeline.columns.tokens import TokenCounts

SAMPLE_SIZE = 65_536
MAX_DISTINCT = 131_072


@dataclass
class ColumnStats:
    """Statistics of one column over the rows observed so far.

    Attributes:
        field: The Arrow field.
        rows: Number of rows.
        states: Number of rows in each `State`; `EXACT` counts decimals wider than int64, vectors with an element
            that is null, NaN or infinite, and texts of a sequence that are not their tokens joined.
        low: Exact smallest ordinary value (a decimal's unscaled, a vector's over all elements), or None.
        high: Exact largest ordinary value, or None.
        moments: Mean and standard deviation of ordinary values, for a vector of each element; or None.
        sample: Uniform sample of ordinary values: wide numbers, for a vector its rows, for text its keys if
            the column is to be categorical or a sequence; or None.
        distinct: Counts of distinct values, of text and of integers that are to be categorical; or None.
        tokens: Counts of tokens of text that is to be a sequence; or None.
    """

    field: pa.Field
    rows: int = 0
    states: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(State), np.int64))
    low: int | float | None = None
    high: int | float | None = None
    moments: Moments | None = None
    sample: RowSample | None = None
    distinct: DistinctCounts | None = None
    tokens: TokenCounts | None = None

    @classmethod
    def empty(
        cls,
        field: pa.Field,
        options: ColumnOptions | None = None,
        sample_size: int = SAMPLE_SIZE,
        max_distinct: int = MAX_DISTINCT,
    ) -> ColumnStats:
        """Statistics of no rows, set up for what the column's type and options will need.

        Args:
            field: The Arrow field.
            options: The column's options.
            sample_size: Most numbers in the sample; a vector row counts as many as it has elements.
            max_distinct: Most distinct values counted (at least one more than `options.max_categories`).

        Returns:
            Statistics to `observe` batches with, or to merge others into.
        """
        options = options or ColumnOptions()
        stats = cls(field)
        what = family(field.type)
        if options.kind == "passthrough" or what in ("other", "boolean"):
            return stats
        if options.kind == "sequence":
            counts = DistinctCounts(max(max_distinct, options.max_categories + 1))
            stats.sample, stats.tokens = RowSample(sample_size), TokenCounts(options.tokens or "characters", counts)
            return stats
        categorical = options.kind == "categorical"
        if what == "vector":
            width = storage_type(field.type).list_size
            stats.moments, stats.sample = Moments(width), RowSample(max(1, sample_size // width))
        elif what != "text":
            stats.moments, stats.sample = Moments(1), RowSample(sample_size)
        elif categorical:
            stats.sample = RowSample(sample_size)
        if what == "text" or (what == "integer" and categorical):
            stats.distinct = DistinctCounts(max(max_distinct, options.max_categories + 1))
        return stats

    @property
    def ordinary(self) -> int:
        """Number of rows with an ordinary value."""
        return int(self.states[State.VALUE])

    def observe(self, values: pa.Array | pa.ChunkedArray, priority: npt.NDArray[np.uint64]) -> None:
        """Adds rows.

        Args:
            values: Values of the column.
            priority: A random number for each row, a function of the row's place in the dataset alone: the
                rows with the lowest ones make the sample.
        """
        values = as_array(values)
        what = family(self.field.type)
        if what == "text":
            self._observe_text(values, priority)
        elif what == "vector" and self.moments is not None:
            rows = read_rows(values)
            self._observe_numbers(rows.ordinary(), rows.states, priority)
        elif self.moments is not None:
            scalars = read_scalars(values)
            self._observe_numbers(scalars.ordinary(), scalars.states, priority)
            if self.distinct is not None:
                self.distinct.add(values.drop_null())
        else:
            self._count(len(values), values.null_count)
            if what == "boolean" and len(values) > values.null_count:
                self._extremes(int(values.false_count == 0), int(values.true_count > 0))

    def merge(self, other: ColumnStats) -> ColumnStats:
        """Adds the statistics of other rows of the same column to these, and returns these."""
        self.rows += other.rows
        self.states = self.states + other.states
        if other.low is not None and other.high is not None:
            self._extremes(other.low, other.high)
        if self.moments is not None and other.moments is not None:
            self.moments.merge(other.moments)
        if self.sample is not None and other.sample is not None:
            self.sample.merge(other.sample)
        if self.distinct is not None and other.distinct is not None:
            self.distinct.merge(other.distinct)
        if self.tokens is not None and other.tokens is not None:
            self.tokens.merge(other.tokens)
        return self

    def shorten(self, share: float) -> None:
        """Leaves out what a whole of which these are so large a share will not need; see `RowSample.shorten`.

        A sample that may have to say which values are frequent stays whole.
        """
        if self.sample is not None and self.distinct is None and self.tokens is None:
            self.sample.shorten(share)

    def arrays(self) -> Arrays:
        """What was gathered; `take` of `empty` statistics of the same column gives it back."""
        found: Arrays = {"rows": np.array(self.rows), "states": self.states}
        if self.low is not None and self.high is not None:
            found |= {"low": np.array(self.low), "high": np.array(self.high)}
        for name, part in self._parts().items():
            found |= nested(name, part.arrays())
        return found

    def take(self, arrays: Arrays) -> ColumnStats:
        """Puts what `arrays` gave in the place of what was gathered, and returns these statistics."""
        self.rows, self.states = int(arrays["rows"]), arrays["states"]
        self.low, self.high = (arrays[name].item() if name in arrays else None for name in ("low", "high"))
        for name, part in self._parts().items():
            part.take(inside(name, arrays))
        return self

    def _parts(self) -> dict[str, Moments | RowSample | DistinctCounts | TokenCounts]:
        parts = {"moments": self.moments, "sample": self.sample, "distinct": self.distinct, "tokens": self.tokens}
        return {name: part for name, part in parts.items() if part is not None}

    def _observe_numbers(self, ordinary: Numbers, states: States | None, priority: npt.NDArray[np.uint64]) -> None:
        if states is not None:
            self.rows += len(states)
            self.states = self.states + np.bincount(states, minlength=len(State))
            priority = priority[states == State.VALUE]
        else:
            self._count(len(ordinary), 0)
        if not len(ordinary):
            return
        # + 0.0 turns -0.0 into 0.0, which must not depend on the order
        self._extremes(*((x + 0).item() for x in (ordinary.min(), ordinary.max())))
        if self.moments is not None:
            self.moments.add(ordinary.reshape(len(ordinary), -1))
        if self.sample is not None:
            chosen = self.sample.candidates(priority)
            self.sample.add(priority[chosen], ordinary[chosen])

    def _observe_text(self, values: pa.Array, priority: npt.NDArray[np.uint64]) -> None:
        keys = to_keys(values)
        self._count(len(keys), keys.null_count)
        if self.distinct is None and self.tokens is None:
            return
        if keys.null_count:
            priority = priority[keys.is_valid().to_numpy(zero_copy_only=False)]
            keys = keys.drop_null()
        if self.tokens is not None:
            whole = self.tokens.add(keys)
            self.states[[State.VALUE, State.EXACT]] += np.array([-1, 1]) * int((~whole).sum())
            keys, priority = keys.filter(pa.array(whole)), priority[whole]
        elif self.distinct is not None:
            self.distinct.add(keys)
        if self.sample is not None:
            chosen = self.sample.candidates(priority)
            self.sample.add(priority[chosen], keys.take(pa.array(chosen)).to_numpy(zero_copy_only=False))

    def _count(self, rows: int, nulls: int) -> None:
        self.rows += rows
        self.states = self.states.copy()
        self.states[State.VALUE] += rows - nulls
        self.states[State.NULL] += nulls

    def _extremes(self, low: int | float, high: int | float) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
