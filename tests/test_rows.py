"""Do whole rows survive the way to symbols and back, and are rows of another dataset refused?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.columns import ColumnOptions
from pipeline.errors import DatasetError
from pipeline.packed import PackedRows
from pipeline.rows import RowTransform, concat_exceptions
from tests.small import fit, one_batch
from vae_model.layout import FeatureLayout, Span


@st.composite
def layouts(draw: st.DrawFn) -> FeatureLayout:
    """Columns of any width and number of bins, with and without a state symbol."""
    bins = st.integers(1, 300) | st.sampled_from([1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 2**32, 2**40])
    spans = []
    for number in range(draw(st.integers(1, 8))):
        name = f"c{number}"
        if draw(st.booleans()):
            states = draw(st.integers(2, 6))
            spans.append(Span(name, "state", "categorical", 0, 1, states))
        width, ends = draw(st.integers(1, 5)), draw(st.booleans())
        spans.append(Span(name, "value", "categorical", 0, width, draw(bins), ends=ends))
    return FeatureLayout.assemble(spans)


def may_be_absent(layout: FeatureLayout) -> list[bool]:
    with_state = {span.column for span in layout.spans if span.role == "state"}
    return [span.column in with_state or span.ends for span in layout.spans for _ in range(span.width)]


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), rows=st.integers(0, 20), seed=st.integers(0, 9))
def test_are_packed_symbols_unpacked_as_they_were(layout: FeatureLayout, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    limits = np.array([span.bins for span in layout.spans for _ in range(span.width)])
    low = -np.array(may_be_absent(layout), np.int64)
    bins = rng.integers(low, limits, (rows, layout.n_symbols))
    if rows > 1:
        bins[0], bins[1] = low, limits - 1
    packing = PackedRows(layout)
    packed = packing.pack(bins)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, packing.row_bytes)
    np.testing.assert_array_equal(packing.unpack(packed), bins)
    np.testing.assert_array_equal(packing.unpack(np.asfortranarray(packed)), bins)
    if rows:
        unpack = packing.unpacker(torch.device("cpu"))
        np.testing.assert_array_equal(unpack(torch.from_numpy(packed)).numpy(), bins)


@pytest.mark.parametrize(
    ("bins", "absent", "size"),
    [(1, False, 1), (256, False, 1), (256, True, 2), (257, False, 2), (65_536, True, 4), (2**32, False, 4)],
)
def test_do_symbols_take_no_more_bytes_than_they_need(bins: int, absent: bool, size: int) -> None:
    spans = [Span("c", "value", "categorical", 0, 3, bins)]
    if absent:
        spans.insert(0, Span("c", "state", "categorical", 0, 1, 2))
    assert PackedRows(FeatureLayout.assemble(spans)).row_bytes == 3 * size + absent


def table(rows: int = 200) -> pa.Table:
    rng = np.random.default_rng(0)
    holes = rng.random(rows) < 0.2
    floats = rng.normal(size=rows)
    floats[:3] = [np.nan, np.inf, -np.inf]
    return pa.table(
        {
            "key": [f"key {i}" for i in range(rows)],
            "i": pa.array(rng.integers(-50, 50, rows), mask=holes),
            "x": pa.array(floats, mask=np.roll(holes, 1)),
            "flag": pa.array(rng.random(rows) < 0.5, mask=holes),
            "word": pa.array(rng.choice(["a", "b", "c"], rows), mask=holes),
            "when": pa.array(rng.integers(0, 10**9, rows)).cast(pa.timestamp("s", "UTC")),
            "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 9, 4 * rows, np.uint8)), 4),
            "nothing": pa.nulls(rows, pa.float32()),
        }
    )


@pytest.fixture(scope="module")
def transform() -> RowTransform:
    return fit(table(), {"v": ColumnOptions(shape=(2, 2))})


def test_which_columns_are_modelled(transform: RowTransform) -> None:
    assert transform.passthrough == ["key", "nothing"]
    assert [column.name for column in transform.modelled] == ["i", "x", "flag", "word", "when", "v"]
    assert {span.column for span in transform.layout().spans} == {"i", "x", "flag", "word", "when", "v"}


def test_do_symbols_lie_in_the_layout_and_come_back_as_values(transform: RowTransform) -> None:
    batch = one_batch(table())
    bins, exceptions = transform.from_batch(batch.select(["word", "v", "x", "i", "flag", "when"]))
    layout = transform.layout()
    assert bins.shape == (200, layout.n_symbols)
    for span in layout.spans:
        assert bins[:, span.start : span.stop].min() >= -1
        assert bins[:, span.start : span.stop].max() < span.bins
    assert set(exceptions) == {"i", "x", "flag", "word"}
    arrays = transform.to_arrays(bins, exceptions)
    assert list(arrays) == ["i", "x", "flag", "word", "when", "v"]
    for name in ("i", "flag", "word", "v"):
        assert arrays[name].equals(batch.column(name)), name
    x, found = batch.column("x").to_numpy(False), arrays["x"].to_numpy(False)
    assert arrays["x"].is_null().equals(batch.column("x").is_null())
    np.testing.assert_allclose(found, x, atol=1e-2)
    packing = PackedRows(layout)
    np.testing.assert_array_equal(packing.unpack(packing.pack(bins)), bins)


def test_do_symbols_lie_one_after_the_other_unless_a_column_has_many(transform: RowTransform) -> None:
    narrow = fit(table().drop_columns(["v"]))
    bins, _ = narrow.from_batch(one_batch(table()))
    assert bins.flags.f_contiguous
    wide, _ = transform.from_batch(one_batch(table()))
    assert wide.flags.c_contiguous
    np.testing.assert_array_equal(wide[:, : bins.shape[1]], bins)


def test_are_batches_turned_alike_however_they_are_cut(transform: RowTransform) -> None:
    batch = one_batch(table())
    whole, exceptions = transform.from_batch(batch)
    parts = [transform.from_batch(batch.slice(start, 37)) for start in range(0, 200, 37)]
    np.testing.assert_array_equal(np.concatenate([bins for bins, _ in parts]), whole)
    for name, (states, _) in exceptions.items():
        cut = [part[name][0] if name in part else np.zeros(len(bins), np.uint8) for bins, part in parts]
        np.testing.assert_array_equal(np.concatenate(cut), states)


@pytest.mark.parametrize("size", [1, 37, 64, 500])
def test_are_exceptions_of_pieces_those_of_the_whole(transform: RowTransform, size: int) -> None:
    batch = one_batch(table())
    words = pa.array(["a", "never seen", None, "nor this"] * 50)
    batch = batch.set_column(batch.schema.get_field_index("word"), "word", words)
    _, whole = transform.from_batch(batch)
    parts = [transform.from_batch(batch.slice(start, size)) for start in range(0, 200, size)]
    joined = concat_exceptions([(len(bins), exceptions) for bins, exceptions in parts])
    assert joined.keys() == whole.keys()
    for name, (states, exact) in whole.items():
        np.testing.assert_array_equal(joined[name][0], states)
        assert (joined[name][1] is None) == (exact is None)
        assert exact is None or joined[name][1].equals(exact)


def test_are_values_unseen_in_fitting_kept_exactly(transform: RowTransform) -> None:
    batch = one_batch(table(5))
    words = pa.array(["a", "never seen", None, "", "b"])
    batch = batch.set_column(batch.schema.get_field_index("word"), "word", words)
    bins, exceptions = transform.from_batch(batch)
    assert transform.to_arrays(bins, exceptions)["word"].equals(words)


def test_does_the_transform_survive_json(transform: RowTransform) -> None:
    copy = RowTransform.from_json(transform.schema, transform.to_json())
    assert copy.to_json() == transform.to_json()
    assert copy.layout() == transform.layout()
    bins, exceptions = transform.from_batch(one_batch(table()))
    np.testing.assert_array_equal(copy.from_batch(one_batch(table()))[0], bins)
    assert exceptions.keys() == copy.from_batch(one_batch(table()))[1].keys()


def test_is_the_models_own_schema_accepted_with_other_metadata(transform: RowTransform) -> None:
    transform.check_schema(table().schema, "DATA")
    transform.check_schema(table().schema.with_metadata({"pandas": "{}"}), "DATA")
    transform.check_schema(table().schema.set(1, pa.field("i", pa.int64(), metadata={"a": "b"})), "DATA")


FIELDS = table().schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (FIELDS.remove(1), r"DATA lacks the column 'i' \(int64\) of the model"),
        (FIELDS.append(pa.field("new", pa.int8())), "DATA has the column 'new' that the model has never seen"),
        (FIELDS.set(1, pa.field("i", pa.int32())), "column 'i' is int32, the model was trained on int64"),
        (
            FIELDS.set(1, pa.field("i", pa.int64(), nullable=False)),
            "column 'i' is int64 not null, the model was trained on int64",
        ),
        (
            FIELDS.set(5, pa.field("when", pa.timestamp("s", "Europe/Paris"))),
            r"column 'when' is timestamp\[s, tz=Europe/Paris\]",
        ),
        (pa.schema([FIELDS.field(1), FIELDS.field(0), *list(FIELDS)[2:]]), "another order: .'i', 'key'"),
        (pa.schema([]), "lacks the column 'key'"),
    ],
)
def test_does_the_message_on_another_schema_name_the_column(
    transform: RowTransform, schema: pa.Schema, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        transform.check_schema(schema, "DATA")


def test_can_rare_categories_and_wide_decimals_be_packed() -> None:
    """Whatever fitting saw must fit the packed form: training workers get nothing else."""
    numbers = pa.array([1, 2, 10**25, None], pa.decimal128(38, 0))
    words = pa.array(["a", "a", "rare", "b"])
    data = pa.table({"d": numbers, "w": words, "i": [1, 1, 2, 3]})
    options = {
        "d": ColumnOptions(kind="numeric"),
        "w": ColumnOptions(kind="categorical", max_categories=1),
        "i": ColumnOptions(kind="categorical", max_categories=1),
    }
    transform = fit(data, options)
    bins, exceptions = transform.from_batch(one_batch(data))
    packing = PackedRows(transform.layout())
    np.testing.assert_array_equal(packing.unpack(packing.pack(bins)), bins)
    arrays = transform.to_arrays(bins, exceptions)
    assert arrays["w"].equals(words)
    assert arrays["i"].to_pylist() == [1, 1, 2, 3]
    assert arrays["d"].to_pylist()[2:] == numbers.to_pylist()[2:]
