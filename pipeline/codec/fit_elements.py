"""Fits an element coder to a sample of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.codec.digits import Digits
from pipeline.codec.elements import (
    NEIGHBOURS,
    ElementCoder,
    Geometry,
    Levels,
    levels_of,
    network_shape,
)
from pipeline.codec.fit_rows import Effort, Report, steps_for
from pipeline.codec.weights import Network

Bins = npt.NDArray[np.int64]
_BATCH, _LEAST_BATCH = 4096, 256
_MOST_PASSES = 16
_LEARNING_RATE = 0.04
_MOST_ROWS_LOOKED_AT = 2000
_LEAST_CORRELATION = 0.3
_FLAT_NEIGHBOURS = 4


def fit_element_coder(
    bins: Bins,
    guides: Levels | None,
    first: int,
    count: int,
    shape: tuple[int, ...] | None,
    rows: int,
    effort: Effort,
    seed: int = 0,
    report: Report | None = None,
) -> ElementCoder:
    """Fits an element coder.

    Args:
        bins: Elements of the sample's ordinary rows, shape (rows, elements), none absent.
        guides: What the VAE's decoder says of them, or None.
        first: Index of the first element in `bins_BD`.
        count: Number of bins of an element.
        shape: Shape of an image; None: found out, if there is one.
        rows: Rows that the archive will have.
        effort: Size and training.
        seed: Seed of every random draw.
        report: Called with the step and the bits an element.
    """
    import torch

    from vae_model.context import CoderTraining, ContextCoder, train_coder

    geometry = geometry_of(bins, shape, effort)
    digits = Digits.fit(bins.ravel(), count, True, direct=effort.direct)
    sizes = network_shape(geometry, digits, count, guides is not None, effort.hidden, effort.knots)
    parts, _, _ = digits.split(bins.ravel())
    parts = parts.reshape(*bins.shape, -1).astype(np.int16)
    counts = [
        torch.from_numpy(np.bincount(parts[..., d].ravel(), minlength=size)) for d, size in enumerate(digits.alphabets)
    ]
    coder = ContextCoder(sizes, counts, seed)
    levels = levels_of(bins, count)
    elements = geometry.elements

    def draw(generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = torch.randint(0, len(bins), (batch,), generator=generator).numpy()
        element = torch.randint(0, elements, (batch,), generator=generator).numpy()
        index = geometry.index[element]
        seen = levels[row[:, None], np.maximum(index, 0)].astype(np.int64)
        seen[index < 0] = -1
        contexts = [seen, geometry.positions[element]]
        if guides is not None:
            contexts.append(guides[row, element].astype(np.int64))
        return torch.from_numpy(np.concatenate(contexts, 1)), torch.from_numpy(parts[row, element].astype(np.int64))

    batch = min(_BATCH, max(_LEAST_BATCH, bins.size // 64))
    steps = steps_for(effort, bins.size, batch, _MOST_PASSES)
    options = CoderTraining(steps, batch, rows * elements, learning_rate=_LEARNING_RATE, seed=seed)
    train_coder(coder, draw, options, report)
    network = Network.trained(coder)
    return ElementCoder(first, count, digits, geometry, guides is not None, network)


def geometry_of(bins: Bins, shape: tuple[int, ...] | None, effort: Effort) -> Geometry:
    """The geometry of a column: its shape, else an image's if elements a line apart are alike, else a line."""
    many = len(NEIGHBOURS) if effort.neighbours is None else effort.neighbours
    if shape is not None:
        return Geometry((shape[0], shape[1], shape[2] if len(shape) == 3 else 1), many)
    width = _line_width(bins[:_MOST_ROWS_LOOKED_AT].astype(np.float64))
    if width is not None:
        return Geometry((bins.shape[1] // width, width, 1), many)
    return Geometry((1, bins.shape[1], 1), min(many, _FLAT_NEIGHBOURS * 4))


def _line_width(values: npt.NDArray[np.float64]) -> int | None:
    """The width of a line of an image, None where elements a line apart are not alike."""
    elements = values.shape[1]
    widths = [width for width in range(4, elements // 2 + 1) if elements % width == 0]
    if not widths:
        return None
    centred = values - values.mean(0)
    power = float((centred**2).mean())
    if power <= 0:
        return None

    def correlation(lag: int) -> float:
        return float((centred[:, lag:] * centred[:, :-lag]).mean()) / power

    best = max(widths, key=lambda width: (round(correlation(width), 2), -width))
    around = max(correlation(best - 2), correlation(best + 2))
    alike = correlation(best)
    return best if alike > _LEAST_CORRELATION and alike > around else None
