"""Loops without Ray, the yardsticks of `benchmarks.throughput`: pyarrow, the column transforms, the network, the coder.

usage: python -m benchmarks.bare train DATA --epochs N [--threads N] [--set KEY=VALUE] …
       python -m benchmarks.bare encode DATA ARCHIVE [--threads N]
       python -m benchmarks.bare decode ARCHIVE [--threads N]

One process, no file is written, files are taken one after the other. The last line is one JSON object: the rows a
second past start-up. Start-up ends with the first file, or with the first epoch of several.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from pipeline.archive import Archive
from pipeline.blocks import read_blocks
from pipeline.config import TrainConfig, load_config, parse_setting
from pipeline.dataset import open_dataset
from pipeline.decoder import Decoder
from pipeline.fitting import column_options, empty_stats, fit_all
from pipeline.machine import keep_memory, one_thread
from pipeline.parts import PartReader
from pipeline.storage import Location
from vae_model.elbo import Objective
from vae_model.network import VAE


class Clock:
    """Rows a second once the first of several pieces is done."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]
        self._rows = [0]

    def done(self, rows: int) -> None:
        """Takes a piece of so many rows as done."""
        self._times.append(time.perf_counter())
        self._rows.append(rows)

    def figures(self) -> dict[str, float]:
        """Rows a second without the first piece, and the seconds that they took."""
        seconds = self._times[-1] - self._times[1]
        return {"rows_per_second": sum(self._rows[2:]) / seconds, "seconds": seconds}


def train(data: Path, config: TrainConfig) -> dict[str, float]:
    """A plain training loop over rows in memory: transforms, then shuffled batches through the same network.

    Returns:
        Rows a second of the epochs after the first; of the first if it is the only one.
    """
    files = sorted(data.rglob("*.parquet"))
    schema = pq.read_schema(files[0])
    options = column_options(schema, config.passthrough, config.columns, config.defaults)
    tables = [pq.read_table(file).unify_dictionaries() for file in files]
    stats = empty_stats(schema, options)
    names = [name for name in schema.names if options[name].kind != "passthrough"]
    batches = [batch for table in tables for batch in table.to_batches()]
    for batch in batches:
        for name in names:
            stats[name].observe(batch.column(name), np.arange(batch.num_rows, dtype=np.uint64))
    rows = fit_all(schema, stats, options, str(data)).rows
    bins_ND = torch.from_numpy(np.concatenate([rows.from_batch(batch)[0] for batch in batches]))
    vae = VAE(rows.layout(), config.network)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.training.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    size, clock = config.training.batch_size, Clock()
    epochs = config.training.epochs or 1
    if epochs == 1:
        clock.done(0)
    for _ in range(epochs):
        order = torch.randperm(len(bins_ND), generator=generator)
        for start in range(0, len(order), size):
            optimizer.zero_grad(set_to_none=True)
            terms = vae(bins_ND[order[start : start + size]], Objective(), generator)
            torch.autograd.backward(terms.loss / vae.layout.n_symbols)
            torch.nn.utils.clip_grad_norm_(vae.parameters(), config.training.clip_norm)
            optimizer.step()
        clock.done(len(order))
    return clock.figures()


def encode(data: Path, archive: Path) -> dict[str, float]:
    """Every block through transforms, network and coder, as they made an archive of the dataset."""
    opened, clock = Archive.open(Location(str(archive))), Clock()
    model, plan, dataset = opened.model, opened.plan, open_dataset(Location(str(data)))
    if not plan.guaranteed:
        keep_memory()
    for unit in dataset.units():
        for batch in read_blocks(dataset.root, unit, plan.block_rows):
            latents = model.bundle.to_latents(model.bundle.rows.from_batch(batch)[0]) if plan.latents else None
            if plan.guaranteed:
                with one_thread():
                    model.codec.encode_block(batch, latents)
        clock.done(unit.rows)
    return clock.figures()


def decode(archive: Path) -> dict[str, float]:
    """Every block back to rows."""
    opened, clock = Archive.open(Location(str(archive))), Clock()
    decoder = Decoder(opened.model)
    for record in opened.parts:
        with PartReader(opened.part_location(record), record, opened.form) as part:
            for _ in decoder.batches(part):
                pass
        clock.done(record.rows)
    return clock.figures()


def main() -> int:
    """Runs one loop and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("train", "encode", "decode"))
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, float]
    if options.stage == "train":
        figures = train(options.paths[0], load_config("", "--set", dict(parse_setting(text) for text in options.set)))
    elif options.stage == "decode":
        figures = decode(options.paths[0])
    else:
        figures = encode(options.paths[0], options.paths[1])
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
