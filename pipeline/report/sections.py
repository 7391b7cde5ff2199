"""The sections of the report: figures arranged for the template. One that does not apply says why in `missing`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.model import ArchiveModel
from pipeline.report import plots
from pipeline.report.collect import Details, Value
from pipeline.report.images import image_column, to_uri
from pipeline.report.projection import ACTIVE_KL, project

TOP = 15
"""Columns that are shown; the others are folded."""
MOST_CLASSES = 20
"""A passthrough column with more values is no label, unless it is asked for."""
COSTLY = 3
"""Columns that are named of a strange row."""
NO_LATENTS = "The archive keeps no latents, so it carries no VAE: there is nothing to say about one."
Section = dict[str, Any]


def errors(figures: Mapping[str, Any]) -> Section:
    """Largest and RMS error of every column beside its bound, the worst first; columns without a mistake by name."""
    lossy, exact = [], []
    for name, column in figures["columns"].items():
        bound, largest = column.get("bound"), column["max_error"]
        flawless = not largest and not column["mismatch_rate"]
        if flawless and not column.get("violations"):
            exact.append(name)
            continue
        scale = bound or 0.0
        lossy.append(
            {
                "name": name,
                "kind": column["kind"],
                "bound": bound,
                "largest": largest,
                "rms": column["rms_error"],
                "mismatch": column["mismatch_rate"],
                "violations": column.get("violations"),
                "largest_share": largest / scale if scale and largest is not None else None,
                "rms_share": column["rms_error"] / scale if scale and column["rms_error"] is not None else None,
            }
        )
    lossy.sort(key=lambda row: (-(row["violations"] or 0), -(row["largest_share"] or row["mismatch"])))
    return {**_folded(lossy), "exact": exact, "guaranteed": figures["guaranteed"]}


def rates(model: ArchiveModel, figures: Mapping[str, Any], details: Details) -> Section:
    """Bits a row that each column takes in the archive, the most expensive first."""
    rows = max(1, figures["rows"])
    coded = model.codec.coded if model.plan.guaranteed else {}
    table = []
    for name, column in figures["columns"].items():
        if not model.plan.guaranteed and name not in details.column_bytes:
            continue
        size = details.column_bytes.get(name, 0)
        surprise = details.surprise.get(name)
        table.append(
            {
                "name": name,
                "coder": _coder_name(coded.get(name, "")) if column["kind"] != "passthrough" else "copied",
                "bytes": size,
                "bits": 8 * size / rows,
                "vae": None if surprise is None else surprise / rows / math.log(2),
            }
        )
    table.sort(key=lambda row: -row["bits"])
    most = max((row["bits"] for row in table), default=0.0) or 1.0
    for row in table:
        row["width"] = 100 * row["bits"] / most
    own = sum(row["bytes"] for row in table)
    by_part = figures["bytes_by_part"]
    latents = by_part.get("latents", 0)
    rest = by_part["total"] - own - latents
    shared = [("latents, for all columns together", latents), ("model, footers, checksums and description", rest)]
    return {
        **_folded(table),
        "shared": [{"name": name, "bytes": size, "bits": 8 * size / rows} for name, size in shared if size],
        "vae": bool(details.surprise),
        "guaranteed": model.plan.guaranteed,
        "total": {"bytes": by_part["total"], "bits": 8 * by_part["total"] / rows},
    }


def _coder_name(method: str) -> str:
    return {"model": "network", "parquet": "Parquet"}.get(method, method)


def training(model: ArchiveModel) -> Section:
    """−ELBO over the epochs of both phases."""
    if not model.plan.latents:
        return {"missing": NO_LATENTS}
    needed = {"epoch", "minus_elbo_bits", "train_minus_elbo_bits"}
    history = [point for point in model.bundle.training.get("history", []) if needed <= point.keys()]
    if not history:
        return {"missing": "The model holds no training history."}
    last = history[-1]
    best = min((point for point in history if point.get("phase") == last.get("phase")), key=_validation)
    return {
        "plot": plots.training(history),
        "epochs": len(history),
        "rounding": sum(point.get("phase") == 2 for point in history),
        "best": float(best["minus_elbo_bits"]),
        "best_epoch": int(best["epoch"]) + 1,
        "gap": float(best["minus_elbo_bits"]) - float(best["train_minus_elbo_bits"]),
        "rows": model.bundle.training.get("rows"),
    }


def _validation(point: Mapping[str, Any]) -> float:
    return float(point["minus_elbo_bits"])


def divergence(kl_nats: Sequence[float]) -> Section:
    """KL of each latent, and which latents are active."""
    if not kl_nats:
        return {"missing": NO_LATENTS}
    bits = [nats / math.log(2) for nats in kl_nats]
    return {
        "plot": plots.divergence(bits, ACTIVE_KL / math.log(2)),
        "active": sum(nats > ACTIVE_KL for nats in kl_nats),
        "latents": len(bits),
        "total": sum(bits),
        "largest": int(np.argmax(bits)),
        "largest_bits": max(bits),
    }


def latent_map(model: ArchiveModel, details: Details, kl_nats: Sequence[float], label: str | None) -> Section:
    """A two-dimensional picture of the latents of sampled rows, coloured by a label."""
    if not kl_nats:
        return {"missing": NO_LATENTS}
    if len(details.sample) < 3:
        return {"missing": "There are too few rows for a map."}
    name = label or _choose_label(details)
    method, points = project(details.means(), kl_nats)
    values: list[Value] = [row["labels"][name] if name else "" for row in details.sample]
    known = {column.name for column in model.rows.modelled}
    section: Section = {"label": name, "method": method, "rows": len(points), "modelled": name in known, "legend": []}
    numbers = np.array([float(v) if isinstance(v, int | float) else np.nan for v in values])
    texts = ["null" if value is None else str(value) for value in values]
    names = [text for text, _ in Counter(texts).most_common()]
    if len(names) <= plots.CLASSES + 1:
        names.sort(key=_natural)
    if len(names) > MOST_CLASSES and np.isfinite(numbers).mean() > 0.5:
        assert name is not None
        return {**section, "classes": 0, "plot": plots.map_of_numbers(points, numbers, name)}
    place = {text: number for number, text in enumerate(names)}
    codes, classes = np.array([place[text] for text in texts]), len(names)
    if classes > plots.CLASSES + 1:
        names = [*names[: plots.CLASSES], f"{classes - plots.CLASSES} others"]
        codes = np.minimum(codes, plots.CLASSES)
    legend = names if classes > 1 else []
    return {**section, "classes": classes, "legend": legend, "plot": plots.map_of_classes(points, codes, names)}


def _natural(text: str) -> tuple[float, str]:
    """Numbers by size, before everything else."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text


