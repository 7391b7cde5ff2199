"""The discretized logistic as integer weights: what codes symbols by the VAE alone, from integer tables."""

from __future__ import annotations

import decimal
from functools import lru_cache

import torch
from torch import Tensor

from vae_model.exact_layers import LEVELS, LOCATION_UNITS, MOST_BEYOND

MOST_BINS = 256
TOTAL_BITS = 30
_GUARD_BITS = 128
_FINENESS_BITS = 12
"""The table has a step of 2^-12 scales."""
_REACH = 22 << _FINENESS_BITS
"""Beyond it, in those steps, the table is saturated."""
_INVERSE_BITS = 20


def discretized_logistic_weights(location_BN: Tensor, scale_BN: Tensor, bins: int, first_level: int = -24) -> Tensor:
    """Weights of every bin under logistic distributions; the first and the last bin take the whole tails.

    Args:
        location_BN: Locations in sixteenths of a bin, int64, up to 8 times the grid's size beyond it.
        scale_BN: Levels of the log-scale, int64, 0 … 63.
        bins: Number of bins, at most 256.
        first_level: Level q is a scale of exp((q + first_level) / 8) bins, see `ExactSpan`; -24 … 24.

    Returns:
        float64 whole numbers of at least 1, shape (B, N, bins), that sum to 2^30 + bins.

    Raises:
        ValueError: If the bins are too many, or a location or level is out of its range.
    """
    if not 1 <= bins <= MOST_BINS or not -24 <= first_level <= 24:
        raise ValueError(f"{bins} bins are not 1 … {MOST_BINS}, or the first level {first_level} is not -24 … 24")
    top = LOCATION_UNITS * (bins - 1)
    margin = LOCATION_UNITS * bins * MOST_BEYOND
    for name, values, low, high in (
        ("location", location_BN, -margin, top + margin),
        ("level", scale_BN, 0, LEVELS - 1),
    ):
        if values.dtype != torch.int64 or bool(((values < low) | (values > high)).any()):
            raise ValueError(f"a {name} is not an int64 in {low} … {high}")
    device = location_BN.device
    inverse_BN1 = _inverse_scales(first_level).to(device)[scale_BN].unsqueeze(-1)
    edge_E = torch.arange(bins - 1, device=device) * LOCATION_UNITS + LOCATION_UNITS // 2
    place_BNE = ((edge_E - location_BN.unsqueeze(-1)) * inverse_BN1) >> _INVERSE_BITS
    below_BNE = _sigmoid().to(device)[place_BNE.clamp_(-_REACH, _REACH) + _REACH]
    ends = below_BNE.new_zeros((*below_BNE.shape[:-1], 1))
    return torch.diff(below_BNE, prepend=ends, append=ends + 2**TOTAL_BITS) + 1.0


@lru_cache
def _inverse_scales(first_level: int) -> Tensor:
    """Steps of the table in a sixteenth of a bin, times 2^20, by level: int64."""
    unit = 2 ** (_FINENESS_BITS + _INVERSE_BITS) // LOCATION_UNITS
    with decimal.localcontext(decimal.Context(prec=60)):
        scales = [(decimal.Decimal(level + first_level) / 8).exp() for level in range(LEVELS)]
        return torch.tensor([int((unit / scale).to_integral_value()) for scale in scales], dtype=torch.int64)


@lru_cache
def _sigmoid() -> Tensor:
    """round(2^30·σ(t)) for t = -22 … 22 in steps of 2^-12, float64; σ(-t) = 1 - σ(t) holds exactly."""
    one = 1 << _GUARD_BITS
    with decimal.localcontext(decimal.Context(prec=60)):
        ratio = int((-1 / decimal.Decimal(2**_FINENESS_BITS)).exp() * one)
    upper: list[int] = []
    power = one
    for _ in range(_REACH + 1):
        # 2^30 / (1 + ratio^t), rounded
        upper.append(((one << (TOTAL_BITS + 1)) // (one + power) + 1) // 2)
        power = (power * ratio) >> _GUARD_BITS
    lower = [(1 << TOTAL_BITS) - value for value in upper[:0:-1]]
    return torch.tensor(lower + upper, dtype=torch.float64)
