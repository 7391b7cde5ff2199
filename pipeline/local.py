"""Training in this process, from rows in memory, without Ray: for notebooks, estimators and benchmarks.

The columns are fitted and the network is trained by the same code as in `parvae train`; only what carries rows and
checkpoints differs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.bounds import overrides
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.config import TrainConfig
from pipeline.dataset import WorkUnit
from pipeline.errors import DatasetError
from pipeline.fitting import Fitted, column_options, empty_stats, fit_all
from pipeline.packed import PackedRows
from pipeline.promise import Errors
from pipeline.sampling import Priorities, held_out
from pipeline.training_data import EpochPlan, epoch_plan, held_out_fraction, packed_table
from pipeline.training_loop import LoopSettings
from pipeline.training_process import ProcessHost, train_here

LOG = logging.getLogger(__name__)
_BATCH_ROWS = 65_536


def fit_table(
    table: pa.Table,
    config: TrainConfig,
    device: str = "cpu",
    threads: int | None = None,
    listen: Callable[[dict[str, Any]], None] | None = None,
) -> Bundle:
    """Trains a model on a table in memory. No coder is fitted: `encode` does that when it is asked for guarantees.

    Args:
        table: The rows.
        config: The configuration, as of `parvae train`.
        device: Torch device.
        threads: Compute threads while training; None: torch's own setting.
        listen: Called with a dictionary of figures after each epoch.

    Raises:
        ConfigError: A column is configured wrongly, or nothing is left to model.
        DatasetError: There are no rows.
        TrainingError: The loss stopped being finite.
    """
    if not table.num_rows:
        raise DatasetError("the table has no rows; nothing can be learned from it")
    started = time.monotonic()
    table = table.unify_dictionaries()
    options = column_options(table.schema, config.passthrough, config.columns, config.defaults)
    unit = WorkUnit(0, "table", 0, (table.num_rows,), 0)
    batches = table.to_batches(max_chunksize=_BATCH_ROWS)
    fitted = _fit_columns(batches, table.schema, options, config.seed, unit)
    fraction = held_out_fraction(table.num_rows, config.training)
    mask = held_out(config.seed, unit, fraction)
    host = ProcessHost(torch.device(device), _Packed(batches, fitted, mask), listen or _ignore)
    kept = int(np.count_nonzero(mask))
    settings = _settings(fitted, config, table.num_rows - kept, kept == 0, threads or torch.get_num_threads())
    weights, history = train_here(settings, host)
    training = {
        "config": config.to_json(),
        "rows": table.num_rows,
        "seconds": time.monotonic() - started,
        "history": history,
    }
    errors = Errors.resolve(fitted.rows, config.bound, overrides(options))
    return Bundle(fitted.rows, weights, training, device, errors)


def _fit_columns(
    batches: list[pa.RecordBatch], schema: pa.Schema, options: dict[str, ColumnOptions], seed: int, unit: WorkUnit
) -> Fitted:
    stats, draw = empty_stats(schema, options), Priorities(seed, unit)
    names = [name for name in schema.names if options[name].kind != "passthrough"]
    for batch in batches:
        keys = draw.next(batch.num_rows)
        for name in names:
            stats[name].observe(batch.column(batch.schema.get_field_index(name)), keys)
    return fit_all(schema, stats, options, "the table")


def _settings(fitted: Fitted, config: TrainConfig, rows: int, validate_on_training: bool, threads: int) -> LoopSettings:
    layout = fitted.rows.layout()
    plan, epochs = epoch_plan(rows, PackedRows(layout).row_bytes, config.training, 1, config.seed)
    plan = EpochPlan(plan.steps, plan.local_batch, cached=True, seed=plan.seed)
    return LoopSettings(
        layout.to_json(),
        config.network.to_json(),
        config.training,
        config.seed,
        epochs,
        plan,
        validate_on_training,
        threads,
    )


@dataclass
class _Packed:
    """Rows in memory: a `pipeline.training_data.Shard`."""

    batches: list[pa.RecordBatch]
    fitted: Fitted
    held_out: Any

    def tables(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        """The tables in the rows' order."""
        del rng
        rows = self.fitted.rows
        packing, first = PackedRows(rows.layout()), 0
        for batch in self.batches:
            bins, _ = rows.from_batch(batch)
            yield packed_table(0, first, self.held_out[first : first + len(bins)], packing.pack(bins))
            first += len(bins)


def _ignore(message: dict[str, Any]) -> None:
    """Where nobody listens."""
    del message
