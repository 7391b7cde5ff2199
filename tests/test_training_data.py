"""Does every training worker make the same steps over its own rows, each once, and never over held-out ones?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import training_data
from pipeline.bundle import schema_to_text
from pipeline.config import Optimization
from pipeline.dataset import open_dataset
from pipeline.errors import DatasetError
from pipeline.packed import PackedRows
from pipeline.sampling import Priorities, held_out, priorities
from pipeline.storage import Location
from pipeline.training_data import EpochPlan, PackUnits, ShardRows, held_out_fraction
from tests.small import fit, one_batch

WIDTH = 4
HELD = 1 << 31
"""Packed rows of held-out rows carry this bit, so that they can be told apart."""


class Shard:
    """Tables of packed rows, in any cut and order."""

    def __init__(self, tables: list[pa.Table]) -> None:
        self.parts, self.passes = tables, 0

    def tables(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        del rng
        self.passes += 1
        yield from self.parts


def packed_table(unit: int, ids: list[int], mask: list[bool]) -> pa.Table:
    numbers = np.array([i | HELD if held else i for i, held in zip(ids, mask, strict=True)], "<u4")
    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(WIDTH), len(ids), [None, pa.py_buffer(numbers.tobytes())])
    return pa.table(
        {
            "unit": pa.array([unit] * len(ids), pa.int64()),
            "row": pa.array(range(len(ids)), pa.int64()),
            "held_out": pa.array(mask, pa.bool_()),
            "packed": storage,
        }
    )


def shard(sizes: list[int], fraction: float = 0.0, seed: int = 0) -> tuple[Shard, list[int], list[int]]:
    """A shard of units of so many rows; also the ids of its training and of its held-out rows."""
    rng = np.random.default_rng(seed)
    tables, train, held, first = [], [], [], 0
    for unit, size in enumerate(sizes):
        ids = list(range(first, first + size))
        mask = (rng.random(size) < fraction).tolist()
        tables.append(packed_table(unit, ids, mask))
        train += [i for i, out in zip(ids, mask, strict=True) if not out]
        held += [i | HELD for i, out in zip(ids, mask, strict=True) if out]
        first += size
    return Shard(tables), train, held


def ids_of(packed: npt.NDArray[np.uint8]) -> list[int]:
    return [int(i) for i in np.ascontiguousarray(packed).view("<u4").ravel()] if packed.size else []


def epoch_of(rows: ShardRows, number: int = 0) -> list[list[int]]:
    return [ids_of(batch) for batch in rows.epoch(number)]


@pytest.fixture(params=[True, False], ids=["cached", "streamed"])
def cached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of giving rows; the streaming pool holds 40 rows."""
    monkeypatch.setattr(training_data, "POOL_BYTES", 40 * WIDTH)
    return bool(request.param)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    steps=st.integers(1, 20),
    local_batch=st.integers(1, 50),
    fraction=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 5),
)
def test_does_every_epoch_have_its_steps_and_no_held_out_row(
    cached: bool, sizes: list[int], steps: int, local_batch: int, fraction: float, seed: int
) -> None:
    source, train, held = shard(sizes, fraction, seed)
    rows = ShardRows(source, EpochPlan(steps, local_batch, cached, seed), validate_on_training=False)
    if not train:
        with pytest.raises(DatasetError, match="no rows"):
            epoch_of(rows)
        return
    for number in range(2):
        batches = epoch_of(rows, number)
        assert [len(batch) for batch in batches] == [local_batch] * steps
        assert {i for batch in batches for i in batch} <= set(train)
    assert ids_of(rows.validation) == held


