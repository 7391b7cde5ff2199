"""From statistics to fitted columns, in a plain process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.columns import ColumnOptions, ColumnStats, check_options, explain, fit_column
from pipeline.errors import ConfigError
from pipeline.rows import RowTransform

_SAMPLE_CELLS = 4 << 20


@dataclass(frozen=True)
class Fitted:
    """What the pass found.

    Attributes:
        rows: The fitted columns.
        explanations: For each column, its kind and why.
    """

    rows: RowTransform
    explanations: dict[str, str]


def column_options(
    schema: pa.Schema,
    passthrough: tuple[str, ...],
    columns: Mapping[str, ColumnOptions],
    defaults: ColumnOptions,
) -> dict[str, ColumnOptions]:
    """Options for every column of a schema.

    Raises:
        ConfigError: If a column named does not exist, or one to be passed through has another kind.
    """
    for origin, names in (("--passthrough", passthrough), ("columns", columns)):
        for name in names:
            if name not in schema.names:
                listed = ", ".join(map(repr, schema.names[:50]))
                raise ConfigError(f"{origin} names the column {name!r}, the dataset has {listed}")
    options = {name: columns.get(name, defaults) for name in schema.names}
    for name in passthrough:
        if options[name].kind not in (None, "passthrough"):
            raise ConfigError(
                f"column {name!r} is to be passed through, but the configuration makes it {options[name].kind}"
            )
        options[name] = ColumnOptions(kind="passthrough", error=options[name].error)
    for name, option in options.items():
        if name not in columns:  # `defaults.error` is the dataset's bound, no column's own
            options[name] = option = dataclasses.replace(option, error=None)
        check_options(schema.field(name), option)
    if all(option.kind == "passthrough" for option in options.values()):
        raise ConfigError("every column is passed through; nothing is left to model")
    return options


def sample_size(schema: pa.Schema) -> int:
    """Most values that are sampled from a column."""
    return max(1024, min(65_536, _SAMPLE_CELLS // max(1, len(schema))))


def empty_stats(schema: pa.Schema, options: Mapping[str, ColumnOptions]) -> dict[str, ColumnStats]:
    """Statistics of no rows, for every column."""
    sample = sample_size(schema)
    return {field.name: ColumnStats.empty(field, options[field.name], sample_size=sample) for field in schema}


def fit_all(
    schema: pa.Schema, stats: Mapping[str, ColumnStats], options: Mapping[str, ColumnOptions], where: str
) -> Fitted:
    """Fits every column to its statistics.

    Raises:
        ConfigError: If a column cannot have the kind asked for, or nothing is left to model.
    """
    fitted = [fit_column(field, stats[field.name], options[field.name]) for field in schema]
    rows = RowTransform(schema, tuple(fitted))
    if not rows.modelled:
        raise ConfigError(f"{where}: every column is passed through; nothing is left to model")
    return Fitted(rows, {column.name: explain(column, stats[column.name]) for column in fitted})
