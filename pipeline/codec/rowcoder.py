"""The row coder over a block: scalar columns under a small network that sees all that the decoder has.

A *symbol* is a column of `bins_BD` (a state symbol, a value, an element of a short vector). Each becomes one or two
digits and raw low bits (`digits`), or the digits of its difference to the row before. The network's contexts are the
digits of the previous row of the lane and the stored latents; symbols that another codec carries are known first and
are inputs as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.bits import pack_bits, packed_bytes, unpack_bits
from pipeline.codec.digits import Digits
from pipeline.codec.lanes import Lanes
from pipeline.codec.streams import ABSENT, CHUNK, UNKNOWN, DigitRule, StreamDecoder, StreamEncoder
from pipeline.codec.weights import Network
from vae_model.context import CoderShape

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


@dataclass(frozen=True)
class RowCoder:
    """A fitted row coder.

    Attributes:
        symbols: The rules, those that are known before first.
        previous: Whether contexts have the previous row.
        latents: Number of stored latents among the contexts.
        network: The network.
    """

    symbols: tuple[SymbolRule, ...]
    previous: bool
    latents: int
    network: Network

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description, without the weights."""
        return {
            "symbols": [rule.to_json() for rule in self.symbols],
            "previous": self.previous,
            "latents": self.latents,
            "hidden": self.network.shape.hidden,
            "knots": self.network.shape.knots,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> RowCoder:
        """Rebuilds a coder from `to_json`'s result and its network's arrays.

        Raises:
            ValueError: If they do not fit (or LookupError, TypeError).
        """
        symbols = tuple(SymbolRule.from_json(item) for item in data["symbols"])
        previous, latents = bool(data["previous"]), int(data["latents"])
        shape = network_shape(symbols, previous, latents, int(data["hidden"]), int(data["knots"]))
        return cls(symbols, previous, latents, Network.from_arrays(shape, arrays))

    @cached_property
    def first_digit(self) -> list[int]:
        """The number of each symbol's first digit."""
        return [0, *accumulate(len(rule.digits.alphabets) for rule in self.symbols)]

    @cached_property
    def rules(self) -> list[DigitRule]:
        """The rule of every digit."""
        place = {rule.symbol: start for rule, start in zip(self.symbols, self.first_digit, strict=False)}
        rules: list[DigitRule] = []
        for rule in self.symbols:
            gate = place[rule.gate] if rule.gate >= 0 else -1
            rules += [DigitRule(rule.coded, gate) for _ in rule.digits.alphabets]
        return rules

    def encode(self, bins: Bins, absent: npt.NDArray[np.bool_], latents: Bins | None) -> dict[int, bytes]:
        """Codes a block.

        Args:
            bins: `bins_BD`, -1 = absent.
            absent: Where the decoder knows beforehand that a symbol is absent, same shape.
            latents: Latents in steps of their grid, shape (rows, Z); None without.

        Returns:
            Streams: of digit d under 2·d, raw bits of symbol s under 2·s + 1.
        """
        return self._encode(bins, absent, latents, measure=False)[0]

    def measure(self, bins: Bins, latents: Bins | None) -> npt.NDArray[np.float64]:
        """The ideal code length of every symbol over a block, raw bits included, in bits."""
        return self._encode(bins, bins < 0, latents, measure=True)[1]

    def _encode(
        self, bins: Bins, absent: npt.NDArray[np.bool_], latents: Bins | None, measure: bool
    ) -> tuple[dict[int, bytes], npt.NDArray[np.float64]]:
        if not len(bins):
            return {}, np.zeros(len(self.symbols))
        lanes = Lanes.of(len(bins), self.previous)
        order = lanes.order()
        prepared = prepare(self.symbols, bins, lanes)
        known = np.concatenate([np.repeat(absent[:, [r.symbol]], len(r.digits.alphabets), 1) for r in self.symbols], 1)
        encoder = StreamEncoder(self.network.coder, self.rules, measure)
        for start in range((len(order) - 1) // CHUNK * CHUNK, -1, -CHUNK):
            rows = order[start : start + CHUNK]
            contexts = self._contexts(prepared.digits, prepared.levels, lanes.previous(rows), rows, latents)
            encoder.push(contexts, prepared.digits[rows], known[rows])
        streams = {2 * number: data for number, data in encoder.to_bytes().items()}
        bits = np.zeros(len(self.symbols))
        for number, (rule, raw) in enumerate(zip(self.symbols, prepared.raw, strict=True)):
            bits[number] = encoder.bits[self.first_digit[number] : self.first_digit[number + 1]].sum()
            if raw is not None and rule.coded:
                streams[2 * number + 1] = _pack_raw(rule, raw, order, lanes)
                bits[number] += float(raw[1].sum())
        return streams, bits

    def decode(
        self, streams: Mapping[int, bytes], bins: Bins, latents: Bins | None, wanted: Collection[int] | None = None
    ) -> None:
        """Decodes a block in place.

        Args:
            streams: What `encode` gave.
            bins: `bins_BD`: -2 where unknown, -1 where known to be absent; filled in.
            latents: As in `encode`.
            wanted: Symbols that are wanted (those before them are decoded as well); None: all.

        Raises:
            ValueError: If a stream is missing or damaged.
        """
        last = max((n for n, r in enumerate(self.symbols) if wanted is None or r.symbol in wanted), default=-1)
        if last < 0 or not len(bins):
            return
        count = self.first_digit[last + 1] if not self.previous else self.first_digit[-1]
        part = {key // 2: data for key, data in streams.items() if key % 2 == 0 and key // 2 < count}
        _BlockDecoder(self, bins, latents, part, streams).run()

    def _contexts(
        self, digits: npt.NDArray[np.int16], levels: Bins, previous: Bins, rows: Bins, latents: Bins | None
    ) -> Bins:
        parts: list[Bins] = []
        if self.previous:
            before = digits[previous].astype(np.int64)
            before[previous < 0] = ABSENT
            parts += [before, levels[rows]]
        if self.latents:
            if latents is None:
                raise ValueError("this coder needs the stored latents")
            parts.append(np.clip(latents[rows], -LATENT_REACH, LATENT_REACH) + LATENT_REACH)
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(rows), 0), np.int64)


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


def _pack_raw(
    rule: SymbolRule, raw: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]], order: Bins, lanes: Lanes
) -> bytes:
    values, widths = raw
    if not rule.delta:
        return pack_bits(values[order], widths[order])
    return b"".join(pack_bits(values[lanes.at(step)], widths[lanes.at(step)]) for step in range(lanes.steps))


