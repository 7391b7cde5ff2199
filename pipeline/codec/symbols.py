"""Symbols as a row coder takes them: digits of values, or of differences to the row before, and raw bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.bits import pack_bits
from pipeline.codec.digits import Digits
from pipeline.codec.lanes import Lanes
from pipeline.codec.streams import ABSENT
from vae_model.coder_shape import CoderShape

Bins = npt.NDArray[np.int64]
LEVELS = 64
LATENT_REACH = 15
"""Latents count as at most this many steps from 0."""


@dataclass(frozen=True)
class SymbolRule:
    """How one symbol is coded.

    Attributes:
        symbol: Its index in `bins_BD`.
        bins: Its number of bins; for a state symbol one more, which says "told apart".
        digits: Its digits.
        delta: Whether the digits say the difference to the previous row.
        ordinal: Whether neighbouring bins are alike.
        coded: Whether the row coder codes it; if not, it is known before.
        gate: The symbol that must be 0 (state: an ordinary value) for this one to be there, or -1.
        first: With `delta`: what the row before a lane's first one is taken to have.
        state: Whether it is a state symbol, which is never absent: -1 is coded as its last bin.
    """

    symbol: int
    bins: int
    digits: Digits
    delta: bool
    ordinal: bool
    coded: bool
    gate: int = -1
    first: int = 0
    state: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        data = {**vars(self), "digits": self.digits.to_json()}
        return {name: value for name, value in data.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SymbolRule:
        """Rebuilds a rule from `to_json`'s result."""
        return cls(**{**_DEFAULTS, **data, "digits": Digits.from_json(data["digits"])})

    def before(self, values: Bins, lanes: Lanes) -> Bins:
        """For each row, the last value before it in its lane; `first` if there is none."""
        rows = np.arange(len(values))
        last = np.maximum.accumulate(np.where(values >= 0, rows, -1))
        last = np.concatenate([[-1], last[:-1]])
        inside = last >= rows // lanes.steps * lanes.steps
        return np.where(inside, values[np.maximum(last, 0)], self.first)

    def filled(self, values: Bins) -> Bins:
        """The symbol's values with a state symbol's -1 as its last bin."""
        return np.where(values == ABSENT, self.bins - 1, values) if self.state else values

    def emptied(self, values: Bins) -> Bins:
        """The inverse of `filled`."""
        return np.where(values == self.bins - 1, ABSENT, values) if self.state else values

    def level(self, values: Bins) -> Bins:
        """A coarse context of a value: 0 … 63."""
        return np.minimum(values // max(1, -(-self.bins // LEVELS)), LEVELS - 1)


_DEFAULTS = {"delta": False, "ordinal": True, "coded": True, "gate": -1, "first": 0, "state": False}


@dataclass
class Prepared:
    """A block as the network sees it.

    Attributes:
        digits: Digits of every row, shape (rows, digits), -1 = absent.
        levels: Coarse value before each row, for the symbols coded as differences, shape (rows, delta symbols).
        raw: Raw low bits and their widths of every symbol; None if it has none.
    """

    digits: npt.NDArray[np.int16]
    levels: Bins
    raw: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]] | None]


def prepare(symbols: Sequence[SymbolRule], bins: Bins, lanes: Lanes) -> Prepared:
    """Turns a block's symbols into digits, levels and raw bits (both in row order)."""
    width = sum(len(rule.digits.alphabets) for rule in symbols)
    digits = np.full((len(bins), width), ABSENT, np.int16)
    levels: list[Bins] = []
    raws: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]] | None] = []
    first = 0
    for rule in symbols:
        values = rule.filled(bins[:, rule.symbol])
        there = values >= 0
        coded = values[there]
        if rule.delta:
            before = rule.before(values, lanes)
            levels.append(rule.level(before))
            coded = coded - before[there] + (rule.bins - 1)
        parts, raw, widths = rule.digits.split(coded)
        digits[there, first : first + parts.shape[1]] = parts
        first += parts.shape[1]
        if raw is None or widths is None:
            raws.append(None)
        else:
            all_raw, all_widths = np.zeros(len(bins), np.uint64), np.zeros(len(bins), np.uint8)
            all_raw[there], all_widths[there] = raw, widths
            raws.append((all_raw, all_widths))
    stacked = np.stack(levels, 1) if levels else np.zeros((len(bins), 0), np.int64)
    return Prepared(digits, stacked, raws)


def pack_raw(
    rule: SymbolRule, raw: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]], order: Bins, lanes: Lanes
) -> bytes:
    """The raw bits of a symbol in the order in which they are decoded; step by step where each needs the last."""
    values, widths = raw
    if not rule.delta:
        return pack_bits(values[order], widths[order])
    return b"".join(pack_bits(values[lanes.at(step)], widths[lanes.at(step)]) for step in range(lanes.steps))


def network_shape(symbols: Sequence[SymbolRule], previous: bool, latents: int, hidden: int, knots: int) -> CoderShape:
    """The shape of the network that codes symbols."""
    digits: list[int] = []
    ordinal: list[bool] = []
    given: list[int] = []
    for rule in symbols:
        for place, size in enumerate(rule.digits.alphabets):
            digits.append(size)
            ordinal.append(rule.ordinal and (place > 0 or not rule.digits.singles))
            given.append(len(digits) - 2 if place else -1)
    levels = sum(rule.delta for rule in symbols)
    before = (digits + [LEVELS] * levels, ordinal + [True] * levels) if previous else ([], [])
    contexts = [*before[0], *[2 * LATENT_REACH + 1] * latents]
    flags = [*before[1], *[False] * latents]
    return CoderShape(tuple(contexts), tuple(flags), tuple(digits), tuple(ordinal), tuple(given), hidden, knots)
