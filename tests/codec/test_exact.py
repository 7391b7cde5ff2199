"""Do exactly stored values of any type come back, and are damaged ones refused?"""

from __future__ import annotations

import lzma

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.codec import exact
from pipeline.codec.sections import to_varint
from pipeline.columns.keys import from_keys, to_keys
from pipeline.columns.kinds import family
from tests.columns.cases import BOOLEANS, MODELLED, QUICK, Case, arrays
from tests.columns.oracle import raw

DAMAGE = (ValueError, lzma.LZMAError, pa.ArrowException)


def without_nulls(values: pa.Array) -> pa.Array:
    """The values that are not null, of a dictionary array not in its dictionary either."""
    if family(values.type) != "text":
        return values.drop_null()
    keys = to_keys(values)
    encoded = keys.filter(keys.is_valid()).dictionary_encode()
    return from_keys(encoded.dictionary, encoded.indices.to_numpy().astype(np.int64), values.type)


@pytest.mark.parametrize("case", [case for case in MODELLED if case not in BOOLEANS], ids=str)
@QUICK
@given(data=st.data())
def test_do_values_come_back(case: Case, data: st.DataObject) -> None:
    values = without_nulls(data.draw(arrays(case.type)))
    if not len(values):
        return
    values = values.slice(data.draw(st.integers(0, len(values) - 1)))
    coded = exact.encode(values)
    found = exact.decode(coded, case.type, len(values))
    found.validate(full=True)
    assert found.type == values.type
    assert raw(found) == raw(values)
    with pytest.raises(ValueError, match="too many"):
        exact.decode(coded, case.type, len(values) - 1)


def test_is_text_that_is_no_utf8_kept() -> None:
    odd = pa.array([b"\xff\xfe", b"", b"a"], pa.large_binary()).cast(pa.string(), safe=False)
    assert exact.decode(exact.encode(odd), pa.string(), 3).equals(odd)


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "bcd", ""]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([1.5, -0.0]),
        pa.array([[1.0, None], [2.0, 3.0]], pa.list_(pa.float32(), 2)),
    ],
    ids=lambda values: str(values.type)[:20],
)
def test_is_damage_an_error_or_so_many_values(values: pa.Array) -> None:
    data = exact.encode(values)
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            for bad in (bytes(damaged), data[:place], data + bytes(bit + 1)):
                try:
                    found = exact.decode(bad, values.type, 3)
                except DAMAGE:
                    continue
                assert len(found) <= 3


def test_are_hostile_lengths_refused() -> None:
    text = exact.encode(pa.array(["abc"]))[2:]
    for head in (to_varint(2**62) + to_varint(3), to_varint(1) + to_varint(2**62), to_varint(0) + to_varint(0)):
        with pytest.raises(ValueError, match="too many"):
            exact.decode(head + text, pa.string(), 5)
    with pytest.raises(DAMAGE):
        exact.decode(to_varint(2) + to_varint(3) + text, pa.string(), 5)
    lengths = exact.encode(pa.array(np.array([2**31, 0], np.int64)))[2:]
    with pytest.raises(DAMAGE):
        exact.decode(to_varint(2) + to_varint(8) + lengths, pa.string(), 5)
