"""How many requests encode and decode send to an object store: a fixed part, and so many a source file.

usage: python -m benchmarks.requests [--files N] [--rows N]

Every command runs on N and on 3 N files (of `--rows` rows each) against OpenStack Swift's S3 API, which the tests'
server starts, behind a proxy that counts; what they differ by, over 2 N, is what a file costs. The model lies on the
store, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.sensor_files import write_files
from jobs.inspect import format_table
from pipeline.storage import Location
from tests.servers.store import Store, announce_store, running_store

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
TRAIN = ("--effort", "fast", "--epochs", "1", "--latent", "2", "--set", "network.hidden=[8]")


def counted(store: Store, command: str, *words: object) -> Counter[str]:
    """Runs a command; gives the requests that it sent, by method."""
    before = Counter(store.proxy.passed)
    argv = [sys.executable, "-m", f"jobs.{command}", *map(str, words)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Counter(store.proxy.passed) - before


def measure(store: Store, work: Path, files: int, rows: int) -> dict[str, Counter[str]]:
    """The requests of every command on so many files."""
    place = store.place(f"requests-{files}")
    data, model, archive = (place.join(name) for name in ("data", "model", "archive"))
    folder = work / str(files)
    for path in write_files(folder, files, files * rows, seed=0):
        data.join(str(path.relative_to(folder))).write_bytes(path.read_bytes())
    counted(store, "train", data, "--model", model, *TRAIN)
    found = {"encode": counted(store, "encode", data, "--model", model, "--out", archive)}
    found["encode, nothing new"] = counted(store, "encode", data, "--model", model, "--out", archive)
    found["decode"] = counted(store, "decode", archive, "--out", place.join("back"))
    _check(data, place.join("back"))
    return found


def _check(data: Location, back: Location) -> None:
    names = [[stat.path for stat in folder.files()] for folder in (data, back)]
    if names[0] != names[1]:
        raise SystemExit(f"decode wrote {len(names[1])} files, {len(names[0])} were encoded")


def table(few: dict[str, Counter[str]], many: dict[str, Counter[str]], files: int) -> list[dict[str, object]]:
    """A line a command and method: requests a file, and those that every run sends."""
    lines: list[dict[str, object]] = []
    for command in few:
        for method in METHODS:
            a_file = (many[command][method] - few[command][method]) / (2 * files)
            fixed = few[command][method] - files * a_file
            lines.append({"command": command, "method": method, "a file": a_file, "a run": fixed})
    return lines


def main() -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10, metavar="N")
    parser.add_argument("--rows", type=int, default=20_000, metavar="N")
    options = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory() as work, running_store(announce_store(), Path(work, "swift")) as store:
        few, many = (measure(store, Path(work), count, options.rows) for count in (options.files, 3 * options.files))
    print(format_table(table(few, many, options.files)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
