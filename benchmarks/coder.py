"""Rows a second of the coder alone, in processor time of one thread: a block from Arrow to bytes, and back.

usage: python -m benchmarks.coder MODEL DATA [--repeats N] [--profile]

MODEL is a folder of `parvae train`; its codec for `--keep corrections` is measured, and one of `--effort fast` that is
fitted here to the same bounds. The block is the first one of DATA. `--profile` prints what the model's own codec spends
its time in: by kind of kernel as torch's profiler sees it, and by function as cProfile does.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pyarrow as pa
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from jobs.inspect import format_table
from pipeline.blocks import coded_block_rows, read_blocks, sample_runs
from pipeline.bundle import Bundle
from pipeline.codec import Codec, entropy
from pipeline.codec_store import StoredCodec, load_codec
from pipeline.dataset import Dataset, open_dataset
from pipeline.fit_codec import CodecFitter
from pipeline.locate import locate
from pipeline.promise import CORRECTIONS

SAMPLE_ROWS, SAMPLE_BYTES = 200_000, 1 << 28
TOP = 15
ENTROPY = "entropy coder"
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "table look-ups": ("aten::take", "aten::index_select", "aten::index", "aten::gather", "aten::embedding_bag"),
    ENTROPY: (ENTROPY,),
}
"""Kernels by the names that torch's profiler gives them; other kernels of torch are elementwise, or reductions."""


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


def kernel_table(run: Callable[[], object]) -> list[dict[str, Any]]:
    """Seconds, and shares of all the time, that a call spends in each kind of kernel, after one that warms up."""
    run()
    with _marked(), profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        started = time.perf_counter()
        run()
        whole = time.perf_counter() - started
    own = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    kinds = {kind: sum(own.get(key, 0.0) for key in keys) for kind, keys in KINDS.items()}
    named = {key for keys in KINDS.values() for key in keys}
    kinds["other kernels of torch"] = sum(own[key] for key in own.keys() - named if key.startswith("aten::"))
    kinds["the rest"] = whole - sum(kinds.values())
    return [{"what": kind, "s": spent, "share": spent / whole} for kind, spent in kinds.items()]


@contextlib.contextmanager
def _marked() -> Iterator[None]:
    """Shows the entropy coder, which is no kernel of torch, to torch's profiler."""
    with contextlib.ExitStack() as stack:
        for owner, name in ((entropy.Encoder, "push"), (entropy.Decoder, "pull")):
            stack.enter_context(mock.patch.object(owner, name, _recorded(getattr(owner, name))))
        yield


def _recorded(call: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*arguments: Any) -> Any:
        with record_function(ENTROPY):
            return call(*arguments)

    return recorded


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
            print(format_table(kernel_table(run)))
            functions = cProfile.Profile()
            functions.runcall(run)
            pstats.Stats(functions).sort_stats("tottime").print_stats(TOP)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
