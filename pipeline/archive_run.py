"""The output folder of `encode`: what it holds, what an earlier run left, and how it becomes an archive."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from pipeline.archive import PARTS_FOLDER, Archive
from pipeline.cluster import Cluster
from pipeline.codec_store import StoredCodec
from pipeline.dataset import Dataset, WorkUnit
from pipeline.drift import Drift, find_drift
from pipeline.errors import ArchiveError, DatasetError, InputError, JobError, OutputError
from pipeline.footers import SourceFile
from pipeline.ledger import LEDGER_FOLDER, Ledger
from pipeline.lock import is_vacant
from pipeline.manifest import MANIFEST_FILE, NEXT_PARTS_FILE, PARTS_FILE, write_manifest
from pipeline.model import MODEL_FOLDER, ArchiveModel
from pipeline.plan import PLAN_FILE, PartRecord, Plan, fingerprint, part_name, read_plan, write_plan
from pipeline.request import QUARANTINE, Request
from pipeline.storage import Location

LOG = logging.getLogger(__name__)


@dataclass
class ArchiveRun:
    """One run of `encode` on its output folder.

    Attributes:
        out: The folder.
        dataset: The files that are to be encoded; those that turn out to be unreadable leave it.
        plan: The plan.
        model: What encodes.
        ledger: Which units are finished.
        before: The archive that parts are added to, None for a new one.
        gone: Files of that archive that the dataset no longer has.
        finished: Records of finished units by index.
        resumed: How many of them an earlier run had finished.
    """

    out: Location
    dataset: Dataset
    plan: Plan
    model: ArchiveModel
    ledger: Ledger
    before: Archive | None = None
    gone: tuple[str, ...] = ()
    finished: dict[int, PartRecord] = field(default_factory=dict)
    resumed: int = 0

    def __post_init__(self) -> None:
        self._units = self._all_units()

    @property
    def units(self) -> list[WorkUnit]:
        """The work units of the files that are to be encoded; numbers of files that were left out stay unused."""
        kept = {file.path for file in self.dataset.files}
        return [unit for unit in self._units if unit.path in kept]

    def _all_units(self) -> list[WorkUnit]:
        return self.dataset.units(self.plan.unit_bytes, 0 if self.before is None else self.before.parts.next_unit)

    def read_ledger(self, quarantine: bool) -> None:
        """Takes up what an earlier run has finished: units of the same files whose parts are there.

        Args:
            quarantine: Whether files that it could not read are left out again, if they are as they were.
        """
        entries = self.ledger.entries()
        if not entries:
            return
        bad = {entry.get("path"): entry for entry in entries if quarantine and "reason" in entry}
        still = {
            file.path: str(bad[file.path]["reason"])
            for file in self.dataset.files
            if file.path in bad and _identity(file) == bad[file.path].get("identity")
        }
        for path, reason in still.items():
            LOG.warning("%s is left out: %s", path, reason)
        self.dataset = self.dataset.without(still)
        units = {part_name(unit): unit for unit in self.units}
        published = {stat.path: stat.size for stat in self.out.join(PARTS_FOLDER).files()}
        for entry in entries:
            try:
                record = PartRecord.from_json(entry["record"])
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if published.get(record.name) == record.size and record.work_unit == units.get(record.name):
                self.finished[record.work_unit.index] = record
        self.resumed = len(self.finished)

    def add(self, record: PartRecord, seconds: float) -> None:
        """A unit is finished, its part published."""
        self.finished[record.work_unit.index] = record
        self.ledger.add({"seconds": round(seconds, 3), "record": record.to_json()})

    def leave_out(self, path: str, reason: str) -> None:
        """A file turned out to be unreadable: none of its units counts."""
        file = next((file for file in self.dataset.files if file.path == path), None)
        if file is None:  # another of its units has said so
            return
        LOG.warning("%s is left out: %s", path, reason)
        self.dataset = self.dataset.without({path: reason})
        self.ledger.add({"path": path, "reason": reason, "identity": _identity(file)})

    def drift(self) -> tuple[Drift, ...]:
        """New files that the model codes clearly worse than those that were in the archive before."""
        found = () if self.before is None else find_drift(self.before.parts, self.finished.values())
        for drift in found:
            LOG.warning(
                "%s costs %.2f bits a row, the archive so far %.2f: the data have drifted away from the model; "
                "train a new one on them",
                drift.path,
                drift.bits_per_row,
                drift.expected,
            )
        return found

    def finish(self) -> tuple[dict[str, Any], list[PartRecord]]:
        """Reconciles the rows, removes orphans of killed runs, and publishes the manifest.

        Returns:
            The manifest, and the records of the parts that are new.

        Raises:
            JobError: If rows are missing, or another run has published in the meantime.
        """
        kept = {file.path: file for file in self.dataset.files}
        records = [record for _, record in sorted(self.finished.items()) if record.path in kept]
        rows = sum(record.rows for record in records)
        if rows != self.dataset.rows:
            raise JobError(f"{rows} rows were encoded, DATA has {self.dataset.rows}; run the job again")
        self.remove_orphans({record.name for record in records})
        unreadable = {**({} if self.before is None else self.before.quarantined), **self.dataset.unreadable}
        unreadable = {path: reason for path, reason in unreadable.items() if path not in kept}
        manifest = write_manifest(
            self.out, self.plan, records, self.dataset.schema, self.dataset.size, self.before, unreadable
        )
        self.ledger.remove()
        self.out.remove_spools()
        return manifest, records

    def remove_orphans(self, names: set[str]) -> None:
        """Removes every part but those of the archive before and some new ones."""
        kept = names if self.before is None else names | {record.name for record in self.before.parts}
        for stat in self.out.join(PARTS_FOLDER).files():
            if stat.path not in kept:
                self.out.join(PARTS_FOLDER, stat.path).remove()


def open_run(out: Location, request: Request, overwrite: bool, generation: int, cluster: Cluster) -> ArchiveRun:
    """Takes an output folder as it is: empty, with an unfinished archive, or with one that grows.

    Args:
        out: The folder; its lock is held.
        request: What was asked for.
        overwrite: Whether what is there may be replaced.
        generation: Number of the lock.
        cluster: The cluster, for fitting a codec where the model has none for this request.

    Raises:
        OutputError: If the folder holds anything else.
    """
    check_folder(out, request, overwrite)
    ledger = Ledger(out, generation)
    if not overwrite and out.join(MANIFEST_FILE).exists():
        return _extend(out, request, ledger)
    run = run_fingerprint(request)
    if ledger.run() == run and (plan := _plan_of(out, request)) is not None:
        try:
            model = ArchiveModel.load(out, plan, request.bundle.rows.schema)
            out.join(MANIFEST_FILE).remove()
            LOG.info("continuing the unfinished archive in %s", out)
            found = ArchiveRun(out, request.dataset, plan, model, ledger)
            found.read_ledger(request.options.on_error == QUARANTINE)
            return found
        except ArchiveError:
            LOG.info("the model in %s is damaged: starting over", out)
    request, codec = _fitted(request, cluster)
    plan = request.plan(codec)
    for name in (MANIFEST_FILE, PARTS_FILE, NEXT_PARTS_FILE, PARTS_FOLDER, MODEL_FOLDER, LEDGER_FOLDER, PLAN_FILE):
        out.join(name).remove()
    ledger.begin(run)
    write_plan(out, plan)
    model = ArchiveModel.of(request.bundle, {} if codec is None else codec.files, plan)
    model.save(out)
    return ArchiveRun(out, request.dataset, plan, model, ledger)


def check_folder(out: Location, request: Request, overwrite: bool) -> None:
    """Refuses a folder that holds another archive, another run, or anything that is not parvae's.

    Raises:
        OutputError: Saying what is there and what to do.
    """
    if is_vacant(out):
        return
    ledger = Ledger(out)
    plan, finished = out.join(PLAN_FILE).exists(), out.join(MANIFEST_FILE).exists()
    if not plan and not finished and ledger.run() is None:
        raise OutputError(f"--out {out} holds something that is no archive; choose an empty folder")
    if overwrite or (not finished and not plan):
        return
    if read_plan(out).request != request.fingerprint:
        raise OutputError(
            f"--out {out} holds {'an' if finished else 'an unfinished'} archive of another model or with another "
            "promise; choose another folder, or give --overwrite to drop it"
        )
    if not finished and ledger.run() != run_fingerprint(request):
        raise OutputError(
            f"--out {out} holds an unfinished archive of other data: files of DATA were added, taken away or changed "
            "since; choose another folder, or give --overwrite to drop it"
        )


def give_up(run: ArchiveRun, error: InputError) -> NoReturn:
    """Ends a run that met bad input: as if it had never begun if no part is finished, else keeping what is.

    Raises:
        InputError: The error itself, with nothing of this run left behind.
        JobError: What it says, and that finished parts stay.
    """
    out, finished = run.out, len(run.finished)
    if finished:
        run.ledger.flush()
        raise JobError(
            f"{error}; {finished} finished parts stay in {out}: the same command continues if the dataset is as it "
            "was, otherwise start over with --overwrite"
        ) from error
    if run.before is None:
        for name in (PARTS_FOLDER, MODEL_FOLDER, PLAN_FILE):
            out.join(name).remove()
    else:
        run.remove_orphans(set())
    run.ledger.remove()
    out.remove_spools()
    raise error


def _extend(out: Location, request: Request, ledger: Ledger) -> ArchiveRun:
    """A run that adds the files which an archive does not have yet.

    Raises:
        OutputError: If a file that it has is another one now.
    """
    before = Archive.open(out)
    stored, dataset = before.parts.sources(), request.dataset
    for file in dataset.files:
        if file.path in stored and stored[file.path] != file.source:
            known = "has changed since it was encoded" if stored[file.path] else "may have changed since then"
            raise OutputError(
                f"--out {out} holds an archive of DATA, but the file {file.path!r} {known}; give --overwrite to encode "
                "everything anew, or choose another folder"
            )
    new = tuple(file for file in dataset.files if file.path not in stored)
    present = {file.path for file in dataset.files} | set(dataset.unreadable)
    gone = tuple(sorted(path for path in stored if path not in present))
    if gone:
        LOG.warning("%d files of the archive are no longer in DATA (%s, …): they stay in it", len(gone), gone[0])
    LOG.info("%s holds %d files already, %d are new", out, len(stored), len(new))
    dataset = replace(dataset, files=new)
    model = before.load_model()
    run = ArchiveRun(out, dataset, before.plan, model, ledger, before, gone)
    run.read_ledger(request.options.on_error == QUARANTINE)
    return run


def _identity(file: SourceFile) -> list[Any]:
    """What tells a file that was left out from one that was repaired since; its footer may be the same."""
    return [file.size, file.version, file.source]


def _fitted(request: Request, cluster: Cluster) -> tuple[Request, StoredCodec | None]:
    """The codec for a request, and the request without the files that turned out to be unreadable on the way."""
    while request.promise.guaranteed:
        try:
            return request, request.codec(cluster)
        except DatasetError as error:
            if request.options.on_error != QUARANTINE or not error.path or len(request.dataset.files) < 2:
                raise
            LOG.warning("%s is left out: %s", error.path, error)
            request = replace(request, dataset=request.dataset.without({error.path: str(error)}))
    return request, None


def _plan_of(out: Location, request: Request) -> Plan | None:
    """The plan that an unfinished run of the same request left."""
    try:
        plan = read_plan(out) if out.join(PLAN_FILE).exists() else None
    except ArchiveError:
        return None
    return plan if plan is not None and plan.request == request.fingerprint else None


def run_fingerprint(request: Request) -> str:
    """Identifies a run: what was asked for, on which files."""
    return fingerprint([request.fingerprint, request.dataset.fingerprint()])
