"""Chooses what codes each column of an archive, on a sample of its rows.

Every general tool is measured on every column. A short pilot of the row coder says which columns a general tool
codes so much better that they should be known before the row; then the networks are trained, and each column goes to
whatever codes it smallest. If the networks do not earn their own weights, there are none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.codec import description
from pipeline.codec.choose import PARQUET, choose, measure_sample
from pipeline.codec.codec import Codec
from pipeline.codec.elements import ElementCoder, Levels
from pipeline.codec.fit_elements import fit_element_coder
from pipeline.codec.fit_rows import BALANCED, SMALL, Effort, Symbol, fit_row_coder
from pipeline.codec.guide import Guide, latent_indices
from pipeline.codec.model import MODEL, Bins, Latents
from pipeline.codec.networks import Networks, Place, places
from pipeline.codec.rowcoder import RowCoder
from pipeline.columns import Column
from pipeline.columns.vector import VectorColumn
from pipeline.rows import RowTransform

FAST = "fast"
EFFORTS = {"balanced": BALANCED, "small": SMALL}
_WIDE = 64
"""A vector with more elements than this, or an image, has an element coder of its own."""
_PILOT = 6
"""The pilot's part of the steps."""
_CLEARLY_BETTER = 0.9
_STREAM_BYTES = 12
"""What a stream takes in a cell beside its digits, about."""
_WORTH_A_NETWORK = 4096
"""No network earns its own description on a dataset that general tools code in so many bytes."""
_MEASURED_ROWS, _SLICE = 65_536, 4096
_MEASURED_ELEMENTS = 1 << 21

Report = Callable[[str], None]


@dataclass(frozen=True)
class FittedCodec:
    """A codec, and what its choice rests on.

    Attributes:
        codec: The codec.
        sizes: Column → method → expected bytes of the whole dataset.
        model_bytes: Bytes of the networks' weights.
        seconds: What fitting took.
        sample_rows: Rows that were looked at.
    """

    codec: Codec
    sizes: dict[str, dict[str, float]]
    model_bytes: int
    seconds: float
    sample_rows: int


@dataclass(frozen=True)
class _Sample:
    """What fitting looks at."""

    rows: RowTransform
    batches: Sequence[pa.RecordBatch]
    runs: list[Bins]
    latents: list[Bins] | None
    stored: Sequence[Latents] | None
    guide: Guide | None
    total_rows: int
    effort: Effort
    seed: int
    report: Report | None

    @property
    def count(self) -> int:
        return sum(len(run) for run in self.runs)

    @property
    def scale(self) -> float:
        return self.total_rows / max(1, self.count)

    def say(self, what: str) -> Callable[[int, float], None] | None:
        report = self.report
        if report is None:
            return None
        return lambda step, bits: report(f"{what}: step {step}, {bits:.3f} bits")


def fit_codec(
    rows: RowTransform,
    batches: Sequence[pa.RecordBatch],
    latents: Sequence[Latents] | None,
    latent_steps: npt.NDArray[np.float32] | None,
    total_rows: int,
    effort: str,
    seed: int,
    report: Report | None = None,
    guide: Guide | None = None,
) -> FittedCodec:
    """Fits a codec.

    Args:
        rows: The coding transform.
        batches: Contiguous runs of rows from anywhere in the dataset, with the modelled columns at least.
        latents: The latents of the same rows; None if the archive does not store them.
        latent_steps: The grid step of each latent, 0 for those that are not used.
        total_rows: Rows of the dataset.
        effort: "fast" (no networks), "balanced" or "small".
        seed: Seed of every random draw.
        report: Told about progress.
        guide: What tells element coders of the latents, if those are stored.
    """
    started = time.monotonic()
    rows = description.bare(rows)
    count = sum(batch.num_rows for batch in batches)
    scale = total_rows / max(1, count)
    general = {
        column.name: measure_sample(column, [batch.column(column.name) for batch in batches])
        for column in rows.modelled
    }
    coded, encodings = choose(general, scale, hurry=effort == FAST)
    sizes = {name: {method: size * scale for method, size in found.items()} for name, found in general.items()}
    codec = Codec(rows, coded, encodings)
    model_bytes = 0
    if effort != FAST and sum(_smallest(found) for found in sizes.values()) > _WORTH_A_NETWORK:
        steps = None if latents is None or latent_steps is None or not (latent_steps > 0).any() else latent_steps
        indices = None
        if latents is not None and steps is not None:
            indices = [latent_indices(part, steps)[:, steps > 0] for part in latents if len(part)]
        runs = [rows.from_batch(batch)[0] for batch in batches if batch.num_rows]
        sample = _Sample(rows, batches, runs, indices, latents, guide, total_rows, EFFORTS[effort], seed, report)
        best = {name: _size_of(coded[name], encodings.get(name), found) for name, found in sizes.items()}
        codec, model_bytes = _with_networks(sample, codec, best, sizes, steps)
    return FittedCodec(codec, sizes, model_bytes, time.monotonic() - started, count)


