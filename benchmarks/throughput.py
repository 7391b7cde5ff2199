"""How fast train, encode and decode are, beside bare loops, a pipeline written by hand, pcodec and zstd.

usage: python -m benchmarks.throughput NAME=FILE.parquet[*COPIES] … [--sensors ROWS] [--repeats N] [--threads N]
       [--cpus N] [--set KEY=VALUE] … --out FOLDER

Each dataset is cut into files of about the same size (or copied whole, `*10`), so that the rate after the first file,
past start-up, can be told from the times at which files were finished. Every yardstick runs beside its stage in the
same round, in turn: `benchmarks.bare` (one process, no Ray, nothing written), `benchmarks.by_hand` (Ray Data alone),
pcodec and Parquet with zstd (in memory, from Arrow; one thread). All compute in the same number of threads: `encode`,
`decode` and the pipeline by hand as workers of one thread each, `train` and the bare loops in one process
(`OMP_NUM_THREADS` keeps a worker from taking all CPUs). All run on `--cpus` CPUs; if those are no more than threads,
Ray's servers and what reads and writes take theirs from the network.

A result a dataset, round and contestant is kept in FOLDER; started again, what is there is not measured again. The
table gives medians over the rounds and, for ratios, the median of the rounds' ratios. "CPU µs/row" is the processor
time of all of a contestant's processes, start-up included; "driver MB" the largest resident set of the process that was
started, which trains, and is all there is of a bare loop; "worker MB" that of a Ray worker.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.sensor_files import write_files
from benchmarks.watched import Watched
from jobs.inspect import format_table
from pipeline.archive import PARTS_FOLDER

FILES = 8
CONTESTANTS = (
    *("train", "train bare"),
    *("encode latents", "encode latents bare", "encode latents by hand"),
    *("encode", "encode bare", "encode fast", "decode", "decode bare"),
    *("pcodec", "zstd"),
)
TAKEN = ("CPU µs/row", "worker MB", "driver MB")
"""Processor time of all processes, start-up included (looked at once a second), and the largest resident sets."""
RATIOS = (
    ("train", "train bare"),
    ("encode latents", "encode latents bare"),
    ("encode latents", "encode latents by hand"),
    ("encode", "encode bare"),
    ("decode", "decode bare"),
    ("encode fast", "encode"),
)


class Bench:
    """All contestants on one dataset.

    Args:
        name: The dataset's name.
        data: Its files.
        folder: Where models and archives lie.
        threads: Threads of every contestant.
        epochs: Epochs of training; if there is one, it counts, else those after the first.
        settings: `--set` of `parvae train`.
    """

    def __init__(self, name: str, data: Path, folder: Path, threads: int, epochs: int, settings: list[str]) -> None:
        self.name, self._data, self._folder, self._threads, self._epochs = name, data, folder, threads, epochs
        self._settings = [word for setting in settings for word in ("--set", setting)]
        self.rows = sum(pq.read_metadata(path).num_rows for path in data.rglob("*.parquet"))
        self.bytes = sum(table.nbytes for table in self._tables())

    def run(self, contestant: str) -> dict[str, Any]:
        """Measures one contestant once."""
        stage, _, how = contestant.partition(" ")
        os.environ["OMP_NUM_THREADS"] = str(self._threads if stage == "train" or how.endswith("bare") else 1)
        if stage == "train":
            return self._bare("train", self._data, "--set", f"training.epochs={self._epochs}") if how else self._train()
        if stage in ("pcodec", "zstd"):
            return self._general(contestant)
        if how == "latents by hand":
            return self._by_hand()
        if stage == "encode":
            return self._encode(how)
        return self._bare("decode", self._archive("corrections")) if how else self._decode()

    def _train(self) -> dict[str, Any]:
        model = self._fresh("trained")
        words = ("--model", model, "--epochs", self._epochs, "--error", "none", *self._settings)
        taken, _ = self._watched("jobs.train", self._data, *words)
        history = json.loads((model / "bundle.json").read_text())["training"]["history"]
        return {
            "rows_per_second": statistics.median(
                entry["rows_per_second"] for entry in history[min(1, self._epochs - 1) :]
            ),
            **taken,
        }

    def _encode(self, how: str) -> dict[str, Any]:
        kind = "latents" if how.startswith("latents") else "fast" if how == "fast" else "corrections"
        if how.endswith("bare"):
            return self._bare("encode", self._data, self._archive(kind))
        out = self._fresh(kind)
        words = ("--model", self._model(), "--out", out, "--workers", self._threads, *ENCODES[kind])
        taken, _ = self._watched("jobs.encode", self._data, *words)
        return {**written(out / PARTS_FOLDER, self._threads), "bytes": tree_bytes(out), **taken}

    def _decode(self) -> dict[str, Any]:
        out = self._fresh("decoded")
        words = (self._archive("corrections"), "--out", out, "--workers", self._threads)
        taken, _ = self._watched("jobs.decode", *words)
        figures = written(out, self._threads)
        shutil.rmtree(out)
        return {**figures, **taken}

    def _by_hand(self) -> dict[str, Any]:
        out = self._fresh("by-hand")
        words = (self._data, self._archive("latents"), out, self._threads)
        taken, figures = self._watched("benchmarks.by_hand", *words)
        return {**figures, **taken}

    def _bare(self, *words: object) -> dict[str, Any]:
        settings = self._settings if words[0] == "train" else []
        taken, figures = self._watched("benchmarks.bare", *words, "--threads", self._threads, *settings)
        return {**figures, **taken}

    def _general(self, tool: str) -> dict[str, Any]:
        """Runs pcodec on every numeric column, or Parquet with zstd 19, from Arrow in memory; one thread."""
        seconds = spent = size = 0.0
        for table in self._tables():
            started, begun = time.perf_counter(), time.process_time()
            size += TOOLS[tool](table)
            seconds += time.perf_counter() - started
            spent += time.process_time() - begun
        cost = spent / self.rows * 1e6
        return {"rows_per_second": self.rows / seconds, "seconds": seconds, "bytes": size, "CPU µs/row": cost}

    def _tables(self) -> Iterator[pa.Table]:
        for path in sorted(self._data.rglob("*.parquet")):
            yield pq.read_table(path)

    def _model(self) -> Path:
        """A model, trained once for all contestants."""
        model = self._folder / "model"
        if not (model / "bundle.json").exists():
            words = [str(self._data), "--model", str(model), "--epochs", str(self._epochs), *self._settings]
            subprocess.run([sys.executable, "-m", "jobs.train", *words], check=True, stdout=subprocess.DEVNULL)
        return model

    def _archive(self, kind: str) -> Path:
        """The archive that the last round of an encode left, made if there is none."""
        if not (self._folder / kind / "_manifest.json").exists():
            self._encode(kind if kind != "corrections" else "")
        return self._folder / kind

    def _watched(self, module: str, *words: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Runs a module; gives what it took, start-up included, and the JSON of its last line."""
        run = Watched(module, words, unique=False).to_the_end()
        peaks = {
            name: max((sample[name] for sample in run["samples"]), default=0.0) for name in ("worker MB", "driver MB")
        }
        taken = {"all seconds": run["seconds"], "CPU µs/row": run["processor seconds"] / self.rows * 1e6, **peaks}
        return taken, dict(run["figures"])

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self._folder / name, ignore_errors=True)
        return self._folder / name


