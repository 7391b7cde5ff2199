"""Do work units that overlap in one worker compute one at a time, and come out as if they had not overlapped?"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.bundle import Bundle
from pipeline.dataset import open_dataset
from pipeline.decode import FileDecoder
from pipeline.errors import DatasetError
from pipeline.machine import one_thread
from pipeline.parts import PartWriter
from pipeline.plan import PartRecord
from pipeline.storage import Location
from pipeline.turns import Begun, Turns
from tests.small import encode_here, prepare, tiny_bundle

WITHOUT_TORCH = """
import sys
import pipeline.fit
import pipeline.training_data
from pipeline.archive import Archive
from pipeline.dataset import open_dataset
from pipeline.decode import FileDecoder
from pipeline.encode import UnitEncoder
from pipeline.plan import PartRecord
from pipeline.storage import Location
from pipeline.verify import PartVerifier

data, archive, out = map(Location, sys.argv[1:])
opened, (unit,) = Archive.open(archive), open_dataset(data).units()
files, (part,) = dict(opened.load_model().files), opened.parts
record = UnitEncoder(files, opened.form, data, out, "cpu", 3)(unit.to_json())["record"]
assert PartRecord.from_json(record).rows == unit.rows
assert PartVerifier(files, opened.form, archive, "cpu", 3)(part.to_json())["damage"] == []
decode = FileDecoder(files, opened.form, archive, out, None, "cpu", 3)
assert decode({"path": part.path, "parts": [part.to_json()]})["rows"] == unit.rows
assert "torch" not in sys.modules
"""


def test_do_workers_of_an_archive_without_a_network_load_no_torch(tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=500), "row": np.arange(500)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data/a.parquet")
    encode_here(
        open_dataset(Location(str(tmp_path / "data"))),
        tiny_bundle(table),
        Location(str(tmp_path / "archive")),
        "corrections",
    )
    places = [str(tmp_path / name) for name in ("data", "archive", "out")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_does_a_thread_keep_its_number_of_threads_when_another_takes_one() -> None:
    given, taken, asked = threading.Event(), threading.Event(), threading.Event()

    def compute() -> int:
        with Turns(2).taken():
            given.set()
            assert taken.wait(60)
            torch.ones(300, 300) @ torch.ones(300, 300)
            asked.set()
            return torch.get_num_threads()

    def judge() -> None:
        assert given.wait(60)
        with one_thread():
            taken.set()
            assert asked.wait(60)

    with ThreadPoolExecutor(2) as pool:
        found, done = pool.submit(compute), pool.submit(judge)
        done.result(120)
        assert found.result(120) == 2


def test_does_one_compute_while_the_others_wait() -> None:
    turns, inside, most = Turns(1), [], []

    def compute(number: int) -> None:
        with turns.taken():
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compute, range(12)))
    assert most == [1] * 12


@pytest.mark.parametrize("items", ["", "a", "abc"])
def test_does_a_turn_end_with_the_last_that_is_computed(items: str) -> None:
    turns, made, busy = Turns(1), [], []
    for one in turns.compute(items, str.upper):
        made.append(one)
        busy.append(turns._computing.locked())
    assert "".join(made) == items.upper()
    assert busy == [True] * (len(items) - 1) + [False] * bool(items)
    assert not turns._computing.locked()


def test_is_a_turn_given_back_by_a_unit_that_fails() -> None:
    turns = Turns(1)
    with pytest.raises(ValueError, match="no"), turns.taken():
        raise ValueError("no")
    with turns.taken():
        pass


def test_has_every_thread_the_threads_that_it_was_given() -> None:
    before, turns, found = torch.get_num_threads(), Turns(2), []

    def compute() -> None:
        with turns.taken():
            found.append(torch.get_num_threads())

    try:
        with one_thread():  # what is set meanwhile is what a new thread would begin with
            thread = threading.Thread(target=compute)
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [2]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_is_the_first_item_taken_at_once_and_none_lost(count: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(count):
            taken.append(number)
            yield number

    source = Begun(items())
    assert taken == list(range(min(1, count)))
    assert list(source) == list(range(count))


def test_does_a_unit_read_only_when_the_one_before_has_read_all() -> None:
    turns, taken = Turns(1), []

    def items(name: str) -> Iterator[str]:
        for number in range(3):
            taken.append(f"{name}{number}")
            yield taken[-1]

    first = Begun(turns.read(items("a")))
    second = threading.Thread(target=lambda: list(Begun(turns.read(items("b")))))
    second.start()
    time.sleep(0.1)
    assert taken == ["a0"]
    assert list(first) == ["a0", "a1", "a2"]
    second.join(60)
    assert taken == ["a0", "a1", "a2", "b0", "b1", "b2"]


@pytest.mark.parametrize("read", [0, 1, 2])
def test_does_a_unit_that_stops_early_let_the_next_one_read(read: int) -> None:
    turns = Turns(1)
    source = Begun(turns.read(range(9)))
    for _ in range(read):
        next(source)
    source.close()
    assert list(Begun(turns.read("x"))) == ["x"]


def write_source(folder: Path) -> pa.Table:
    rng = np.random.default_rng(0)
    tables = []
    folder.mkdir()
    for number in range(6):
        x = rng.normal(size=700)
        columns = {"x": x, "y": 2 * x + rng.normal(size=700) / 9, "word": rng.choice(["a", "b", None], 700)}
        tables.append(pa.table({**columns, "row": np.arange(700) + 700 * number}))
        pq.write_table(tables[-1], folder / f"{number}.parquet")
    return pa.concat_tables(tables)


@pytest.mark.parametrize("keep", ["both", "corrections", "latents"])
def test_are_parts_and_files_those_of_units_one_after_the_other(keep: str, tmp_path: Path) -> None:
    table = write_source(tmp_path / "data")
    dataset, bundle = open_dataset(Location(str(tmp_path / "data"))), tiny_bundle(table)
    alone = encode_here(dataset, bundle, Location(str(tmp_path / "alone")), keep, block_rows=100)
    work = prepare(dataset, bundle, Location(str(tmp_path / "beside")), keep, "0.01r", block_rows=100)

    def decoded(folder: str, threads: int) -> dict[str, bytes]:
        files, out = dict(alone.load_model().files), tmp_path / folder
        decode = FileDecoder(files, alone.form, alone.location, Location(str(out)), None, "cpu", 1)
        items: list[dict[str, Any]] = [
            {"path": path, "parts": [part.to_json() for part in parts]} for path, parts in alone.by_file().items()
        ]
        with ThreadPoolExecutor(threads) as pool:
            assert sum(result["rows"] for result in pool.map(decode, items)) == table.num_rows
        return contents(out)

    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(work, (unit.to_json() for unit in dataset.units())))
    assert sum(map(rows_of, records)) == table.num_rows
    assert contents(tmp_path / "beside/parts") == contents(tmp_path / "alone/parts")
    assert len(contents(tmp_path / "alone/parts")) == 6
    assert decoded("one by one", 1) == decoded("three at once", 3)


@pytest.mark.parametrize("block_rows", [100, 300])
def test_does_the_next_unit_compute_while_the_end_of_one_is_written(
    block_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_source(tmp_path / "data")
    dataset, bundle = open_dataset(Location(str(tmp_path / "data"))), tiny_bundle(table)
    work = prepare(dataset, bundle, Location(str(tmp_path / "out")), "latents", block_rows=block_rows)
    blocks = -(-700 // block_rows)
    write, to_latents = PartWriter.write, Bundle.to_latents
    computed, written, next_computes = [], [], threading.Event()

    def count(self: Bundle, bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        computed.append(len(bins))
        if len(computed) > blocks:
            next_computes.set()
        return to_latents(self, bins)

    def wait(self: PartWriter, *block: Any) -> None:
        written.append(block)
        if len(written) == blocks - 1:
            assert next_computes.wait(60)
        write(self, *block)

    monkeypatch.setattr(Bundle, "to_latents", count)
    monkeypatch.setattr(PartWriter, "write", wait)
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(work, (unit.to_json() for unit in dataset.units()[:2])))
    assert sum(map(rows_of, records)) == 1400
    assert len(written) == 2 * blocks


@pytest.mark.parametrize("keep", ["both", "latents"])
def test_does_a_file_that_cannot_be_read_keep_no_other_waiting(keep: str, tmp_path: Path) -> None:
    table = write_source(tmp_path / "data")
    dataset = open_dataset(Location(str(tmp_path / "data")))
    work = prepare(dataset, tiny_bundle(table), Location(str(tmp_path / "out")), keep, "0.01r")
    units = dataset.units()
    broken = tmp_path / "data" / units[0].path
    content = bytearray(broken.read_bytes())
    content[4:1000] = bytes(996)  # data pages, not the footer
    broken.write_bytes(bytes(content))
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(work, unit.to_json()) for unit in units]
    with pytest.raises(DatasetError):
        answers[0].result()
    assert [rows_of(answer.result()) for answer in answers[1:]] == [700] * 5


@pytest.mark.parametrize(("owner", "name"), [(Bundle, "to_latents"), (PartWriter, "write")])
@pytest.mark.parametrize("call", [1, 7])
def test_does_a_unit_that_fails_halfway_keep_no_other_waiting(
    owner: type, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_source(tmp_path / "data")
    dataset, out = open_dataset(Location(str(tmp_path / "data"))), tmp_path / "out"
    work = prepare(dataset, tiny_bundle(table), Location(str(out)), "latents", block_rows=100)
    method, calls = getattr(owner, name), itertools.count(1)

    def fail_once(*arguments: Any) -> Any:
        if next(calls) == call:
            raise OSError("no space left")
        return method(*arguments)

    monkeypatch.setattr(owner, name, fail_once)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(work, unit.to_json()) for unit in dataset.units()]
    failed = [answer for answer in answers if answer.exception() is not None]
    assert [str(answer.exception()) for answer in failed] == ["no space left"]
    assert sum(rows_of(answer.result()) for answer in answers if answer not in failed) == 5 * 700
    assert len(contents(out / "parts")) == 5


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def rows_of(answer: dict[str, Any]) -> int:
    return PartRecord.from_json(answer["record"]).rows
