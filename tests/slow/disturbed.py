"""What every test of a fault needs: a dataset in many files, and what must hold of archives after the fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import Archive
from pipeline.bundle import CHECKPOINTS_FOLDER
from pipeline.ledger import LEDGER_FOLDER, Ledger
from pipeline.lock import LOCK_FOLDER
from pipeline.storage import SPOOL_PREFIX, Location

FILES, ROWS = 120, 500
"""Many small files: a run is long enough to be disturbed in the middle."""


def write_source(folder: Location, files: int = FILES, rows: int = ROWS, first: int = 0) -> None:
    """Columns that depend on two hidden numbers, and the number of the row in the whole dataset."""
    rng = np.random.default_rng(first)
    weights = np.random.default_rng(0).normal(size=(2, 6))
    for number in range(first, first + files):
        mixed = np.tanh(rng.normal(size=(rows, 2)) @ weights) + 0.05 * rng.normal(size=(rows, 6))
        table = pa.table({f"c{i}": mixed[:, i] for i in range(6)})
        table = table.append_column("row", pa.array(range(number * rows, (number + 1) * rows), pa.int64()))
        with folder.join(f"{number:04d}.parquet").publishing() as spool:
            pq.write_table(table, spool)


def read_folder(folder: Location) -> pa.Table:
    """All rows of a dataset, in the order of its files."""
    tables = []
    for stat in folder.files():
        with folder.join(stat.path).open() as stream:
            tables.append(pq.read_table(stream))
    return pa.concat_tables(tables)


def check_values(source: pa.Table, back: pa.Table, bound: float = 0.01) -> None:
    """Every row once and in its place, every value within its share of the column's range."""
    assert back["row"].equals(source["row"])
    for name in source.column_names[:-1]:
        left, right = source[name].to_numpy(), back[name].to_numpy()
        assert np.abs(left - right).max() <= bound * (left.max() - left.min())


def check_archive(archive: Location, rows: int) -> None:
    """Nothing but a whole archive: every part in the manifest, none beside it, nothing left of running."""
    opened = Archive.open(archive)
    opened.check_parts()
    assert opened.rows == rows
    names = [stat.path for stat in archive.files()]
    parts = {name.removeprefix("parts/") for name in names if name.startswith("parts/")}
    assert parts == {part.name for files in opened.by_file().values() for part in files}
    assert leftovers(names) == []


def check_decoded(folder: Location, expected: pa.Table) -> None:
    """The files of the undisturbed run, value by value, and nothing else."""
    names = [stat.path for stat in folder.files()]
    assert leftovers(names) == []
    assert all(name.endswith(".parquet") for name in names)
    assert read_folder(folder).equals(expected)


def leftovers(names: list[str]) -> list[str]:
    """Those of some files that only a running command needs."""
    running = (f"{LEDGER_FOLDER}/", f"{LOCK_FOLDER}/", f"{CHECKPOINTS_FOLDER}/", SPOOL_PREFIX)
    return [name for name in names if any(mark in f"/{name}" for mark in running)]


def finished_units(output: Location) -> int:
    """How many units of a running encode or decode are finished for good: those in its ledger."""
    return len(Ledger(output).entries())


def local(path: Path) -> Location:
    return Location(str(path))
