"""Digits under a row coder: one entropy-coded stream a digit, the same evaluation in both directions.

The network sees *items*: a row of scalar columns, or one element of a vector. Items are handed over in the
order in which they are decoded; an item's contexts must be known before it, its digits are coded in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.codec.entropy import Decoder, Encoder, code_bits

if TYPE_CHECKING:
    from torch import Tensor

    from vae_model.integer import IntegerCoder

Digits = npt.NDArray[np.int16]
Mask = npt.NDArray[np.bool_]
ABSENT, UNKNOWN = -1, -2
CHUNK = 4096
"""Items that go through the network at once when encoding."""


@dataclass(frozen=True)
class DigitRule:
    """Which items have a digit in the stream.

    Attributes:
        coded: Whether the digit is in a stream at all; if not, it is known before its item is decoded.
        gate: An earlier digit that must be 0 for this one to be there, or -1.
    """

    coded: bool
    gate: int = -1


def is_open(rules: Sequence[DigitRule], digit: int, digits: Digits, absent: Mask) -> Mask:
    """The items whose digit `digit` is in the stream.

    Args:
        rules: The rule of every digit.
        digit: Which one.
        digits: Digits of the items as far as they are known, shape (items, digits).
        absent: Digits known to be absent, same shape.
    """
    there = ~absent[:, digit]
    gate = rules[digit].gate
    if gate >= 0:
        there &= digits[:, gate] == 0
    return there


class StreamEncoder:
    """Codes items, the last chunk first.

    Args:
        coder: The network.
        rules: The rule of every digit.
        measure: Whether to add up the ideal code length in `bits`.
    """

    def __init__(self, coder: IntegerCoder, rules: Sequence[DigitRule], measure: bool = False) -> None:
        self._coder, self._rules, self._measure = coder, rules, measure
        self._encoders = {number: Encoder() for number in coded_digits(coder, rules)}
        self.bits = np.zeros(len(rules))

    def push(self, contexts: npt.NDArray[np.int64], digits: Digits, absent: Mask) -> None:
        """Puts a chunk of items before those that were put so far.

        Args:
            contexts: Shape (items, contexts), -1 = absent.
            digits: Shape (items, digits), -1 = absent.
            absent: Where the decoder knows beforehand that a digit is absent.

        Raises:
            ValueError: If a digit is there or absent where its rule says otherwise.
        """
        import torch

        with torch.inference_mode():
            hidden = self._coder.start(torch.from_numpy(contexts).to(self._coder.device))
            values = torch.from_numpy(digits.astype(np.int64)).to(self._coder.device)
            for number in range(len(self._rules)):
                if number in self._encoders:
                    there = is_open(self._rules, number, digits, absent)
                    if not np.array_equal(there, digits[:, number] >= 0):
                        raise ValueError(f"digit {number} is not there where it should be")
                    self._put(hidden, values, number, there)
                self._coder.absorb(hidden, number, values[:, number])

    def _put(self, hidden: Tensor, values: Tensor, number: int, there: Mask) -> None:
        weights = _weights(self._coder, hidden, values, number, there)
        chosen = values[:, number].cpu().numpy()[there]
        self._encoders[number].push(chosen, weights)
        if self._measure:
            self.bits[number] += code_bits(chosen, weights)

    def to_bytes(self) -> dict[int, bytes]:
        """The stream of every coded digit."""
        return {number: encoder.to_bytes() for number, encoder in self._encoders.items()}


class StreamDecoder:
    """Reads items back, the first ones first.

    Args:
        coder: The network.
        rules: The rule of every digit.
        streams: The stream of every digit; one that is missing has no words.
        count: How many digits are wanted, from the first one; those after them are left alone.

    Raises:
        ValueError: If a stream is damaged.
    """

    def __init__(
        self, coder: IntegerCoder, rules: Sequence[DigitRule], streams: Mapping[int, bytes], count: int
    ) -> None:
        self._coder, self._rules, self._count = coder, rules, count
        wanted = [number for number in coded_digits(coder, rules) if number < count]
        self._decoders = {number: Decoder(streams.get(number, b"")) for number in wanted}

    def pull(self, contexts: npt.NDArray[np.int64], digits: Digits, absent: Mask) -> None:
        """Reads a chunk of items into `digits` (known digits are there already, others are -1)."""
        import torch

        with torch.inference_mode():
            hidden = self._coder.start(torch.from_numpy(contexts).to(self._coder.device))
            values = torch.from_numpy(digits.astype(np.int64)).to(self._coder.device)
            for number in range(self._count):
                if number in self._decoders:
                    there = is_open(self._rules, number, digits, absent)
                    weights = _weights(self._coder, hidden, values, number, there)
                    digits[there, number] = self._decoders[number].pull(weights)
                elif self._rules[number].coded:  # an alphabet of one
                    digits[is_open(self._rules, number, digits, absent), number] = 0
                values[:, number] = torch.from_numpy(digits[:, number].astype(np.int64)).to(values.device)
                if number + 1 < self._count:
                    self._coder.absorb(hidden, number, values[:, number])

    def finish(self) -> None:
        """Checks that every stream is read to its end.

        Raises:
            ValueError: If something is left.
        """
        for decoder in self._decoders.values():
            decoder.finish()


def coded_digits(coder: IntegerCoder, rules: Sequence[DigitRule]) -> list[int]:
    """The digits that have a stream: coded ones with more than one value."""
    return [number for number, rule in enumerate(rules) if rule.coded and coder.shape.digits[number] > 1]


def _weights(coder: IntegerCoder, hidden: Tensor, values: Tensor, number: int, there: Mask) -> npt.NDArray[np.float64]:
    """Probabilities of one digit for the items that have it."""
    import torch

    given = coder.shape.given[number]
    rows = None if there.all() else torch.from_numpy(np.flatnonzero(there)).to(hidden.device)
    part = hidden if rows is None else torch.index_select(hidden, 0, rows)
    chosen = None
    if given >= 0:
        chosen = (values[:, given] if rows is None else values[rows, given]).clamp(min=0)
    weights: npt.NDArray[np.float64] = coder.weights(part, number, chosen).cpu().numpy()
    return weights
