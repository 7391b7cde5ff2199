"""Files of rows that a model makes up: what is asked for, and the worker that writes one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bundle import Bundle
from pipeline.conditions import parse_conditions
from pipeline.generate import RowGenerator, chunk_rows
from pipeline.latent_prior import LatentPrior
from pipeline.storage import Location

_FILE_ROWS, _FILE_SYMBOLS = 1 << 20, 1 << 26
_GROUP_ROWS, _GROUP_SYMBOLS = 1 << 17, 1 << 22


@dataclass(frozen=True)
class SampleOptions:
    """What is asked for.

    Attributes:
        rows: Rows to make up.
        prior: "normal", "aggregate", or None: "aggregate" where the source is an archive.
        where: Conditions, as texts.
        seed: Seed of all draws.
        mean: Whether values are means (modes) of p(x|z) instead of draws from it.
    """

    rows: int
    prior: str | None = None
    where: tuple[str, ...] = ()
    seed: int = 0
    mean: bool = False


class FileSampler:
    """Worker: makes up the rows of one file.

    Args:
        files: The files of the model.
        prior: Where latents come from.
        options: What is asked for.
        draws: Latents drawn for each row if there are conditions.
        out: Folder to write.
        device: Torch device of the network.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        prior: LatentPrior,
        options: SampleOptions,
        draws: int,
        out: Location,
        device: str,
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._bundle, self._prior, self._options = Bundle.from_files(files, "the model", device), prior, options
        self._conditions = parse_conditions(options.where, self._bundle.rows)
        self._draws, self._out = draws, out

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the file; returns its path, rows, bytes and effective sample size."""
        options = self._options
        generator = RowGenerator(self._bundle, self._prior, options.seed, options.mean, self._conditions, self._draws)
        return write_file(generator, self._bundle, self._out, item)


def write_file(generator: RowGenerator, bundle: Bundle, out: Location, item: Mapping[str, Any]) -> dict[str, Any]:
    """Publishes one file of rows, group by group; returns its path, rows, bytes and effective sample size."""
    rows, location = range(item["start"], item["stop"]), out.join(item["path"])
    group = _power_of_two(bundle, _GROUP_ROWS, _GROUP_SYMBOLS)
    with location.publishing() as spool:
        options = {"compression": "zstd", "use_compliant_nested_type": False}
        with pq.ParquetWriter(spool, generator.schema, **options) as writer:
            waiting: list[pa.RecordBatch] = []
            for batch in generator.batches(rows):
                waiting.append(batch)
                if sum(part.num_rows for part in waiting) >= group:
                    _write_group(writer, waiting)
                    waiting = []
            _write_group(writer, waiting)
        size = os.path.getsize(spool)
    return {"path": item["path"], "rows": len(rows), "bytes": size, "effective": generator.effective}


def _write_group(writer: pq.ParquetWriter, batches: list[pa.RecordBatch]) -> None:
    if batches:
        table = pa.Table.from_batches(batches).unify_dictionaries()
        writer.write_table(table, row_group_size=table.num_rows)


def file_rows(bundle: Bundle) -> int:
    """Rows of a file: whole chunks of the generator."""
    return _power_of_two(bundle, _FILE_ROWS, _FILE_SYMBOLS)


def _power_of_two(bundle: Bundle, rows: int, symbols: int) -> int:
    """At most so many rows, with at most about so many symbols: whole chunks of the generator."""
    fitting = min(rows, symbols // bundle.rows.layout().n_symbols)
    return max(chunk_rows(bundle.rows), 1 << (max(1, fitting).bit_length() - 1))
