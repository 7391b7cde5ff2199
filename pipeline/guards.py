"""Checksums of a part's raw bytes, checked before any of them reaches a Parquet reader.

A part's guards are the CRC-32 of its footer (from its first byte to the end of the file) and of every column
chunk, row group by row group, as little-endian 32-bit numbers. So a few columns of a few blocks can be read from
a large part without reading the rest, and damaged bytes never meet native code.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Location

_TAIL = struct.Struct("<I4s")
_MAGIC = b"PAR1"
_MARK = re.compile(rb"parvae-part (\d+)\.(\d+) ([0-9a-f]{32}) ")


def seal(path: str) -> tuple[bytes, str, int, pq.FileMetaData]:
    """Guards, SHA-256, size and footer of a part that was just written to a local file."""
    with open(path, "rb") as stream:
        data = stream.read()
    footer, view = pq.read_metadata(path), memoryview(data)
    checks = [zlib.crc32(view[_footer_start(data[-_TAIL.size :], len(data)) :])]
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            start, size = chunk_range(footer, group, column)
            checks.append(zlib.crc32(view[start : start + size]))
    return struct.pack(f"<{len(checks)}I", *checks), hashlib.sha256(data).hexdigest(), len(data), footer


def chunk_range(footer: pq.FileMetaData, group: int, column: int) -> tuple[int, int]:
    """First byte and number of bytes of a column chunk, its page headers included."""
    chunk = footer.row_group(group).column(column)
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    return start, chunk.total_compressed_size


class WholePart:
    """The bytes of a part, read at once and checked by its SHA-256.

    Args:
        location: The part.
        size: Bytes that it must have.
        sha256: Its checksum.
        guards: Its guards, which tell where a damaged one is damaged.

    Raises:
        ValueError: If the part is damaged.
        OSError: If it cannot be read.
    """

    def __init__(self, location: Location, size: int, sha256: str, guards: bytes) -> None:
        found = location.stat().size
        if found != size:
            raise ValueError(f"it has {found} bytes, the manifest says {size}")
        self._data = location.read_bytes()
        if hashlib.sha256(self._data).hexdigest() != sha256:
            raise ValueError(explain(self._data, guards))
        self.footer: pq.FileMetaData = pq.read_metadata(pa.BufferReader(self._data))

    def file(self, group: int, columns: Sequence[int]) -> pq.ParquetFile:
        """The part as an open file in which some columns of a row group may be read."""
        return pq.ParquetFile(
            pa.BufferReader(self._data), metadata=self.footer, page_checksum_verification=True, pre_buffer=False
        )

    def close(self) -> None:
        """Lets go of the bytes."""
        self._data = b""


class SparsePart:
    """A part of which only the footer and the column chunks that are wanted are read.

    Args:
        location: The part.
        size: Bytes that it must have.
        guards: Its guards.

    Raises:
        ValueError: If the footer is damaged.
        OSError: If it cannot be read.
    """

    def __init__(self, location: Location, size: int, guards: bytes) -> None:
        found = location.stat().size
        if found != size:
            raise ValueError(f"it has {found} bytes, the manifest says {size}")
        self._stream, self._size = location.open(), size
        try:
            self._checks = struct.unpack(f"<{len(guards) // 4}I", guards)
            start = _footer_start(self._read(max(0, size - _TAIL.size), _TAIL.size), size)
            data = self._read(start, size - start)
            if zlib.crc32(data) != self._checks[0]:
                raise ValueError(_foreign(data) or "its footer fails its checksum")
            self.footer: pq.FileMetaData = pq.read_metadata(pa.BufferReader(_MAGIC + data))
            if len(self._checks) != 1 + self.footer.num_row_groups * self.footer.num_columns:
                raise ValueError("its column chunks are not those that have checksums")
        except BaseException:
            self._stream.close()
            raise

    def file(self, group: int, columns: Sequence[int]) -> pq.ParquetFile:
        """The part as an open file in which some columns of a row group may be read.

        Raises:
            ValueError: If one of them is damaged.
        """
        mirror = np.zeros(self._size, np.uint8)  # pages that are never written take no memory
        for column in columns:
            start, size = chunk_range(self.footer, group, column)
            chunk = self._read(start, size)
            if zlib.crc32(chunk) != self._checks[1 + group * self.footer.num_columns + column]:
                name = self.footer.row_group(group).column(column).path_in_schema
                raise ValueError(f"column {name!r} fails its checksum")
            mirror[start : start + size] = np.frombuffer(chunk, np.uint8)
        return pq.ParquetFile(
            pa.BufferReader(pa.py_buffer(mirror)),
            metadata=self.footer,
            page_checksum_verification=True,
            pre_buffer=False,
        )

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def _read(self, start: int, size: int) -> bytes:
        self._stream.seek(start)
        data: bytes = self._stream.read(size)
        if len(data) != size:
            raise ValueError("it is cut short")
        return data


def explain(data: bytes, guards: bytes) -> str:
    """Where a part whose SHA-256 is wrong differs from what was written."""
    checks = struct.unpack(f"<{len(guards) // 4}I", guards[: len(guards) // 4 * 4])
    view = memoryview(data)
    try:
        start = _footer_start(data[-_TAIL.size :], len(data))
    except ValueError as error:
        return str(error)
    if not checks or zlib.crc32(view[start:]) != checks[0]:
        return _foreign(data[start:]) or "its footer fails its checksum"
    footer = pq.read_metadata(pa.BufferReader(data))
    for number, check in enumerate(checks[1:]):
        group, column = divmod(number, footer.num_columns)
        first, size = chunk_range(footer, group, column)
        if zlib.crc32(view[first : first + size]) != check:
            name = footer.row_group(group).column(column).path_in_schema
            return f"column {name!r} of block {group} fails its checksum"
    return "its bytes fail their checksum"


def mark(version: tuple[int, int], plan: str, bundle: str, codec: str | None, unit: int) -> str:
    """The line in a part's footer that says where it belongs."""
    return f"parvae-part {version[0]}.{version[1]} {plan[:32]} {bundle[:32]} {(codec or '-')[:32]} {unit}"


def same_mark(found: str, expected: str) -> bool:
    """Whether two lines of `mark` say the same place, in formats of one major version."""
    ours, theirs = expected.split(" "), found.split(" ")
    versions = [line[1].split(".")[0] for line in (ours, theirs) if len(line) == len(ours)]
    return len(versions) == 2 and versions[0] == versions[1] and [ours[0], *ours[2:]] == [theirs[0], *theirs[2:]]


def _foreign(footer: bytes) -> str:
    """What a footer that is not the expected one says of itself."""
    found = _MARK.search(footer)
    if found is None:
        return ""
    return f"it belongs to another archive (format {int(found[1])}.{int(found[2])}, plan {found[3].decode()[:12]}…)"


def _footer_start(tail: bytes, size: int) -> int:
    """Where the footer begins.

    Raises:
        ValueError: If the file does not end like a Parquet file.
    """
    if len(tail) != _TAIL.size:
        raise ValueError("it is too short for a Parquet file")
    length, magic = _TAIL.unpack(tail)
    if magic != _MAGIC or length > size - _TAIL.size - len(_MAGIC):
        raise ValueError("it does not end like a Parquet file")
    return int(size - _TAIL.size - length)
