"""Do the general tools give numbers back bit for bit, and refuse what is not theirs?"""

from __future__ import annotations

import lzma
import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.codec import general
from pipeline.codec.general import RAW_METHODS, SYMBOL_METHODS

LIMITS = st.sampled_from([1, 2, 200, 256, 257, 2**16, 2**16 + 1, 2**32 + 1, 2**62])
DAMAGE = (ValueError, lzma.LZMAError)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bins = draw(LIMITS)
    shape = draw(st.tuples(st.integers(0, 40), st.integers(1, 4)))
    return draw(hnp.arrays(np.int64, shape, elements=st.integers(0, bins - 1))), bins


@pytest.mark.parametrize("method", SYMBOL_METHODS)
@given(case=matrices())
def test_do_symbols_come_back(method: str, case: tuple[np.ndarray, int]) -> None:
    symbols, bins = case
    data = general.encode(method, symbols)
    assert general.encode(method, np.asfortranarray(symbols)) == data
    found = general.decode(data, *symbols.shape, bins)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, symbols)
    if symbols.size:
        with pytest.raises(ValueError, match=r"symbol|constant"):
            general.decode(data, *symbols.shape, int(symbols.max()))
        with pytest.raises(DAMAGE):
            general.decode(data, 0, symbols.shape[1], bins)
    else:
        with pytest.raises(DAMAGE):
            general.decode(data, 1, symbols.shape[1], bins)


@pytest.mark.parametrize("method", RAW_METHODS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(data=st.data())
def test_do_floats_come_back_bit_for_bit(method: str, dtype: type[Any], data: st.DataObject) -> None:
    patterns = hnp.arrays(f"u{np.dtype(dtype).itemsize}", st.tuples(st.integers(0, 30), st.integers(1, 3)))
    floats = data.draw(patterns).view(dtype)
    if floats.size:
        floats.flat[0] = -0.0
    coded = general.encode_raw(method, floats)
    found = general.decode_raw(method, coded, *floats.shape, floats.dtype)
    assert found.dtype == floats.dtype
    assert found.tobytes() == floats.tobytes()


@pytest.mark.parametrize("method", ["pco", "pco_t", "xz"])
def test_do_many_numbers_come_back(method: str) -> None:
    symbols = np.random.default_rng(0).integers(0, 50, (200_001, 3))
    data = general.encode(method, symbols)
    np.testing.assert_array_equal(general.decode(data, 200_001, 3, 50), symbols)
    assert general.encode(method, symbols) == data
    with pytest.raises(DAMAGE):
        general.decode(data[:-1], 200_001, 3, 50)
    with pytest.raises(DAMAGE):
        general.decode(data, 200_002, 3, 50)


def test_what_the_choices_are() -> None:
    rng = np.random.default_rng(0)
    ramp = np.arange(3000).reshape(-1, 3)
    sizes = general.choices(ramp, rng.normal(size=(1000, 3)))
    assert sizes.keys() == {"pco", "pco_t", "xz", "xz_t", "pco_raw", "xz_raw"}
    assert all(sizes[method] == len(general.encode(method, ramp)) for method in ("pco", "pco_t", "xz", "xz_t"))
    assert general.choices(ramp[:, :1]).keys() == {"pco", "xz"}
    assert general.choices(np.full((1000, 1), 300)) == {"const": 3, "pco": 3, "xz": 3}
    assert general.choices(np.zeros((0, 1), np.int64))["const"] == 0


def test_are_unknown_methods_and_negative_symbols_refused() -> None:
    symbols = np.array([[1], [-1]])
    with pytest.raises(ValueError, match="unknown method"):
        general.encode("zip", symbols)
    with pytest.raises(ValueError, match="below 0"):
        general.encode("pco", symbols)
    for call in (general.encode_raw, general.decode_raw):
        with pytest.raises(ValueError, match="unknown method"):
            call("pco", *([np.zeros(1)] if call is general.encode_raw else [b"", 0, 1, np.dtype("f8")]))  # type: ignore[operator]


SAMPLES = {
    "noise": np.random.default_rng(0).integers(0, 1000, (300, 1)),
    "ramp": np.arange(300).reshape(-1, 1) * 7,
    "repeats": np.tile(np.random.default_rng(1).integers(0, 2**60, 30), 10).reshape(-1, 1),
    "multiples": np.random.default_rng(2).integers(0, 10**6, (300, 1)) * 1000,
}


@pytest.mark.parametrize("method", ["pco", "xz"])
@pytest.mark.parametrize("name", SAMPLES)
def test_does_damage_give_an_error_or_symbols_of_the_alphabet(name: str, method: str) -> None:
    """Without a checksum damage may go unnoticed here, but never crashes, hangs or fills the memory."""
    symbols = SAMPLES[name]
    data = general.encode(method, symbols)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    damaged = [data[:size] for size in range(len(data))] + [data + bytes(size) for size in (1, 100)]
    for place in range(len(data)):
        for bit in (0, 1, 4, 7):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            damaged.append(bytes(flipped))
    for bad in damaged:
        try:
            found = general.decode(bad, 300, 1, 2**62)
        except DAMAGE:
            continue
        assert found.shape == (300, 1)
        assert found.min() >= 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_is_more_data_than_was_promised_not_unpacked() -> None:
    bomb = general.to_xz(bytes(1 << 25))
    with pytest.raises(ValueError, match="is not 8 bytes"):
        general.from_xz(bomb, 8)
    with pytest.raises(DAMAGE):
        general.from_xz(general.to_xz(b"eight by"), 9)
