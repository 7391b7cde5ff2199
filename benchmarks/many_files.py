"""Many files through encode and decode, killed on the way and resumed: every row once, and memory over time.

usage: python -m benchmarks.many_files --out DIR [--files 1000] [--rows 20000000] [--kill 3] [--workers N]

Writes files of sensor readings to DIR/data, trains a small model on some of them, encodes and decodes all of them
with the real commands, and compares every decoded file with its source. `--kill N` kills each of the two commands N
times with SIGKILL (the driver and every process that it started) at random moments, and starts it again. The
processes' memory is sampled all the time.

Figures are kept in DIR/steps.json: started again, the benchmark goes on with the step that it was in.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.peers import one_array
from benchmarks.sensor_files import write_files
from benchmarks.watched import Watched, flatness
from jobs.inspect import format_table
from pipeline.archive import Archive
from pipeline.compare import ColumnError
from pipeline.ledger import LEDGER_FOLDER
from pipeline.storage import Location

DISK_BYTES_A_ROW = 100
"""Disk that a row needs at most: source, archive, decoded file, spools."""
TINY = ("--effort", "fast", "--epochs", "1", "--latent", "4", "--set", "network.hidden=[16]")
ARCHIVE_ENTRIES = {"_manifest.json", "_parts.parquet", "_plan.json", "_model", "parts"}
Step = Callable[[], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps that are missing; returns 1 if a row is lost, doubled or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything is kept")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=20_000_000, help="rows of all files together")
    parser.add_argument("--train-files", type=int, default=20, help="files, spread over all, that the model sees")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="kills of encode, and of decode")
    parser.add_argument("--keep", default="both", choices=("both", "corrections"))
    parser.add_argument("--workers", type=int, help="Ray workers (default: one a CPU)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", action="store_true", help="remove all but the figures at the end")
    options = parser.parse_args(argv)
    figures = Run(options).run()
    print(format_table(summary(figures)))
    checks = figures["check archive"], figures["check decoded"]
    print(json.dumps({"archive": checks[0], "decoded": checks[1]}, indent=1))
    return 0 if all(check["good"] for check in checks) else 1


class Run:
    """The steps, each done once.

    Args:
        options: The arguments.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._folder = options, options.out
        self._figures: dict[str, Any] = {}
        self._file = self._folder / "steps.json"
        if self._file.exists():
            self._figures = json.loads(self._file.read_text())
        asked = {key: getattr(options, key) for key in ("files", "rows", "train_files", "kill", "keep", "seed")}
        if self._figures.setdefault("asked", asked) != asked:
            raise SystemExit(f"{self._folder} holds another run ({self._figures['asked']}); choose another folder")

    def run(self) -> dict[str, Any]:
        """Runs what is missing; returns the figures of all steps."""
        options, folder = self._options, self._folder
        data, sample, model = folder / "data", folder / "sample", folder / "model"
        archive, decoded = folder / "archive", folder / "decoded"
        self._step("files", lambda: self._write(data, sample))
        self._step("train", Watched("jobs.train", [sample, "--model", model, *TINY]).to_the_end)
        encode = [data, "--model", model, "--out", archive, "--effort", "fast", "--keep", options.keep]
        self._through("encode", encode, archive / "parts", archive)
        self._step("check archive", lambda: check_archive(data, archive))
        self._through("decode", [archive, "--out", decoded], decoded, decoded)
        self._step("check decoded", lambda: check_decoded(data, decoded, archive))
        if options.clean:
            for path in (data, sample, model, archive, decoded):
                shutil.rmtree(path, ignore_errors=True)
        return self._figures

    def _step(self, name: str, step: Step) -> None:
        if name not in self._figures:
            print(f"{name} …", file=sys.stderr, flush=True)
            self._figures[name] = step()
            self._file.write_text(json.dumps(self._figures))

    def _write(self, data: Path, sample: Path) -> dict[str, Any]:
        options = self._options
        self._folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self._folder).free, options.rows * DISK_BYTES_A_ROW
        if free < needed:
            raise SystemExit(f"{self._folder} needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
        paths = list(write_files(data, options.files, options.rows, options.seed))
        sample.mkdir(exist_ok=True)
        for number in np.linspace(0, len(paths) - 1, min(options.train_files, len(paths))).round().astype(int):
            shutil.copy(paths[number], sample)
        return {"files": len(paths), "rows": options.rows, "bytes": sum(path.stat().st_size for path in paths)}

    def _with_workers(self, arguments: Sequence[object]) -> list[object]:
        return [*arguments, *(["--workers", self._options.workers] if self._options.workers else [])]

    def _through(self, command: str, arguments: Sequence[object], finished: Path, out: Path) -> None:
        """Runs a command to its end, after it was killed as often as asked (or until a kill came too late)."""
        options = self._options
        rng = np.random.default_rng([options.seed, len(command), options.kill])
        for number in range(options.kill):
            share, wait = rng.random() / options.kill, float(rng.uniform(0, 0.5))
            if not self._is_whole(command, out):
                watched = Watched(f"jobs.{command}", self._with_workers(arguments), finished)
                self._step(f"{command}, kill {number + 1}", partial(watched.to_the_kill, share * options.files, wait))
        if not self._is_whole(command, out):
            self._step(command, Watched(f"jobs.{command}", self._with_workers(arguments), finished).to_the_end)

    def _is_whole(self, command: str, out: Path) -> bool:
        """Whether nothing is left to do: a process may be killed between its work and its exit."""
        if command == "encode":
            return (out / "_manifest.json").exists()
        return len(list(out.rglob("*.parquet"))) == self._options.files and not (out / LEDGER_FOLDER).exists()


def check_archive(data: Path, archive: Path) -> dict[str, Any]:
    """Compares an archive's parts with the files they were made from, by their rows, and with its folder."""
    opened = Archive.open(Location(str(archive)))
    rows: dict[str, list[int]] = {}
    names = set()
    for record in opened.parts:
        rows.setdefault(record.path, []).extend(record.row_groups)
        names.add(record.name)
    sources = {path.relative_to(data).as_posix(): row_groups(path) for path in data.rglob("*.parquet")}
    listed = {path.relative_to(archive / "parts").as_posix() for path in (archive / "parts").rglob("*")}
    found = {
        "rows": opened.rows,
        "parts": len(opened.parts),
        "bytes": opened.sizes(),
        "files of other rows": sum(rows.get(name) != groups for name, groups in sources.items()),
        "files without source": len(rows.keys() - sources.keys()),
        "parts missing": len(names - listed),
        "orphan parts": sorted(listed - names),
        "left over": sorted(path.name for path in archive.iterdir() if path.name not in ARCHIVE_ENTRIES),
    }
    wrong = [found["files of other rows"], found["files without source"], found["parts missing"], found["orphan parts"]]
    return {**found, "good": not any(wrong)}


def row_groups(path: Path) -> list[int]:
    """Rows of each row group of a file."""
    footer = pq.read_metadata(path)
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def check_decoded(data: Path, decoded: Path, archive: Path) -> dict[str, Any]:
    """Compares every decoded file with its source, value by value; times, which never come twice, are exact."""
    bounds = Archive.open(Location(str(archive))).model.bounds
    errors: dict[str, ColumnError] = {}
    rows, other = 0, []
    names = {path.relative_to(data).as_posix() for path in data.rglob("*.parquet")}
    for name in sorted(names):
        if not (decoded / name).exists():
            other.append(name)
            continue
        left, right = pq.read_table(data / name), pq.read_table(decoded / name)
        if left.schema != right.schema or left.num_rows != right.num_rows or not left["time"].equals(right["time"]):
            other.append(name)
            continue
        for column in left.column_names:
            error = errors.setdefault(column, ColumnError(bound=bounds.get(column, 0.0)))
            error.add(one_array(left[column]), one_array(right[column]))
        rows += right.num_rows
    listed = {path.relative_to(decoded).as_posix() for path in decoded.rglob("*") if path.is_file()}
    violations = sum(error.violations for error in errors.values())
    found = {
        "rows": rows,
        "files of other rows": other,
        "left over": sorted(listed - names),
        "violations": violations,
        "columns": {name: error.summary() for name, error in errors.items()},
    }
    return {**found, "good": not (other or violations or found["left over"])}


def summary(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each command that ran."""
    table = []
    for name, step in figures.items():
        if "samples" in step:
            table.append({"step": name, **{key: step[key] for key in ("units", "seconds", "status")}, **flatness(step)})
    return table


if __name__ == "__main__":
    raise SystemExit(main())
