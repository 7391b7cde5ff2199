"""Encodes and decodes every Parquet file of public test collections at `--error 0`: equal, or refused by a typed error.

usage: python -m benchmarks.conformance PATH… [--seconds N] [--memory MIB] [--out FILE.json]

PATH is a file, a folder, or a source package as `pip download` leaves it (.tar.gz, .zip, .whl). Every file that is
named like Parquet, or begins with Parquet's magic bytes, is read once, whatever folders hold it. Each runs in a process
of its own, with limits of time and address space, so that a crash in native code is seen as one: open the dataset, fit
its columns, encode with an untrained network and `--keep corrections --error 0`, decode to a file, and compare with
what pyarrow reads from the original: schema with metadata, row groups, values bit for bit, order of rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.equality import difference
from jobs.inspect import format_table
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions, ColumnStats, fit_column
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.decode import FileDecoder
from pipeline.errors import InputError, ParvaeError
from pipeline.plan import free_name
from pipeline.rows import RowTransform
from pipeline.sampling import Priorities
from pipeline.storage import Location
from tests.small import TINY, encode_here
from vae_model.network import VAE
from vae_model.weights import to_bytes

EQUAL, REFUSED = "equal", "refused"
"""Outcomes that are no failure."""
CRASHED, SLOW = "crashed", "too slow"
_NAMES = re.compile(r"\.(parquet|parq|pq)(\.|$)", re.IGNORECASE)
_PACKAGES = (".tar.gz", ".tgz", ".zip", ".whl")
_MAGIC = (b"PAR1", b"PARE")
_MIB = 1 << 20
_NOTHING = "ConfigError: nothing to model (beside a column of numbers: equal)"


@dataclass(frozen=True)
class Found:
    """What became of a file.

    Attributes:
        path: The file.
        outcome: `equal`, `refused`, `different`, `crashed`, `too slow`, or the name of an exception.
        reason: What the error said, or what differs.
    """

    path: Path
    outcome: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether the outcome is one that must not be."""
        return self.outcome not in (EQUAL, REFUSED)


def parquet_files(places: Sequence[Path]) -> list[Path]:
    """The files to try, each content once, sorted by path."""
    found: dict[str, Path] = {}
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and _looks_like_parquet(path):
                found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return sorted(found.values())


def _looks_like_parquet(path: Path) -> bool:
    if path.suffix in (".crc", ".py"):
        return False
    with path.open("rb") as stream:
        return bool(_NAMES.search(path.name)) or stream.read(4) in _MAGIC


def round_trip(path: Path, work: Path) -> Path:
    """Encodes a file at `--error 0` in this process and decodes it again.

    Args:
        path: The file.
        work: An empty folder.

    Returns:
        The decoded file.

    Raises:
        ParvaeError: If the file is refused.
    """
    dataset = open_dataset(Location(str(path.resolve())))
    if dataset.rows == 0:
        raise NothingToLearn(f"DATA {path} has no rows; nothing can be learned from it")
    archive = encode_here(dataset, _fitted(dataset), Location(str(work / "archive")), "corrections", "0")
    archive.check_parts()
    model, out = archive.load_model(), Location(str(work / "decoded"))
    decoder = FileDecoder(dict(model.files), archive.form, archive.location, out, None, "cpu", 1)
    for name, records in archive.by_file().items():
        decoder({"path": name, "parts": [record.to_json() for record in records]})
    return work / "decoded" / path.name


class NothingToLearn(InputError):
    """A file that `train` refuses although it can be read: no rows, or no column that can be modelled."""


def _fitted(dataset: Dataset) -> Bundle:
    """An untrained model of a dataset, its columns fitted to all rows as `train` does."""
    options = {field.name: ColumnOptions() for field in dataset.schema}
    stats = {field.name: ColumnStats.empty(field, options[field.name]) for field in dataset.schema}
    for unit in dataset.units():
        draw = Priorities(0, unit)
        for batch in read_unit(dataset.root, unit, None, dataset.block_rows):
            keys = draw.next(batch.num_rows)
            for field in dataset.schema:
                stats[field.name].observe(batch.column(batch.schema.get_field_index(field.name)), keys)
    columns = [fit_column(field, stats[field.name], options[field.name]) for field in dataset.schema]
    rows = RowTransform(dataset.schema, tuple(columns))
    if not rows.modelled:
        raise NothingToLearn(f"{dataset.location}: every column is passed through; nothing is left to model")
    torch.manual_seed(0)
    vae = VAE(rows.layout(), TINY)
    vae.set_latent_grid(torch.full((TINY.latent_dim,), 0.1), torch.ones(TINY.latent_dim))
    return Bundle(rows, to_bytes(vae), {"rows": dataset.rows, "history": []})


