"""The first step of training: one streaming pass over all rows that fits every column."""

from __future__ import annotations

import base64
import zlib
from typing import Any

from pipeline.bundle import schema_from_text, schema_to_text
from pipeline.cluster import Cluster
from pipeline.columns import ColumnOptions, ColumnStats
from pipeline.columns.gathered import Arrays, from_bytes, to_bytes
from pipeline.dataset import Dataset, WorkUnit, read_unit
from pipeline.fitting import Fitted, empty_stats, fit_all, sample_size
from pipeline.machine import trim_memory
from pipeline.progress import Progress
from pipeline.readahead import read_ahead
from pipeline.sampling import Priorities
from pipeline.storage import Location
from pipeline.units import run_units


def fit_columns(
    dataset: Dataset, options: dict[str, ColumnOptions], seed: int, cluster: Cluster, workers: int
) -> Fitted:
    """Fits every column in one streaming pass over all rows.

    Args:
        dataset: The dataset.
        options: Options of every column, from `column_options`.
        seed: Seed of the row sample that quantiles are taken from.
        cluster: The cluster.
        workers: Number of actors.

    Raises:
        ConfigError: If a column cannot have the kind asked for, or nothing is left to model.
        DatasetError: If a file cannot be read.
    """
    units = dataset.units()
    sample = sample_size(dataset.schema)
    arguments = {
        "root": dataset.root,
        "schema": schema_to_text(dataset.schema),
        "options": options,
        "seed": seed,
        "sample": sample,
        "rows": dataset.rows,
        "block_rows": dataset.block_rows,
    }
    items = [unit.to_json() for unit in units]
    progress = Progress("statistics", len(units), dataset.size / max(1, dataset.rows))
    merged = empty_stats(dataset.schema, options)
    for result in run_units(items, UnitObserver, arguments, cluster, workers):
        for name, text in result.pop("stats").items():
            part = ColumnStats.empty(dataset.schema.field(name), options[name], sample_size=sample)
            merged[name].merge(part.take(_unpack(text)))
        progress.advance(result["rows"])
    fitted = fit_all(dataset.schema, merged, options, str(dataset.location))
    del merged
    trim_memory()  # what came from the workers was large
    return fitted


class UnitObserver:
    """Worker: the statistics of one work unit.

    Args:
        root: The dataset's root folder.
        schema: The dataset's schema, as text.
        options: Options of every column.
        seed: Seed of the row sample.
        sample: Most values that are sampled from a column.
        rows: Rows of the dataset.
        block_rows: Rows that are read together.
    """

    def __init__(
        self,
        root: Location,
        schema: str,
        options: dict[str, ColumnOptions],
        seed: int,
        sample: int,
        rows: int,
        block_rows: int,
    ) -> None:
        self._root, self._schema = root, schema_from_text(schema)
        self._options, self._seed, self._block_rows = options, seed, block_rows
        self._sample, self._rows = sample, rows
        self._names = [name for name in self._schema.names if options[name].kind != "passthrough"]

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Observes all rows of the unit."""
        unit = WorkUnit.from_json(item)
        stats = {
            name: ColumnStats.empty(self._schema.field(name), self._options[name], sample_size=self._sample)
            for name in self._names
        }
        draw = Priorities(self._seed, unit)
        if self._names:
            for batch in read_ahead(read_unit(self._root, unit, self._names, self._block_rows)):
                keys = draw.next(batch.num_rows)
                for name in self._names:
                    stats[name].observe(batch.column(batch.schema.get_field_index(name)), keys)
        for one in stats.values():
            one.shorten(unit.rows / max(1, self._rows))
        return {"rows": unit.rows, "stats": {name: _pack(one) for name, one in stats.items()}}


def _pack(stats: ColumnStats) -> str:
    """Statistics of a column as text, for a result is JSON."""
    return base64.b64encode(zlib.compress(to_bytes(stats.arrays()), 1)).decode()


def _unpack(text: str) -> Arrays:
    return from_bytes(zlib.decompress(base64.b64decode(text)))
