"""Sequences: does every text survive, and do any symbols make one?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import (
    ColumnOptions,
    ColumnStats,
    State,
    Symbols,
    check_options,
    column_from_json,
    explain,
    fit_column,
)
from pipeline.columns.categorical import CategoricalColumn
from pipeline.columns.sequence import MOST_UNASKED, SequenceColumn
from pipeline.columns.tokens import join, split_all
from pipeline.errors import ConfigError

from .cases import QUICK
from .oracle import fit, observe, through_json

ODD = ["", " ", "  a ", "e\u0301", "👩\u200d🔬🧪", "\0", "[C][=O]", "[C", "C]", "[]", ".", "\n\t", "x" * 300, "ﬀ", None]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), max_size=12))


def sequence(values: pa.Array, **options: object) -> SequenceColumn:
    column = fit(values, ColumnOptions(kind="sequence", **options))
    assert isinstance(column, SequenceColumn)
    return column


def test_the_vocabulary_is_the_most_frequent_ties_by_value_and_the_end_comes_first() -> None:
    values = pa.array(["ba", "b", "", "cb"])
    column = sequence(values)
    assert (column.vocabulary, column.length) == (("b", "a", "c"), 2)
    (span,) = column.spans()
    assert (span.kind, span.width, span.bins, span.ends) == ("categorical", 2, 4, True)
    symbols = column.from_values(values)
    assert symbols.bins.tolist() == [[1, 2], [1, 0], [0, -1], [3, 1]]
    assert symbols.states is None
    assert column.to_values(symbols).equals(values)
    assert through_json(column) == column


@pytest.mark.parametrize(
    ("how", "text", "tokens"),
    [
        ("characters", "ab é", ["a", "b", " ", "é"]),
        ("words", "one  two\tthree ", ["one", "", "two\tthree", ""]),
        ("words", "", []),
        ("brackets", "[C][=O].[Na]x", ["[C]", "[=O]", ".", "[Na]", "x"]),
        ("brackets", "[C", None),
        ("brackets", "]a\n", ["]", "a", "\n"]),
    ],
)
def test_how_a_text_is_split(how: str, text: str, tokens: list[str] | None) -> None:
    assert list(split_all(pa.array([text.encode()], pa.large_binary()), how)) == [tokens]
    assert tokens is None or join(tokens, how) == text


@pytest.mark.parametrize("how", ["characters", "words", "brackets"])
@QUICK
@given(seen=st.lists(TEXTS, max_size=20), more=st.lists(TEXTS, max_size=20), length=st.sampled_from([None, 1, 3]))
def test_every_text_survives_whatever_was_fitted(
    how: str, seen: list[str | None], more: list[str | None], length: int | None
) -> None:
    given_length = 300 if length is None else length
    column = fit(pa.array(seen, pa.string()), ColumnOptions(kind="sequence", tokens=how, max_length=given_length))
    if column.kind == "passthrough":
        assert all(text is None or how == "brackets" for text in seen)
        return
    values = pa.array([*more, *seen], pa.string())
    symbols = column.from_values(values)
    assert column.to_values(symbols).equals(values)
    exact = through_json(column.as_categories(values))
    assert isinstance(exact, CategoricalColumn)
    assert exact.to_values(exact.from_values(values)).equals(values)


@pytest.mark.parametrize("wrong", [{"tokens": "runes"}, {"length": 0}, {"length": 1 << 40}, {"vocabulary": ["a", 1]}])
def test_a_damaged_description_is_an_error(wrong: dict[str, object]) -> None:
    column = sequence(pa.array(["ab", "b"]))
    with pytest.raises(ValueError, match="column 'c' is no sequence"):
        column_from_json(column.field, {**column.to_json(), **wrong})


def test_what_symbols_cannot_say_is_stored_exactly() -> None:
    column = sequence(pa.array(["ab", "ba", None]))
    values = pa.array(["ab", "abc", "aba", None, ""])
    symbols = column.from_values(values)
    assert symbols.states is not None
    assert symbols.states.tolist() == [State.VALUE, State.EXACT, State.EXACT, State.NULL, State.VALUE]
    assert symbols.exact.to_pylist() == ["abc", "aba"]
    assert symbols.bins.tolist() == [[0, 1, 2], [-1, -1, -1], [-1, -1, -1], [1, -1, -1], [0, 0, -1]]


def test_bytes_that_are_no_utf8_survive() -> None:
    raw = pa.array([b"\xff", b"ok", b"\xed\xb2\x80"], pa.large_binary())
    for data_type in (pa.string(), pa.large_string(), pa.string_view()):
        values = raw.cast(pa.large_string(), safe=False).cast(data_type, safe=False)
        column = sequence(values)
        assert column.vocabulary == ("k", "o")
        assert column.to_json()["states"] == ["VALUE", "EXACT"]
        decoded = column.to_values(column.from_values(values))
        assert decoded.type == data_type
        assert decoded.cast(pa.large_binary()).equals(raw)


@pytest.mark.parametrize("how", ["characters", "words", "brackets"])
@QUICK
@given(data=st.data())
def test_any_symbols_are_a_text_of_the_vocabulary(how: str, data: st.DataObject) -> None:
    column = sequence(pa.array(["[C][O]", "a b", "[C]", ""]), tokens=how)
    bins = data.draw(st.lists(st.integers(-3, 20), min_size=2 * column.length, max_size=2 * column.length))
    decoded = column.to_values(Symbols(np.array(bins, np.int64).reshape(2, -1)))
    decoded.validate(full=True)
    for text, row in zip(decoded.to_pylist(), np.array(bins).reshape(2, -1).tolist(), strict=True):
        kept = row[: next((place for place, code in enumerate(row) if code <= 0), len(row))]
        known = column.vocabulary
        assert text == join([known[min(code, len(known)) - 1] for code in kept], how)


def test_a_long_text_must_be_asked_for_and_the_message_says_how() -> None:
    values = pa.array(["ab"] * 99 + ["x" * (MOST_UNASKED + 1)])
    with pytest.raises(ConfigError, match=r"longest text has 257 tokens.*max_length: 2 \(then 1 of 100 texts"):
        sequence(values)
    column = sequence(values, max_length=2)
    assert column.length == 2
    assert column.to_json()["states"] == ["VALUE", "EXACT"]
    with pytest.raises(ConfigError, match="more than 1,024 tokens"):
        sequence(pa.array(["y" * 2000]))


def test_too_many_tokens_at_too_many_places_are_refused() -> None:
    values = pa.array([chr(0x4E00 + i) * 200 for i in range(300)])
    with pytest.raises(ConfigError, match=r"300 tokens at 200 places.*lower max_categories or max_length"):
        sequence(values)
    column = sequence(values, max_categories=100)
    assert len(column.vocabulary) == 100
    assert column.to_values(column.from_values(values)).equals(values)


def test_with_too_many_tokens_to_count_the_most_frequent_of_the_sample_are_taken() -> None:
    values = pa.array(["a b a", *(f"w{i}" for i in range(100))])
    options = ColumnOptions(kind="sequence", tokens="words", max_categories=2)
    stats = observe(values, options, max_distinct=50)
    assert stats.tokens is not None
    assert stats.tokens.distinct.overflow
    column = fit_column(pa.field("c", pa.string()), stats, options)
    assert isinstance(column, SequenceColumn)
    assert column.vocabulary == ("a", "b")
    assert column.to_values(column.from_values(values)).equals(values)


def test_whole_texts_that_repeat_are_categories_where_archives_are_exact() -> None:
    column = sequence(pa.array(["ab", "b"]))
    exact = column.as_categories(pa.array(["ab"] * 5 + ["b"] * 3 + [None]))
    assert exact.categories == ("ab",)
    assert exact.to_json()["states"] == ["VALUE", "NULL", "EXACT"]
    assert column.as_categories(pa.array(["x", "y"])).categories == column.as_categories().categories == ("",)


def test_an_explanation_says_how_many_tokens_and_what_is_left_out() -> None:
    options = ColumnOptions(kind="sequence", max_length=3)
    values = pa.array(["abc", "abcd", None, "a"])
    stats = observe(values, options)
    said = explain(fit_column(pa.field("c", pa.string()), stats, options), stats)
    assert said == "sequence: string, 4 tokens (characters), at most 3 a row, 1 null, 1 of other tokens or longer"


@pytest.mark.parametrize(
    ("data_type", "options", "message"),
    [
        (pa.string(), {"tokens": "words"}, "is categorical, and tokens is for sequences; say kind: sequence"),
        (pa.int8(), {"max_length": 3}, "is numeric, and max_length is for sequences"),
        (pa.string(), {"kind": "sequence", "max_length": 0}, "max_length must be between 1 and 1,024, got 0"),
        (pa.dictionary(pa.int8(), pa.string()), {"kind": "sequence"}, "possible: categorical, passthrough"),
        (pa.binary(), {"kind": "sequence"}, "possible: passthrough"),
    ],
)
def test_wrong_options_are_refused(data_type: pa.DataType, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(pa.field("c", data_type), ColumnOptions(**options))


def test_a_column_without_one_ordinary_text_is_passed_through() -> None:
    for values in (pa.nulls(3, pa.string()), pa.array(["[x", None])):
        assert fit(values, ColumnOptions(kind="sequence", tokens="brackets")).kind == "passthrough"


def test_statistics_of_no_rows_merge() -> None:
    options = ColumnOptions(kind="sequence")
    field = pa.field("c", pa.string())
    whole = observe(pa.array(["ab"]), options, field).merge(ColumnStats.empty(field, options))
    assert fit_column(field, whole, options).to_json()["vocabulary"] == ["a", "b"]
