"""Peak memory of train, encode and decode as a dataset grows tenfold.

usage: python -m benchmarks.memory [--rows N] [--out FILE.json]

Writes a sensor table of N and of 10·N rows (one file, row groups of 50,000), trains one small model on each for one
epoch, and encodes and decodes both with the first and one worker. Three peaks are sampled from outside, five times a
second: the largest resident set of one Ray worker process, that of the driver (which trains), and the unique memory
(USS) of all processes together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.usage import PEAKS, memory_of
from jobs.inspect import format_table

ROW_GROUP = 50_000


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        rows = measure(folder, options.rows)
    print(format_table(rows))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


def measure(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Peaks for `rows` and 10 times as many, and their ratios."""
    small, large = folder / "small", folder / "large"
    write_sensors(small, rows)
    write_sensors(large, 10 * rows)
    table: list[dict[str, Any]] = []
    for data in (small, large):
        count = pq.read_metadata(data / "sensors.parquet").num_rows
        archive, back, own = (folder / f"{data.name}-{what}" for what in ("archive", "back", "model"))
        fit = ("--epochs", 1, "--set", "network.hidden=[64]", "--effort", "fast")
        for command, *words in (
            ("train", data, "--model", own, *fit),
            ("encode", data, "--model", folder / "small-model", "--out", archive, "--workers", 1),
            ("decode", archive, "--out", back, "--workers", 1),
        ):
            table.append({"command": command, "rows": count, **peak_of(str(command), *words)})
            print(format_table(table[-1:]), file=sys.stderr, flush=True)
    for command in ("train", "encode", "decode"):
        first, second = (row for row in table if row["command"] == command)
        ratios = {key: second[key] / first[key] for key in PEAKS}
        table.append({"command": f"{command}, ratio", "rows": second["rows"] / first["rows"], **ratios})
    return table


def write_sensors(folder: Path, rows: int) -> None:
    """A table of 16 correlated float columns, an integer and a key."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 16))
    writer: pq.ParquetWriter | None = None
    for start in range(0, rows, ROW_GROUP):
        count = min(ROW_GROUP, rows - start)
        values = rng.normal(size=(count, 4)) @ mixing + 0.1 * rng.normal(size=(count, 16))
        columns = {f"s{i}": values[:, i].astype(np.float32) for i in range(16)}
        keys = [f"device-{i % 97}-{i}" for i in range(start, start + count)]
        table = pa.table({**columns, "count": rng.poisson(5, count), "key": keys})
        writer = writer or pq.ParquetWriter(folder / "sensors.parquet", table.schema)
        writer.write_table(table, row_group_size=count)
    if writer:
        writer.close()


def peak_of(command: str, *arguments: object) -> dict[str, float]:
    """Runs a command and samples its processes' memory, in MB."""
    words = [sys.executable, "-m", f"jobs.{command}", *map(str, arguments)]
    peaks = dict.fromkeys(PEAKS, 0.0)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            found = memory_of(process.pid)
            peaks = {name: max(peak, found[name]) for name, peak in peaks.items()}
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed")
    return peaks


if __name__ == "__main__":
    main()
