"""A Parquet dataset: every footer checked first, then cut into work units.

Ray Data merges files of different schemas silently into a null-filled union, so nothing is left to it: the
folder is listed here, every footer is read and compared, and the work is a list of `WorkUnit`s.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DatasetError
from pipeline.footers import UNREADABLE, SourceFile, check_same_schema, try_footer
from pipeline.storage import Location

SUFFIXES = (".parquet", ".parq", ".pq")
UNIT_BYTES = 128 << 20
BLOCK_BYTES = 16 << 20
BLOCK_ROWS = 65_536
_FOOTER_THREADS = 16


@dataclass(frozen=True)
class WorkUnit:
    """A run of row groups of one file that one task encodes into one part.

    Attributes:
        index: Position among all units of the dataset.
        path: The file, relative to the dataset's folder.
        first_group: First row group.
        row_groups: Rows of each row group in the run (empty for a file without rows).
        first_row: Row number in the file of the run's first row.
        source: The file's `SourceFile.source`; "" where it is not known.
    """

    index: int
    path: str
    first_group: int
    row_groups: tuple[int, ...]
    first_row: int
    source: str = ""

    @property
    def rows(self) -> int:
        """Rows in the unit."""
        return sum(self.row_groups)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WorkUnit:
        """Rebuilds a unit from `to_json`'s result."""
        return cls(**{**data, "row_groups": tuple(data["row_groups"])})


