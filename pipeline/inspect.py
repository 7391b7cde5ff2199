"""What a path holds: a dataset, a model or an archive, as tables and figures; needs no cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.archive import Archive
from pipeline.bundle import BUNDLE_FILE, CHECKPOINTS_FOLDER, Bundle
from pipeline.columns import ColumnOptions, ColumnStats, explain, fit_column
from pipeline.dataset import Dataset, open_dataset, read_unit
from pipeline.errors import DatasetError
from pipeline.manifest import MANIFEST_FILE
from pipeline.model import ArchiveModel, bound_of
from pipeline.plan import PLAN_FILE
from pipeline.rows import RowTransform
from pipeline.sampling import Priorities
from pipeline.storage import Location

SAMPLE_ROWS = 65_536
"""Rows of a dataset that `inspect` looks at to guess kinds; `train` looks at all."""

Table = tuple[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        tables: (title, rows) to print.
        figures: JSON-serializable figures.
    """

    tables: list[Table]
    figures: dict[str, Any]


def inspect(path: Location) -> Report:
    """Explains a dataset, a model or an archive.

    Raises:
        InputError: If there is nothing, or what there is is damaged.
    """
    if not path.exists():
        raise DatasetError(f"PATH {path} does not exist")
    if path.join(MANIFEST_FILE).exists() or path.join(PLAN_FILE).exists():
        return _archive(Archive.open(path))
    if path.join(BUNDLE_FILE).exists() or path.join(CHECKPOINTS_FOLDER).exists():
        return _model(path, Bundle.load(path))
    return _dataset(open_dataset(path, "PATH"))


def _dataset(dataset: Dataset) -> Report:
    options = ColumnOptions()
    stats = {field.name: ColumnStats.empty(field, options) for field in dataset.schema}
    seen = 0
    for batch, keys in _first_rows(dataset):
        seen += batch.num_rows
        for field in dataset.schema:
            stats[field.name].observe(batch.column(batch.schema.get_field_index(field.name)), keys)
    rows = [
        {
            "column": field.name,
            "type": str(field.type),
            "kind and why": _guess(field, stats[field.name], options),
        }
        for field in dataset.schema
    ]
    about = "all rows" if seen == dataset.rows else f"the first {seen:,} of {dataset.rows:,} rows"
    units = dataset.units()
    figures = {
        "what": "dataset",
        "rows": dataset.rows,
        "files": len(dataset.files),
        "bytes": dataset.size,
        "row_groups": sum(len(file.row_groups) for file in dataset.files),
        "work_units": len(units),
        "columns": len(dataset.schema),
    }
    return Report([("dataset", [figures]), (f"columns, judged by {about}", rows)], figures)


def _first_rows(dataset: Dataset) -> Iterator[tuple[pa.RecordBatch, np.ndarray[Any, np.dtype[np.uint64]]]]:
    left = SAMPLE_ROWS
    for unit in dataset.units():
        draw = Priorities(0, unit)
        for batch in read_unit(dataset.root, unit, None, min(dataset.block_rows, SAMPLE_ROWS)):
            part = batch.slice(0, left)
            yield part, draw.next(part.num_rows)
            left -= part.num_rows
            if left <= 0:
                return


def _guess(field: pa.Field, stats: ColumnStats, options: ColumnOptions) -> str:
    return explain(fit_column(field, stats, options), stats)


def _columns(rows: RowTransform) -> list[dict[str, Any]]:
    return [
        {
            "column": column.name,
            "type": str(column.field.type),
            "kind": column.kind,
            "symbols": sum(span.width for span in column.spans()),
            "bins": max((span.bins for span in column.spans()), default=0),
        }
        for column in rows.columns
    ]


def _model(path: Location, bundle: Bundle) -> Report:
    described = bundle.description
    history = bundle.training.get("history", [])
    last = history[-1] if history else {}
    figures = {
        "what": "model",
        "fingerprint": bundle.fingerprint[:16],
        "error": str(bundle.errors.default),
        "latent_dim": bundle.latent_dim,
        "active_latents": described.active_latents,
        "parameters": described.parameters,
        "bytes": sum(map(len, bundle.files().values())),
        "trained_on_rows": bundle.training.get("rows"),
        "epochs": len(history),
        "minus_elbo_bits_per_row": last.get("minus_elbo_bits"),
    }
    bounds = bundle.errors.absolute
    columns = [{**row, "bound": bounds.get(row["column"], "-")} for row in _columns(bundle.rows)]
    return Report([(f"model {path}", [figures]), ("columns", columns)], figures)


def _archive(archive: Archive) -> Report:
    archive.check_parts()
    manifest, by_part = archive.manifest, archive.sizes()
    total = by_part["total"]
    figures = {
        "what": "archive",
        "version": ".".join(map(str, manifest["version"])),
        "keep": archive.plan.keep,
        "error": archive.plan.error,
        "guaranteed": archive.plan.guaranteed,
        "rows": archive.rows,
        "files": manifest["files"],
        "parts": manifest["parts"],
        "bytes_in": manifest["bytes_in"],
        "bytes_out": total,
        "ratio": manifest["bytes_in"] / total,
    }
    sizes = [
        {
            "part": name,
            "bytes": size,
            "share %": 100 * size / total,
            "bits/row": 8 * size / max(1, archive.rows),
        }
        for name, size in by_part.items()
    ]
    model = archive.load_model()
    return Report(
        [(f"archive {archive.location}", [figures]), ("bytes", sizes), ("columns", _coders(model))],
        figures,
    )


def _coders(model: ArchiveModel) -> list[dict[str, Any]]:
    """The columns of an archive, with their bounds and what codes them."""
    columns = _columns(model.rows)
    if not model.plan.guaranteed:
        return columns
    by_name = {column.name: column for column in model.rows.modelled}
    coded = {name: _coder(model, name) for name in by_name}
    return [
        {
            **row,
            "bound": bound_of(by_name[row["column"]]) if row["column"] in by_name else "-",
            "coder": coded.get(row["column"], "copied"),
        }
        for row in columns
    ]


def _coder(model: ArchiveModel, name: str) -> str:
    encoding = model.codec.encodings.get(name)
    return model.codec.coded[name] + (f"/{encoding}" if encoding else "")
