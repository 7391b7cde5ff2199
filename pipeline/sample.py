"""Sampling: a model makes rows up, in the schema of its dataset."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.cluster import connected
from pipeline.conditions import Conditions, parse_conditions
from pipeline.errors import ArchiveError, ConfigError, JobError, OutputError
from pipeline.generate import Pilot, RowGenerator
from pipeline.latent_prior import AggregatePrior, LatentPrior, NormalPrior, fit_aggregate
from pipeline.ledger import LEDGER_FOLDER, Ledger, open_ledger, recording
from pipeline.local_files import SPOOL_PREFIX
from pipeline.locate import check_output
from pipeline.lock import OutputLock, is_lock, locked
from pipeline.machine import one_thread
from pipeline.manifest import MANIFEST_FILE
from pipeline.picture import MOST_IMAGES, check_picture, image_column, write_grid
from pipeline.plan import PLAN_FILE, fingerprint
from pipeline.progress import Progress
from pipeline.sample_files import FileSampler, SampleOptions, file_rows, write_file
from pipeline.storage import Location
from pipeline.stored_latents import check_latents, sample_latents, with_posterior_noise
from pipeline.units import run_units

LOG = logging.getLogger(__name__)
LEAST_LATENTS = 50
"""An aggregate posterior is fitted to no fewer rows."""
_NAME = re.compile(r"samples-\d{6,}\.parquet")


@dataclass(frozen=True)
class Request:
    """What is to be made up, checked."""

    bundle: Bundle
    prior: LatentPrior
    conditions: Conditions
    options: SampleOptions
    pilot: Pilot
    run: str

    def generator(self) -> RowGenerator:
        """Makes the rows up."""
        options = self.options
        return RowGenerator(self.bundle, self.prior, options.seed, options.mean, self.conditions, self.pilot.draws)


def sample(
    source: Location,
    out: Location,
    options: SampleOptions,
    grid: Location | None = None,
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes rows that a model makes up, as Parquet files.

    With the same model, prior, conditions and seed, fewer rows are the beginning of more rows.

    Args:
        source: A model's folder, or that of an archive that keeps latents.
        out: Folder to write.
        options: What is asked for.
        grid: PNG file for the first images, None for none.
        workers: Actors; None: as many as the cluster has CPUs (GPUs with `gpu`). One file is made in this process.
        gpu: Whether actors run the network on GPUs.
        overwrite: Whether samples that are in the folder may be replaced.

    Returns:
        Figures: rows, files, bytes, prior, effective sample size, columns left out.

    Raises:
        InputError: Bad input, found before any work.
        JobError: A task failed.
    """
    started = time.monotonic()
    check_output(out, "--out", {"MODEL": source})
    check_folder(out, overwrite)
    request = _checked(source, options)
    check_run(out, request.run, overwrite)
    column = None if grid is None else image_column(request.bundle.rows)
    if grid is not None:
        check_picture(grid, out, overwrite or Ledger(out).run() == request.run)
    left_out = request.bundle.rows.passthrough
    if left_out:
        LOG.warning("not modelled, so not in the samples: %s", ", ".join(map(repr, left_out)))
    with locked(out, "--out") as lock:
        ledger = _begin(out, request.run, overwrite, lock)
        entries, resumed = _write_files(request, out, ledger, lock, workers, gpu)
        if grid is not None and column is not None:
            first = pa.Table.from_batches(request.generator().batches(range(min(options.rows, MOST_IMAGES))))
            write_grid(column, first[column.name].combine_chunks(), grid)
        ledger.remove()
        out.remove_spools()
    figures = {**_figures(request, entries), "left_out": left_out, "resumed": resumed}
    return {**figures, "seconds": time.monotonic() - started}


def _figures(request: Request, entries: list[dict[str, Any]]) -> dict[str, Any]:
    prior = request.prior
    figures: dict[str, Any] = {name: sum(entry[name] for entry in entries) for name in ("rows", "bytes")}
    figures["files"] = len(entries)
    figures["prior"] = "aggregate" if isinstance(prior, AggregatePrior) else "normal"
    if isinstance(prior, AggregatePrior):
        figures["latent_bits_per_row"] = round(prior.bits, 3)
    if request.conditions:
        figures["where"] = request.conditions.text
        figures["probability"] = request.pilot.probability
        figures["draws_per_row"] = request.pilot.draws
        figures["effective_sample_size"] = round(sum(entry["effective"] for entry in entries), 1)
    return figures


def _checked(source: Location, options: SampleOptions) -> Request:
    """Everything that can be wrong, before any work."""
    if not 0 <= options.seed < 1 << 63:
        raise ConfigError(f"--seed {options.seed}: expected 0 or more, and less than 2^63")
    opened = open_source(source)
    bundle = opened.model.bundle if isinstance(opened, Archive) else opened
    conditions = parse_conditions(options.where, bundle.rows)
    prior, fitted_to = _prior(opened, bundle, options), ""
    if isinstance(opened, Archive) and isinstance(prior, AggregatePrior):
        fitted_to = opened.manifest["parts_sha256"]
    asked = [options.rows, fitted_to, list(options.where), options.seed, options.mean]
    run = fingerprint(["sample", bundle.fingerprint, *asked])
    pilot = Pilot(1, 1.0, 1.0)
    if conditions:
        pilot = RowGenerator(bundle, prior, options.seed, options.mean, conditions).pilot()
        LOG.info(
            "%s: a probability of %.3g; %d draws a row, an effective sample size of %.2f each",
            conditions.text,
            pilot.probability,
            pilot.draws,
            pilot.effective,
        )
    return Request(bundle, prior, conditions, options, pilot, run)