def _smallest(found: dict[str, float]) -> float:
    return min(found.values(), default=0.0)


def _size_of(method: str, encoding: str | None, found: dict[str, float]) -> float:
    return found[method if encoding is None else f"{PARQUET}/{encoding}"]


def _with_networks(
    sample: _Sample,
    codec: Codec,
    best: dict[str, float],
    sizes: dict[str, dict[str, float]],
    steps: npt.NDArray[np.float32] | None,
) -> tuple[Codec, int]:
    """Gives columns to networks where that is smaller; returns the codec and the networks' bytes."""
    found = places(sample.rows)
    wide = [column.name for column in sample.rows.modelled if is_wide(column)]
    coded = dict(codec.coded)
    elements: dict[str, ElementCoder] = {}
    for name in wide:
        for guided in (False, True):
            if guided and (sample.guide is None or len(sample.guide.packed) > _smallest(sizes[name])):
                continue  # its exact decoder alone would cost more
            coder, size = _fit_elements(sample, name, found[name], guided)
            if coder is not None and size < min(best[name], sizes[name].get(MODEL, np.inf)):
                elements[name], coded[name] = coder, MODEL
                sizes[name][MODEL] = size
    row_coder = _fit_rows(sample, found, elements, coded, best, sizes)
    if row_coder is None and not elements:
        return codec, 0
    encodings = {name: how for name, how in codec.encodings.items() if coded[name] == PARQUET}
    seen = steps if row_coder is not None and row_coder.latents else None
    guide = sample.guide if any(coder.guided for coder in elements.values()) else None
    networks = Networks(found, row_coder, elements, seen, guide)
    return Codec(sample.rows, coded, encodings, networks), len(networks.to_bytes())


def is_wide(column: Column) -> bool:
    """Whether a column has an element coder of its own."""
    return isinstance(column, VectorColumn) and (column.width > _WIDE or column.shape is not None)


