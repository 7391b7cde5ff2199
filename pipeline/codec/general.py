"""General tools on one column's numbers: pcodec, xz, and a constant.

Symbols are kept in the smallest unsigned dtype that holds them. Coded symbols are

```
form (1) · body        form 0: all symbols are one, the body is that number as a varint
                       else 8·tool + 4·transposed + log2(bytes of a number), tool 1 = pcodec, 2 = xz
```

so they are decoded without knowing the method that made them; no numbers are no bytes. Both tools are told the
dtype and the count, and write neither: pcodec in its wrapped format, in chunks of at most 2^18 numbers, with the
length of each chunk as a varint before it where there are several; xz as a raw LZMA2 stream.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, PagingSpec, wrapped

from pipeline.codec.sections import from_varint, to_varint

Numbers = npt.NDArray[Any]

SYMBOL_METHODS = ("const", "pco", "pco_t", "xz", "xz_t")
"""Methods on symbols; `_t` goes through a matrix column by column."""
RAW_METHODS = ("pco_raw", "xz_raw")
"""Methods on the original floats of a column whose grid gives every float back bit for bit."""

_PCO, _XZ = 1, 2
_LEVEL = 8
_CHUNK = 1 << 18
_PRESET = 6
_LARGEST_WINDOW = 8 << 20


def encode(method: str, symbols: npt.NDArray[Any]) -> bytes:
    """Codes symbols.

    Args:
        method: One of `SYMBOL_METHODS`; symbols that are all one are coded as a constant by any of them, and
            "const" codes others as "pco".
        symbols: rows × width integers of at least 0.

    Raises:
        ValueError: If the method is unknown or a symbol is below 0.
    """
    if method not in SYMBOL_METHODS:
        raise ValueError(f"unknown method {method!r}")
    if not symbols.size:
        return b""
    first, low, high = int(symbols.flat[0]), int(symbols.min()), int(symbols.max())
    if low < 0:
        raise ValueError("symbols below 0 cannot be coded")
    if low == high:
        return b"\0" + to_varint(first)
    tool = _XZ if method.startswith("xz") else _PCO
    transposed = method.endswith("_t")
    size = next(log for log in range(4) if high < 1 << (8 << log))
    if tool == _PCO:
        size = max(size, 1)
    numbers = (symbols.T if transposed else symbols).astype(f"<u{1 << size}").reshape(-1)
    return bytes([8 * tool + 4 * transposed + size]) + compress(tool == _PCO, numbers)


def decode(data: bytes, rows: int, width: int, alphabet: int) -> npt.NDArray[np.int64]:
    """Decodes what `encode` coded.

    Args:
        data: The coded symbols.
        rows: Rows that there are.
        width: Symbols of a row.
        alphabet: Number of values that a symbol may have.

    Returns:
        rows × width symbols.

    Raises:
        ValueError: If the bytes are no such symbols (or `lzma.LZMAError`).
    """
    count = rows * width
    if not data:
        if count:
            raise ValueError(f"no bytes for {count} symbols")
        return np.zeros((rows, width), np.int64)
    form = data[0]
    if form == 0:
        number, end = from_varint(data, 1)
        if not count or end != len(data) or number >= alphabet:
            raise ValueError("a constant is damaged")
        return np.full((rows, width), number, np.int64)
    tool, transposed, size = form >> 3, bool(form & 4), form & 3
    if tool not in (_PCO, _XZ) or (tool == _PCO and size == 0) or not count:
        raise ValueError(f"unknown form {form} of {count} symbols")
    numbers = decompress(tool == _PCO, data[1:], np.dtype(f"<u{1 << size}"), count)
    if int(numbers.max()) >= alphabet:
        raise ValueError(f"symbol {int(numbers.max())} of {alphabet}")
    symbols = numbers.astype(np.int64)
    return symbols.reshape(width, rows).T if transposed else symbols.reshape(rows, width)


def encode_raw(method: str, floats: Numbers) -> bytes:
    """Codes floats bit for bit, in the order in which they lie in memory.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in RAW_METHODS:
        raise ValueError(f"unknown method {method!r}")
    return compress(method == "pco_raw", np.ascontiguousarray(floats).reshape(-1)) if floats.size else b""


def decode_raw(method: str, data: bytes, rows: int, width: int, dtype: np.dtype[Any]) -> Numbers:
    """Decodes what `encode_raw` coded.

    Raises:
        ValueError: If the method is unknown or the bytes are no such floats (or `lzma.LZMAError`).
    """
    if method not in RAW_METHODS:
        raise ValueError(f"unknown method {method!r}")
    if not rows * width:
        if data:
            raise ValueError("bytes for no floats")
        return np.zeros((rows, width), dtype)
    return decompress(method == "pco_raw", data, dtype, rows * width).reshape(rows, width)


