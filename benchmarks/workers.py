"""What a second worker costs and brings: processor seconds a row and rows a second of one worker and of two.

usage: python -m benchmarks.workers DATA MODEL [--rounds N] --out FILE.json

Encodes (`--keep corrections`, whose coder takes one thread whatever it is given) and decodes DATA with one worker and
with two, in turn, every round. Start-up is left out: what counts begins when every worker has finished a file, so DATA
should have ten files or more, all of one size. "worker" is the processor time of the Ray workers that compute, "all"
that of every process of the command. "predicted" is the rate that one worker's costs foretell for so many workers: as
many rows as all of them compute, or as many as this machine's CPUs can do of everything, whichever is less.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.usage import processor_seconds
from jobs.inspect import format_table
from pipeline.machine import usable_cpus

POLL_SECONDS = 0.1
FIGURES = ("rows/s", "worker µs/row", "all µs/row")


def main() -> int:
    """Measures and prints medians, and the ratios of two workers to one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args()
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as text:
        for _ in range(options.rounds):
            for workers in (1, 2):
                archive, back = Path(text) / "archive", Path(text) / "back"
                words = (options.data, "--model", options.model, "--keep", "corrections", "--out", archive)
                runs.setdefault(("encode", workers), []).append(measure("encode", words, archive, workers))
                words = (archive, "--out", back)
                runs.setdefault(("decode", workers), []).append(measure("decode", words, back, workers))
                shutil.rmtree(archive)
                shutil.rmtree(back)
    lines = table_of(runs, usable_cpus())
    options.out.write_text(json.dumps({"table": lines, "runs": [[*key, found] for key, found in runs.items()]}))
    print(format_table(lines))
    return 0


def measure(command: str, words: tuple[object, ...], out: Path, workers: int) -> dict[str, float]:
    """Runs a command; rates from the file that every worker's first follows to the last but as many files."""
    argv = [sys.executable, "-m", f"jobs.{command}", *map(str, words), "--workers", str(workers)]
    marks: list[tuple[int, float, dict[str, float]]] = []
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            files = sum(not path.name.startswith((".", "_")) for path in out.rglob("*.parquet"))
            if files >= workers and (not marks or files > marks[-1][0]):
                marks.append((files, time.monotonic(), processor_seconds(process.pid)))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)} failed")
    marks = [mark for mark in marks if mark[0] <= marks[-1][0] - workers]  # at the last files, workers have gone
    return rates(marks, pq.read_metadata(next(out.rglob("[!._]*.parquet"))).num_rows)


def rates(marks: list[tuple[int, float, dict[str, float]]], rows_a_file: int) -> dict[str, float]:
    """Figures between the first and the last mark: (finished files, clock, processor seconds)."""
    (before, started, first), (after, ended, last) = marks[0], marks[-1]
    rows = (after - before) * rows_a_file
    figures = {"rows/s": rows / (ended - started)}
    for name, taken in last.items():
        figures[f"{name} µs/row"] = (taken - first[name]) / rows * 1e6
    return figures


def predicted(one: dict[str, float], workers: int, cpus: int) -> float:
    """Rows a second of so many workers on so many CPUs, from the costs of one worker."""
    return 1e6 * min(workers / one["worker µs/row"], cpus / one["all µs/row"])


def table_of(runs: dict[tuple[str, int], list[dict[str, float]]], cpus: int) -> list[dict[str, Any]]:
    """Medians a command and number of workers, and for two workers the medians of the rounds' ratios to one."""
    lines: list[dict[str, Any]] = []
    for command in dict.fromkeys(command for command, _ in runs):
        one, two = runs[command, 1], runs[command, 2]
        for workers, found in ((1, one), (2, two)):
            medians = {name: statistics.median(run[name] for run in found) for name in FIGURES}
            foretold = statistics.median(predicted(run, workers, cpus) for run in one)
            lines.append({"command": command, "workers": workers, **medians, "predicted": foretold})
        pairs = {name: statistics.median(b[name] / a[name] for a, b in zip(one, two, strict=True)) for name in FIGURES}
        lines.append({"command": command, "workers": "2 / 1", **pairs, "predicted": None})
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