ENCODES = {
    "latents": ("--keep", "latents"),
    "corrections": ("--keep", "corrections"),
    "fast": ("--keep", "corrections", "--effort", "fast"),
}


def written(out: Path, workers: int) -> dict[str, float]:
    """Rows a second once every worker has finished a file, and the seconds from then to the last file."""
    files = sorted(out.rglob("*.parquet"), key=lambda path: path.stat().st_mtime)
    seconds = files[-1].stat().st_mtime - files[workers - 1].stat().st_mtime
    rows = sum(pq.read_metadata(path).num_rows for path in files[workers:])
    return {"rows_per_second": rows / seconds, "seconds": seconds}


def _zstd(table: pa.Table) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=19)
    return int(sink.getvalue().size)


def _pcodec(table: pa.Table) -> int:
    from pcodec import ChunkConfig, standalone

    from benchmarks.peers import one_array

    size, rest = 0, []
    for name in table.column_names:
        column = one_array(table.column(name))
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        if pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type):
            values = flat.fill_null(0).to_numpy(zero_copy_only=False)
            size += len(
                standalone.simple_compress(values.astype("u2") if values.itemsize == 1 else values, ChunkConfig())
            )
        else:
            rest.append(name)
    return size + (_zstd(table.select(rest)) if rest else 0)