def choices(symbols: npt.NDArray[np.int64], floats: Numbers | None = None) -> dict[str, int]:
    """Bytes that every method takes.

    Args:
        symbols: rows × width numbers of at least 0.
        floats: The original floats, if the column's grid gives every float back bit for bit.

    Returns:
        Method → bytes, in the order of the methods; `_t` only for matrices, "const" only where all symbols are one.
    """
    methods = [method for method in SYMBOL_METHODS[1:] if symbols.shape[1] > 1 or not method.endswith("_t")]
    if not symbols.size or (symbols == symbols.flat[0]).all():
        sizes = dict.fromkeys(["const", *methods], len(encode("const", symbols)))
    else:
        sizes = {method: len(encode(method, symbols)) for method in methods}
    if floats is not None:
        sizes |= {method: len(encode_raw(method, floats)) for method in RAW_METHODS}
    return sizes


def compress(pco: bool, numbers: Numbers) -> bytes:
    """Compresses at least one number by pcodec or xz; `decompress` must be told dtype and count."""
    if not pco:
        return to_xz(np.ascontiguousarray(numbers).tobytes())
    file = wrapped.FileCompressor()
    chunks = []
    for chunk in np.array_split(np.ascontiguousarray(numbers), _chunks(len(numbers))):
        paging = PagingSpec.exact_page_sizes([len(chunk)])
        compressor = file.chunk_compressor(chunk, ChunkConfig(compression_level=_LEVEL, paging_spec=paging))
        chunks.append(compressor.write_meta() + compressor.write_page(0))
    sizes = [to_varint(len(chunk)) for chunk in chunks] if len(chunks) > 1 else [b""]
    return bytes(file.write_header()) + b"".join(part for pair in zip(sizes, chunks, strict=True) for part in pair)


def decompress(pco: bool, data: bytes, dtype: np.dtype[Any], count: int) -> Numbers:
    """The `count` > 0 numbers of a dtype that `compress` compressed.

    Raises:
        ValueError: If the bytes are not exactly so many numbers (or `lzma.LZMAError`).
    """
    if not pco:
        return np.frombuffer(from_xz(data, count * dtype.itemsize), dtype)
    numbers = np.empty(count, dtype)
    parts = np.array_split(numbers, _chunks(count))
    file, place = _native(lambda: wrapped.FileDecompressor.new(data))
    for part in parts:
        size = len(data) - place
        if len(parts) > 1:
            size, place = from_varint(data, place)
        _read_chunk(file, data[place : place + size], part)
        place += size
    if place != len(data):
        raise ValueError(f"{len(data)} bytes of pcodec instead of {place}")
    return numbers


def to_xz(data: bytes) -> bytes:
    """A raw LZMA2 stream; `from_xz` must be told the length of `data`."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data)))


def from_xz(data: bytes, size: int) -> bytes:
    """The `size` bytes that `to_xz` compressed.

    Raises:
        ValueError: If they are not so many (or `lzma.LZMAError`).
    """
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(size))
    out = decompressor.decompress(data, size + 1)
    if len(out) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"a stream is not {size} bytes of xz")
    return out


def _filters(size: int) -> list[dict[str, int]]:
    """What both sides agree on: no window is larger than the data."""
    window = min(_LARGEST_WINDOW, max(4096, 1 << (size - 1).bit_length() if size else 0))
    return [{"id": lzma.FILTER_LZMA2, "preset": _PRESET, "dict_size": window}]


def _chunks(count: int) -> int:
    return -(-count // _CHUNK)


def _read_chunk(file: Any, data: bytes, part: Numbers) -> None:
    name = f"{part.dtype.kind}{8 * part.dtype.itemsize}"
    chunk, start = _native(lambda: file.chunk_decompressor(data, name))
    progress, read = _native(lambda: chunk.read_page_into(data[start:], len(part), part))
    if progress.n_processed != len(part) or not progress.finished or start + read != len(data):
        raise ValueError(f"pcodec gave {progress.n_processed} of {len(part)} numbers")


def _native(call: Callable[[], Any]) -> Any:
    """Calls pcodec; whatever goes wrong there, a panic of its native code included, becomes a ValueError."""
    try:
        return call()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"pcodec: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"pcodec: {error}") from error
