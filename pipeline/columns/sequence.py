"""Sequences: short texts as runs of tokens, when asked for.

One categorical symbol a token, up to a greatest length: the end is the vocabulary's first symbol, what follows it is
absent. A text with a token outside of the vocabulary, one that is too long, and one that is not its tokens joined
is stored exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.arrays import States, check_type, place_exact
from pipeline.columns.base import Column, State, Symbols
from pipeline.columns.categorical import CategoricalColumn
from pipeline.columns.distinct import DistinctCounts
from pipeline.columns.keys import from_keys, keys_to_json, to_keys
from pipeline.columns.options import ColumnOptions
from pipeline.columns.states import SeenStates, is_state, states_or_none
from pipeline.columns.stats import ColumnStats
from pipeline.columns.tokens import MAX_LENGTH, TokenCounts, Tokens, join, split_all
from pipeline.errors import ConfigError
from vae_model.layout import ABSENT, END, Span

MOST_UNASKED = 256
"""Tokens of the longest text that is modelled without `max_length`."""
MOST_OUTPUTS = 1 << 15
"""Most tokens times most places: so many logits does the decoder have for a row."""
_REPEATS = 4
"""A whole text seen so often in a sample is a category where archives are exact."""
_MOST_CATEGORIES = 4096


@dataclass(frozen=True)
class SequenceColumn(Column):
    """A fitted column of texts.

    Attributes:
        field: The Arrow field.
        how: What a text is split into.
        vocabulary: The tokens, most frequent first, ties by value; token n has the symbol n + 1.
        length: Most tokens of a text that symbols say.
        seen: States that fitting saw.
    """

    kind: ClassVar[str] = "sequence"
    field: pa.Field
    how: Tokens
    vocabulary: tuple[str, ...]
    length: int
    seen: SeenStates

    @classmethod
    def fit(cls, field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> SequenceColumn:
        """Fits the column to statistics with at least one ordinary value and counts of tokens.

        Raises:
            ConfigError: If its texts are long and `max_length` is not given, or the decoder would be too large.
        """
        tokens = stats.tokens
        if tokens is None:
            raise ValueError(f"column {field.name!r} was observed without counting its tokens")
        length = _length(field, tokens, options)
        counts, all_seen = _counts(stats, tokens, options.max_categories)
        keys, _ = counts.most_frequent(options.max_categories)
        vocabulary = () if keys is None else tuple(keys_to_json(keys))
        if (len(vocabulary) + 1) * length > MOST_OUTPUTS:
            raise ConfigError(
                f"column {field.name!r} ({field.type}): {len(vocabulary):,} tokens at {length:,} places are too many "
                f"for a sequence ({MOST_OUTPUTS:,} together); lower max_categories or max_length (rarer tokens and "
                "longer texts are stored exactly), or pass the column through"
            )
        seen = {state for state in State if stats.states[state]}
        if not all_seen or tokens.longer_than(length):
            seen.add(State.EXACT)
        return cls(field, tokens.how, vocabulary, length, SeenStates.of(seen))

    def as_categories(self, sample: pa.Array | None = None) -> CategoricalColumn:
        """The column as exact archives code it: whole texts, those that repeat by their number.

        Args:
            sample: Values of the column from anywhere in it.
        """
        seen = self.seen.also(np.array([State.EXACT], np.uint8))
        found: list[Any] = []
        if sample is not None:
            keys = to_keys(sample)
            distinct = DistinctCounts(_MOST_CATEGORIES * 16)
            distinct.add(keys.drop_null())
            often, counts = distinct.most_frequent(_MOST_CATEGORIES)
            found = [] if often is None else keys_to_json(often.filter(pa.array(counts >= _REPEATS)))
            if keys.null_count:
                seen = SeenStates.of([*seen.seen, State.NULL])
        return CategoricalColumn(self.field, tuple(found) or ("",), seen)

    def spans(self) -> list[Span]:
        """The state symbol, if there is one, and a symbol a place."""
        bins = len(self.vocabulary) + 1
        value = Span(self.name, "value", "categorical", self.seen.width, self.length, bins, ends=True)
        return [*self.seen.spans(self.name), value]

    def states_of(self, bins: npt.NDArray[np.int64]) -> States | None:
        """The states that the state symbol says."""
        return self.seen.states_of(bins)

    def from_values(self, values: pa.Array) -> Symbols:
        """Turns values into symbols."""
        check_type(values, self.field)
        bins = np.full((len(values), self.length), ABSENT, np.int64)
        states = np.zeros(len(values), np.uint8)
        keys = to_keys(values)
        for row, tokens in enumerate(split_all(keys, self.how)):
            codes = None if tokens is None or len(tokens) > self.length else self._codes(tokens)
            if codes is None:
                states[row] = State.EXACT
                continue
            bins[row, : len(codes)] = codes
            bins[row, len(codes) : len(codes) + 1] = END
        if keys.null_count:
            states[keys.is_null().to_numpy(zero_copy_only=False)] = State.NULL
        unsaid = is_state(states, State.EXACT)
        exact = None
        if unsaid is not None:
            kept = keys.filter(pa.array(unsaid))
            exact = from_keys(kept, np.arange(len(kept)), self.field.type)
        known = states_or_none(states)
        return Symbols(self.seen.beside(bins, known), known, exact)

    def to_values(self, symbols: Symbols) -> pa.Array:
        """Turns symbols back into values; whatever follows an end, or an absent symbol, is ignored."""
        bins = np.minimum(symbols.bins[:, self.seen.width :], len(self.vocabulary))
        lengths = (bins > END).cumprod(axis=1).sum(axis=1)
        texts = [
            join([self.vocabulary[code - 1] for code in codes[:length]], self.how).encode()
            for codes, length in zip(bins.tolist(), lengths.tolist(), strict=True)
        ]
        keys, rows = pa.array(texts, pa.large_binary()), np.arange(len(texts))
        if symbols.states is not None:
            keys = place_exact(keys, symbols.states, None if symbols.exact is None else to_keys(symbols.exact))
            rows[symbols.states == State.NULL] = -1
        return from_keys(keys, rows, self.field.type)

    def to_json(self) -> dict[str, Any]:
        """Everything that was fitted."""
        return {
            "kind": self.kind,
            "tokens": self.how,
            "vocabulary": list(self.vocabulary),
            "length": self.length,
            "states": self.seen.to_json(),
        }

    @classmethod
    def from_json(cls, field: pa.Field, data: Mapping[str, Any]) -> SequenceColumn:
        """Rebuilds the column from `to_json`'s result.

        Raises:
            ValueError: If it describes no sequence.
        """
        how, vocabulary, length = data["tokens"], tuple(data["vocabulary"]), data["length"]
        if how not in get_args(Tokens) or not all(isinstance(token, str) for token in vocabulary):
            raise ValueError(f"column {field.name!r} is no sequence of {how!r}")
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_LENGTH:
            raise ValueError(f"column {field.name!r} is no sequence of length {length!r}")
        return cls(field, how, vocabulary, length, SeenStates.from_json(data))

    def _codes(self, tokens: list[str]) -> list[int] | None:
        """The symbols of tokens; None if one is unknown."""
        codes = [self._symbol.get(token, ABSENT) for token in tokens]
        return None if ABSENT in codes else codes

    @cached_property
    def _symbol(self) -> dict[str, int]:
        return {token: number + 1 for number, token in enumerate(self.vocabulary)}


def _length(field: pa.Field, tokens: TokenCounts, options: ColumnOptions) -> int:
    """How many tokens symbols say."""
    if options.max_length is not None:
        return options.max_length
    if tokens.longest <= MOST_UNASKED:
        return max(1, tokens.longest)
    longest = f"{tokens.longest:,}" if tokens.longest <= MAX_LENGTH else f"more than {MAX_LENGTH:,}"
    most = min(max(1, tokens.quantile(0.01)), MAX_LENGTH)
    beyond = tokens.longer_than(most)
    raise ConfigError(
        f"column {field.name!r} ({field.type}): its longest text has {longest} tokens ({tokens.how}), more than "
        f"{MOST_UNASKED} are modelled only when asked for; give max_length, e.g. max_length: {most} "
        f"(then {beyond:,} of {int(tokens.lengths.sum()):,} texts are stored exactly), or pass the column through"
    )


def _counts(stats: ColumnStats, tokens: TokenCounts, limit: int) -> tuple[DistinctCounts, bool]:
    """Counts of tokens, of all rows or of the sample, and whether no token is left out."""
    tokens.distinct.compact()
    if not tokens.distinct.overflow:
        return tokens.distinct, len(tokens.distinct) <= limit
    if stats.sample is None or stats.sample.values is None:
        raise ValueError(f"column {stats.field.name!r} has no ordinary values to fit")
    # more tokens than are counted, so more than the vocabulary has room for
    sampled = TokenCounts(tokens.how, DistinctCounts(limit=1 << 62))
    sampled.add(pa.array(stats.sample.values, pa.large_binary()))
    return sampled.distinct, False