@dataclass(frozen=True)
class Dataset:
    """A checked dataset.

    Attributes:
        location: What the user named: the folder, or the one file.
        root: The folder that the files' paths are relative to.
        schema: The schema that all files share; metadata is the first file's.
        files: The files, sorted by path.
        unreadable: Files that were left out, and why: path → reason.
    """

    location: Location
    root: Location
    schema: pa.Schema
    files: tuple[SourceFile, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files as they are stored."""
        return sum(file.size for file in self.files)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in memory, about."""
        stored = sum(file.bytes for file in self.files) // max(1, self.rows)
        return max(1, stored, sum(_width(field.type) for field in self.schema))

    @property
    def block_rows(self) -> int:
        """Rows that are held in memory together: at most `BLOCK_BYTES` of decoded data."""
        return max(256, min(BLOCK_ROWS, BLOCK_BYTES // self.row_bytes))

    def units(self, unit_bytes: int = UNIT_BYTES, first: int = 0) -> list[WorkUnit]:
        """Cuts the dataset into work units.

        Args:
            unit_bytes: Uncompressed bytes that a unit aims at; it is a run of row groups of one file.
            first: Index of the first unit.
        """
        units: list[WorkUnit] = []
        for file in self.files:
            units.extend(_cut(file, first + len(units), unit_bytes))
        return units

    def without(self, unreadable: Mapping[str, str]) -> Dataset:
        """The dataset without some files.

        Args:
            unreadable: Their paths, and why.
        """
        files = tuple(file for file in self.files if file.path not in unreadable)
        return replace(self, files=files, unreadable={**self.unreadable, **unreadable})

    def fingerprint(self) -> str:
        """A hash of the names, sizes, versions and row groups of all files, and of the schema."""
        digest = hashlib.sha256(self.schema.remove_metadata().serialize().to_pybytes())
        for file in self.files:
            digest.update(repr(asdict(file)).encode())
        return digest.hexdigest()


def open_dataset(location: Location, what: str = "DATA", leave_out: pa.Schema | None = None) -> Dataset:
    """Lists a dataset and checks the footer of every file.

    Args:
        location: A folder of Parquet files (Hive partitions allowed) or one Parquet file.
        what: Name of the argument, for messages.
        leave_out: The schema that files should have: those that are no readable Parquet or have another one are
            left out and listed as `unreadable`. None: such a file is an error.

    Raises:
        DatasetError: If nothing is there, a file is no readable Parquet, schemas differ, or two columns share
            a name; the message names the file.
    """
    if not location.exists():
        raise DatasetError(f"{what} {location} does not exist")
    root = location
    if location.is_file():
        root, stats = location.parent, [location.stat()]
    else:
        stats = [stat for stat in location.files() if _is_data(stat.path)]
    if not stats:
        raise DatasetError(
            f"{what} {location} holds no Parquet file (looked for *{', *'.join(SUFFIXES)}; names that begin "
            "with '_' or '.' are skipped)"
        )
    check = functools.partial(try_footer, root, expected=leave_out)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(check, stats))
    good = [found for found in footers if not isinstance(found, DatasetError)]
    bad = {stat.path: found for stat, found in zip(stats, footers, strict=True) if isinstance(found, DatasetError)}
    if bad and (leave_out is None or not good):
        raise next(iter(bad.values()))
    schema = good[0][1]
    for file, other in good:
        check_same_schema(root, good[0][0].path, schema, file.path, other)
    return Dataset(location, root, schema, tuple(file for file, _ in good), {path: str(e) for path, e in bad.items()})


def read_unit(
    root: Location, unit: WorkUnit, columns: Sequence[str] | None, block_rows: int
) -> Iterator[pa.RecordBatch]:
    """Streams the rows of a unit in batches of at most `block_rows`.

    Args:
        root: The dataset's root folder.
        unit: What to read.
        columns: Columns to read, None for all.
        block_rows: Most rows a batch has.

    Raises:
        DatasetError: If the file cannot be read or holds another number of rows than when it was listed.
    """
    if unit.rows == 0:
        return
    location = root.join(unit.path)
    groups = range(unit.first_group, unit.first_group + len(unit.row_groups))
    seen = 0
    try:
        with location.open() as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            _check_unchanged(location, file, unit, columns)
            for batch in file.iter_batches(
                batch_size=block_rows,
                row_groups=list(groups),
                columns=None if columns is None else list(columns),
                use_threads=False,
            ):
                seen += batch.num_rows
                yield batch
    except UNREADABLE as error:
        raise DatasetError(
            f"cannot read {location} (row groups {groups.start} to {groups.stop - 1}): {error}; "
            "restore the file or take it out of the dataset",
            unit.path,
        ) from error
    if seen != unit.rows:
        message = f"{location} gave {seen} rows where its footer promised {unit.rows}; restore it"
        raise DatasetError(message, unit.path)


def read_file_schema(location: Location) -> pa.Schema:
    """The Arrow schema of one Parquet file, metadata included.

    Raises:
        DatasetError: If the file cannot be read.
    """
    try:
        with location.open() as stream, pq.ParquetFile(stream) as file:
            return file.schema_arrow
    except UNREADABLE as error:
        raise DatasetError(f"cannot read {location}: {error}; restore the file") from error


def _check_unchanged(location: Location, file: pq.ParquetFile, unit: WorkUnit, columns: Sequence[str] | None) -> None:
    """Refuses a file whose row groups or columns are no longer those that were listed."""
    footer, stop = file.metadata, unit.first_group + len(unit.row_groups)
    numbers = range(unit.first_group, min(stop, footer.num_row_groups))
    found = tuple(footer.row_group(number).num_rows for number in numbers)
    if found != unit.row_groups:
        raise DatasetError(
            f"{location} has row groups of {list(found)} rows where {list(unit.row_groups)} were listed; "
            "it has changed since, start again"
        )
    missing = sorted(set(columns or ()) - set(file.schema_arrow.names))
    if missing:
        raise DatasetError(f"{location} has lost the column {missing[0]!r} since it was listed; start again")


def _is_data(path: str) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in path.split("/"))
    return not hidden and path.lower().endswith(SUFFIXES)


def _cut(file: SourceFile, first_index: int, unit_bytes: int) -> Iterator[WorkUnit]:
    groups, row_bytes = file.row_groups, file.bytes / max(1, file.rows)
    start = begun = index = 0
    size = 0.0
    for position, rows in enumerate(groups):
        if position > start and size + rows * row_bytes > unit_bytes:
            yield WorkUnit(first_index + index, file.path, start, groups[start:position], begun, file.source)
            begun += sum(groups[start:position])
            start, size, index = position, 0.0, index + 1
        size += rows * row_bytes
    yield WorkUnit(first_index + index, file.path, start, groups[start:], begun, file.source)


def _width(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    if isinstance(kind, pa.FixedShapeTensorType):
        return _width(kind.storage_type)
    try:
        return max(1, int(kind.bit_width) // 8)
    except (ValueError, AttributeError):
        return 16
