"""The archive's size by what it holds, beside what general tools need."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.blocks import sample_runs
from pipeline.bounds import Bound
from pipeline.dataset import Dataset
from pipeline.model import ArchiveModel
from pipeline.report.peers import Peers, measure

LOG = logging.getLogger(__name__)
PEER_ROWS, PEER_BYTES = 100_000, 4 << 20
"""The sample that general tools are measured on has at most so many rows, and about so many bytes in memory."""
PARTS = {
    "latents": "latents",
    "corrections": "corrections",
    "plain": "plain Parquet columns",
    "passthrough": "passed-through columns",
    "model": "model",
    "parquet_footers": "Parquet footers",
    "parts_table": "table of parts",
    "description": "manifest and plan",
}
"""What the bytes of an archive are for, as the report calls it, the largest kinds first."""
_SMALL = 0.02


def sizes(dataset: Dataset, model: ArchiveModel, figures: Mapping[str, Any], peers: bool) -> dict[str, Any]:
    """Bytes of the dataset, of the archive by part, and of general tools scaled to all rows.

    Args:
        dataset: The dataset.
        model: The archive's model.
        figures: The figures of `evaluate`.
        peers: Whether general tools are measured.

    Returns:
        `parts`: name, bytes, share of the total. `bars`: what, bytes, note, and the widths of its segments.
    """
    by_part, total = figures["bytes_by_part"], figures["bytes_out"]
    known = {**PARTS, **{name: name for name in by_part if name not in PARTS and name != "total"}}
    parts = [{"name": text, "bytes": by_part[name]} for name, text in known.items() if by_part.get(name)]
    small = [part for part in parts if part["bytes"] < _SMALL * total]
    if len(small) > 1:
        rest = {"name": ", ".join(part["name"] for part in small), "bytes": sum(part["bytes"] for part in small)}
        parts = [*(part for part in parts if part not in small), rest]
    found, rows = None, 0
    if peers and figures["rows"]:
        found, rows = _measured(dataset, model)
    bars: list[dict[str, Any]] = [
        {"what": "The dataset as it is", "bytes": dataset.size, "note": "Parquet, as it was given"}
    ]
    bars += _peer_bars(found, figures["rows"] / max(1, rows), model.plan.guaranteed) if found else []
    bars.append({"what": "This archive", "bytes": total, "note": "", "parts": parts})
    longest = max(bar["bytes"] for bar in bars)
    return {
        "parts": [{**part, "share": part["bytes"] / total} for part in parts],
        "bars": [{**bar, "width": 100 * bar["bytes"] / longest} for bar in bars],
        "total": total,
        "rows": rows,
        "whole": rows == figures["rows"],
        "measured": found is not None,
        "guaranteed": model.plan.guaranteed,
        "best_bytes": bars[-2]["bytes"] if found else None,
    }


def _peer_bars(found: Peers, scale: float, guaranteed: bool) -> list[dict[str, Any]]:
    exact = {"what": "Parquet, zstd level 19", "bytes": scale * found.parquet, "note": "written again, exact"}
    if not guaranteed:
        return [exact]
    return [
        exact,
        {"what": "Parquet on bins", "bytes": scale * found.on_bins, "note": "zstd level 19, within the bounds"},
        {
            "what": "Best tool for each column",
            "bytes": scale * found.best,
            "note": "pcodec, xz or Parquet, on bins",
        },
    ]


def _measured(dataset: Dataset, model: ArchiveModel) -> tuple[Peers, int]:
    """General tools on a sample of contiguous rows; and its rows."""
    batches: list[pa.RecordBatch] = []
    names = dataset.schema.names
    for run in sample_runs(dataset, PEER_ROWS, PEER_BYTES, seed=0):
        batches += run.read(dataset.root, names, dataset.block_rows)
    table = pa.Table.from_batches(batches, batches[0].schema)
    LOG.info("measuring general tools on %s rows", f"{table.num_rows:,}")
    bounds = model.bounds if model.plan.guaranteed else {}
    return measure(table, lambda name: Bound(bounds.get(name, 0))), table.num_rows
