"""What a report needs of the rows beyond sums of errors: collected by the workers of `evaluate`, mergeable.

The sample is drawn by `sampling.Priorities`: the rows with the lowest ones, the same whatever the order of the work.
"""

from __future__ import annotations

import base64
import datetime
import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.elbo_terms import RowTerms
from pipeline.model import ArchiveModel
from pipeline.parts import PartReader, Wanted
from pipeline.plan import PartRecord
from pipeline.report import originals
from pipeline.report.images import image_column, pixels
from pipeline.sampling import Priorities

SAMPLE_ROWS = 2_500
"""Rows of the latent map, at most."""
PICTURES, WORST_ROWS, WORST_COLUMNS = 10, 8, 16
_SPARE = 1.2
"""How many more rows than are wanted are drawn, for their number is random."""
_TEXT = 80
_LARGEST = 2**64 - 1
Value = bool | int | float | str | None


@dataclass(frozen=True)
class DetailOptions:
    """What workers collect.

    Attributes:
        share: Share of the rows that is sampled.
        labels: Columns whose values are kept beside the sampled latents.
        seed: Seed of the sample.
    """

    share: float
    labels: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, rows: int, labels: tuple[str, ...], seed: int) -> DetailOptions:
        """Options for a dataset of so many rows."""
        return cls(min(1.0, _SPARE * SAMPLE_ROWS / max(1, rows)), labels, seed)


@dataclass
class Details:
    """Collected details; `to_json` and `from_json` carry them between processes.

    Attributes:
        column_bytes: Column → bytes that it alone takes in the archive.
        shared_bytes: Bytes of cells that belong to no column: their directories and checksums.
        surprise: Column → sum over the rows of -E_q[log p(column|z)], in nats.
        sample: Sampled rows: priority, posterior means (base64 of float32), labels.
        pictures: The images of sampled rows: priority, and base64 of their pixels.
        worst: The rows with the highest -ELBO.
        originals: Values of sampled rows, in pieces: priorities, and an Arrow stream (base64); see `originals`.
    """

    column_bytes: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    surprise: dict[str, float] = field(default_factory=dict)
    sample: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)
    originals: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable form."""
        return dict(vars(self))

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds another part's details, in the form of `to_json`."""
        for name, size in other["column_bytes"].items():
            self.column_bytes[name] = self.column_bytes.get(name, 0) + size
        for name, nats in other["surprise"].items():
            self.surprise[name] = self.surprise.get(name, 0.0) + nats
        self.shared_bytes += other["shared_bytes"]
        self.originals += other["originals"]
        self.sample = heapq.nsmallest(SAMPLE_ROWS, self.sample + other["sample"], _priority)
        self.pictures = heapq.nsmallest(PICTURES, self.pictures + other["pictures"], _priority)
        self.worst = heapq.nlargest(WORST_ROWS, self.worst + other["worst"], _strangeness)

    def means(self) -> npt.NDArray[np.float32]:
        """Posterior means of the sampled rows, shape (rows, Z)."""
        return np.stack([np.frombuffer(base64.b64decode(row["means"]), np.float32) for row in self.sample])


