"""Parquet files whose footers and pages say what no writer says, made byte by byte."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Sequence
from typing import Any

MAGIC = b"PAR1"
INT32, INT64, BYTE_ARRAY = 1, 2, 6
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12

Field = tuple[int, int, Any]
"""Number, type and value of a Thrift field; a list's value is (element type, elements)."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    return varint((value << 1) ^ (value >> 63) if value >= 0 else ((-value) << 1) - 1)


def thrift(fields: Sequence[Field]) -> bytes:
    """A struct in Thrift's compact protocol."""
    out, last = bytearray(), 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) + _value(kind, value)
        last = number
    return bytes(out) + b"\0"


def _value(kind: int, value: Any) -> bytes:
    if kind in (_I32, _I64):
        return zigzag(value)
    if kind == _BINARY:
        return varint(len(value)) + value
    if kind == _STRUCT:
        return value if isinstance(value, bytes) else thrift(value)
    element, items, *claimed = value
    size = claimed[0] if claimed else len(items)
    head = bytes([size << 4 | element]) if size < 15 else bytes([0xF0 | element]) + varint(size)
    return head + b"".join(_value(element, item) for item in items)


def leaf(name: str, kind: int = INT64, repetition: int = 0) -> list[Field]:
    return [(1, _I32, kind), (3, _I32, repetition), (4, _BINARY, name.encode())]


def group(name: str, children: int, repetition: int = 0) -> list[Field]:
    return [(3, _I32, repetition), (4, _BINARY, name.encode()), (5, _I32, children)]


def chunk(
    name: str,
    values: int,
    offset: int = 4,
    size: int = 100,
    kind: int = INT64,
    codec: int = 0,
    unpacked: int | None = None,
) -> list[Field]:
    """A column chunk of a row group."""
    unpacked = size if unpacked is None else unpacked
    metadata: list[Field] = [
        (1, _I32, kind),
        (2, _LIST, (_I32, [0, 3])),
        (3, _LIST, (_BINARY, [name.encode()])),
        (4, _I32, codec),
        (5, _I64, values),
        (6, _I64, unpacked),
        (7, _I64, size),
        (9, _I64, offset),
    ]
    return [(2, _I64, offset), (3, _STRUCT, metadata)]


def row_group(rows: int, chunks: Sequence[Sequence[Field]], size: int = 100) -> list[Field]:
    return [(1, _LIST, (_STRUCT, chunks)), (2, _I64, size), (3, _I64, rows)]


def footer(schema: Sequence[Sequence[Field]], rows: int, groups: Any) -> bytes:
    groups = groups if isinstance(groups, tuple) else (_STRUCT, groups)
    return thrift([(1, _I32, 1), (2, _LIST, (_STRUCT, schema)), (3, _I64, rows), (4, _LIST, groups)])


def page(values: int, data: bytes, unpacked: int | None = None, stored: int | None = None) -> bytes:
    """A data page of plain values."""
    header: list[Field] = [(1, _I32, values), (2, _I32, 0), (3, _I32, 3), (4, _I32, 3)]
    sizes = (len(data) if unpacked is None else unpacked, len(data) if stored is None else stored)
    return thrift([(1, _I32, 0), (2, _I32, sizes[0]), (3, _I32, sizes[1]), (5, _STRUCT, header)]) + data


def parquet(body: bytes, foot: bytes, claimed: int | None = None) -> bytes:
    return MAGIC + body + foot + struct.pack("<I", len(foot) if claimed is None else claimed) + MAGIC


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def plain(rows: int = 3) -> bytes:
    """An honest file: one column of int64."""
    body = page(rows, struct.pack(f"<{rows}q", *range(rows)))
    return parquet(
        body, footer([group("schema", 1), leaf("x")], rows, [row_group(rows, [chunk("x", rows, size=len(body))])])
    )


HARMLESS = (
    "2**62 bytes uncompressed",
    "a chunk of another type",
    "a chunk of another column",
    "a page of two billion values",
)
"""Files that are read although they are wrong: what is wrong in them nobody needs."""


