"""The report's section on rows that the model makes up, beside the dataset's own."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa

from pipeline.archive import Archive
from pipeline.generate import RowGenerator
from pipeline.latent_prior import AggregatePrior
from pipeline.likeness import compare, marginals
from pipeline.report import originals, plots
from pipeline.report.collect import PICTURES, SAMPLE_ROWS, Details
from pipeline.report.images import image_column, pixels, to_uri
from pipeline.sample import usual_prior

SHOWN = 6
"""Columns whose distributions are drawn."""
_FEWEST_ROWS, _FEWEST_PAIRS = 20, 3


def generated(archive: Archive, details: Details, seed: int = 0) -> dict[str, Any]:
    """Distances of columns and associations of pairs: sampled rows against as many that the model makes up.

    What chance makes of both is measured on the two halves of the sample.

    Args:
        archive: An archive that keeps latents.
        details: What the workers collected.
        seed: Seed of the rows.

    Returns:
        The section; its `missing` says why there is none.
    """
    real = originals.unpack(details.originals, SAMPLE_ROWS)
    image = image_column(archive.model.rows)
    if real is None and image is None:
        return {"missing": "No column holds single values: there are no distributions to compare."}
    if len(details.sample) < _FEWEST_ROWS:
        return {"missing": "There are too few rows to compare."}
    prior, count = usual_prior(archive, seed), PICTURES if real is None else real.num_rows
    generator = RowGenerator(archive.model.bundle, prior, seed)
    made = pa.Table.from_batches(generator.batches(range(count)), generator.schema)
    section = {"aggregate": isinstance(prior, AggregatePrior), "images": []}
    if image is not None:
        drawn = pixels(image, made[image.name].slice(0, PICTURES).combine_chunks())
        section["images"] = [to_uri(image, base64.b64encode(one.tobytes()).decode()) for one in drawn]
    return section | ({"rows": 0} if real is None else _compared(real, _like(made, real)))


def _compared(real: pa.Table, made: pa.Table) -> dict[str, Any]:
    """The two tables side by side, and the halves of the first."""
    found, half = compare(real, made), real.num_rows // 2
    chance = compare(real.slice(0, half), real.slice(half))
    by_name = {column.column: column.distance for column in chance.columns}
    columns = sorted(found.columns, key=lambda column: -column.distance)
    rows = [
        {"name": c.column, "measure": c.measure, "distance": c.distance, "chance": by_name[c.column]} for c in columns
    ]
    names = [column.column for column in columns[:SHOWN]]
    return {
        "rows": real.num_rows,
        "columns": rows,
        "distance": found.mean_distance,
        "difference": found.mean_difference,
        "chance_distance": chance.mean_distance,
        "chance_difference": chance.mean_difference,
        "pairs": len(found.pairs),
        "shown": len(names),
        "marginals": plots.distributions(
            [(name, marginals(real[name], made[name]), pa.types.is_temporal(real[name].type)) for name in names]
        ),
        "associations": plots.associations([(p.measure, p.first, p.second) for p in found.pairs])
        if len(found.pairs) >= _FEWEST_PAIRS
        else "",
    }


def _like(made: pa.Table, real: pa.Table) -> pa.Table:
    """The columns of `real`, in its types."""
    columns = {}
    for field in real.schema:
        values = made[field.name]
        columns[field.name] = values.cast(field.type) if values.type != field.type else values
    return pa.table(columns)
