"""Small fitted models, without a cluster and without training, for tests."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions, ColumnStats, fit_column
from pipeline.rows import RowTransform
from vae_model.config import NetworkConfig
from vae_model.network import VAE
from vae_model.weights import to_bytes

INTEGER_TYPES = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())

TINY = NetworkConfig(latent_dim=3, hidden=(8,), conv_channels=())


def as_stored(table: pa.Table, row_group_size: int | None = None) -> pa.Table:
    """A table as it comes back from a Parquet file (Parquet has no date64, time32[s], …)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_size)
    return pq.ParquetFile(sink).read()


def fit(table: pa.Table, options: Mapping[str, ColumnOptions] | None = None) -> RowTransform:
    """Columns fitted to all rows of a table."""
    columns = []
    keys = np.random.default_rng(0).integers(0, 1 << 60, table.num_rows, np.uint64)
    for field in table.schema:
        chosen = (options or {}).get(field.name, ColumnOptions())
        stats = ColumnStats.empty(field, chosen)
        stats.observe(table[field.name], keys)
        columns.append(fit_column(field, stats, chosen))
    return RowTransform(table.schema, tuple(columns))


def tiny_bundle(table: pa.Table, options: Mapping[str, ColumnOptions] | None = None, seed: int = 0) -> Bundle:
    """A real, untrained model of a table; its latents lie on a grid."""
    rows = fit(table, options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(rows.layout(), TINY)
    vae.set_latent_grid(torch.full((3,), 0.1), torch.ones(3))
    return Bundle(rows, to_bytes(vae), {"rows": table.num_rows, "history": [{"minus_elbo_bits": 1.5}]})


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """All rows of a table as one record batch."""
    return table.combine_chunks().to_batches()[0]
