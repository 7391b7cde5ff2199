"""What encoding would cost: the expected size of every choice, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import connected
from pipeline.codec_store import StoredCodec
from pipeline.errors import ConfigError
from pipeline.model import ArchiveModel
from pipeline.request import EncodeOptions, Request, check_request
from pipeline.storage import Location

MODEL = "model"


@dataclass(frozen=True)
class DryRun:
    """What was found.

    Attributes:
        tables: (title, rows) to print.
        figures: JSON-serializable figures.
    """

    tables: list[tuple[str, list[dict[str, Any]]]]
    figures: dict[str, Any]


def dry_run(data: Location, model: Location, out: Location, options: EncodeOptions) -> DryRun:
    """Chooses coders as `encode` would, and says what each choice would cost.

    Args:
        data: Folder of Parquet files.
        model: A trained model's folder.
        out: Folder that `encode` would write.
        options: What is kept, and how exactly.

    Raises:
        InputError: Bad input, found before any work.
    """
    request = check_request(data, model, out, options)
    if not request.promise.guaranteed:
        raise ConfigError("--dry-run compares what codes corrections; with --keep latents there is nothing to choose")
    with connected() as cluster:
        stored = request.codec(cluster)
    return report(request, stored)


def report(request: Request, stored: StoredCodec) -> DryRun:
    """The figures of a fitted codec, scaled to the rows of the dataset."""
    rows, promise = request.dataset.rows, request.promise
    scale = rows / max(1, stored.rows)
    codec = ArchiveModel(stored.files, request.plan(stored), request.dataset.schema).codec
    columns: dict[str, dict[str, Any]] = {}
    table: list[dict[str, Any]] = []
    for name, found in stored.sizes.items():
        sizes = {method: size * scale for method, size in found.items()}
        chosen = codec.coded[name] + (f"/{codec.encodings[name]}" if name in codec.encodings else "")
        size = sizes[chosen]
        columns[name] = {"chosen": chosen, "bytes": size, "choices": sizes}
        ranked = ", ".join(
            f"{method} {found:,.0f}" for method, found in sorted(sizes.items(), key=lambda item: item[1])
        )
        bits = 8 * size / max(1, rows)
        table.append({"column": name, "coder": chosen, "bytes": round(size), "bits/row": bits, "every choice": ranked})
    expected = {
        "corrections": sum(float(entry["bytes"]) for entry in columns.values()),
        "latents": stored.latent_bytes * scale if promise.latents else 0.0,
        "coder_weights": float(stored.model_bytes),
        "coder_description": float(sum(map(len, stored.files.values())) - stored.model_bytes),
        "vae": float(sum(map(len, request.bundle.files().values()))) if promise.latents else 0.0,
    }
    expected["total"] = sum(expected.values())
    pays = _pays(stored, codec.coded)
    figures = {
        "dry_run": True,
        "keep": promise.keep,
        "error": str(promise.errors.default),
        "effort": stored.effort,
        "rows": rows,
        "sample_rows": stored.sample_rows,
        "bytes_in": request.dataset.size,
        "expected_bytes": expected,
        "training_seconds": stored.seconds,
        "pays_after_rows": pays,
        "columns": columns,
    }
    told = [
        {
            "what": "rows after which the coder has paid for its weights",
            "figure": "never" if pays is None else f"{pays:,}",
        },
        {"what": "seconds that its training takes", "figure": f"{stored.seconds:,.1f}"},
    ]
    size_table = [{"what": name, "bytes": round(size)} for name, size in expected.items()]
    return DryRun([("columns", table), ("expected size", size_table), ("networks", told)], figures)


def _pays(stored: StoredCodec, coded: Mapping[str, str]) -> int | None:
    """Rows after which the networks have saved their own weights; 0 without networks, None if they never do."""
    if not stored.model_bytes:
        return 0
    saved = 0.0
    for name, sizes in stored.sizes.items():
        others = [size for method, size in sizes.items() if method != MODEL]
        if coded[name] == MODEL and others:
            saved += (min(others) - sizes[MODEL]) / max(1, stored.rows)
    return None if saved <= 0 else int(stored.model_bytes / saved) + 1