@functools.cache
def files() -> dict[str, bytes]:
    """Hostile files by what they are."""
    one, x = [group("schema", 1), leaf("x")], chunk("x", 3, size=200)
    honest = page(3, struct.pack("<3q", 1, 2, 3))
    found = {
        "nothing but magic": MAGIC + MAGIC,
        "a footer longer than the file": parquet(honest, footer(one, 3, []), 1 << 31),
        "a footer of zeros": parquet(honest, bytes(64)),
        "a footer of ones": parquet(honest, b"\xff" * 64),
        "lists of two billion elements": parquet(honest, footer(one, 3, (_STRUCT, [], (1 << 31) - 1))),
        "a schema of two billion elements": parquet(
            honest, thrift([(1, _I32, 1), (2, _LIST, (_STRUCT, one, (1 << 31) - 1)), (3, _I64, 3)])
        ),
        "a name of two gigabytes": parquet(
            honest, thrift([(1, _I32, 1), (2, _LIST, (_STRUCT, [b"\x48" + varint((1 << 31) - 1)]))])
        ),
        "minus one row": parquet(honest, footer(one, -1, [row_group(-1, [x])])),
        "groups that take each other back": parquet(honest, footer(one, 3, [row_group(5, [x]), row_group(-2, [x])])),
        "2**62 rows": parquet(honest, footer(one, 1 << 62, [row_group(1 << 62, [x])])),
        "2**63 rows in two groups": parquet(honest, footer(one, 0, [row_group(1 << 62, [x]), row_group(1 << 62, [x])])),
        "a billion rows in 200 bytes": parquet(honest, footer(one, 10**9, [row_group(10**9, [chunk("x", 10**9)])])),
        "a negative offset": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, offset=-5)])])),
        "an offset behind the end": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, offset=1 << 40)])])),
        "a chunk of 2**60 bytes": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, size=1 << 60)])])),
        "a chunk of minus a byte": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, size=-1)])])),
        "2**62 bytes uncompressed": parquet(
            honest, footer(one, 3, [row_group(3, [chunk("x", 3, unpacked=1 << 62)], 1 << 62)])
        ),
        "no column chunk": parquet(honest, footer(one, 3, [row_group(3, [])])),
        "a chunk of another type": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, kind=BYTE_ARRAY)])])),
        "a chunk of another column": parquet(honest, footer(one, 3, [row_group(3, [chunk("y", 3)])])),
        "a codec that does not exist": parquet(honest, footer(one, 3, [row_group(3, [chunk("x", 3, codec=99)])])),
        "two columns of one name": parquet(
            honest, footer([group("schema", 2), leaf("x"), leaf("x")], 3, [row_group(3, [x, x])])
        ),
        "no columns": parquet(honest, footer([group("schema", 0)], 3, [row_group(3, [])])),
        "an empty schema": parquet(honest, footer([], 0, [])),
        "a child that is missing": parquet(honest, footer([group("schema", 7), leaf("x")], 3, [row_group(3, [x])])),
        "minus one child": parquet(honest, footer([group("schema", -1), leaf("x")], 3, [row_group(3, [x])])),
        "two billion children": parquet(
            honest, footer([group("schema", (1 << 31) - 1), leaf("x")], 3, [row_group(3, [x])])
        ),
        "a name that is no text": parquet(
            honest,
            footer(
                [group("schema", 1), [(1, _I32, 2), (3, _I32, 0), (4, _BINARY, b"\xff\xfe")]], 3, [row_group(3, [x])]
            ),
        ),
        "a page of two gigabytes": _one_page(page(3, b"", unpacked=(1 << 31) - 1, stored=(1 << 31) - 1)),
        "a page of minus a byte": _one_page(page(3, b"", unpacked=-1, stored=-1)),
        "a page of minus one value": _one_page(page(-1, struct.pack("<3q", 1, 2, 3))),
        "a page of two billion values": _one_page(page((1 << 31) - 1, struct.pack("<3q", 1, 2, 3))),
        "a page that unpacks to less than it says": _one_page(
            page(3, gzip(bytes(24)), unpacked=(1 << 31) - 1), codec=2
        ),
        "a page that unpacks to more than it says": _one_page(page(3, gzip(bytes(1 << 24)), unpacked=24), codec=2),
        "a page header of garbage": _one_page(b"\xff" * 100),
    }
    for depth in (100, 2_000, 200_000):
        nested = [group(f"g{level}", 1) for level in range(depth)]
        found[f"a schema {depth:,} groups deep"] = parquet(honest, footer([*nested, leaf("x")], 0, []))
        lists = [group(f"g{level}", 1, 2 if level else 0) for level in range(depth)]
        found[f"a schema {depth:,} repeated groups deep"] = parquet(honest, footer([*lists, leaf("x")], 0, []))
    return found


def _one_page(body: bytes, rows: int = 3, codec: int = 0) -> bytes:
    schema = [group("schema", 1), leaf("x")]
    return parquet(body, footer(schema, rows, [row_group(rows, [chunk("x", rows, size=len(body), codec=codec)])]))
