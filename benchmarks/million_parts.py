"""Seconds and memory that opening an archive of a million parts takes.

usage: python -m benchmarks.million_parts [--parts N] [--folder DIR] [--out FILE.json]

Describes an archive of N parts (manifest, table of parts, plan; the parts themselves do not exist), then opens it in
a fresh process, with the parts that lie in the middle, and goes through all of them. Peaks are those of the process
(VmHWM), whose libraries are loaded first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.inspect import format_table
from pipeline.archive import Archive
from pipeline.dataset import WorkUnit
from pipeline.manifest import write_manifest
from pipeline.plan import ROLES, PartRecord, Plan, write_plan
from pipeline.storage import Location

PARTS_PER_FILE = 4
ROW_GROUPS = (65_536, 65_536, 65_536, 30_011)
"""Row groups of the source file that a part covers."""
SOURCE_BYTES = 8
"""Bytes of a source file's identity."""
GUARDS = 1 + 4 * 4
"""Checksums of a part: its footer, and the chunks of 4 columns in 4 blocks."""
PLAN = Plan("corrections", "0.01r", {}, "fast", "0" * 64, "1" * 64, "2" * 64, 1 << 27, 65_536, "latent", "corrections")


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=1_000_000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the description is kept; made there if it is not (default: a new one, removed)",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.describe:
        describe(Location(str(options.folder)), options.parts)
    elif options.open:
        print(json.dumps(opened(Location(str(options.folder)))))
    else:
        with contextlib.ExitStack() as stack:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            rows = measure(folder, options.parts)
        print(format_table(rows))
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))


def measure(folder: Path, parts: int) -> list[dict[str, Any]]:
    """Describes an archive, unless the folder holds one, and opens it, each in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.million_parts", "--folder", str(folder), "--parts", str(parts)]
    if not (folder / "_manifest.json").exists():
        subprocess.run([*words, "--describe"], check=True)
    done = subprocess.run([*words, "--open"], check=True, stdout=subprocess.PIPE, text=True)
    size = (folder / "_parts.parquet").stat().st_size / 1e6
    return [{**row, "table MB": size} for row in json.loads(done.stdout)]


def describe(location: Location, parts: int) -> None:
    """Writes what an archive of so many parts says of itself."""
    schema = pa.schema([("time", pa.timestamp("us")), ("device", pa.string()), ("value", pa.float32())])
    write_plan(location, PLAN)
    write_manifest(location, PLAN, list(records(parts)), schema, 40 * parts * sum(ROW_GROUPS))


def records(parts: int) -> Iterator[PartRecord]:
    """Parts of Hive-partitioned files, with checksums that no tool can compress."""
    noise, source = np.random.default_rng(0), ""
    sizes = {**dict.fromkeys(ROLES, 0), "corrections": 1_500_000}
    for index in range(parts):
        file, number = divmod(index, PARTS_PER_FILE)
        path = f"year=2026/day={file // 1000:03d}/part-{file:08d}-c000.snappy.parquet"
        first, row = number * len(ROW_GROUPS), number * sum(ROW_GROUPS)
        if number == 0:
            source = noise.bytes(SOURCE_BYTES).hex()
        unit = WorkUnit(index, path, first, ROW_GROUPS, row, source)
        checks = noise.bytes(32 + 4 * GUARDS)
        yield PartRecord(
            unit, 1_500_000 + index % 4096, checks[:32].hex(), checks[32:], sizes, 8 * 1_500_000 / sum(ROW_GROUPS)
        )


def opened(location: Location) -> list[dict[str, Any]]:
    """Opens an archive and looks at its parts; what each step took, and the peak of memory after it."""
    before, table = status("VmHWM"), []
    started = _clocks()
    archive = Archive.open(location)
    table.append(_line("open", len(archive.parts), started, before))
    started = _clocks()
    middle = len(archive.parts) // 2
    found = [archive.parts[number] for number in range(middle, min(middle + 100, len(archive.parts)))]
    table.append(_line("look at 100 in the middle", len(found), started, before))
    started = _clocks()
    rows = sum(record.rows for record in archive.parts)
    table.append(_line("go through all", len(archive.parts), started, before))
    assert rows == archive.rows == len(archive.parts) * sum(ROW_GROUPS)
    return table


def status(name: str) -> float:
    """A figure of this process's memory, in MB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{name}:"))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _line(what: str, parts: int, started: tuple[float, float], before: float) -> dict[str, Any]:
    seconds, busy = (now - then for now, then in zip(_clocks(), started, strict=True))
    memory = {"peak MB": status("VmHWM"), "of it libraries MB": before}
    return {"what": what, "parts": parts, "seconds": seconds, "CPU seconds": busy, **memory}


if __name__ == "__main__":
    main()
