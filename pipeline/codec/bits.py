"""Numbers in as many bits as each is said to take.

The numbers of one width stand together, in their order, the narrower widths first; each is written highest bit
first. Zeros fill the last byte.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_BITS = 64


def packed_bytes(widths: npt.NDArray[np.uint8]) -> int:
    """Bytes that numbers of these widths take.

    Raises:
        ValueError: If a width is above 64.
    """
    if len(widths) and int(widths.max()) > MOST_BITS:
        raise ValueError(f"a number cannot take {int(widths.max())} bits")
    return (int(widths.sum(dtype=np.int64)) + 7) // 8


def pack_bits(values: npt.NDArray[np.uint64], widths: npt.NDArray[np.uint8]) -> bytes:
    """Packs numbers.

    Args:
        values: The numbers; bits above the width of each are left out.
        widths: Bits of each, 0 to 64.

    Raises:
        ValueError: If a width is above 64, or there are not as many widths as numbers.
    """
    if values.shape != widths.shape or values.ndim != 1:
        raise ValueError(f"{values.shape} numbers and {widths.shape} widths")
    packed_bytes(widths)
    parts = [
        np.unpackbits(_bytes_of(values[widths == width], size), axis=1)[:, 8 * size - width :].reshape(-1)
        for width, size in _widths(widths)
    ]
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def unpack_bits(data: bytes, widths: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Unpacks what `pack_bits` packed.

    Args:
        data: The packed numbers.
        widths: Bits of each number.

    Raises:
        ValueError: If the bytes are not exactly those of so many numbers.
    """
    if len(data) != packed_bytes(widths):
        raise ValueError(f"{len(data)} bytes of raw bits instead of {packed_bytes(widths)}")
    total = int(widths.sum(dtype=np.int64))
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[total:].any():
        raise ValueError("raw bits do not end in zeros")
    values = np.zeros(len(widths), np.uint64)
    start = 0
    for width, size in _widths(widths):
        there = np.flatnonzero(widths == width)
        stop = start + len(there) * width
        padded = np.zeros((len(there), 8 * size), np.uint8)
        padded[:, 8 * size - width :] = bits[start:stop].reshape(-1, width)
        wide = np.zeros((len(there), 8), np.uint8)
        wide[:, 8 - size :] = np.packbits(padded, axis=1)
        values[there] = wide.view(">u8").reshape(-1)
        start = stop
    return values


def _widths(widths: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """The widths above 0 that there are, and the bytes that hold a number of each."""
    found = np.flatnonzero(np.bincount(widths, minlength=1)).tolist()
    return [(width, (width + 7) // 8) for width in found if width]


def _bytes_of(values: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.uint8]:
    """The lowest bytes of numbers, highest first: n × size."""
    return np.ascontiguousarray(values.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - size :])
