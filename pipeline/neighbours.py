"""Distances to the nearest neighbours among reference latents: of an archive, or of a sample of the dataset itself."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster
from pipeline.dataset import Dataset, WorkUnit, read_unit
from pipeline.errors import ArchiveError, ConfigError
from pipeline.parts import PartReader, Wanted
from pipeline.sampling import Priorities
from pipeline.storage import Location
from pipeline.thresholds import WHOLE_FILES
from pipeline.units import run_units

Latents = npt.NDArray[np.float32]
REFERENCE_ROWS = 65_536
"""Reference rows at most, about."""
_LARGEST = 2**64 - 1


class Neighbours:
    """Distances to the k-th nearest reference latent (Ramaswamy, Rastogi & Shim 2000), Euclidean, exact.

    Args:
        reference: Reference latents, shape (R, Z).
        k: Which neighbour.

    Raises:
        ConfigError: If there are no more than k of them.
    """

    def __init__(self, reference: Latents, k: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        check_enough(len(reference), k)
        self._k = k
        self._tree = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(reference.astype(np.float64))

    def __call__(self, latents_bz: Latents, within: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Distances of B rows.

        Args:
            latents_bz: Their latents.
            within: Which of them are reference rows: they do not count as their own neighbours.
        """
        distances = self._tree.kneighbors(latents_bz.astype(np.float64))[0]
        return np.asarray(np.where(within, distances[:, self._k], distances[:, self._k - 1]), np.float64)


def check_enough(rows: int, k: int) -> None:
    """Refuses too few reference rows.

    Raises:
        ConfigError: If there are no more than k of them.
    """
    if rows <= k:
        raise ConfigError(f"--neighbours {k} needs more than {k} reference rows, there are {rows}; ask for fewer")


def share_of(dataset: Dataset) -> float:
    """The share of a dataset's rows that makes a sample of about `REFERENCE_ROWS`."""
    return min(1.0, REFERENCE_ROWS / max(1, dataset.rows))


class Drawn:
    """Which rows of a work unit are in the sample, as they come; the same in any process.

    Args:
        seed: Seed of the draw.
        unit: The work unit.
        share: Share of the rows that is drawn.
    """

    def __init__(self, seed: int, unit: WorkUnit, share: float) -> None:
        self._draw, self._share = Priorities(seed, unit), share

    def next(self, rows: int) -> npt.NDArray[np.bool_]:
        """The mask of the next rows."""
        if self._share >= 1.0:
            return np.ones(rows, np.bool_)
        return np.asarray(self._draw.next(rows) < np.uint64(int(self._share * _LARGEST)), np.bool_)


class SampleEncoder:
    """Worker: the latents of the sampled rows of one file.

    Args:
        files: The files of the model.
        root: The dataset's root folder.
        seed: Seed of the draw.
        share: Share of the rows that is drawn.
        block_rows: Rows that are read together.
        device: Torch device.
    """

    def __init__(
        self, files: dict[str, bytes], root: Location, seed: int, share: float, block_rows: int, device: str
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._bundle = Bundle.from_files(files, "the model", device)
        self._root, self._seed, self._share, self._block_rows = root, seed, share, block_rows

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns the latents as text."""
        unit = WorkUnit.from_json(item)
        names = [column.name for column in self._bundle.rows.modelled]
        drawn, found = Drawn(self._seed, unit, self._share), [np.zeros((0, self._bundle.latent_dim), np.float32)]
        for batch in read_unit(self._root, unit, names, self._block_rows):
            bins, _ = self._bundle.rows.from_batch(batch.filter(pa.array(drawn.next(batch.num_rows))))
            found.append(self._bundle.to_latents(bins))
        latents = np.concatenate(found)
        return {"index": unit.index, "rows": len(latents), "latents": base64.b64encode(latents.tobytes()).decode()}


def sample_latents(dataset: Dataset, bundle: Bundle, seed: int, cluster: Cluster, workers: int, gpu: bool) -> Latents:
    """The latents of a seeded sample of a dataset's rows."""
    arguments = {
        "files": dict(bundle.files()),
        "root": dataset.root,
        "seed": seed,
        "share": share_of(dataset),
        "block_rows": dataset.block_rows,
        "device": "cuda" if gpu else "cpu",
    }
    items = [unit.to_json() for unit in dataset.units(WHOLE_FILES)]
    found = {r["index"]: r for r in run_units(items, SampleEncoder, arguments, cluster, workers, gpu)}
    parts = [np.frombuffer(base64.b64decode(found[index]["latents"]), np.float32) for index in sorted(found)]
    return np.concatenate(parts).reshape(-1, bundle.latent_dim)


def archive_latents(location: Location, bundle: Bundle, seed: int) -> Latents:
    """Latents of a seeded sample of an archive's rows, from a seeded choice of its parts if it is large.

    Raises:
        ArchiveError: If the archive keeps no latents, or another model made them.
    """
    archive = Archive.open(location)
    if not archive.plan.latents:
        raise ArchiveError(f"--reference {location} keeps no latents; encode with --keep both or --keep latents")
    if archive.plan.bundle != bundle.fingerprint:
        raise ArchiveError(f"--reference {location} was encoded with another model than --model; encode again with it")
    rng = np.random.default_rng([seed, 3])
    found, rows = [np.zeros((0, bundle.latent_dim), np.float32)], 0
    for number in rng.permutation(len(archive.parts)).tolist():
        if rows >= 4 * REFERENCE_ROWS:
            break
        record = archive.parts[number]
        with PartReader(archive.part_location(record), record, archive.form, whole=False) as part:
            for block in part.blocks(Wanted((), latents=True, cell=False)):
                found.append(np.zeros((0, bundle.latent_dim), np.float32) if block.latents is None else block.latents)
                rows += len(found[-1])
    latents = np.concatenate(found)
    return latents[np.sort(rng.permutation(len(latents))[:REFERENCE_ROWS])]
