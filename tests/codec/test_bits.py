"""Do numbers of any width come back from their bits?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec.bits import pack_bits, packed_bytes, unpack_bits

NUMBERS = st.lists(st.integers(0, 64).flatmap(lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w))), max_size=60)


def as_arrays(numbers: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v for v, _ in numbers], np.uint64), np.array([w for _, w in numbers], np.uint8)


@given(numbers=NUMBERS)
def test_do_numbers_come_back(numbers: list[tuple[int, int]]) -> None:
    values, widths = as_arrays(numbers)
    data = pack_bits(values, widths)
    assert len(data) == packed_bytes(widths) == -(-sum(w for _, w in numbers) // 8)
    np.testing.assert_array_equal(unpack_bits(data, widths), values)


@given(numbers=NUMBERS, extra=st.binary(min_size=1, max_size=3))
def test_are_bytes_of_another_length_refused(numbers: list[tuple[int, int]], extra: bytes) -> None:
    values, widths = as_arrays(numbers)
    data = pack_bits(values, widths)
    for damaged in (data + extra, data[:-1] if data else extra):
        with pytest.raises(ValueError, match="bytes of raw bits"):
            unpack_bits(damaged, widths)


def test_what_is_written() -> None:
    values, widths = np.array([5, 1, 2, 300], np.uint64), np.array([3, 0, 3, 9], np.uint8)
    assert pack_bits(values, widths) == bytes([0b101_010_10, 0b0101100_0])
    with pytest.raises(ValueError, match="do not end in zeros"):
        unpack_bits(bytes([0b101_010_10, 0b0101100_1]), widths)


def test_are_impossible_widths_refused() -> None:
    with pytest.raises(ValueError, match="65 bits"):
        pack_bits(np.zeros(1, np.uint64), np.array([65], np.uint8))
    with pytest.raises(ValueError, match="65 bits"):
        unpack_bits(b"", np.array([65], np.uint8))
    with pytest.raises(ValueError, match="widths"):
        pack_bits(np.zeros(2, np.uint64), np.zeros(1, np.uint8))
