"""Bytes of whole archives, by part, beside what general tools need for the same table and the same error bound.

usage: python -m benchmarks.size DATA... [--error BOUND]... [--effort E] [--keep corrections] [--latents]
       [--config FILE.yaml] [--set KEY=VALUE]... [--no-peers] [--no-ideal] [--again] [--out FOLDER]

Every DATA is encoded at every bound, decoded completely, and every value compared with the original one. With
`--keep corrections` no network but the coder's is used, so none is trained; `--latents` (as `--keep both`) trains
the VAE first, and adds a line for the archive that keeps latents too, with its −ELBO. All columns are modelled,
labels too, unless `--config` passes some through.

Each finished line is a JSON file in FOLDER (default: build/size), as are the tools' figures of each dataset and
bound: a run that was killed, or is started again with more datasets or bounds, does only what is missing, unless
`--again` is given. `results.json` and `results.md` hold everything that this command was asked for. Datasets are
read into memory whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import pipeline
import vae_model
from benchmarks.archives import measure_archive, trained_bundle, untrained_bundle
from benchmarks.peers import measure_peers, versions
from benchmarks.size_table import line, summary, write
from jobs.arguments import add_effort, error_bound
from jobs.inspect import format_table
from pipeline.bounds import Bound
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster, connected
from pipeline.columns import ColumnOptions
from pipeline.config import TrainConfig, load_config, parse_setting
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.errors import ParvaeError
from pipeline.locate import locate
from pipeline.promise import BOTH, CORRECTIONS

LOG = logging.getLogger("parvae.size")
IMAGES = {"mnist": (28, 28), "usps": (16, 16)}
"""Datasets whose column `image` is one."""
_SECONDS = 5.0


@dataclass(frozen=True)
class Subject:
    """A dataset that is measured.

    Attributes:
        dataset: The dataset.
        config: How its columns are modelled and, with latents, how its VAE is trained.
    """

    dataset: Dataset
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its name in tables and file names."""
        return Path(self.dataset.location.name).stem

    @property
    def key(self) -> str:
        """Changes with the data and with the configuration."""
        text = json.dumps([self.dataset.fingerprint(), self.config.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def table(self) -> pa.Table:
        """All rows."""
        dataset = self.dataset
        batches = [b for unit in dataset.units() for b in read_unit(dataset.root, unit, None, dataset.block_rows)]
        return pa.Table.from_batches(batches, batches[0].schema if batches else dataset.schema)


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: The dataset.
        error: The error bound.
        effort: Time spent on the choice of coders.
        keep: "corrections" or "both".
    """

    name: str
    error: Bound
    effort: str
    keep: str

    @property
    def head(self) -> dict[str, str]:
        """The columns that name it."""
        return {"data": self.name, "error": str(self.error), "keep": self.keep, "effort": self.effort}


class Results:
    """Finished measurements: one JSON file each.

    Args:
        folder: Where they lie.
        again: Whether those of earlier runs count for nothing.
    """

    def __init__(self, folder: Path, again: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._again = folder, again
        self._written: set[str] = set()

    def find(self, name: str, key: str) -> dict[str, Any] | None:
        """A measurement, None if it is not finished or is one of other data or another configuration."""
        path = self.folder / f"{name}.json"
        if not path.exists() or (self._again and name not in self._written):
            return None
        found = dict(json.loads(path.read_text()))
        return found if found.pop("key") == key else None

    def put(self, name: str, key: str, figures: dict[str, Any]) -> dict[str, Any]:
        """Writes a measurement; returns it."""
        path = self.folder / f"{name}.json"
        waiting = path.with_suffix(".tmp")
        waiting.write_text(json.dumps({"key": key, **figures}, indent=1))
        waiting.replace(path)
        self._written.add(name)
        return figures


def main(argv: list[str] | None = None) -> int:
    """Measures what is missing, prints one table; returns 1 if something failed or a bound is broken."""
    options = _arguments(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        subjects = [subject_of(text, options) for text in options.data]
        if len({subject.name for subject in subjects}) < len(subjects):
            raise ParvaeError("two of the datasets have the same name")
    except ParvaeError as error:
        LOG.error("%s", error)
        return 2
    results, rows, failed = Results(options.out, options.again), [], []
    with connected() as cluster:
        for number, subject in enumerate(subjects, 1):
            LOG.info("[%d of %d] %s: %s rows", number, len(subjects), subject.name, f"{subject.dataset.rows:,}")
            for case, figures in measure(subject, options, results, cluster):
                if figures is None:
                    failed.append(case.head)
                else:
                    rows.append({**case.head, **figures})
                    write(options.out, rows)
    print(format_table([line(row) for row in rows]))
    print("\n" + "\n".join(summary(rows)))
    for head in failed:
        print(f"failed: {' '.join(head.values())}")
    return int(bool(failed) or any(row["violations"] for row in rows))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", metavar="DATA", help="folders of Parquet files, or files")
    parser.add_argument("--error", action="append", type=error_bound, metavar="BOUND", help="default: 0.01r; repeat")
    add_effort(parser, "balanced")
    parser.add_argument("--keep", action="append", choices=(CORRECTIONS, BOTH), help="default: corrections; repeat")
    parser.add_argument("--latents", action="store_true", help="as --keep both: trains a VAE")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML as for `parvae train`, for all datasets")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure general tools")
    parser.add_argument("--ideal", action=argparse.BooleanOptionalAction, default=True, help="ideal code lengths")
    parser.add_argument("--again", action="store_true", help="measure what is finished, too")
    parser.add_argument("--out", type=Path, default=Path("build/size"), metavar="FOLDER")
    options = parser.parse_args(argv)
    options.error = options.error or [Bound.parse("0.01r")]
    options.effort = options.effort or "balanced"
    options.keep = list(dict.fromkeys([*(options.keep or [CORRECTIONS]), *[BOTH] * options.latents]))
    if any(bound.value is None for bound in options.error):
        parser.error("--error none: there is nothing to compare")
    return options


def subject_of(text: str, options: argparse.Namespace) -> Subject:
    """Opens a dataset.

    Raises:
        ParvaeError: If it cannot be read, or the configuration is wrong.
    """
    dataset = open_dataset(locate(text, "DATA"))
    settings = dict(parse_setting(text) for text in options.settings)
    yaml = options.config.read_text() if options.config else ""
    config = load_config(yaml, str(options.config or "the configuration"), settings)
    shape = IMAGES.get(Path(dataset.location.name).stem)
    if shape is not None and "image" in dataset.schema.names and "image" not in config.columns:
        columns = {**config.columns, "image": ColumnOptions(kind="vector", shape=shape)}
        config = dataclasses.replace(config, columns=columns)
    return Subject(dataset, config)


def measure(
    subject: Subject, options: argparse.Namespace, results: Results, cluster: Cluster
) -> Iterator[tuple[Case, dict[str, Any] | None]]:
    """The lines of one dataset, one by one; None for one that failed."""
    models: dict[bool, Bundle] = {}
    for error in options.error:
        for keep in options.keep:
            case = Case(subject.name, error, options.effort, keep)
            try:
                figures = _archive(subject, case, options, results, cluster, models)
                yield case, figures | (_peers(subject, error, results) if options.peers else {})
            except Exception:  # one failure must not end a run of hours
                LOG.error("%s failed:\n%s", " ".join(case.head.values()), traceback.format_exc())
                yield case, None


def _archive(
    subject: Subject,
    case: Case,
    options: argparse.Namespace,
    results: Results,
    cluster: Cluster,
    models: dict[bool, Bundle],
) -> dict[str, Any]:
    """What an archive came to, measured now unless it is finished."""
    name, key = "-".join(["size", *case.head.values()]), subject.key
    found = results.find(name, key)
    if found is not None and (found["measured_ideal"] or not options.ideal):
        other = "" if found["code"] == code_fingerprint() else ", by other code: --again measures it anew"
        LOG.info("%s: finished before%s", " ".join(case.head.values()), other)
        return found
    LOG.info("%s: encoding", " ".join(case.head.values()))
    train, config = case.keep == BOTH or BOTH in options.keep, subject.config
    if train not in models:
        models[train] = (
            trained_bundle(subject.dataset, config) if train else untrained_bundle(subject.dataset, config, cluster)
        )
    figures = measure_archive(subject.dataset, models[train], config, case.keep, case.error, case.effort, options.ideal)
    figures |= {"measured_ideal": options.ideal, "code": code_fingerprint()}
    total, seconds = figures["total"], figures["encode_seconds"] + figures["decode_seconds"]
    LOG.info("%s: %s bytes, %d violations, %.0f s", case.name, f"{total:,}", figures["violations"], seconds)
    return results.put(name, key, figures)


def _peers(subject: Subject, error: Bound, results: Results) -> dict[str, Any]:
    """What general tools need, measured now unless it is finished."""
    name, tools = f"peers-{subject.name}-{error}", versions()
    key = json.dumps([subject.dataset.fingerprint(), tools])
    found = results.find(name, key)
    if found is None:
        begun = time.monotonic()
        found = measure_peers(subject.table(), error, _Seldom(f"{subject.name} {error}"))
        found |= {"seconds": time.monotonic() - begun}
        results.put(name, key, found)
    return {"peers": found}


@functools.cache
def code_fingerprint() -> str:
    """A hash of the code that archives are made with, as it was when this process first asked."""
    digest = hashlib.sha256()
    for package in (pipeline, vae_model):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class _Seldom:
    """Logs what is being done, at most every few seconds.

    Args:
        what: What every line begins with.
    """

    def __init__(self, what: str) -> None:
        self._what, self._told = what, -_SECONDS

    def __call__(self, text: str) -> None:
        """Logs a line, unless one was just logged."""
        now = time.monotonic()
        if now - self._told >= _SECONDS:
            self._told = now
            LOG.info("%s: %s", self._what, text)


if __name__ == "__main__":
    raise SystemExit(main())
