"""Latent walks: what a model makes of the way from one row's latents to another's."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import Archive
from pipeline.errors import OutputError
from pipeline.generate import modelled_schema, to_arrays
from pipeline.locate import check_output
from pipeline.lock import is_lock, locked
from pipeline.picture import check_picture, image_column, write_grid
from pipeline.storage import Location
from pipeline.stored_latents import check_latents, row_latents

LOG = logging.getLogger(__name__)
WALK_FILE = "walk.parquet"


def walk(
    archive: Location,
    first: int,
    last: int,
    steps: int,
    out: Location,
    grid: Location | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the rows on the straight way between the latents of two rows, in order.

    The first and the last are the model's reconstructions of the two rows: means of p(x|z), modes if categorical.

    Args:
        archive: An archive that keeps latents.
        first: Number of the row where the walk begins.
        last: Number of the row where it ends.
        steps: Rows, both ends included; at least 2.
        out: Folder to write `walk.parquet` to.
        grid: PNG file for the images, None for none.
        overwrite: Whether a walk that is there may be replaced.

    Returns:
        Figures: rows, bytes, distance of the two latents, columns left out.

    Raises:
        InputError: Bad input; nothing was written.
    """
    started = time.monotonic()
    check_output(out, "--out", {"ARCHIVE": archive})
    _check_folder(out, overwrite)
    if grid is not None:
        check_picture(grid, out, overwrite)
    opened = Archive.open(archive)
    check_latents(opened)
    bundle = opened.model.bundle
    column = None if grid is None else image_column(bundle.rows)
    ends = np.concatenate([row_latents(opened, first, "--from"), row_latents(opened, last, "--to")])
    if bundle.rows.passthrough:
        LOG.warning("not modelled, so not in the walk: %s", ", ".join(map(repr, bundle.rows.passthrough)))
    arrays = to_arrays(bundle.rows, bundle.to_bins(between(ends[0], ends[1], steps)))
    schema = modelled_schema(bundle.rows)
    table = pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)
    with locked(out, "--out"):
        with out.join(WALK_FILE).publishing() as spool:
            pq.write_table(table, spool, compression="zstd", use_compliant_nested_type=False)
            size = os.path.getsize(spool)
        if grid is not None and column is not None:
            write_grid(column, table[column.name].combine_chunks(), grid, across=min(steps, 20))
        out.remove_spools()
    return {
        "rows": table.num_rows,
        "bytes": size,
        "distance": float(np.linalg.norm(ends[1] - ends[0])),
        "left_out": bundle.rows.passthrough,
        "seconds": time.monotonic() - started,
    }


def between(first: npt.NDArray[np.float32], last: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
    """Points on a straight line, both ends exact, shape (steps, Z)."""
    share = np.linspace(0.0, 1.0, steps)[:, None]
    return np.asarray((1.0 - share) * first + share * last, np.float32)


def _check_folder(out: Location, overwrite: bool) -> None:
    """Refuses a folder that holds anything but a walk.

    Raises:
        OutputError: Saying what to do.
    """
    if out.is_file():
        raise OutputError(f"--out {out} is a file; choose a folder")
    found = [stat.path for stat in out.files() if not is_lock(stat.path)]
    foreign = [path for path in found if path != WALK_FILE]
    if foreign:
        raise OutputError(f"--out {out} holds {foreign[0]}, which is no walk; choose an empty folder")
    if found and not overwrite:
        raise OutputError(f"--out {out} holds a walk already; choose another folder, or give --overwrite")