class PartDetails:
    """Collects the details of one part.

    Args:
        model: The archive's model.
        options: What is collected.
        record: The part.
    """

    def __init__(self, model: ArchiveModel, options: DetailOptions, record: PartRecord) -> None:
        self._model, self._options, self._record = model, options, record
        self._draw, self._row = Priorities(options.seed, record.work_unit), record.work_unit.first_row
        self._image = image_column(model.rows)
        self._found = Details()
        self._columns = [column.name for column in model.bundle.rows.modelled] if model.plan.latents else []

    def add(self, original: pa.RecordBatch, decoded: pa.RecordBatch, terms: RowTerms | None) -> None:
        """Looks at rows.

        Args:
            original: Rows of the dataset.
            decoded: The same rows, decoded.
            terms: What the VAE says of them; None where the archive has none.
        """
        priorities = self._draw.next(original.num_rows)
        drawn = np.flatnonzero(priorities <= np.uint64(min(_LARGEST, int(self._options.share * 2**64))))
        drawn = drawn[np.argsort(priorities[drawn])][:SAMPLE_ROWS]
        found = Details()
        if terms is not None:
            found.surprise = dict(zip(self._columns, terms.surprise.sum(0).tolist(), strict=True))
            found.originals = originals.pack(original, self._columns, priorities, drawn)
            found.sample = self._sample(original, priorities, drawn, terms.means)
            found.worst = self._worst(original, decoded, terms)
        if self._image is not None:
            some = drawn[:PICTURES]
            pictures = self._pictures(original, decoded, some, terms)
            found.pictures = [
                {"priority": int(priorities[row]), **picture} for row, picture in zip(some, pictures, strict=True)
            ]
        self._found.merge(found.to_json())
        self._row += original.num_rows

    def finish(self, part: PartReader) -> dict[str, Any]:
        """The details of the part, JSON-serializable.

        Args:
            part: The part, for its sizes.
        """
        plan, sizes = self._model.plan, part.column_bytes()
        apart = {plan.latent_column, plan.corrections_column}
        found = Details({name: size for name, size in sizes.items() if name not in apart})
        if plan.guaranteed:
            from pipeline.codec.shares import Shares

            shares = Shares(self._model.codec)
            for block in part.blocks(Wanted([], latents=False, cell=True)):
                columns, shared = shares(block.cell.coded) if block.cell.coded else ({}, 0)
                self._found.merge(Details(columns, shared).to_json())
        self._found.merge(found.to_json())
        return self._found.to_json()

    def _sample(
        self,
        original: pa.RecordBatch,
        priorities: npt.NDArray[np.uint64],
        drawn: npt.NDArray[np.int64],
        means: npt.NDArray[np.float32],
    ) -> list[dict[str, Any]]:
        taken = pa.array(drawn)
        labels = {name: to_labels(_column(original, name).take(taken)) for name in self._options.labels}
        return [
            {
                "priority": int(priorities[row]),
                "means": base64.b64encode(means[row].tobytes()).decode(),
                "labels": {name: values[place] for name, values in labels.items()},
            }
            for place, row in enumerate(drawn.tolist())
        ]

    def _worst(self, original: pa.RecordBatch, decoded: pa.RecordBatch, terms: RowTerms) -> list[dict[str, Any]]:
        nats = terms.surprise.sum(1) + terms.kl
        found = []
        for row in np.argsort(-nats, kind="stable")[:WORST_ROWS].tolist():
            costly = np.argsort(-terms.surprise[row], kind="stable")[:WORST_COLUMNS].tolist()
            columns = [
                {
                    "column": self._columns[number],
                    "nats": float(terms.surprise[row, number]),
                    "original": to_text(_column(original, self._columns[number])[row]),
                    "decoded": to_text(_column(decoded, self._columns[number])[row]),
                }
                for number in costly
            ]
            place = {"file": self._record.path, "row": self._row + row, "nats": float(nats[row])}
            [picture] = self._pictures(original, decoded, np.array([row]), terms) if self._image else [{}]
            found.append({**place, "kl": float(terms.kl[row]), "columns": columns, **picture})
        return found

    def _pictures(
        self,
        original: pa.RecordBatch,
        decoded: pa.RecordBatch,
        rows: npt.NDArray[np.int64],
        terms: RowTerms | None,
    ) -> list[dict[str, str]]:
        """Pixels of images of some rows: as they were, decoded, and as the VAE makes them of the latents."""
        assert self._image is not None
        if not len(rows):
            return []
        name, taken = self._image.name, pa.array(rows)
        kinds = {"original": _column(original, name).take(taken), "decoded": _column(decoded, name).take(taken)}
        if terms is not None:
            bundle = self._model.bundle
            kinds["mean"] = bundle.rows.to_arrays(bundle.to_bins(terms.latents[rows]), {})[name]
        encoded = {kind: pixels(self._image, values) for kind, values in kinds.items()}
        return [
            {kind: base64.b64encode(images[place].tobytes()).decode() for kind, images in encoded.items()}
            for place in range(len(rows))
        ]


def to_labels(values: pa.Array) -> list[Value]:
    """Values as JSON knows them: numbers and booleans as they are, everything else as short text."""
    return [value if isinstance(value, bool | int | float) else _short(value) for value in values.to_pylist()]


def to_text(value: pa.Scalar) -> str:
    """A value as short text."""
    found = value.as_py()
    return "null" if found is None else str(_short(found))


def _short(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        text = ", ".join(str(_short(item)) for item in value[:6]) + (", …" if len(value) > 6 else "")
        return f"[{text}]"[:_TEXT]
    if isinstance(value, bytes):
        return value.hex()[:_TEXT]
    text = value.isoformat(" ") if isinstance(value, datetime.datetime) else str(value)
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(batch.schema.get_field_index(name))


def _priority(row: Mapping[str, Any]) -> int:
    return int(row["priority"])


def _strangeness(row: Mapping[str, Any]) -> tuple[float, str, int]:
    return float(row["nats"]), str(row["file"]), -int(row["row"])
