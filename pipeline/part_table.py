"""The parts of an archive as a table: `_parts.parquet`, one row a part in the order of the archive's rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset import WorkUnit
from pipeline.plan import PartRecord

PARTS_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("row_groups", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("checksums", pa.binary(), nullable=False),
        pa.field("source", pa.binary()),
        pa.field("bits_per_row", pa.float32()),
        pa.field("unit", pa.int64()),
    ]
)
_REQUIRED = PARTS_SCHEMA.names[:4]
_SHA256_BYTES = 32
_GROUP_ROWS, _BUFFER = 1 << 16, 1 << 20
_MOST_ROWS = 2**62
_OUTSIDE = r"^$|^/|\\|\x00|(^|/)\.\.(/|$)"
"""Paths that are no relative ones, or lead out of their folder."""
Offsets = npt.NDArray[np.int64]


class PartTable(Sequence[PartRecord]):
    """The records of an archive's parts, made from the table one by one as they are asked for.

    Args:
        table: A table with the columns of `PARTS_SCHEMA`; the last three may be missing (archives of format 1.0).

    Raises:
        ValueError: If it is no such table (or `pa.ArrowException`, `KeyError`, `TypeError`).
    """

    def __init__(self, table: pa.Table) -> None:
        columns = [_column(table, field) for field in PARTS_SCHEMA]
        self.table = pa.table(columns, schema=PARTS_SCHEMA)
        self._columns: dict[str, Any] = dict(zip(PARTS_SCHEMA.names, columns, strict=True))
        self._check()
        self._units = _units(self._columns["unit"])
        self._group_ends, self.row_ends = _group_and_row_ends(self._columns["row_groups"])
        """Row groups, and rows, of all parts up to and with each one."""
        path = self._columns["path"]
        new = np.ones(len(path), bool)
        if len(path) > 1:
            new[1:] = np.from_dlpack(pc.not_equal(path[1:], path[:-1]).cast(pa.uint8()))
        self._starts: Offsets = np.flatnonzero(new)
        if not _all_different(self._of_files("path") if len(self._starts) < len(path) else path):
            raise ValueError("the parts of a file do not follow each other")

    def _check(self) -> None:
        wrong = pc.match_substring_regex(self._columns["path"], _OUTSIDE)
        if pc.any(wrong).as_py():
            path = self._columns["path"].filter(wrong)[0].as_py()
            raise ValueError(f"the file {path!r} is no relative path")
        shortest = pc.min(pc.binary_length(self._columns["checksums"])).as_py()
        if shortest is not None and shortest < _SHA256_BYTES:
            raise ValueError("a part has no checksum")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> PartRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[PartRecord]: ...

    def __getitem__(self, index: int | slice) -> PartRecord | list[PartRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._record(index % len(self))

    def __iter__(self) -> Iterator[PartRecord]:
        return map(self._record, range(len(self)))

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return int(self.row_ends[-1]) if len(self) else 0

    @property
    def files(self) -> int:
        """Source files."""
        return len(self._starts)

    @property
    def next_unit(self) -> int:
        """A number above those of all work units."""
        return int(self._units.max()) + 1 if len(self) else 0

    def file_ranges(self) -> Iterator[tuple[str, range]]:
        """Each source file's path and the numbers of its parts, in order."""
        stops = np.append(self._starts[1:], len(self))[: len(self._starts)]
        for start, stop in zip(self._starts.tolist(), stops.tolist(), strict=True):
            yield self._columns["path"][start].as_py(), range(start, stop)

    def sources(self) -> dict[str, str]:
        """Each source file's identity (`SourceFile.source`); "" where it is not known."""
        paths, found = self._of_files("path").to_pylist(), self._of_files("source").to_pylist()
        return {path: (source or b"").hex() for path, source in zip(paths, found, strict=True)}

    def _of_files(self, name: str) -> pa.Array:
        """What a column says of the first part of each file."""
        starts = self._starts  # as buffers: `pa.array` of NumPy's would import pandas
        return self._columns[name].take(pa.Array.from_buffers(pa.int64(), len(starts), [None, pa.py_buffer(starts)]))

    def bits_per_row(self) -> float | None:
        """What a row costs under the model in bits, over all parts that know; None if none does."""
        bits = self._columns["bits_per_row"].to_numpy(zero_copy_only=False).astype(np.float64)
        rows = np.diff(self.row_ends, prepend=0)
        known = np.isfinite(bits) & (rows > 0)
        return float((bits[known] * rows[known]).sum() / rows[known].sum()) if known.any() else None

    def _record(self, index: int) -> PartRecord:
        columns = self._columns
        first = int(self._starts[np.searchsorted(self._starts, index, "right") - 1])
        begun = int(self.row_ends[first - 1]) if first else 0
        start = int(self.row_ends[index - 1]) if index else 0
        groups_before = int(self._group_ends[first - 1]) if first else 0
        group_start = int(self._group_ends[index - 1]) if index else 0
        unit = WorkUnit(
            int(self._units[index]),
            columns["path"][index].as_py(),
            group_start - groups_before,
            tuple(columns["row_groups"][index].as_py()),
            start - begun,
            (columns["source"][index].as_py() or b"").hex(),
        )
        checks = columns["checksums"][index].as_py()
        bits = columns["bits_per_row"][index].as_py()
        return PartRecord(
            unit, columns["bytes"][index].as_py(), checks[:_SHA256_BYTES].hex(), checks[_SHA256_BYTES:], {}, bits
        )


