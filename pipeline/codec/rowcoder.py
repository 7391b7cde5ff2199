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

from pipeline.codec.bits import packed_bytes, unpack_bits
from pipeline.codec.lanes import Lanes
from pipeline.codec.streams import ABSENT, CHUNK, UNKNOWN, DigitRule, StreamDecoder, StreamEncoder
from pipeline.codec.symbols import LATENT_REACH, SymbolRule, network_shape, pack_raw, prepare
from pipeline.codec.weights import Network

Bins = npt.NDArray[np.int64]


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
        absent = bins < 0
        absent[:, [rule.symbol for rule in self.symbols if rule.state]] = False  # -1 is a symbol of its own there
        return self._encode(bins, absent, latents, measure=True)[1]

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
                streams[2 * number + 1] = pack_raw(rule, raw, order, lanes)
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
            ValueError: If a stream is damaged.
        """
        last = max((n for n, r in enumerate(self.symbols) if wanted is None or r.symbol in wanted), default=-1)
        if last < 0 or not len(bins):
            return
        leading = len(self.symbols) if self.previous else last + 1
        _BlockDecoder(self, bins, latents, streams, leading).run()

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


class _BlockDecoder:
    """Decodes the first `leading` symbols of one block, step by step."""

    def __init__(
        self, coder: RowCoder, bins: Bins, latents: Bins | None, streams: Mapping[int, bytes], leading: int
    ) -> None:
        self._coder, self._bins, self._latents, self._streams = coder, bins, latents, streams
        self._lanes, self._leading = Lanes.of(len(bins), coder.previous), leading
        digits = {key // 2: data for key, data in streams.items() if key % 2 == 0}
        self._decoder = StreamDecoder(coder.network.coder, coder.rules, digits, coder.first_digit[leading])
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
        for number, rule in enumerate(self._coder.symbols[: self._leading]):
            if rule.coded and not rule.delta:
                self._join(number, rule, order)
            elif rule.coded and self._read[number] != len(self._streams.get(2 * number + 1, b"")):
                raise ValueError("raw bits go on after the last row")

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
