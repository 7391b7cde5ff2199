"""Training as `parvae train` does it, input and all, on one device: rows a second, and the share of time in kernels.

usage: python -m benchmarks.device_training [--device cuda|cpu] [--rows N] [--batch ROWS] [--out FILE.json]

Trains on generated tables, of sensors (8 columns) and of images (28 × 28), in memory, by `pipeline.local.fit_table`:
the loop of `parvae train`, without Ray. The second epoch is timed, the third is profiled; an epoch's validation and
what is between epochs count.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sensor_files import readings
from jobs.inspect import format_table
from pipeline.config import load_config
from pipeline.local import fit_table

PIXELS = 28
EPOCHS = 4


def images(rows: int) -> pa.Table:
    """Blobs of light in random places."""
    rng = np.random.default_rng(0)
    axis = np.arange(PIXELS)
    x, y, width = (rng.uniform(low, high, (rows, 1)) for low, high in ((4, 24), (4, 24), (2, 6)))
    across, down = (np.exp(-(((axis - centre) / width) ** 2)) for centre in (x, y))
    pixels = (255 * down[:, :, None] * across[:, None, :]).astype(np.uint8)
    flat = pa.array(pixels.reshape(-1))
    return pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, PIXELS**2)})


class Watch:
    """Times the second epoch and profiles the third.

    Args:
        device: Where the network runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._profile = profile(activities=[ProfilerActivity.CUDA if self._cuda else ProfilerActivity.CPU])
        self._started = 0.0
        self.figures: dict[str, float] = {}

    def __call__(self, message: dict[str, Any]) -> None:
        """Is told of the end of an epoch."""
        if self._cuda:
            torch.cuda.synchronize()
        if message["epoch"] == 1:
            self.figures["rows/s"] = message["rows_per_second"]
            self._profile.start()
            self._started = time.perf_counter()
        elif message["epoch"] == 2:
            seconds = time.perf_counter() - self._started
            self._profile.stop()
            events = self._profile.key_averages()
            busy = sum(event.self_device_time_total if self._cuda else event.self_cpu_time_total for event in events)
            self.figures["% in kernels"] = busy / 1e4 / seconds


def main(argv: list[str] | None = None) -> int:
    """Measures, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of sensors; a quarter as many images")
    parser.add_argument("--batch", type=int, default=4096, metavar="ROWS")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(argv)
    tables = {"sensors": readings(0, options.rows, options.rows, 0), "images": images(options.rows // 4)}
    lines = []
    for name, table in tables.items():
        kind = {"columns.image": {"kind": "vector", "shape": [PIXELS, PIXELS]}} if name == "images" else {}
        settings = {"training.batch_size": options.batch, "training.epochs": EPOCHS, **kind}
        watch = Watch(torch.device(options.device))
        fit_table(table, load_config("", "--set", settings), options.device, listen=watch)
        lines.append({"network": name, "batch": options.batch, **watch.figures})
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1))
    print(format_table(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