def _beside_a_number(path: Path, work: Path) -> Path:
    """The same columns in a file that has something to model: a column of row numbers."""
    with pq.ParquetFile(path) as file:
        table = file.read(use_threads=False)
    name = free_name("row", table.column_names)
    wider = work / "beside.parquet"
    pq.write_table(table.append_column(name, pa.array(range(table.num_rows), pa.int64())), wider)
    return wider


def check(path: Path, work: Path) -> Found:
    """What becomes of a file, in this process.

    A file that holds nothing to model is refused, as `train` refuses it; if it has rows, its columns are tried beside
    one of row numbers, so that what is copied is tested as well.
    """
    tried = path
    try:
        try:
            decoded = round_trip(path, work)
        except NothingToLearn as refusal:
            with pq.ParquetFile(path) as file:
                if not file.metadata.num_rows:
                    return Found(path, REFUSED, f"DatasetError: {refusal}")
            tried = _beside_a_number(path, work)
            decoded = round_trip(tried, work)
        found = difference(tried, decoded)
    except ParvaeError as error:
        return Found(path, REFUSED, f"{type(error).__name__}: {error}")
    except (Exception, MemoryError) as error:  # whatever it is, it is a finding
        return Found(path, type(error).__name__, str(error))
    if found:
        return Found(path, "different", found)
    return Found(path, EQUAL) if tried is path else Found(path, REFUSED, _NOTHING)


def check_all(paths: Sequence[Path], seconds: float = 120, memory: int = 2048) -> Iterator[Found]:
    """What becomes of each file, in a process of its own.

    Args:
        paths: The files.
        seconds: Longest that one may take.
        memory: MiB of address space that one may take beyond what loading everything takes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.small", "pipeline.decode", "jobs.inspect"])
    for path in paths:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(path, memory, sender))
        child.start()
        sender.close()
        answered = receiver.poll(seconds)
        try:
            outcome, reason = receiver.recv() if answered else (SLOW, f"{seconds:g} s")
        except EOFError:
            child.join()
            outcome, reason = CRASHED, f"exit code {child.exitcode}"
        child.kill()
        child.join()
        receiver.close()
        yield Found(path, outcome, reason)


def _child(path: Path, memory: int, sender: Connection) -> None:
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + memory * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as work:
        found = check(path, Path(work))
    sender.send((found.outcome, found.reason[:2000]))


def _unpacked(places: Sequence[Path], work: Path) -> list[Path]:
    """The places, source packages unpacked."""
    found = []
    for number, place in enumerate(places):
        if place.is_file() and place.name.endswith(_PACKAGES):
            into = work / f"{number}"
            if zipfile.is_zipfile(place):
                shutil.unpack_archive(place, into, "zip")
            else:
                shutil.unpack_archive(place, into, "gztar", filter="data")
            place = into
        found.append(place)
    return found


def _kind(reason: str) -> str:
    """A reason without what differs from file to file."""
    name, _, text = reason.partition(": ")
    for known in (
        "not a readable Parquet file",
        "cannot read",
        "several columns named",
        "no rows",
        "has no columns",
        "claims",
        "gave",
        "nothing to model",
    ):
        if known in text:
            return f"{name}: {known}"
    return " ".join(reason.split())[:60]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks all files, a collection at a time; prints failures as they come."""
    rows: list[dict[str, Any]] = []
    files: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as work:
        for place, folder in zip(options.places, _unpacked(options.places, Path(work)), strict=True):
            outcomes: Counter[str] = Counter()
            for found in check_all(parquet_files([folder]), options.seconds, options.memory):
                key = found.outcome if found.outcome == EQUAL else f"{found.outcome}: {_kind(found.reason)}"
                outcomes[key] += 1
                name = str(found.path.relative_to(folder)) if folder.is_dir() else found.path.name
                files.append({"place": place.name, "file": name, "outcome": found.outcome, "reason": found.reason})
                if found.failed or options.verbose:
                    print(f"{'FAILED ' * found.failed}{name}: {found.outcome} {found.reason}", flush=True)
            rows += [{"collection": place.name, "outcome": key, "files": n} for key, n in sorted(outcomes.items())]
    return {"outcomes": rows, "files": files}


def main() -> None:
    """Checks, prints one table, and fails if a file did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="longest that a file may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB of address space beyond what loading takes")
    parser.add_argument("--verbose", action="store_true", help="print every file, not failures alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = run(options)
    print(format_table(result["outcomes"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    sys.exit(any(line["outcome"] not in (EQUAL, REFUSED) for line in result["files"]))


if __name__ == "__main__":
    main()