def _fit_elements(sample: _Sample, name: str, place: Place, guided: bool) -> tuple[ElementCoder | None, float]:
    """An element coder of a column and the column's expected bytes, weights included; None if there can be none."""
    column = next(column for column in sample.rows.modelled if column.name == name)
    bins = np.concatenate([run[run[:, place.first] >= 0, place.first : place.stop] for run in sample.runs])
    guides = _guides(sample, name, place) if guided else None
    if not len(bins) or not isinstance(column, VectorColumn) or (guided and guides is None):
        return None, 0.0
    total = round(len(bins) * sample.scale)
    coder = fit_element_coder(
        bins,
        guides,
        place.first,
        column.spans()[-1].bins,
        column.shape,
        total,
        sample.effort,
        sample.seed,
        sample.say(name),
    )
    looked_at = max(1, min(len(bins), _MEASURED_ELEMENTS // bins.shape[1]))
    picked = np.sort(np.random.default_rng(sample.seed).choice(len(bins), looked_at, replace=False))
    size = coder.measure(bins[picked], None if guides is None else guides[picked]) / 8 * total / looked_at
    weights = sum(array.nbytes for array in coder.network.to_arrays().values())
    if guided and sample.guide is not None:
        weights += len(sample.guide.packed)
    return coder, size + weights + _STREAM_BYTES * len(coder.digits.alphabets)


def _guides(sample: _Sample, name: str, place: Place) -> Levels | None:
    """What the latents say of a column's elements in the sample."""
    if sample.guide is None or sample.stored is None or name not in sample.guide.columns:
        return None
    parts = [
        sample.guide.levels(latents[run[:, place.first] >= 0], name)
        for latents, run in zip([part for part in sample.stored if len(part)], sample.runs, strict=True)
    ]
    return np.concatenate(parts)


def _fit_rows(
    sample: _Sample,
    found: dict[str, Place],
    elements: dict[str, ElementCoder],
    coded: dict[str, str],
    best: dict[str, float],
    sizes: dict[str, dict[str, float]],
) -> RowCoder | None:
    """A row coder of the scalar columns; changes `coded` for the columns that it codes, None if it earns nothing."""
    symbols = _symbols(sample.rows, found, elements)
    own = [name for name in found if name not in elements and any(s.column == name for s in symbols)]
    if not symbols:
        return None
    states_only = not own
    if not states_only:
        effort = dataclasses.replace(sample.effort, steps=max(50, sample.effort.steps // _PILOT))
        pilot = _bytes_by_column(sample, _fit(sample, symbols, effort, "pilot"), symbols)
        known = {name for name in own if best[name] < _CLEARLY_BETTER * pilot[name]}
        if known == set(own) and not elements:
            return None
        symbols = [dataclasses.replace(s, coded=s.column not in known) for s in symbols]
    if not any(symbol.coded for symbol in symbols):
        return None
    coder = _fit(sample, symbols, sample.effort, "row coder")
    return _assign(sample, coder, symbols, elements, own, coded, best, sizes)


def _assign(
    sample: _Sample,
    coder: RowCoder,
    symbols: Sequence[_Named],
    elements: dict[str, ElementCoder],
    own: Sequence[str],
    coded: dict[str, str],
    best: dict[str, float],
    sizes: dict[str, dict[str, float]],
) -> RowCoder | None:
    """Gives each column to what codes it smallest."""
    by_model = _bytes_by_column(sample, coder, symbols)
    for name in own:
        if any(symbol.column == name and symbol.coded for symbol in symbols):
            sizes[name][MODEL] = by_model[name]
    chosen = {name for name in own if sizes[name].get(MODEL, np.inf) < best[name]}
    weights = sum(array.nbytes for array in coder.network.to_arrays().values())
    saved = sum(best[name] - by_model[name] for name in chosen)
    if saved <= weights:
        chosen = set()
        if not elements:
            return None
    keep = chosen | set(elements)
    column_of = {symbol.symbol: symbol.column for symbol in symbols}
    rules = tuple(
        dataclasses.replace(rule, coded=rule.coded and column_of[rule.symbol] in keep) for rule in coder.symbols
    )
    if not any(rule.coded for rule in rules):
        return None
    coded.update(dict.fromkeys(chosen, MODEL))
    return dataclasses.replace(coder, symbols=rules)


@dataclass(frozen=True)
class _Named(Symbol):
    """A symbol and the name of its column."""

    column: str = ""


def _symbols(rows: RowTransform, found: dict[str, Place], elements: dict[str, ElementCoder]) -> list[_Named]:
    """The symbols of the row coder: all of scalar columns, the state of columns with an element coder."""
    symbols: list[_Named] = []
    for column in rows.modelled:
        place, spans = found[column.name], column.spans()
        wide = is_wide(column)
        if wide and column.name not in elements:
            continue
        if place.state >= 0:
            symbols.append(_Named(place.state, spans[0].bins + 1, False, state=True, column=column.name))
        if not wide:
            value = spans[-1]
            ordinal = value.kind == "ordinal"
            symbols += [
                _Named(symbol, value.bins, ordinal, place.state, column=column.name)
                for symbol in range(place.first, place.stop)
            ]
    return symbols


def _fit(sample: _Sample, symbols: Sequence[_Named], effort: Effort, what: str) -> RowCoder:
    return fit_row_coder(sample.runs, sample.latents, symbols, sample.total_rows, effort, sample.seed, sample.say(what))


def _bytes_by_column(sample: _Sample, coder: RowCoder, symbols: Sequence[_Named]) -> dict[str, float]:
    """Expected bytes of each column under the row coder, over the whole dataset."""
    bits: dict[str, float] = {symbol.column: 0.0 for symbol in symbols}
    column_of = {symbol.symbol: symbol.column for symbol in symbols}
    looked_at = 0
    for number, start in _slices(sample.runs):
        part = sample.runs[number][start : start + _SLICE]
        latents = None if sample.latents is None else sample.latents[number][start : start + _SLICE]
        looked_at += len(part)
        for rule, found in zip(coder.symbols, coder.measure(part, latents), strict=True):
            bits[column_of[rule.symbol]] += float(found)
    streams = dict.fromkeys(bits, _STREAM_BYTES)
    return {name: total / 8 * sample.total_rows / looked_at + streams[name] for name, total in bits.items()}


def _slices(runs: Sequence[Bins]) -> list[tuple[int, int]]:
    """Slices of a sample that are measured, spread over all of it: number of the run and first row."""
    every = [(number, start) for number, run in enumerate(runs) for start in range(0, len(run), _SLICE)]
    return every[:: max(1, round(len(every) * _SLICE / _MEASURED_ROWS))]
