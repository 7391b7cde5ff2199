"""Encoding as one would write it with Ray Data alone, a yardstick of `benchmarks.throughput`.

usage: python -m benchmarks.by_hand DATA ARCHIVE OUT THREADS

Reads Parquet, maps batches of 4,096 rows to latents in THREADS actors of one thread around the archive's network (each
batch whole through its `encode`), writes Parquet. The last line is one JSON object: the rows a second from the first
finished batch of the last actor (Ray Data joins many to a file) to the last file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from pipeline.archive import Archive
from pipeline.storage import Location

BATCH_ROWS = 4096


class Encoder:
    """An actor's network.

    Args:
        archive: Folder of an archive that keeps latents.
        started: A file to write when the first batch is done.
    """

    def __init__(self, archive: str, started: str) -> None:
        torch.set_num_threads(1)
        model = Archive.open(Location(archive)).model
        self._bundle, self._carried = model.bundle, list(model.bundle.rows.passthrough)
        self._started: Path | None = Path(started)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Latents of a batch, beside the columns that pass through."""
        (batch,) = table.combine_chunks().unify_dictionaries().to_batches()
        bins_BD = torch.from_numpy(self._bundle.rows.from_batch(batch)[0])
        with torch.inference_mode():
            latents_BZ = self._bundle.vae.round_latents(self._bundle.vae.encode(bins_BD).mu_BZ)
        column = pa.FixedSizeListArray.from_arrays(pa.array(latents_BZ.numpy().ravel()), latents_BZ.shape[1])
        if self._started is not None:
            self._started.write_text(str(batch.num_rows))
            self._started = None
        return table.select(self._carried).append_column("latent", column)


def main() -> int:
    """Encodes and prints the rate."""
    data, archive, out, threads = *sys.argv[1:4], int(sys.argv[4])
    started = Path(f"{out}.started")
    ray.init(num_cpus=threads + 1, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    mapped = ray.data.read_parquet(data).map_batches(
        Encoder,
        fn_constructor_args=[archive, str(started)],
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=threads),
        num_cpus=1,
    )
    mapped.write_parquet(out)
    files = list(Path(out).rglob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in files) - int(started.read_text())
    seconds = max(path.stat().st_mtime for path in files) - started.stat().st_mtime
    started.unlink()
    print(json.dumps({"rows_per_second": rows / seconds, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