@pytest.mark.parametrize("sizes", [[120], [30, 50, 40], [1] * 120, [0, 119, 1]])
@pytest.mark.parametrize("local_batch", [1, 8, 40, 120])
def test_is_every_row_given_once_an_epoch_when_the_sizes_divide(
    cached: bool, sizes: list[int], local_batch: int
) -> None:
    source, train, _ = shard(sizes)
    rows = ShardRows(source, EpochPlan(120 // local_batch, local_batch, cached, 1), validate_on_training=False)
    first, second = ([i for batch in epoch_of(rows, n) for i in batch] for n in (0, 1))
    assert sorted(first) == sorted(second) == train
    assert first != second
    assert first != train


def test_are_rows_repeated_only_after_all_were_given(cached: bool) -> None:
    source, train, _ = shard([10])
    batches = epoch_of(ShardRows(source, EpochPlan(5, 7, cached, 1), validate_on_training=False))
    given = [i for batch in batches for i in batch]
    assert len(given) == 35
    for start in (0, 10, 20):
        assert sorted(given[start : start + 10]) == train


def test_is_the_order_a_function_of_seed_and_epoch(cached: bool) -> None:
    def order(seed: int, number: int) -> list[list[int]]:
        source, _, _ = shard([30, 50, 40])
        return epoch_of(ShardRows(source, EpochPlan(10, 8, cached, seed), validate_on_training=False), number)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_is_what_is_validated_on_the_same_in_whatever_order_blocks_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "MAX_VALIDATION_ROWS", 7)
    for on_training in (False, True):
        source, train, held = shard([30, 1, 0, 50, 40, 3], 0.3)
        for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 2, 4, 1]):
            some = Shard([source.parts[unit] for unit in order])
            rows = ShardRows(some, EpochPlan(5, 8, False, 1), validate_on_training=on_training)
            epoch_of(rows)
            assert ids_of(rows.validation) == (train if on_training else held)[:7]


def test_does_a_stream_hold_no_more_rows_than_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "POOL_BYTES", 40 * WIDTH)
    source, train, _ = shard([25] * 40)
    batches = epoch_of(ShardRows(source, EpochPlan(100, 10, False, 1), validate_on_training=False))
    given: set[int] = set()
    for batch in batches:  # the pool and what the stream gave so far: no row comes before its time
        given |= set(batch)
        assert max(batch) < len(given) - len(batch) + 40
    assert given == set(train)


@pytest.mark.parametrize(("rows", "share"), [(19, 0.0), (20, 0.1), (655_360, 0.1), (6_553_600, 0.01)])
def test_are_no_more_rows_held_out_than_are_of_use(rows: int, share: float) -> None:
    assert held_out_fraction(rows, Optimization()) == pytest.approx(share)


def test_does_a_cached_shard_not_depend_on_the_order_of_its_blocks() -> None:
    source, _, _ = shard([30, 50, 40], 0.2)
    shuffled = Shard(source.parts[::-1])
    plan = EpochPlan(5, 8, True, 1)
    one, two = (ShardRows(s, plan, validate_on_training=False) for s in (source, shuffled))
    assert epoch_of(one) == epoch_of(two)
    np.testing.assert_array_equal(one.validation, two.validation)


def test_is_a_cached_shard_read_once_and_a_streamed_one_every_epoch(cached: bool) -> None:
    source, _, _ = shard([30, 50, 40])
    rows = ShardRows(source, EpochPlan(5, 8, cached, 1), validate_on_training=False)
    for number in range(3):
        epoch_of(rows, number)
    assert source.passes == (1 if cached else 3)


