"""Rows a second of the coder alone, in processor time of one thread: a block from Arrow to bytes, and back.

usage: python -m benchmarks.coder MODEL DATA [--repeats N] [--profile]

MODEL is a folder of `parvae train`; its codec for `--keep corrections` is measured, and one of `--effort fast` that is
fitted here to the same bounds. The block is the first one of DATA. `--profile` prints what the model's own codec spends
its time in.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable

import pyarrow as pa
import torch

from jobs.inspect import format_table
from pipeline.blocks import coded_block_rows, read_blocks, sample_runs
from pipeline.bundle import Bundle
from pipeline.codec import Codec
from pipeline.codec_store import StoredCodec, load_codec
from pipeline.dataset import Dataset, open_dataset
from pipeline.fit_codec import CodecFitter
from pipeline.locate import locate
from pipeline.promise import CORRECTIONS

SAMPLE_ROWS, SAMPLE_BYTES = 200_000, 1 << 28
TOP = 15


def first_block(dataset: Dataset) -> pa.RecordBatch:
    """The first block of a dataset, as `encode` cuts it."""
    blocks = read_blocks(dataset.root, dataset.units()[0], coded_block_rows(dataset))
    return next(iter(blocks))


def fast(bundle: Bundle, dataset: Dataset) -> StoredCodec:
    """A codec of `--effort fast`."""
    runs, rows = sample_runs(dataset, SAMPLE_ROWS, SAMPLE_BYTES, 0), coded_block_rows(dataset)
    fitter = CodecFitter(bundle.files(), bundle.errors, dataset.root, runs, rows, dataset.rows, "fast", 0, 1)
    return StoredCodec.from_json(fitter({"keep": CORRECTIONS})["codec"])


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Least processor seconds of a call, after one that counts for nothing."""
    run()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


def main(argv: list[str] | None = None) -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder, dataset = locate(options.model, "MODEL"), open_dataset(locate(options.data, "DATA"))
    bundle, stored = Bundle.load(folder), load_codec(folder, CORRECTIONS)
    if stored is None:
        raise SystemExit(f"MODEL {folder} has no codec: train it with an error bound")
    batch, lines = first_block(dataset), []
    for found in (stored, fast(bundle, dataset)):
        codec = Codec.from_files(found.files, bundle.rows.schema)
        block = codec.encode_block(batch)
        times = [
            seconds(lambda c=codec: c.encode_block(batch), options.repeats),
            seconds(lambda c=codec, b=block: c.decode_block(b, batch.num_rows), options.repeats),
        ]
        rates = {name: batch.num_rows / time for name, time in zip(("encode", "decode"), times, strict=True)}
        lines.append({"effort": found.effort, "rows": batch.num_rows, **{f"{k} rows/s": v for k, v in rates.items()}})
    print(format_table(lines))
    if options.profile:
        codec = Codec.from_files(stored.files, bundle.rows.schema)
        block = codec.encode_block(batch)
        for run in (lambda: codec.encode_block(batch), lambda: codec.decode_block(block, batch.num_rows)):
            profile = cProfile.Profile()
            profile.runcall(run)
            pstats.Stats(profile).sort_stats("tottime").print_stats(TOP)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
