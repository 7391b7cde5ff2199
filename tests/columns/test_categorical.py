"""Categories: do all values survive, whatever the vocabulary has room for?"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import ColumnOptions, State, Symbols, with_dictionary
from pipeline.columns.keys import look_up

from .oracle import fit, plain, through_json

FORCED = ColumnOptions(kind="categorical")


def test_the_vocabulary_is_the_most_frequent_ties_by_value() -> None:
    values = pa.array(["d", "c", "c", "b", "b", "a"])
    column = fit(values, ColumnOptions(kind="categorical", max_categories=3))
    assert column.to_json()["categories"] == ["b", "c", "a"]
    symbols = column.from_values(values)
    assert symbols.bins.tolist() == [[1, -1], [0, 1], [0, 1], [0, 0], [0, 0], [0, 2]]
    assert column.to_values(symbols).equals(values)


def test_a_hundred_thousand_distinct_strings_survive_a_truncated_vocabulary() -> None:
    values = pa.array([f"key {i}" for i in range(100_000)] + ["often"] * 50)
    column = fit(values, FORCED)
    assert column.spans()[-1].bins == 4096
    assert column.to_json()["categories"][0] == "often"
    assert column.to_values(column.from_values(values)).equals(values)


def test_with_too_many_to_count_the_most_frequent_of_the_sample_are_taken() -> None:
    values = pa.array(["often", "second", "often"] * 20_000 + [f"key {i}" for i in range(140_000)])
    column = fit(values, ColumnOptions(kind="categorical", max_categories=2))
    assert column.to_json()["categories"] == ["often", "second"]
    assert column.to_json()["states"] == ["VALUE", "EXACT"]
    part = values[59_990:60_020]
    assert column.to_values(column.from_values(part)).equals(part)


def test_integer_categories_beyond_the_count_are_taken_from_the_sample_too() -> None:
    values = pa.array(np.concatenate([np.full(50_000, -7), np.arange(140_000)]))
    column = fit(values, ColumnOptions(kind="categorical", max_categories=1))
    assert column.to_json()["categories"] == [-7]
    assert column.to_values(column.from_values(values)).equals(values)


def test_bytes_that_are_no_utf8_survive() -> None:
    raw = pa.array([b"\xff\xfe", b"ok", b"\xed\xb2\x80", b"\xff\xfe"], pa.large_binary())
    for data_type in (pa.string(), pa.large_string(), pa.string_view()):
        values = raw.cast(pa.large_string(), safe=False).cast(data_type, safe=False)
        column = fit(values, FORCED)
        stored = through_json(column)
        assert stored == column
        decoded = stored.to_values(stored.from_values(values))
        assert decoded.type == data_type
        assert decoded.cast(pa.large_binary()).equals(raw)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("index", [pa.int8(), pa.uint8(), pa.int64(), pa.uint64()], ids=str)
@pytest.mark.parametrize("value", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_dictionary_types_are_restored(index: pa.DataType, value: pa.DataType, ordered: bool) -> None:
    data_type = pa.dictionary(index, value, ordered)
    values = pa.DictionaryArray.from_arrays(
        pa.array([1, 0, None, 2], index), pa.array(["b", "a", None], value), ordered=ordered
    )
    assert values.type == data_type
    column = fit(values)
    assert column.kind == "categorical"
    decoded = column.to_values(column.from_values(values))
    assert decoded.type == data_type
    assert plain(decoded) == ["a", "b", None, None]


@given(
    entries=st.lists(st.sampled_from(["a", "b", "c", "new", None]), min_size=1, max_size=8),
    rows=st.lists(st.one_of(st.none(), st.integers(0, 7)), max_size=12),
    sliced=st.integers(0, 3),
)
def test_is_a_dictionary_looked_up_as_its_values_are(
    entries: list[str | None], rows: list[int | None], sliced: int
) -> None:
    """Entries may repeat or be null, and be more or fewer than rows."""
    indices = [None if row is None else row % len(entries) for row in rows]
    values = pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), pa.array(entries, pa.string()))[sliced:]
    vocabulary = ["c", "a", "b"]
    expected = [
        None if word is None else vocabulary.index(word) if word in vocabulary else -1 for word in values.to_pylist()
    ]
    keys = pa.array(vocabulary).cast(pa.large_binary())
    assert look_up(values, keys).to_pylist() == expected
    assert look_up(values.dictionary_decode(), keys).to_pylist() == expected


def test_a_narrow_index_has_room_although_the_dataset_has_more_categories() -> None:
    """Each batch has a dictionary of its own: together they may hold more than int8 can count."""
    data_type = pa.dictionary(pa.int8(), pa.string())
    batches = [pa.array([f"{k}-{i}" for i in range(128)]).dictionary_encode().cast(data_type) for k in range(3)]
    text = pc.cast(pa.concat_arrays([b.dictionary_decode() for b in batches]), pa.string())
    fitted = fit(text, FORCED).to_json()
    column = through_json(fit(batches[0], FORCED)).from_json(pa.field("c", data_type), fitted)
    assert column.spans()[-1].bins == 384
    for batch in batches:
        decoded = column.to_values(column.from_values(batch))
        assert decoded.type == data_type
        assert plain(decoded) == plain(batch)
    guess = column.to_values(Symbols(np.arange(384).reshape(-1, 1)))
    assert guess.type == data_type
    guess.validate(full=True)


def test_exact_values_go_before_guesses_in_a_narrow_index() -> None:
    data_type = pa.dictionary(pa.int8(), pa.string())
    known = pa.array([f"k{i}" for i in range(128)]).dictionary_encode().cast(data_type)
    column = fit(known, FORCED)
    unseen = pa.array([f"new {i}" for i in range(100)]).dictionary_encode().cast(data_type)
    bins = np.concatenate([np.arange(128), np.full(100, -1)]).reshape(-1, 1)
    states = np.repeat([State.VALUE, State.EXACT], [128, 100]).astype(np.uint8)
    decoded = column.to_values(Symbols(bins, states, unseen))
    decoded.validate(full=True)
    assert plain(decoded)[128:] == plain(unseen)
    assert set(plain(decoded)[:128]) <= set(plain(known))


def test_integers_are_categories_when_asked() -> None:
    values = pa.array([5, None, 2**64 - 1, 5, 0], pa.uint64())
    column = fit(values, FORCED)
    assert json.loads(json.dumps(column.to_json()))["categories"] == [5, 0, 2**64 - 1]
    assert column.to_values(column.from_values(values)).equals(values)


@given(
    words=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=20),
    entries=st.permutations("abcdefghij"),
    kept=st.integers(0, 10),
)
def test_does_another_dictionary_keep_the_values_and_its_own_order(
    words: list[str], entries: list[str], kept: int
) -> None:
    values = pa.array([*words, None]).dictionary_encode()
    dictionary = pa.array(entries[:kept], pa.string())
    moved = with_dictionary(values, dictionary)
    assert moved.type == values.type
    assert moved.to_pylist() == values.to_pylist()
    assert moved.dictionary.to_pylist()[:kept] == entries[:kept]
    assert set(moved.dictionary.to_pylist()[kept:]) == set(words) - set(entries[:kept])