def test_is_a_stream_shuffled_beyond_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "POOL_BYTES", 400 * WIDTH)
    source, _, _ = shard([10] * 80)
    batches = epoch_of(ShardRows(source, EpochPlan(80, 10, False, 1), validate_on_training=False))
    assert max(len({i // 10 for i in batch}) for batch in batches) >= 8


def test_does_validation_take_training_rows_for_want_of_others(cached: bool) -> None:
    source, train, _ = shard([30, 20])
    rows = ShardRows(source, EpochPlan(5, 8, cached, 1), validate_on_training=True)
    epoch_of(rows)
    assert ids_of(rows.validation) == train


def test_is_validation_bounded_and_always_of_the_same_rows(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "MAX_VALIDATION_ROWS", 12)
    for on_training in (False, True):
        source, train, held = shard([30, 50, 40], 0.4)
        rows = ShardRows(source, EpochPlan(5, 8, cached, 1), validate_on_training=on_training)
        for number in range(2):
            epoch_of(rows, number)
            assert ids_of(rows.validation) == (train if on_training else held)[:12]


def test_are_blocks_read_from_slices_and_chunks() -> None:
    whole = packed_table(0, list(range(50)), [i % 5 == 0 for i in range(50)])
    table = pa.concat_tables([whole.slice(7, 20), whole.slice(27, 0), whole.slice(27, 11)])
    rows = ShardRows(Shard([table]), EpochPlan(1, 1, True, 0), validate_on_training=False)
    assert ids_of(rows.validation) == [i | HELD for i in range(7, 38) if i % 5 == 0]
    given = epoch_of(ShardRows(Shard([table]), EpochPlan(25, 1, True, 0), validate_on_training=False))
    assert sorted(i for batch in given for i in batch) == [i for i in range(7, 38) if i % 5]


def dataset_folder(path: Path) -> tuple[Any, pa.Table]:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "key": [f"k{i}" for i in range(300)],
            "x": pa.array(rng.normal(size=300), mask=rng.random(300) < 0.1),
            "word": rng.choice(["a", "b", "c"], 300),
        }
    )
    pq.write_table(table.slice(0, 200), path / "a.parquet", row_group_size=60)
    pq.write_table(table.slice(200), path / "b.parquet")
    return open_dataset(Location(str(path))), table


def test_do_packed_units_hold_every_row_in_order_with_its_split(tmp_path: Path) -> None:
    dataset, table = dataset_folder(tmp_path)
    transform = fit(table)
    packing = PackedRows(transform.layout())
    pack = PackUnits(dataset.root, transform.to_json(), schema_to_text(dataset.schema), 50, 3, 0.25)
    units = dataset.units(1)
    assert len(units) == 5
    items = pa.table({"item": [json.dumps(unit.to_json()) for unit in units]})
    packed = pa.concat_tables(pack(items))
    assert packed["unit"].to_pylist() == [unit.index for unit in units for _ in range(unit.rows)]
    assert packed["row"].to_pylist() == [row for unit in units for row in range(unit.rows)]
    expected = np.concatenate([held_out(3, unit, 0.25) for unit in units])
    np.testing.assert_array_equal(packed["held_out"].to_numpy(), expected)
    assert 0.15 < expected.mean() < 0.35
    cells = b"".join(packed["packed"].to_pylist())
    bins = packing.unpack(np.frombuffer(cells, np.uint8).reshape(300, -1))
    np.testing.assert_array_equal(bins, transform.from_batch(one_batch(table))[0])
    rows = ShardRows(Shard([packed]), EpochPlan(1, 1, True, 0), validate_on_training=False)
    np.testing.assert_array_equal(packing.unpack(rows.validation), bins[expected])


def test_are_draws_a_function_of_seed_and_unit_alone(tmp_path: Path) -> None:
    units = dataset_folder(tmp_path)[0].units(1)
    for draw in (lambda seed, unit: priorities(seed, unit), lambda seed, unit: held_out(seed, unit, 0.5)):
        np.testing.assert_array_equal(draw(1, units[0]), draw(1, units[0]))
        assert len(draw(1, units[0])) == units[0].rows
        assert (draw(1, units[0]) != draw(2, units[0])).any()
        assert (draw(1, units[0]) != draw(1, units[1])).any()
    draw_next = Priorities(1, units[0]).next
    pieces = [draw_next(rows) for rows in (3, 1, units[0].rows - 4)]
    np.testing.assert_array_equal(np.concatenate(pieces), priorities(1, units[0]))
    assert not held_out(0, units[0], 0.0).any()
    assert (priorities(1, units[0]) % 2 != held_out(1, units[0], 0.5)).any()
