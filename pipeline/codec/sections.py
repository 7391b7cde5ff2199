"""The cell of a block: named byte sections, each with its own checksum, read one by one.

```
cell        "PVX2" · CRC-32 of the directory (4) · directory · the sections' bytes, in the directory's order
directory   number of sections · for each: role (1) · column · length · CRC-32 (4)
```

Counts, columns and lengths are varints (7 bits a byte, lowest first); checksums are little-endian. Sections stand
in the ascending order of their keys.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import TypeAlias

Key: TypeAlias = tuple[int, int]
"""Role (0 to 255), and index of the column among the modelled ones."""

CHECKS, STATES, EXACT, SYMBOLS, VALUES = range(5)
"""Roles: checksums of the bins; states told apart; exactly stored values; state symbols; value symbols."""
FIRST_MODEL_ROLE = 16
"""This role and those above belong to the networks."""

_MAGIC = b"PVX2"
_CRC = struct.Struct("<I")


def pack_cell(sections: Mapping[Key, bytes]) -> bytes:
    """Packs sections into a cell; the same sections give the same bytes in whatever order they come.

    Raises:
        ValueError: If a key is out of range.
    """
    ordered = sorted(sections.items())
    directory = bytearray(to_varint(len(ordered)))
    for (role, column), body in ordered:
        directory += bytes([role]) + to_varint(column) + to_varint(len(body)) + _CRC.pack(zlib.crc32(body))
    head = _MAGIC + _CRC.pack(zlib.crc32(directory))
    return b"".join([head, directory, *(body for _, body in ordered)])


def unpack_cell(cell: bytes) -> Sections:
    """The sections of a cell; the checksum of each is checked when it is read.

    Raises:
        ValueError: If the directory is damaged or the cell has another length than it says (or `struct.error`).
    """
    if cell[:4] != _MAGIC:
        raise ValueError("a cell does not start with its magic")
    (expected,) = _CRC.unpack_from(cell, 4)
    count, place = from_varint(cell, 8)
    entries: dict[Key, tuple[int, int]] = {}
    last: Key = (-1, -1)
    for _ in range(count):
        if place >= len(cell):
            raise ValueError("the directory of a cell is cut short")
        role = cell[place]
        column, place = from_varint(cell, place + 1)
        size, place = from_varint(cell, place)
        (crc,) = _CRC.unpack_from(cell, place)
        place += _CRC.size
        if (role, column) <= last:
            raise ValueError("the sections of a cell are out of order")
        last = (role, column)
        entries[last] = (size, crc)
    if zlib.crc32(memoryview(cell)[8:place]) != expected:
        raise ValueError("the directory of a cell fails its checksum")
    if place + sum(size for size, _ in entries.values()) != len(cell):
        raise ValueError(f"a cell has {len(cell)} bytes, not as many as its directory says")
    return Sections(cell, place, entries)


class Sections(Mapping[Key, bytes]):
    """The sections of a cell by their keys.

    Args:
        cell: The cell.
        start: Where its first section starts.
        entries: Key → length and CRC-32, in the order of the sections.
    """

    def __init__(self, cell: bytes, start: int, entries: Mapping[Key, tuple[int, int]]) -> None:
        self._cell = cell
        self._entries: dict[Key, tuple[int, int, int]] = {}
        for key, (size, crc) in entries.items():
            self._entries[key] = (start, size, crc)
            start += size

    def __getitem__(self, key: Key) -> bytes:
        """The bytes of a section.

        Raises:
            KeyError: If there is no such section.
            ValueError: If it fails its checksum.
        """
        start, size, crc = self._entries[key]
        body = self._cell[start : start + size]
        if zlib.crc32(body) != crc:
            raise ValueError(f"section {key} fails its checksum")
        return body

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def to_varint(number: int) -> bytes:
    """A number of at least 0, 7 bits a byte, lowest first."""
    if number < 0:
        raise ValueError(f"{number} is below 0")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def from_varint(data: bytes, place: int) -> tuple[int, int]:
    """The number that starts at a place, and the place after it.

    Raises:
        ValueError: If the bytes end in it, or if it is 2^63 or more.
    """
    number = 0
    for shift in range(0, 63, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("a number is cut short or too large")
