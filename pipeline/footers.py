"""Footers of Parquet files: what is read of every file of a dataset before any work."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns.kinds import pickled_column
from pipeline.errors import DatasetError
from pipeline.storage import FileStat, Location

UNREADABLE = (OSError, pa.ArrowException, ValueError, OverflowError, TypeError, LookupError, AttributeError)
"""What opening or reading a damaged Parquet file raises; the last three from Arrow types that libraries register."""


@dataclass(frozen=True)
class SourceFile:
    """One Parquet file of a dataset.

    Attributes:
        path: Path relative to the dataset's folder (Hive partition folders included).
        size: Bytes.
        version: ETag or modification time.
        row_groups: Rows of each row group.
        bytes: Uncompressed bytes of all row groups, as the footer says.
        source: What tells this file from another one at the same place: a hash of its size and footer, 16
            hexadecimal digits. A copy of the file has the same.
    """

    path: str
    size: int
    version: str
    row_groups: tuple[int, ...]
    bytes: int
    source: str = ""

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(self.row_groups)


def try_footer(
    root: Location, stat: FileStat, expected: pa.Schema | None
) -> tuple[SourceFile, pa.Schema] | DatasetError:
    """Reads and checks a file's footer.

    Args:
        root: The dataset's root folder.
        stat: The file.
        expected: The schema that it should have, None for any.

    Returns:
        The file and its schema, or what is wrong with it.
    """
    try:
        file, schema = _read_footer(root, stat)
        _check_columns(root.join(file.path), schema)
        if expected is not None:
            check_same_schema(root, "the model's schema", expected, file.path, schema)
    except DatasetError as error:
        return error
    return file, schema


def _read_footer(root: Location, stat: FileStat) -> tuple[SourceFile, pa.Schema]:
    # the metadata of single column chunks is left alone: pyarrow aborts the process where it is damaged
    location = root.join(stat.path)
    try:
        with location.open() as stream, pq.ParquetFile(stream) as file:
            footer, schema = file.metadata, file.schema_arrow
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            source = _source(stream, stat.size, footer.serialized_size)
    except UNREADABLE as error:
        raise DatasetError(
            f"{location} is not a readable Parquet file ({stat.size} bytes): {error}; "
            "restore it or take it out of the dataset"
        ) from error
    rows = tuple(group.num_rows for group in groups)
    if min(rows, default=0) < 0:
        raise DatasetError(f"{location}: row group {rows.index(min(rows))} claims {min(rows)} rows; restore the file")
    size = sum(group.total_byte_size for group in groups)
    return SourceFile(stat.path, stat.size, stat.version, rows, size, source), schema


def _source(stream: Any, size: int, footer: int) -> str:
    """The hash of a file's size and footer."""
    stream.seek(max(0, size - footer - 8))
    return hashlib.sha256(b"%d " % size + stream.read()).hexdigest()[:16]


def check_same_schema(dataset: Location, first: str, expected: pa.Schema, path: str, schema: pa.Schema) -> None:
    """Refuses a file whose columns, their order or types are not those of another one.

    Raises:
        DatasetError: Naming both files and the columns that differ.
    """
    if schema.equals(expected, check_metadata=False):
        return
    if schema.names != expected.names:
        missing = [name for name in expected.names if name not in schema.names]
        extra = [name for name in schema.names if name not in expected.names]
        detail = f"columns missing: {missing}, columns extra: {extra}" if missing or extra else "order differs"
    else:
        detail = "; ".join(
            f"column {field.name!r} is {_type_of(schema.field(field.name))} there and {_type_of(field)} here"
            for field in expected
            if not schema.field(field.name).equals(field)
        )
    raise DatasetError(
        f"the files of {dataset} have different schemas: {path} against {first}: {detail}; "
        "a dataset has one schema, rewrite or move the file"
    )


def _type_of(field: pa.Field) -> str:
    return f"{field.type}" if field.nullable else f"{field.type} not null"


def _check_columns(location: Location, schema: pa.Schema) -> None:
    if not schema.names:
        raise DatasetError(f"{location} has no columns")
    counts = Counter(schema.names)
    if len(counts) < len(schema.names):
        doubled = next(name for name in schema.names if counts[name] > 1)
        raise DatasetError(f"{location} has several columns named {doubled!r}; rename them first")
    pickled = pickled_column(schema)
    if pickled is not None:
        raise DatasetError(
            f"{location}: column {pickled!r} holds pickled Python objects, which run code when they are read; "
            "write its values as an Arrow type, or drop it"
        )
