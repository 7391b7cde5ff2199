"""Two shapes of the encode job: Ray Data operators, or actors that take whole work units.

usage: python -m benchmarks.shapes DATA --model MODEL [--runs N] [--workers N]

(a) `read_parquet → map_batches(actors) → write_parquet`, three operators; (b) parvae's own: a dataset of work units
and one pool of actors that read ahead, encode and write. Both run the same network and write the same latents,
in turn, in one Ray.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import pyarrow as pa
import ray.data

from jobs.inspect import format_table
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster, connected
from pipeline.encode import encode
from pipeline.locate import locate
from pipeline.storage import Location


class Latents:
    """The encode operator of shape (a)."""

    def __init__(self, files: dict[str, bytes], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bundle = Bundle.from_files(files, "the model")

    def __call__(self, table: pa.Table) -> pa.Table:
        """Latents beside the passthrough columns."""
        batch = table.combine_chunks().to_batches()[0]
        bins, _ = self._bundle.rows.from_batch(batch)
        latents = self._bundle.to_latents(bins)
        column = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), latents.shape[1])
        return table.select(self._bundle.rows.passthrough).append_column("latent", column)


def operators(data: Location, bundle: Bundle, out: str, cluster: Cluster, workers: int) -> None:
    """Shape (a)."""
    arguments: dict[str, Any] = {"files": bundle.files(), "threads": cluster.threads_per_worker(workers)}
    dataset = ray.data.read_parquet(data.path).map_batches(
        Latents,
        fn_constructor_kwargs=arguments,
        batch_size=65_536,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,
    )
    dataset.write_parquet(out)


def main() -> None:
    """Times both shapes in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    data, model = locate(options.data, "DATA"), locate(options.model, "--model")
    bundle = Bundle.load(model)
    seconds: dict[str, list[float]] = {"(a) operators": [], "(b) work units": []}
    with connected() as cluster:
        for run in range(options.runs + 1):
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                operators(data, bundle, f"{folder}/a", cluster, options.workers)
                middle = time.monotonic()
                encode(data, model, Location(f"{folder}/b"), options.workers)
                ended = time.monotonic()
            if run:
                seconds["(a) operators"].append(middle - started)
                seconds["(b) work units"].append(ended - middle)
    print(format_table([{"shape": name, "median s": statistics.median(times)} for name, times in seconds.items()]))
    pairs = zip(*seconds.values(), strict=True)
    print(f"a / b, median of pairs: {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
