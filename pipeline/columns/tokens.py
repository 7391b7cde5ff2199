"""Texts as runs of tokens: how they are split and joined, and what fitting counts of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.columns.distinct import DistinctCounts
from pipeline.columns.gathered import Arrays, inside, nested

Tokens = Literal["characters", "words", "brackets"]
"""Code points; what single spaces separate; `[…]`, and code points between brackets."""

MAX_LENGTH = 1024
"""Most tokens of a text that a model sees."""
_BRACKETS = re.compile(r"\[[^\]]*\]|[^\[]", re.DOTALL)


def _words(text: str) -> list[str]:
    return text.split(" ") if text else []


_SPLIT: dict[Tokens, Callable[[str], list[str]]] = {
    "characters": list,
    "words": _words,
    "brackets": _BRACKETS.findall,
}


def join(tokens: list[str], how: Tokens) -> str:
    """The text of tokens."""
    return (" " if how == "words" else "").join(tokens)


def split_all(keys: pa.Array, how: Tokens) -> Iterator[list[str] | None]:
    """The tokens of each text; None where it is null, is no UTF-8, or is not what its tokens join to.

    Args:
        keys: large_binary texts, from `keys.to_keys`.
        how: How texts are split.
    """
    split = _SPLIT[how]
    for key in keys:
        data = key.as_py()
        try:
            text = None if data is None else data.decode()
        except UnicodeDecodeError:
            text = None
        tokens = None if text is None else split(text)
        yield None if tokens is None or join(tokens, how) != text else tokens


@dataclass
class TokenCounts:
    """What fitting must know of a column of texts; merges in any order to the same.

    Attributes:
        how: How texts are split.
        distinct: How often each token was seen.
        lengths: Number of texts by number of tokens; the last entry counts all with more than `MAX_LENGTH`.
    """

    how: Tokens
    distinct: DistinctCounts
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(MAX_LENGTH + 2, np.int64))

    def add(self, keys: pa.Array) -> npt.NDArray[np.bool_]:
        """Counts the tokens of texts; returns which of them are their tokens joined."""
        counts: Counter[str] = Counter()
        lengths = np.full(len(keys), -1, np.int64)
        for row, tokens in enumerate(split_all(keys, self.how)):
            if tokens is not None:
                lengths[row] = min(len(tokens), MAX_LENGTH + 1)
                counts.update(tokens)
        whole = np.asarray(lengths >= 0, np.bool_)
        self.lengths = self.lengths + np.bincount(lengths[whole], minlength=MAX_LENGTH + 2)
        values = pa.array([token.encode() for token in counts], pa.large_binary())
        self.distinct.add_counted(values, np.fromiter(counts.values(), np.int64, len(counts)))
        return whole

    def merge(self, other: TokenCounts) -> None:
        """Adds the counts of other texts."""
        self.lengths = self.lengths + other.lengths
        self.distinct.merge(other.distinct)

    def arrays(self) -> Arrays:
        """What was gathered."""
        return {"lengths": self.lengths, **nested("distinct", self.distinct.arrays())}

    def take(self, arrays: Arrays) -> None:
        """Puts what `arrays` gave in the place of what was gathered."""
        self.lengths = arrays["lengths"]
        self.distinct.take(inside("distinct", arrays))

    @property
    def longest(self) -> int:
        """Tokens of the longest text, at most `MAX_LENGTH` + 1."""
        return int(np.flatnonzero(self.lengths).max(initial=0))

    def longer_than(self, length: int) -> int:
        """Texts with more tokens than that."""
        return int(self.lengths[length + 1 :].sum())

    def quantile(self, share: float) -> int:
        """The smallest length that no more than a share of the texts exceeds."""
        return int(np.searchsorted(np.cumsum(self.lengths), (1 - share) * self.lengths.sum()))