class _BlockDecoder:
    """Decodes one block, step by step."""

    def __init__(
        self, coder: RowCoder, bins: Bins, latents: Bins | None, parts: dict[int, bytes], streams: Mapping[int, bytes]
    ) -> None:
        self._coder, self._bins, self._latents, self._streams = coder, bins, latents, streams
        self._lanes = Lanes.of(len(bins), coder.previous)
        self._decoder = StreamDecoder(coder.network.coder, coder.rules, parts)
        known = [rule for rule in coder.symbols if not rule.coded]
        self._prepared = prepare(coder.symbols, _only(bins, known), self._lanes)
        self._deltas = [number for number, rule in enumerate(coder.symbols) if rule.delta]
        self._read = dict.fromkeys(self._deltas, 0)
        self._last = np.zeros((len(self._lanes.at(0)), len(self._deltas)), np.int64)
        for place, number in enumerate(self._deltas):
            self._last[:, place] = coder.symbols[number].first

    def run(self) -> None:
        for step in range(self._lanes.steps):
            rows = self._lanes.at(step)
            for start in range(0, len(rows), CHUNK):
                self._chunk(rows[start : start + CHUNK])
            for place, number in enumerate(self._deltas):
                self._join_delta(place, number, rows)
        self._decoder.finish()
        order = self._lanes.order()
        for number, rule in enumerate(self._coder.symbols):
            if rule.coded and not rule.delta:
                self._join(number, rule, order)

    def _chunk(self, rows: Bins) -> None:
        coder, prepared = self._coder, self._prepared
        lanes = self._lanes
        levels = [
            rule.level(self._last[rows // lanes.steps, place])
            for place, rule in enumerate(coder.symbols[number] for number in self._deltas)
        ]
        if levels:
            prepared.levels[rows] = np.stack(levels, 1)
        contexts = coder._contexts(prepared.digits, prepared.levels, lanes.previous(rows), rows, self._latents)
        digits = prepared.digits[rows]
        absent = np.zeros(digits.shape, np.bool_)
        for rule, first in zip(coder.symbols, coder.first_digit, strict=False):
            absent[:, first : first + len(rule.digits.alphabets)] = (self._bins[rows, rule.symbol] == ABSENT)[:, None]
        self._decoder.pull(contexts, digits, absent)
        prepared.digits[rows] = digits

    def _digits(self, number: int, rows: Bins) -> npt.NDArray[np.int64]:
        first, stop = self._coder.first_digit[number], self._coder.first_digit[number + 1]
        return self._prepared.digits[rows, first:stop].astype(np.int64)

    def _join_delta(self, place: int, number: int, rows: Bins) -> None:
        rule = self._coder.symbols[number]
        lane = rows // self._lanes.steps
        if rule.coded:
            digits = self._digits(number, rows)
            there = digits[:, 0] >= 0
            widths = np.zeros(len(rows), np.uint8)
            widths[there] = rule.digits.raw_widths(digits[there])
            size = packed_bytes(widths)
            start = self._read[number]
            raw = unpack_bits(self._streams.get(2 * number + 1, b"")[start : start + size], widths)
            self._read[number] += size
            change = rule.digits.join(digits[there], raw[there]) - (rule.bins - 1)
            self._bins[rows[~there], rule.symbol] = ABSENT
            self._bins[rows[there], rule.symbol] = np.clip(self._last[lane[there], place] + change, 0, rule.bins - 1)
        values = self._bins[rows, rule.symbol]
        self._last[lane[values >= 0], place] = values[values >= 0]

    def _join(self, number: int, rule: SymbolRule, order: Bins) -> None:
        digits = self._digits(number, order)
        there = digits[:, 0] >= 0
        if (digits[there] < 0).any():
            return  # beyond the last wanted digit
        widths = np.zeros(len(order), np.uint8)
        widths[there] = rule.digits.raw_widths(digits[there])
        raw = unpack_bits(self._streams.get(2 * number + 1, b""), widths)
        self._bins[order[~there], rule.symbol] = ABSENT
        self._bins[order[there], rule.symbol] = rule.emptied(rule.digits.join(digits[there], raw[there]))


def _only(bins: Bins, known: Sequence[SymbolRule]) -> Bins:
    """The bins of known symbols; everything else absent."""
    rest = np.full_like(bins, ABSENT)
    for rule in known:
        rest[:, rule.symbol] = np.where(bins[:, rule.symbol] == UNKNOWN, ABSENT, bins[:, rule.symbol])
    return rest


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