def _choose_label(details: Details) -> str | None:
    """The column of 2 to `MOST_CLASSES` values that says most of a row (largest entropy); None without one."""
    best: tuple[float, str] | None = None
    for name in details.sample[0]["labels"]:
        counts = Counter(str(row["labels"][name]) for row in details.sample)
        if 2 <= len(counts) <= MOST_CLASSES:
            total = sum(counts.values())
            entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
            best = max(best or (entropy, name), (entropy, name))
    return best[1] if best else None


def worst(model: ArchiveModel, figures: Mapping[str, Any], details: Details) -> Section:
    """The rows with the highest −ELBO, with the columns whose bits are furthest above their mean."""
    if not model.plan.latents:
        return {"missing": NO_LATENTS}
    image, rows = image_column(model.rows), max(1, figures["rows"])
    mean = {name: nats / rows for name, nats in details.surprise.items()}
    table = []
    for row in details.worst:
        above = sorted(row["columns"], key=lambda column: mean[column["column"]] - column["nats"])
        table.append(
            {
                "file": row["file"],
                "row": row["row"],
                "bits": row["nats"] / math.log(2),
                "images": [] if image is None else [to_uri(image, row[kind]) for kind in _KINDS if kind in row],
                "columns": [
                    {
                        **column,
                        "bits": column["nats"] / math.log(2),
                        "mean": mean[column["column"]] / math.log(2),
                        "same": column["original"] == column["decoded"],
                        "image": image is not None and column["column"] == image.name,
                    }
                    for column in above[:COSTLY]
                ],
            }
        )
    one_file = len({row["file"] for row in details.worst}) <= 1
    return {"rows": table, "mean": figures["minus_elbo_bits_per_row"], "one_file": one_file, "image": image is not None}


_KINDS = {"original": "original", "decoded": "decoded", "mean": "mean of p(x|z)"}


def pictures(model: ArchiveModel, details: Details) -> Section | None:
    """Images of sampled rows beside what the archive and the VAE make of them; None without a column of images."""
    column = image_column(model.rows)
    if column is None or not details.pictures:
        return None
    strips = []
    for kind, text in _KINDS.items():
        images = [to_uri(column, row[kind]) for row in details.pictures if kind in row]
        if images:
            strips.append({"kind": kind, "text": text, "images": images})
    return {"name": column.name, "strips": strips, "mean": model.plan.latents, "guaranteed": model.plan.guaranteed}


def _folded(rows: list[dict[str, Any]]) -> Section:
    """The first rows of a table, and the rest, which the page folds."""
    top = rows if len(rows) <= TOP + 5 else rows[:TOP]
    return {"top": top, "rest": rows[len(top) :]}
