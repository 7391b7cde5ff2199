"""Encoding as one would write it with Ray Data alone, a yardstick of `benchmarks.throughput`.

usage: python -m benchmarks.by_hand DATA ARCHIVE OUT THREADS

Reads Parquet, maps batches of 4,096 rows to latents in one actor around the archive's network, writes Parquet. The
last line is one JSON object: the rows a second from the first finished file to the last.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from pipeline.archive import Archive
from pipeline.storage import Location

BATCH_ROWS = 4096


class Encoder:
    """An actor's network.

    Args:
        archive: Folder of an archive that keeps latents.
        threads: Compute threads.
    """

    def __init__(self, archive: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        model = Archive.open(Location(archive)).model
        self._bundle, self._carried = model.bundle, list(model.bundle.rows.passthrough)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Latents of a batch, beside the columns that pass through."""
        (batch,) = table.combine_chunks().unify_dictionaries().to_batches()
        latents = self._bundle.to_latents(self._bundle.rows.from_batch(batch)[0])
        column = pa.FixedSizeListArray.from_arrays(pa.array(latents.ravel()), latents.shape[1])
        return table.select(self._carried).append_column("latent", column)


def written(out: Path) -> dict[str, float]:
    """Rows a second from the first of some files to the last, and the seconds between them."""
    files = sorted(out.rglob("*.parquet"), key=lambda path: path.stat().st_mtime)
    seconds = files[-1].stat().st_mtime - files[0].stat().st_mtime
    rows = sum(pq.read_metadata(path).num_rows for path in files[1:])
    return {"rows_per_second": rows / seconds, "seconds": seconds}


def main() -> int:
    """Encodes and prints the rate."""
    data, archive, out, threads = *sys.argv[1:4], int(sys.argv[4])
    ray.init(num_cpus=threads + 1, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    mapped = ray.data.read_parquet(data).map_batches(
        Encoder,
        fn_constructor_args=[archive, threads],
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    mapped.write_parquet(out)
    print(json.dumps(written(Path(out))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
