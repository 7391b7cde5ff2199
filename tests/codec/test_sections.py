"""Do sections come back as they were, and is every damaged cell noticed?"""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.sections import from_varint, pack_cell, to_varint, unpack_cell

KEYS = st.tuples(st.integers(0, 255), st.integers(0, 300) | st.integers(0, 2**40))
CELL = pack_cell({(4, 1): b"values", (0, 0): b"check", (4, 0): b"", (16, 300): bytes(200)})


@given(sections=st.dictionaries(KEYS, st.binary(max_size=300), max_size=8))
def test_do_sections_come_back(sections: dict[tuple[int, int], bytes]) -> None:
    cell = pack_cell(sections)
    assert dict(unpack_cell(cell)) == sections
    assert pack_cell(dict(reversed(sections.items()))) == cell
    assert len(cell) <= 10 + sum(13 + len(body) for body in sections.values())


def test_is_a_section_no_more_than_ten_bytes() -> None:
    few, more = ({(4, column): bytes(2000) for column in range(count)} for count in (20, 21))
    assert len(pack_cell(more)) - len(pack_cell(few)) - 2000 <= 10


def test_is_a_flipped_bit_noticed() -> None:
    for place in range(len(CELL)):
        for bit in range(8):
            damaged = bytearray(CELL)
            damaged[place] ^= 1 << bit
            with pytest.raises((ValueError, struct.error)):
                dict(unpack_cell(bytes(damaged)))


def test_is_a_truncated_or_extended_cell_noticed() -> None:
    for size in range(len(CELL)):
        with pytest.raises((ValueError, struct.error)):
            unpack_cell(CELL[:size])
        with pytest.raises(ValueError, match="bytes"):
            unpack_cell(CELL + bytes(size + 1))


def test_are_only_the_sections_that_are_read_checked() -> None:
    sections = unpack_cell(CELL[:-1] + b"\1")
    assert sections[4, 1] == b"values"
    with pytest.raises(ValueError, match=r"section .16, 300. fails"):
        sections[16, 300]
    with pytest.raises(KeyError):
        sections[5, 1]


@pytest.mark.parametrize(
    "directory",
    [
        to_varint(2) + 2 * (b"\4\0\0" + bytes(4)),
        to_varint(1) + b"\4\0" + to_varint(2**62) + bytes(4),
        to_varint(2**62),
        b"\xff" * 20,
        to_varint(1) + b"\4" + b"\x80" * 9 + b"\1\0" + bytes(4),
    ],
    ids=["twice the same", "long section", "many sections", "endless count", "large column"],
)
def test_is_a_hostile_directory_refused(directory: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        unpack_cell(b"PVX2" + struct.pack("<I", zlib.crc32(directory)) + directory)


@given(number=st.integers(0, 2**63 - 1), before=st.binary(max_size=3))
def test_do_varints_come_back(number: int, before: bytes) -> None:
    data = before + to_varint(number)
    assert from_varint(data + b"\1", len(before)) == (number, len(data))
    with pytest.raises(ValueError, match="cut short"):
        from_varint(data[:-1], len(before))
