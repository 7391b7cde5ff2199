"""The element coder over a block: a vector's elements under a small network that sees their neighbours.

Elements are coded in order; an element's contexts are the elements before it at fixed offsets (left, above), where
it stands, and what the VAE's decoder makes of the stored latents at that place. All rows of a block are decoded
side by side, element by element; one network serves all elements of a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.bits import pack_bits, packed_bytes, unpack_bits
from pipeline.codec.digits import Digits
from pipeline.codec.streams import ABSENT, CHUNK, DigitRule, StreamDecoder, StreamEncoder
from pipeline.codec.weights import Network
from vae_model.coder_shape import CoderShape

Bins = npt.NDArray[np.int64]
Levels = npt.NDArray[np.int16]
LEVELS = 256
"""Neighbours are seen as one of at most so many levels."""
GUIDE_SIZES = (256, 64)
"""Alphabets of what the VAE's decoder says of an element: its location as a level, its scale."""
MOST_POSITIONS = 4096
NEIGHBOURS = (
    *((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1)),
    *((0, -3), (-3, 0), (-2, -2), (-2, 2), (-1, -3), (-1, 3), (0, -4), (-3, -1), (-3, 1), (-4, 0)),
)
"""(rows, columns) from an element to its neighbours, the nearest first."""


@dataclass(frozen=True)
class Geometry:
    """Where an element stands and which elements before it it sees.

    Attributes:
        shape: (H, W, C); elements are in row-major order.
        neighbours: How many of `NEIGHBOURS` are seen, those of earlier channels apart.
    """

    shape: tuple[int, int, int]
    neighbours: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @cached_property
    def index(self) -> Bins:
        """For each element, the elements it sees, -1 = outside; shape (elements, neighbours)."""
        _, width, depth = self.shape
        number = np.arange(self.elements)
        row, column, channel = number // (width * depth), number // depth % width, number % depth
        columns = [np.where(channel >= back, number - back, -1) for back in range(1, min(depth, 3))]
        for down, right in NEIGHBOURS[: self.neighbours]:
            there = (row + down >= 0) & (column + right >= 0) & (column + right < width)
            columns.append(np.where(there, number + (down * width + right) * depth, -1))
        return np.stack(columns, 1) if columns else np.zeros((self.elements, 0), np.int64)

    @cached_property
    def positions(self) -> Bins:
        """For each element, where it stands, one number a context; shape (elements, positions)."""
        _, width, depth = self.shape
        number = np.arange(self.elements)
        parts = (number // (width * depth), number // depth % width, number % depth)
        return np.stack([np.minimum(place, MOST_POSITIONS - 1) for place in parts], 1)

    @property
    def position_sizes(self) -> tuple[int, ...]:
        """Alphabets of `positions`."""
        return tuple(min(size, MOST_POSITIONS) for size in self.shape)


@dataclass(frozen=True)
class ElementCoder:
    """A fitted element coder.

    Attributes:
        first: Index of the first element in `bins_BD`.
        bins: Number of bins of an element.
        digits: Digits of an element.
        geometry: Where elements stand.
        guided: Whether contexts have what the VAE's decoder says.
        network: The network.
    """

    first: int
    bins: int
    digits: Digits
    geometry: Geometry
    guided: bool
    network: Network

    @property
    def stop(self) -> int:
        """Index one past the last element."""
        return self.first + self.geometry.elements

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description, without the network."""
        return {
            "first": self.first,
            "bins": self.bins,
            "digits": self.digits.to_json(),
            "shape": list(self.geometry.shape),
            "neighbours": self.geometry.neighbours,
            "guided": self.guided,
            "hidden": self.network.shape.hidden,
            "knots": self.network.shape.knots,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> ElementCoder:
        """Rebuilds a coder from `to_json`'s result and its network's arrays.

        Raises:
            ValueError: If they do not fit (or LookupError, TypeError).
        """
        height, width, depth = data["shape"]
        geometry = Geometry((int(height), int(width), int(depth)), int(data["neighbours"]))
        digits, bins, guided = Digits.from_json(data["digits"]), int(data["bins"]), bool(data["guided"])
        shape = network_shape(geometry, digits, bins, guided, int(data["hidden"]), int(data["knots"]))
        return cls(int(data["first"]), bins, digits, geometry, guided, Network.from_arrays(shape, arrays))

    @property
    def _rules(self) -> list[DigitRule]:
        return [DigitRule(True)] * len(self.digits.alphabets)

    def encode(self, bins: Bins, guides: Levels | None) -> dict[int, bytes]:
        """Codes the elements of a block's ordinary rows.

        Args:
            bins: Elements of the rows that have some, shape (rows, elements), none absent.
            guides: What the VAE's decoder says, shape (rows, elements, 2); None without.

        Returns:
            The stream of digit d under d, raw bits under the number of digits.
        """
        return self._encode(bins, guides, False)[0]

    def measure(self, bins: Bins, guides: Levels | None) -> float:
        """The ideal code length of a block, raw bits included, in bits."""
        return self._encode(bins, guides, True)[1]

    def _encode(self, bins: Bins, guides: Levels | None, measure: bool) -> tuple[dict[int, bytes], float]:
        levels = levels_of(bins, self.bins)
        encoder = StreamEncoder(self.network.coder, self._rules, measure)
        raws: list[bytes] = []
        raw_bits = 0
        for element in range(bins.shape[1] - 1, -1, -1):
            digits, raw, widths = self.digits.split(bins[:, element])
            if raw is not None and widths is not None:
                raws.append(pack_bits(raw, widths))
                raw_bits += int(widths.sum())
            for start in range((len(bins) - 1) // CHUNK * CHUNK, -1, -CHUNK):
                rows = slice(start, start + CHUNK)
                contexts = contexts_of(self.geometry, levels[rows], element, None if guides is None else guides[rows])
                part = digits[rows].astype(np.int16)
                encoder.push(contexts, part, np.zeros(part.shape, np.bool_))
        streams = encoder.to_bytes()
        if raws:
            streams[len(self.digits.alphabets)] = b"".join(raws[::-1])
        return streams, float(encoder.bits.sum()) + raw_bits

    def decode(self, streams: Mapping[int, bytes], rows: int, guides: Levels | None) -> Bins:
        """Decodes what `encode` coded: elements of `rows` rows.

        Raises:
            ValueError: If a stream is damaged.
        """
        count = len(self.digits.alphabets)
        decoder = StreamDecoder(self.network.coder, self._rules, streams, count)
        raw_data, read = streams.get(count, b""), 0
        bins = np.zeros((rows, self.geometry.elements), np.int64)
        levels = np.full(bins.shape, ABSENT, np.int16)
        digits = np.full((rows, count), ABSENT, np.int16)
        for element in range(self.geometry.elements):
            digits[...] = ABSENT
            for start in range(0, rows, CHUNK):
                part = slice(start, start + CHUNK)
                contexts = contexts_of(self.geometry, levels[part], element, None if guides is None else guides[part])
                decoder.pull(contexts, digits[part], np.zeros(digits[part].shape, np.bool_))
            widths = self.digits.raw_widths(digits.astype(np.int64))
            size = packed_bytes(widths)
            raw = unpack_bits(raw_data[read : read + size], widths)
            read += size
            bins[:, element] = self.digits.join(digits.astype(np.int64), raw)
            levels[:, element] = levels_of(bins[:, element], self.bins)
        decoder.finish()
        if read != len(raw_data):
            raise ValueError("raw bits go on after the last element")
        return bins


def levels_of(bins: Bins, count: int) -> Levels:
    """Bins as levels 0 … 255."""
    return np.asarray(bins // max(1, -(-count // LEVELS)), np.int16)


def contexts_of(geometry: Geometry, levels: Levels, element: int, guides: Levels | None) -> Bins:
    """The contexts of one element for some rows, shape (rows, contexts)."""
    index = geometry.index[element]
    seen = levels[:, np.maximum(index, 0)].astype(np.int64)
    seen[:, index < 0] = ABSENT
    place = np.broadcast_to(geometry.positions[element], (len(levels), geometry.positions.shape[1]))
    parts = [seen, place]
    if guides is not None:
        parts.append(guides[:, element].astype(np.int64))
    return np.concatenate(parts, axis=1)


def network_shape(geometry: Geometry, digits: Digits, bins: int, guided: bool, hidden: int, knots: int) -> CoderShape:
    """The shape of the network that codes elements."""
    neighbours = geometry.index.shape[1]
    contexts = [min(LEVELS, bins)] * neighbours + list(geometry.position_sizes) + (list(GUIDE_SIZES) if guided else [])
    ordinal = [True] * neighbours + [False] * 3 + ([True, True] if guided else [])
    sizes = digits.alphabets
    given = tuple(place - 1 for place in range(len(sizes)))
    return CoderShape(
        tuple(contexts), tuple(ordinal), sizes, (not digits.singles, True)[: len(sizes)], given, hidden, knots
    )
