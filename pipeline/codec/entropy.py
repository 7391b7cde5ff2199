"""Entropy coding: digits ↔ 32-bit words under whole-number probabilities (ANS, Duda 2013, by `constriction`).

`constriction` gets float64 weights that are whole numbers, at least 1 each, with sums below 2^53, and
`perfect=False`: its own arithmetic is then the same on every machine. Decoding is last in, first out, so an
encoder is fed from the end to the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import constriction
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]
_RATIOS = 32
_LONGEST_TAIL = 127
_SCALE = 1 << 40


class Encoder:
    """Codes runs of digits, the last run first."""

    def __init__(self) -> None:
        self._coder = constriction.stream.stack.AnsCoder()
        self._family = constriction.stream.model.Categorical(perfect=False)

    def push(self, digits: npt.NDArray[np.int64], weights: Weights) -> None:
        """Puts a run before everything that was put so far.

        Args:
            digits: n digits.
            weights: Whole numbers, shape (n, alphabet).
        """
        if len(digits):
            self._coder.encode_reverse(digits.astype(np.int32), self._family, np.ascontiguousarray(weights))

    def to_bytes(self) -> bytes:
        """The words so far, little-endian."""
        data: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return data


class Decoder:
    """Reads the runs back, the first one first.

    Args:
        data: What `Encoder.to_bytes` gave.

    Raises:
        ValueError: If the bytes cannot be an encoder's.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise ValueError(f"a coded stream has whole 32-bit words, found {len(data)} bytes")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        if len(words) and words[-1] == 0:
            raise ValueError("a coded stream ends in a zero word")
        self._coder = constriction.stream.stack.AnsCoder(words)
        self._family = constriction.stream.model.Categorical(perfect=False)

    def pull(self, weights: Weights) -> npt.NDArray[np.int64]:
        """Reads a run of as many digits as there are rows of weights."""
        if not len(weights):
            return np.zeros(0, np.int64)
        return np.asarray(self._coder.decode(self._family, np.ascontiguousarray(weights)), np.int64)

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            ValueError: If something is.
        """
        if not self._coder.is_empty():
            raise ValueError("a coded stream goes on after its last digit")


def code_bits(digits: npt.NDArray[np.int64], weights: Weights) -> float:
    """The ideal code length of digits under weights, in bits."""
    chosen = np.take_along_axis(weights, digits[:, None], 1)[:, 0]
    return float(np.log2(weights.sum(1) / chosen).sum())


def pack_integers(groups: Sequence[npt.NDArray[np.int16]]) -> tuple[npt.NDArray[np.uint8], Words]:
    """Codes groups of small whole numbers (-127 … 127), each under the best two-sided geometric distribution.

    Returns:
        Two parameters a group, shape (groups, 2), and the coded words.
    """
    parameters = np.zeros((len(groups), 2), np.uint8)
    tables = _geometric_tables()
    bits = np.log2(tables.sum(-1, keepdims=True) / tables)
    for number, group in enumerate(groups):
        counts = np.bincount(group.astype(np.int64).ravel() + _LONGEST_TAIL, minlength=2 * _LONGEST_TAIL + 1)
        parameters[number] = np.unravel_index(int(np.argmin(bits @ counts)), bits.shape[:2])
    encoder = Encoder()
    for group, (zero, ratio) in zip(reversed(groups), reversed(parameters), strict=True):
        digits = group.astype(np.int64).ravel() + _LONGEST_TAIL
        encoder.push(digits, np.broadcast_to(tables[zero, ratio], (len(digits), tables.shape[-1])))
    return parameters, np.frombuffer(encoder.to_bytes(), "<u4").astype(np.uint32)


def unpack_integers(
    sizes: Sequence[int], parameters: npt.NDArray[np.uint8], words: Words
) -> list[npt.NDArray[np.int16]]:
    """What `pack_integers` packed, as flat arrays of the given sizes.

    Raises:
        ValueError: If the parts do not belong together.
    """
    tables = _geometric_tables()
    if parameters.shape != (len(sizes), 2) or (parameters >= _RATIOS).any():
        raise ValueError("the parameters of a coder's weights are damaged")
    decoder = Decoder(words.astype("<u4").tobytes())
    groups = []
    for size, (zero, ratio) in zip(sizes, parameters, strict=True):
        weights = np.broadcast_to(tables[zero, ratio], (size, tables.shape[-1]))
        groups.append((decoder.pull(weights) - _LONGEST_TAIL).astype(np.int16))
    decoder.finish()
    return groups


@cache
def _geometric_tables() -> npt.NDArray[np.float64]:
    """Weights of -127 … 127 for every pair of parameters, by whole-number arithmetic, shape (32, 32, 255)."""
    tables = np.zeros((_RATIOS, _RATIOS, 2 * _LONGEST_TAIL + 1))
    for ratio in range(_RATIOS):
        tail = [_SCALE]
        for _ in range(_LONGEST_TAIL - 1):
            tail.append(max(1, tail[-1] * ratio // _RATIOS))
        for zero in range(_RATIOS):
            # the share of zeros is (2 zero + 1) / 64
            centre = max(1, 2 * sum(tail) * (2 * zero + 1) // (2 * _RATIOS - 2 * zero - 1))
            tables[zero, ratio] = [*tail[::-1], centre, *tail]
    return tables
