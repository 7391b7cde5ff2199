"""Are blocks full, and samples spread, the same for one seed, and never a row twice?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.blocks import gathered, read_blocks, sample_runs
from pipeline.dataset import Dataset, open_dataset
from pipeline.storage import Location


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rows = 0
    for name, size, group in (("a", 30_000, 700), ("b", 5, 5), ("c", 20_000, 20_000), ("d", 0, 1)):
        words = pa.array(["x", "y", "z", "z"] * 7500).slice(0, size).dictionary_encode()
        table = pa.table({"row": np.arange(rows, rows + size), "word": words})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=group)
        rows += size
    return open_dataset(Location(str(tmp_path)))


def test_are_blocks_full_across_row_groups(dataset: Dataset) -> None:
    unit = dataset.units()[0]
    blocks = list(read_blocks(dataset.root, unit, 1024))
    assert [block.num_rows for block in blocks] == [1024] * 29 + [304]
    assert pa.Table.from_batches(blocks)["row"].to_pylist() == list(range(30_000))


def test_does_a_block_end_where_dictionaries_change(tmp_path: Path) -> None:
    schema = pa.schema([("w", pa.dictionary(pa.int8(), pa.string()))])
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for words in (["a", "b"], ["a", "b"], ["c", "d"]):
            writer.write_table(pa.table({"w": pa.array(words).dictionary_encode().cast(schema.field(0).type)}))
    dataset = open_dataset(Location(str(tmp_path)))
    blocks = list(read_blocks(dataset.root, dataset.units()[0], 100))
    assert [block.column(0).to_pylist() for block in blocks] == [["a", "b", "a", "b"], ["c", "d"]]


@pytest.mark.parametrize("most", [1, 3000, 20_000, 49_000])
def test_is_a_sample_spread_and_without_repeats(dataset: Dataset, most: int) -> None:
    runs = sample_runs(dataset, most, 1 << 30, 7)
    rows = [
        row for run in runs for batch in run.read(dataset.root, ["row"], 500) for row in batch.column(0).to_pylist()
    ]
    assert len(rows) == len(set(rows)) == sum(run.rows for run in runs)
    assert most // 2 <= len(rows) <= most
    assert runs == sample_runs(dataset, most, 1 << 30, 7)
    assert most == 49_000 or runs != sample_runs(dataset, most, 1 << 30, 8)
    if most > 3000:
        assert len(set(np.array(rows) // 5000)) >= 9


def test_is_a_small_dataset_taken_whole(dataset: Dataset) -> None:
    assert sum(run.rows for run in sample_runs(dataset, 100_000, 1 << 30, 0)) == dataset.rows
    assert sum(run.rows for run in sample_runs(dataset, 100_000, 1000, 0)) < 1000


def test_are_pieces_gathered_to_blocks(dataset: Dataset) -> None:
    unit = dataset.units()[0]
    pieces = [(piece, number) for number, piece in enumerate(read_blocks(dataset.root, unit, 1000))]
    blocks = list(gathered(pieces, 2500))
    assert [block.num_rows for block, _ in blocks] == [2000] * 15
    assert [made for _, made in blocks] == [[number, number + 1] for number in range(0, 30, 2)]
    assert pa.Table.from_batches([block for block, _ in blocks])["row"].to_pylist() == list(range(30_000))
    assert [made for _, made in gathered(pieces, 10)] == [[number] for number in range(30)]
    assert list(gathered([], 10)) == []


def test_is_a_full_block_given_before_the_next_piece_is_made() -> None:
    made: list[int] = []

    def pieces() -> Iterator[tuple[pa.RecordBatch, int]]:
        for number in range(4):
            made.append(number)
            yield pa.record_batch({"x": pa.array([1, 2])}), number

    blocks = gathered(pieces(), 4)
    assert next(blocks)[1] == [0, 1]
    assert made == [0, 1]
    assert [found for _, found in blocks] == [[2, 3]]


def test_does_what_is_gathered_end_where_dictionaries_change() -> None:
    words = [pa.array(text).dictionary_encode() for text in (["a", "b"], ["a", "b"], ["c", "d"])]
    pieces = [(pa.record_batch({"w": word}), place) for place, word in enumerate(words)]
    assert [made for _, made in gathered(pieces, 100)] == [[0, 1], [2]]