def open_source(source: Location) -> Archive | Bundle:
    """An archive that keeps latents, or a model.

    Raises:
        ArchiveError: If the archive keeps none, or is damaged.
        ModelError: If it is neither, or the model is damaged.
    """
    if source.join(MANIFEST_FILE).exists() or source.join(PLAN_FILE).exists():
        archive = Archive.open(source)
        check_latents(archive)
        return archive
    return Bundle.load(source)


def _prior(opened: Archive | Bundle, bundle: Bundle, options: SampleOptions) -> LatentPrior:
    active = bundle.vae.latent_active_Z.cpu().numpy()
    if isinstance(opened, Bundle):
        if options.prior == "aggregate":
            raise ConfigError(
                "--prior aggregate is fitted to latents: give an archive that keeps them, not a model's folder"
            )
        return NormalPrior(active)
    if options.prior == "normal":
        return NormalPrior(active)
    if opened.rows < LEAST_LATENTS:
        raise ArchiveError(
            f"{opened.location} has {opened.rows} rows, too few to fit an aggregate posterior to; give --prior normal"
        )
    return _aggregate(opened, bundle, options.seed)


def usual_prior(archive: Archive, seed: int) -> LatentPrior:
    """The aggregate posterior of an archive's latents; N(0, I) where the rows are too few to fit one.

    Args:
        archive: An archive that keeps latents.
        seed: Seed of the sample that it is fitted to.
    """
    bundle = archive.model.bundle
    if archive.rows < LEAST_LATENTS:
        return NormalPrior(bundle.vae.latent_active_Z.cpu().numpy())
    return _aggregate(archive, bundle, seed)


def _aggregate(opened: Archive, bundle: Bundle, seed: int) -> LatentPrior:
    active = bundle.vae.latent_active_Z.cpu().numpy()
    steps = bundle.vae.latent_step_Z.cpu().numpy().astype(np.float64)
    latents = sample_latents(opened, seed)
    if not (steps > 0).any():
        latents = with_posterior_noise(bundle, latents, seed)
    with one_thread():
        return fit_aggregate(latents, active, steps, seed)


def _write_files(
    request: Request, out: Location, ledger: Ledger, lock: OutputLock, workers: int | None, gpu: bool
) -> tuple[list[dict[str, Any]], int]:
    """Writes the files that are not there yet; returns an entry for each, and how many an earlier run made."""
    size, rows = file_rows(request.bundle), request.options.rows
    parts = (range(start, min(rows, start + size)) for start in range(0, rows, size))
    files = {f"samples-{number:06d}.parquet": part for number, part in enumerate(parts)}
    found = {stat.path: stat.size for stat in out.files()}
    done = {
        entry["path"]: entry
        for entry in ledger.entries()
        if entry["path"] in files and found.get(entry["path"]) == entry["bytes"]
    }
    items = [{"path": path, "start": r.start, "stop": r.stop} for path, r in files.items() if path not in done]
    progress, entries = Progress("sample", len(items)), list(done.values())
    with recording(ledger, out):
        for result in _results(request, out, items, workers, gpu):
            lock.check()
            ledger.add(result)
            entries.append(result)
            progress.advance(result["rows"])
    lock.check()
    made = sum(entry["rows"] for entry in entries)
    if made != rows:
        raise JobError(f"{made} rows were made, {rows} were asked for; run the job again")
    return entries, len(done)


def _results(
    request: Request, out: Location, items: list[dict[str, Any]], workers: int | None, gpu: bool
) -> Iterator[dict[str, Any]]:
    """Makes files in this process if there is one, else on the cluster."""
    if len(items) <= 1 and not gpu:
        for item in items:
            yield write_file(request.generator(), request.bundle, out, item)
        return
    arguments = {
        "files": dict(request.bundle.files()),
        "prior": request.prior,
        "options": request.options,
        "draws": request.pilot.draws,
        "out": out,
        "device": "cuda" if gpu else "cpu",
    }
    with connected() as cluster:
        yield from run_units(items, FileSampler, arguments, cluster, cluster.workers_for(workers, gpu), gpu)


def check_folder(out: Location, overwrite: bool) -> None:
    """Refuses a folder that holds anything but samples, or finished ones without `overwrite`.

    Raises:
        OutputError: Saying what is there and what to do.
    """
    if out.is_file():
        raise OutputError(f"--out {out} is a file; choose a folder")
    finished = False
    for stat in out.files():
        if is_lock(stat.path) or stat.path.startswith(f"{LEDGER_FOLDER}/") or stat.path.startswith(SPOOL_PREFIX):
            continue
        if not _NAME.fullmatch(stat.path):
            raise OutputError(f"--out {out} holds {stat.path}, which is no file of samples; choose an empty folder")
        finished = True
    if finished and not overwrite and Ledger(out).run() is None:
        raise OutputError(f"--out {out} holds samples already; choose another folder, or give --overwrite")


def check_run(out: Location, run: str, overwrite: bool) -> None:
    """Refuses a folder with unfinished samples of another run.

    Raises:
        OutputError: Saying what to do.
    """
    if not overwrite and Ledger(out).run() not in (None, run):
        raise OutputError(
            f"--out {out} holds unfinished samples of another model or other options; choose another folder, or give "
            "--overwrite to drop them"
        )


def _begin(out: Location, run: str, overwrite: bool, lock: OutputLock) -> Ledger:
    """Clears what is to be overwritten; returns the ledger of this run, with what an earlier one finished."""
    check_folder(out, overwrite)
    check_run(out, run, overwrite)
    return open_ledger(out, run, lock, "samples")
