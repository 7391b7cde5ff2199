"""Verification: every checksum of an archive, without the dataset that it was made from."""

from __future__ import annotations

import time
from typing import Any

from pipeline.archive import Archive
from pipeline.cluster import connected
from pipeline.decoder import Decoder
from pipeline.errors import ArchiveError
from pipeline.machine import use_threads
from pipeline.model import ArchiveModel
from pipeline.parts import PartFormat, PartReader
from pipeline.plan import PartRecord
from pipeline.progress import Progress
from pipeline.storage import Location
from pipeline.units import run_units

MOST_NAMED = 20
"""Damaged parts that a message names at most."""


def verify(archive: Location, workers: int | None = None, gpu: bool = False) -> dict[str, Any]:
    """Reads and decodes a whole archive and checks every checksum: of parts, pages, cells and decoded blocks.

    Args:
        archive: The archive.
        workers: Actors; None: as many as the cluster has CPUs (GPUs with `gpu`),
            and no more than the work is worth.
        gpu: Whether actors run the network on GPUs.

    Returns:
        Parts, blocks, rows and bytes that were checked.

    Raises:
        ArchiveError: Naming what is damaged.
    """
    started = time.monotonic()
    opened = Archive.open(archive)
    model = opened.load_model()
    figures = {"parts": 0, "blocks": 0, "rows": 0, "bytes": 0}
    damage: list[str] = []
    with connected() as cluster:
        count = cluster.workers_for(workers, gpu, opened.manifest["bytes_in"])
        arguments = {
            "files": dict(model.files),
            "form": opened.form,
            "archive": archive,
            "device": "cuda" if gpu else "cpu",
            "threads": cluster.threads_per_worker(min(count, max(1, len(opened.parts)))),
        }
        progress = Progress("verify", len(opened.parts), opened.manifest["bytes_in"] / max(1, opened.rows))
        items = [part.to_json() for part in opened.parts]
        for result in run_units(items, PartVerifier, arguments, cluster, count, gpu):
            damage += result["damage"]
            for name in figures:
                figures[name] += result[name]
            progress.advance(result["rows"])
    if damage:
        more = f"; and {len(damage) - MOST_NAMED} more" if len(damage) > MOST_NAMED else ""
        raise ArchiveError(
            f"{len(damage)} of {len(opened.parts)} parts: {'; '.join(sorted(damage)[:MOST_NAMED])}{more}"
        )
    return {"keep": opened.plan.keep, "error": opened.plan.error, **figures, "seconds": time.monotonic() - started}


class PartVerifier:
    """Worker: reads and decodes one part.

    Args:
        files: The files of the archive's model.
        form: What all parts share.
        archive: The archive's folder.
        device: Torch device of the network.
        threads: Compute threads.
    """

    def __init__(self, files: dict[str, bytes], form: PartFormat, archive: Location, device: str, threads: int) -> None:
        model = ArchiveModel(files, form.plan, form.schema, device)
        use_threads(threads, load=model.decodes_by_network)
        self._form, self._archive, self._decoder = form, archive, Decoder(model)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns what was checked, and what is damaged."""
        record = PartRecord.from_json(item)
        blocks = rows = 0
        damage = []
        try:
            with PartReader(self._archive.join("parts", record.name), record, self._form) as part:
                for batch in self._decoder.batches(part):
                    blocks += 1
                    rows += batch.num_rows
        except ArchiveError as error:
            damage.append(str(error))
        return {"parts": 1, "blocks": blocks, "rows": rows, "bytes": record.size, "damage": damage}
