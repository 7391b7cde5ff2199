"""Files of scores: what `score` may be asked for, which columns are written, and the workers that write them."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.anomaly import Scorer, Scores
from pipeline.bundle import Bundle
from pipeline.dataset import WorkUnit, read_unit
from pipeline.errors import ConfigError, JobError
from pipeline.neighbours import Drawn, Neighbours
from pipeline.readahead import read_ahead
from pipeline.storage import Location
from pipeline.thresholds import rechunked

SCORE, FLAG = "anomaly_score", "is_anomaly"
NEIGHBOUR, STRANGEST, CONTRIBUTION = "neighbour_distance", "strangest", "contribution."
ROW_GROUP = 65_536
"""Rows of a row group of scores, about."""


@dataclass(frozen=True)
class ScoreOptions:
    """What `score` is asked for.

    Attributes:
        samples: M, the draws of z a row.
        contributions: Whether each column's contribution is written.
        keys: Columns of the dataset to copy beside the scores; None: those that the model passes through.
        threshold: Rows with a higher score are anomalous; None: see the next two.
        quantile: Share of the rows that is not anomalous.
        label: Column with the labels that the threshold is chosen by.
        neighbours: K of the distance to the K-th nearest latent; None: no distance.
        reference: Archive whose latents are the reference; None: a sample of the dataset.
        seed: Seed of all draws.

    Raises:
        ConfigError: If values contradict each other or are out of range.
    """

    samples: int = 16
    contributions: bool = True
    keys: tuple[str, ...] | None = None
    threshold: float | None = None
    quantile: float | None = None
    label: str | None = None
    neighbours: int | None = None
    reference: Location | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = [value for value in (self.threshold, self.quantile, self.label) if value is not None]
        if len(given) > 1:
            raise ConfigError("--threshold, --threshold-quantile and --threshold-label: give one of them")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ConfigError(f"--threshold-quantile {self.quantile}: expected a number above 0 and below 1")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ConfigError(f"--threshold {self.threshold}: expected a finite number")
        if self.reference is not None and self.neighbours is None:
            raise ConfigError("--reference is of use with --neighbours K only")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"--seed {self.seed}: expected 0 or more, and less than 2^63")

    @property
    def waits(self) -> bool:
        """Whether the threshold is known only when all rows are scored."""
        return self.quantile is not None or self.label is not None

    @property
    def flags(self) -> bool:
        """Whether there is a threshold at all."""
        return self.waits or self.threshold is not None


def score_names(bundle: Bundle, options: ScoreOptions) -> list[str]:
    """The columns that are written beside the keys, in order."""
    names = ["reconstruction_probability", "minus_elbo", SCORE]
    names += [NEIGHBOUR] if options.neighbours is not None else []
    if options.contributions:
        names += [STRANGEST, *(CONTRIBUTION + column.name for column in bundle.rows.modelled)]
    return [*names, FLAG] if options.flags else names


class FileScorer:
    """Worker: scores one file into one published file.

    Its compute threads are one: with more, the last bits of a score would depend on their number.

    Args:
        files: The files of the model.
        root: The dataset's root folder.
        out: Folder to write.
        options: What is asked for.
        keys: Columns to copy.
        reference: Reference latents, if there are to be neighbours.
        share: Share of the dataset's rows that is the reference; 0: none.
        block_rows: Rows that are read together.
        device: Torch device.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        root: Location,
        out: Location,
        options: ScoreOptions,
        keys: tuple[str, ...],
        reference: npt.NDArray[np.float32] | None,
        share: float,
        block_rows: int,
        device: str,
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._bundle = Bundle.from_files(files, "the model", device)
        self._scorer = Scorer(self._bundle, options.samples, options.seed, expected=options.contributions)
        self._root, self._out, self._options, self._keys = root, out, options, keys
        self._share, self._block_rows = share, block_rows
        self._neighbours: Neighbours | None = None
        if reference is not None and options.neighbours is not None:
            self._neighbours = Neighbours(reference, options.neighbours)
        self._names = score_names(self._bundle, options)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Scores the file; returns its path, rows, bytes and rows above a known threshold."""
        started = time.monotonic()
        unit = WorkUnit.from_json({name: value for name, value in item.items() if name != "stage"})
        location = self._out.join(unit.path)
        anomalies = 0
        with location.publishing() as spool:
            with pq.ParquetWriter(spool, self._schema(), compression="zstd") as writer:
                for table in self._tables(unit):
                    writer.write_table(table, row_group_size=ROW_GROUP)
                    if self._options.threshold is not None:
                        anomalies += int(np.count_nonzero(table[FLAG].to_numpy()))
            size = os.path.getsize(spool)
        seconds = round(time.monotonic() - started, 3)
        figures = {"rows": unit.rows, "bytes": size, "anomalies": anomalies, "seconds": seconds}
        return {"stage": item["stage"], "path": unit.path, **figures}

    def _tables(self, unit: WorkUnit) -> Iterator[pa.Table]:
        """The file's scores in tables of about a row group."""
        wanted = {column.name for column in self._bundle.rows.modelled} | set(self._keys)
        names = [name for name in self._bundle.rows.schema.names if name in wanted]
        source = read_ahead(read_unit(self._root, unit, names, self._block_rows))
        drawn = Drawn(self._options.seed, unit, self._share)
        stream, waiting, count = zlib.crc32(unit.path.encode()), list[pa.RecordBatch](), 0
        for number, batch in enumerate(rechunked(source, self._scorer.chunk_rows)):
            scores = self._scorer(batch, stream, number)
            waiting.append(self._written(batch, scores, drawn.next(batch.num_rows) if self._share else None, unit))
            count += batch.num_rows
            if count >= ROW_GROUP:
                yield pa.Table.from_batches(waiting).unify_dictionaries()
                waiting, count = [], 0
        if waiting:
            yield pa.Table.from_batches(waiting).unify_dictionaries()

    def _written(
        self, batch: pa.RecordBatch, scores: Scores, within: npt.NDArray[np.bool_] | None, unit: WorkUnit
    ) -> pa.RecordBatch:
        """Keys and scores of one chunk."""
        columns: dict[str, pa.Array] = {name: batch.column(batch.schema.get_field_index(name)) for name in self._keys}
        if not np.isfinite(scores.anomaly_score).all():
            raise JobError(f"{self._root}/{unit.path} has rows whose score is not finite; train the model again")
        columns["reconstruction_probability"] = pa.array(scores.log_prob)
        columns["minus_elbo"] = pa.array(scores.minus_elbo)
        columns[SCORE] = pa.array(scores.anomaly_score)
        if self._neighbours is not None:
            mask = np.zeros(batch.num_rows, np.bool_) if within is None else within
            columns[NEIGHBOUR] = pa.array(self._neighbours(scores.latents, mask))
        if self._options.contributions:
            shares = scores.contributions
            columns[STRANGEST] = pa.array(self._scorer.columns).take(pa.array(shares.argmax(1)))
            for number, name in enumerate(self._scorer.columns):
                columns[CONTRIBUTION + name] = pa.array(shares[:, number].astype(np.float32))
        if self._options.threshold is not None:
            columns[FLAG] = pa.array(scores.anomaly_score > self._options.threshold)
        schema = self._schema()
        return pa.record_batch([columns[name] for name in schema.names], schema=schema)

    def _schema(self) -> pa.Schema:
        kinds = {STRANGEST: pa.string(), FLAG: pa.bool_()}
        fields = [self._bundle.rows.schema.field(name) for name in self._keys]
        for name in self._names:
            if name == FLAG and self._options.threshold is None:
                continue  # added by `FileFlagger`
            wide = pa.float32() if name.startswith(CONTRIBUTION) else pa.float64()
            fields.append(pa.field(name, kinds.get(name, wide), nullable=False))
        return pa.schema(fields)


class FileFlagger:
    """Worker: adds the flag to one scored file.

    Args:
        source: Folder of the scored files.
        out: Folder to write.
        threshold: Rows with a higher score are anomalous.
    """

    def __init__(self, source: Location, out: Location, threshold: float) -> None:
        self._source, self._out, self._threshold = source, out, threshold

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the file; returns its path, rows, bytes and rows above the threshold."""
        path, rows, anomalies = str(item["path"]), 0, 0
        with self._out.join(path).publishing() as spool:
            with self._source.join(path).open() as stream, pq.ParquetFile(stream) as file:
                schema = file.schema_arrow.append(pa.field(FLAG, pa.bool_(), nullable=False))
                with pq.ParquetWriter(spool, schema, compression="zstd") as writer:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, use_threads=False)
                        flags = table[SCORE].to_numpy() > self._threshold
                        columns = [*table.columns, pa.array(flags)]
                        writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP)
                        rows, anomalies = rows + len(flags), anomalies + int(np.count_nonzero(flags))
            size = os.path.getsize(spool)
        return {"stage": item["stage"], "path": path, "rows": rows, "bytes": size, "anomalies": anomalies}