TOOLS: dict[str, Callable[[pa.Table], int]] = {"zstd": _zstd, "pcodec": _pcodec}


def tree_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prepare(word: str, folder: Path) -> tuple[str, Path]:
    """Cuts `NAME=FILE` into files, or copies it, `NAME=FILE*COPIES`; gives its name and folder."""
    name, _, path = word.partition("=")
    path, _, copies = path.partition("*")
    data = folder / name / "data"
    if not data.exists():
        spool = data.with_name("data.tmp")
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True)
        table = pq.read_table(path)
        rows = table.num_rows if copies else -(-table.num_rows // FILES)
        for number in range(int(copies) if copies else FILES):
            piece = table if copies else table.slice(number * rows, rows)
            pq.write_table(piece, spool / f"{number:04d}.parquet", compression="zstd")
        spool.rename(data)
    return name, data


def table_of(results: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of every contestant and of the ratios, a line each."""
    lines: list[dict[str, Any]] = []
    for name in sorted({dataset for dataset, _ in results}):
        rates = {c: [r["rows_per_second"] for r in results[name, c]] for c in CONTESTANTS if (name, c) in results}
        for contestant, found in rates.items():
            runs, rate = results[name, contestant], statistics.median(found)
            line = {"dataset": name, "contestant": contestant, "rows/s": rate}
            line |= {"MB/s": rate * runs[0]["arrow_bytes"] / runs[0]["rows"] / 1e6, "rounds": len(runs)}
            taken = {key: statistics.median(run.get(key, float("nan")) for run in runs) for key in TAKEN}
            lines.append(line | taken)
        for ours, other in RATIOS:
            if ours in rates and other in rates:
                pairs = [a / b for a, b in zip(rates[ours], rates[other], strict=False)]
                lines.append({"dataset": name, "contestant": f"{ours} / {other}", "ratio": statistics.median(pairs)})
    return lines


def shown(lines: list[dict[str, Any]]) -> str:
    """The lines of `table_of` as two tables: rates, and ratios."""
    return "\n\n".join(format_table([line for line in lines if head in line]) for head in ("rows/s", "ratio"))


def main() -> int:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", metavar="NAME=FILE.parquet[*COPIES]")
    parser.add_argument(
        "--sensors", type=int, default=0, metavar="ROWS", help="a generated table of sensor readings, too"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="compute threads of every contestant")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs to run on; default: as many as threads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `parvae train`")
    parser.add_argument(
        "--epochs", type=int, default=2, metavar="N", help="of training; the first counts only if alone"
    )
    parser.add_argument("--only", action="append", choices=CONTESTANTS, help="default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    os.sched_setaffinity(
        0, sorted(os.sched_getaffinity(0))[: options.cpus or options.threads]
    )  # inherited by all that is started
    sources = [prepare(word, options.out) for word in options.data]
    if options.sensors:
        folder = options.out / "sensors" / "data"
        sources.append(("sensors", folder))
        for _ in write_files(folder, FILES, options.sensors, seed=0):
            pass
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, data in sources:
        bench = Bench(name, data, options.out / name, options.threads, options.epochs, options.set)
        for number in range(options.repeats):
            for contestant in options.only or CONTESTANTS:
                place = options.out / name / "results" / f"{contestant.replace(' ', '-')}-{number}.json"
                results.setdefault((name, contestant), []).append(_kept(place, bench, contestant))
    lines = table_of(results)
    (options.out / "throughput.json").write_text(json.dumps(lines, indent=1))
    print(shown(lines))
    return 0


def _kept(place: Path, bench: Bench, contestant: str) -> dict[str, Any]:
    """A contestant's figures, measured if they are not there yet."""
    if not place.exists():
        found = {"rows": bench.rows, "arrow_bytes": bench.bytes, **bench.run(contestant)}
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(found, indent=1))
        rate = f"{found['rows_per_second']:,.0f} rows/s"
        print(f"{bench.name} {contestant}: {rate}", file=sys.stderr, flush=True)
    return dict(json.loads(place.read_text()))


if __name__ == "__main__":
    raise SystemExit(main())
