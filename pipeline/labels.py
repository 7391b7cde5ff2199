"""The label of a classification: one of an archive's columns, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.archive import Archive
from pipeline.errors import ConfigError, DatasetError

MAX_CLASSES = 1000


@dataclass(frozen=True)
class Label:
    """A column of classes.

    Attributes:
        name: The column.
        classes: Its values, sorted.
        counts: Rows of each class.
    """

    name: str
    classes: pa.Array
    counts: tuple[int, ...]

    def codes(self, column: pa.Array) -> npt.NDArray[np.int64]:
        """Number of the class of each row."""
        codes: npt.NDArray[np.int64] = pc.index_in(_plain(column), value_set=self.classes).to_numpy().astype(np.int64)
        return codes

    def names(self) -> list[str]:
        """The classes as text."""
        return [str(value) for value in self.classes.to_pylist()]


def check_label(archive: Archive, name: str, allow_modelled: bool) -> Label:
    """Reads a label, and refuses what is none.

    Args:
        archive: The archive.
        name: The column.
        allow_modelled: Whether it may be a column that the model saw.

    Raises:
        ConfigError: There is no such column, it was modelled, or it is continuous.
        DatasetError: It is null in places, or has one class only.
    """
    archive.check_columns([name], "--label")
    modelled = {column.name for column in archive.model.rows.modelled}
    if name in modelled and not allow_modelled:
        raise ConfigError(
            f"--label {name!r} is a column that the model was trained on: the latents hold it, and a classifier on "
            f"them would find what it was told. Train again with --passthrough {name}, or give --allow-modelled-label"
        )
    kind = _value_type(archive.schema.field(name).type)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ConfigError(f"--label {name!r} is {kind}; classes are text, whole numbers or booleans")
    counts: dict[object, int] = {}
    for batch in archive.batches([name]):
        column = _plain(batch.column(name))
        if column.null_count:
            raise DatasetError(
                f"{archive.location}: the label {name!r} is null in {column.null_count:,} of {len(column):,} rows of a "
                "block; drop those rows from the dataset, or give them a class of their own, and encode again"
            )
        _refuse_fractions(column, name)
        for entry in column.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
        if len(counts) > MAX_CLASSES:
            raise ConfigError(
                f"--label {name!r} has more than {MAX_CLASSES:,} different values: it is continuous, or a key; cut it "
                "into classes (pandas.cut) and pass that column through"
            )
    if len(counts) < 2:
        only = next(iter(counts), None)
        raise DatasetError(f"{archive.location}: every row has the label {name!r} = {only!r}; two classes are needed")
    classes = sorted(counts)  # type: ignore[type-var]
    return Label(name, pa.array(classes, kind), tuple(counts[value] for value in classes))


def _refuse_fractions(column: pa.Array, name: str) -> None:
    if not (pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        return
    values = column.cast(pa.float64()).to_numpy()
    broken = values[values != np.floor(values)]
    if len(broken):
        raise ConfigError(
            f"--label {name!r} is continuous ({column.type}, {float(broken[0])!r} for one); a classifier needs "
            "classes: cut it (pandas.cut) and pass that column through"
        )


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
