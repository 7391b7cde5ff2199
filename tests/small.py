"""Small fitted models, without a cluster and without training, for tests."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.archive import Archive
from pipeline.blocks import coded_block_rows, sample_runs
from pipeline.bundle import Bundle
from pipeline.codec_store import StoredCodec, save_codecs
from pipeline.columns import Bound, ColumnOptions, ColumnStats, fit_column
from pipeline.config import TrainConfig
from pipeline.dataset import Dataset, read_unit
from pipeline.encode import UnitEncoder
from pipeline.fit_codec import CodecFitter
from pipeline.local import fit_table
from pipeline.manifest import write_manifest
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat
from pipeline.plan import PartRecord, read_plan, write_plan
from pipeline.promise import Errors, Promise
from pipeline.request import EncodeOptions, Request
from pipeline.rows import RowTransform
from pipeline.storage import Location
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


def errors_of(bundle: Bundle, error: str, columns: Mapping[str, str] | None = None) -> Errors:
    """The error bounds of a model, as `train` resolves them."""
    own = {name: Bound.parse(text) for name, text in (columns or {}).items()}
    return Errors.resolve(bundle.rows, Bound.parse(error), own)


def codec_of(dataset: Dataset, bundle: Bundle, errors: Errors, keep: str, effort: str = "fast") -> StoredCodec:
    """A codec of a dataset, fitted in this process."""
    runs, rows = sample_runs(dataset, 10_000, 1 << 28, 0), coded_block_rows(dataset)
    fitter = CodecFitter(bundle.files(), errors, dataset.root, runs, rows, dataset.rows, effort, 0, 1)
    return StoredCodec.from_json(fitter({"keep": keep})["codec"])


def train_here(dataset: Dataset, config: TrainConfig) -> Bundle:
    """Trains a model of a dataset in this process."""
    batches = [batch for unit in dataset.units() for batch in read_unit(dataset.root, unit, None, 1 << 20)]
    return fit_table(pa.Table.from_batches(batches), config, threads=1)


def save_model(dataset: Dataset, bundle: Bundle, model: Location) -> None:
    """Makes a model folder as `train --effort fast` does: the model, and the codecs for its bounds."""
    save_codecs(model, {keep: codec_of(dataset, bundle, bundle.errors, keep) for keep in ("both", "corrections")})
    bundle.save(model)


def request_of(dataset: Dataset, bundle: Bundle, keep: str, error: str = "0.01r") -> Request:
    """A request to encode a dataset with a model that lies nowhere."""
    errors = errors_of(bundle, "none" if keep == "latents" else error)
    return Request(dataset, bundle, Location("/nowhere"), Promise(keep, errors), EncodeOptions())


def prepare(
    dataset: Dataset, bundle: Bundle, out: Location, keep: str, error: str = "0.01r", **plan: Any
) -> UnitEncoder:
    """Writes plan and model of an archive; returns what encodes its units, with `plan` changed."""
    request = request_of(dataset, bundle, keep, error)
    codec = None if keep == "latents" else codec_of(dataset, bundle, request.promise.errors, keep)
    decided = dataclasses.replace(request.plan(codec), **plan)
    model = ArchiveModel.of(bundle, {} if codec is None else codec.files, decided)
    write_plan(out, decided)
    model.save(out)
    return UnitEncoder(dict(model.files), PartFormat(dataset.schema, decided), dataset.root, out, "cpu", 1)


def encode_here(
    dataset: Dataset, bundle: Bundle, out: Location, keep: str, error: str = "0.01r", **plan: Any
) -> Archive:
    """Encodes a dataset in this process."""
    work = prepare(dataset, bundle, out, keep, error, **plan)
    decided = read_plan(out)
    records = [PartRecord.from_json(work(unit.to_json())["record"]) for unit in dataset.units(decided.unit_bytes)]
    write_manifest(out, decided, records, dataset.schema, dataset.size)
    return Archive.open(out)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """All rows of a table as one record batch."""
    return table.combine_chunks().to_batches()[0]