def to_table(records: Sequence[PartRecord], first: int = 0) -> pa.Table:
    """Part records, in the order of the archive's rows, as a table.

    Args:
        records: The records.
        first: Parts that come before them.
    """
    return pa.Table.from_pylist([_row(record, first + number) for number, record in enumerate(records)], PARTS_SCHEMA)


def records_to_bytes(records: Sequence[PartRecord], before: PartTable | None = None) -> bytes:
    """The bytes of `_parts.parquet`.

    Args:
        records: The records.
        before: Those of parts that come before them.
    """
    table = to_table(records, 0 if before is None else len(before))
    if before is not None:
        table = pa.concat_tables([before.table, table])
    table = table.drop_columns([name for name in PARTS_SCHEMA.names[4:] if table[name].null_count == len(table)])
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        store_schema=False,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=_GROUP_ROWS,
    )
    return sink.getvalue()


def records_from_bytes(data: bytes) -> PartTable:
    """The inverse of `records_to_bytes`: what a file's parts follow each other by is told by their order.

    Raises:
        ValueError: If it is no such table (or `pa.ArrowException`, `KeyError`, `TypeError`).
    """
    return read_records(io.BytesIO(data))


def read_records(stream: Any) -> PartTable:
    """As `records_from_bytes`, from an open file, column by column: a table of a million parts is large.

    Raises:
        ValueError: If it is no such table (or `pa.ArrowException`, `KeyError`, `TypeError`).
    """
    with pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER, memory_map=False) as file:
        names = [name for name in file.schema_arrow.names if name in PARTS_SCHEMA.names]
        return PartTable(pa.table([_read_column(file, name) for name in names], names))


def _read_column(file: pq.ParquetFile, name: str) -> Any:
    """A column by row groups: read at once, Arrow would hold it up to three times."""
    groups = (file.read_row_group(group, [name], use_threads=False) for group in range(file.num_row_groups))
    chunks = [chunk for group in groups for chunk in group.column(0).chunks]
    return _whole(name, pa.chunked_array(chunks, file.schema_arrow.field(name).type))


def _row(record: PartRecord, position: int) -> Mapping[str, Any]:
    return {
        "path": record.path,
        "row_groups": list(record.row_groups),
        "bytes": record.size,
        "checksums": bytes.fromhex(record.sha256) + record.guards,
        "source": bytes.fromhex(record.work_unit.source) or None,
        "bits_per_row": record.bits_per_row,
        "unit": None if record.work_unit.index == position else record.work_unit.index,
    }


def _column(table: pa.Table, field: pa.Field) -> Any:
    """A column of the table, checked."""
    if field.name not in table.column_names and field.name not in _REQUIRED:
        return pa.nulls(table.num_rows, field.type)
    column = _whole(field.name, table[field.name])
    if column.type != field.type:
        column = column.cast(field.type)
    column.validate(full=True)
    if column.null_count and not field.nullable:
        raise ValueError(f"the column {field.name!r} has nulls")
    return column


def _all_different(paths: pa.Array) -> bool:
    """Whether no path comes twice; sorted ones, as those of an archive that never grew, need no memory."""
    if len(paths) < 2 or pc.all(pc.greater(paths[1:], paths[:-1])).as_py():
        return True
    return bool(pc.count_distinct(paths).as_py() == len(paths))


def _whole(name: str, column: pa.ChunkedArray) -> Any:
    """A column as one array, not copied if it is one already; the largest, the checksums, stays in its chunks."""
    if name == "checksums":
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _units(column: pa.Array) -> Offsets:
    """The number of each part's work unit: its place in the table where nothing else is said."""
    units: Offsets = np.arange(len(column))
    if column.null_count < len(column):
        said = np.from_dlpack(column.fill_null(-1))
        np.copyto(units, said, where=said >= 0)
    return units


def _group_and_row_ends(groups: pa.Array) -> tuple[Offsets, Offsets]:
    """Row groups, and rows, of all parts up to and with each one.

    Raises:
        ValueError: If a row group has less than no rows, or all have more than 64 bits can count.
    """
    offsets: Offsets = np.from_dlpack(groups.offsets).astype(np.int64)  # `to_numpy` would import pandas
    sizes = np.from_dlpack(groups.values)[offsets[0] : offsets[-1]]  # `flatten` would copy
    offsets -= offsets[0]
    rows = np.zeros(len(groups), np.int64)
    if len(sizes):
        if sizes.min() < 0 or int(sizes.max()) * len(sizes) > _MOST_ROWS:
            raise ValueError("a part has a number of rows below 0, or all have too many")
        some = offsets[1:] > offsets[:-1]
        rows[some] = np.add.reduceat(sizes, offsets[:-1][some])
    return offsets[1:], np.cumsum(rows, out=rows)
