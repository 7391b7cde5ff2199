"""Where the bulk of a column's values lies and how far it spreads, so that the network sees small numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.columns.stats import ColumnStats

KNEE = 5.0
"""Standardized values beyond it are bent to a logarithm."""

_MIN_BINS_PER_SCALE = 1 / 16
_LARGEST = float(np.finfo(np.float64).max)
_SMALLEST = float(np.finfo(np.float64).tiny)

_SPREADS = ((0.25, 1.349), (0.10, 2.563), (0.05, 3.290), (0.01, 4.653))
"""Quantile pairs (q, 1-q) and how many standard deviations of a Gaussian lie between them."""


def robust_location_scale(stats: ColumnStats) -> tuple[int | float, float]:
    """Median, and the interquartile range as a standard deviation.

    Where half of the values are equal the quartiles say nothing: wider quantiles are taken, then the standard
    deviation, then the range, then 1.

    Args:
        stats: Statistics of a column with at least one ordinary value.

    Returns:
        Median (an int for integers) and a finite scale above 0.
    """
    values = _sorted_sample(stats)
    for tail, deviations in _SPREADS:
        scale = float(_quantile(values, 1 - tail) - _quantile(values, tail)) / deviations
        if scale > 0:
            return _quantile(values, 0.5), min(scale, _LARGEST)
    return _quantile(values, 0.5), _standard_deviation(stats)


def standard_location_scale(stats: ColumnStats) -> tuple[int | float, float]:
    """Mean and standard deviation, the latter finite and above 0."""
    mean = float(stats.moments.mean()[0]) if stats.moments is not None else 0.0
    return mean, _standard_deviation(stats)


def step_and_shift(width: int | float, origin: int | float, centre: int | float, scale: float) -> tuple[float, float]:
    """Step and shift of an ordinal span.

    Args:
        width: Width of a bin.
        origin: Value of bin 0.
        centre: Value that is to become 0.
        scale: Distance that is to become 1; made larger if a bin would be wider than 16 of it.

    Returns:
        `step` and `shift`: bin k stands at k·step + shift.
    """
    scale = min(max(scale, float(width) * _MIN_BINS_PER_SCALE), _LARGEST)
    distance = origin / scale - centre / scale if abs(origin) > _LARGEST / 4 else (origin - centre) / scale
    return max(float(width) / scale, 1e-30), float(np.clip(distance, -1e30, 1e30))


def _standard_deviation(stats: ColumnStats) -> float:
    """The exact one, else (lost to rounding) the sample's, else half the range; 1 for a constant."""
    if stats.low is None or stats.high is None or stats.low == stats.high:
        return 1.0
    deviation = float(stats.moments.std()[0]) if stats.moments is not None else 0.0
    if deviation > 0:
        return min(deviation, _LARGEST)
    values = _sorted_sample(stats)
    if values[0] == values[-1]:
        return max(min(float(stats.high / 2 - stats.low / 2), _LARGEST), _SMALLEST)
    largest = float(max(abs(values[0].item()), abs(values[-1].item())))
    return min(max(float((values / largest).std()) * largest, _SMALLEST), _LARGEST)


def _sorted_sample(stats: ColumnStats) -> npt.NDArray[Any]:
    if stats.sample is None or stats.sample.values is None:
        raise ValueError(f"column {stats.field.name!r} has no ordinary values to scale by")
    return np.sort(stats.sample.values)


def _quantile(values: npt.NDArray[Any], q: float) -> int | float:
    value: int | float = values[round(q * (len(values) - 1))].item()
    return value
