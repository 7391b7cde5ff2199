"""From a VAE to the parts of its exact decoder: which symbols are spoken of, and in which bins."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.decoder import SpanGroup
from vae_model.encoder import goes_through_tower
from vae_model.exact_layers import (
    LOCATION_UNITS,
    LOG_BITS,
    MOST_BEYOND,
    MOST_BINS,
    ExactSpan,
    Output,
    Parts,
    Readout,
    Tower,
)
from vae_model.exact_rounding import (
    ROOM,
    Signal,
    Wanted,
    round_affine,
    round_hidden,
    round_neck,
    round_tower,
    silu_table,
    softplus_table,
)
from vae_model.features import OrdinalGrid
from vae_model.fixed_point import Affine, Gate, Interval, Normalization
from vae_model.images import ImageDecoder
from vae_model.layout import Span
from vae_model.likelihood import DiscretizedLogisticMixture, Gaussian
from vae_model.network import VAE

_SAMPLE_ROWS = 512
_SCALE_NOISE = 1 / 32
"""Rounding noise of locations, in scales of p(x|z)."""
_PRIOR_REACH = 8.0
_LOWEST_LEVEL = -24
_LOGISTIC_DEVIATION = math.pi / math.sqrt(3)


@torch.no_grad()
def export(vae: VAE, grids: Mapping[str, Span], sample_k_BZ: Tensor | None) -> Parts:
    """The parts of the exact decoder of a VAE; see `ExactDecoder.from_vae`.

    Raises:
        ValueError: If an active latent has no grid, a weight is not finite, or sums could be inexact.
    """
    if not all(bool(torch.isfinite(values).all()) for values in vae.decoder.state_dict().values()):
        raise ValueError("the decoder has weights that are not finite")
    latents = _latents(vae, sample_k_BZ)
    below = torch.tensor(silu_table(), dtype=torch.float64)
    trunk: list[tuple[Affine, Normalization, Gate]] = []
    signal = latents
    layers = list(vae.decoder.trunk)
    for linear, norm in zip(layers[0::3], layers[1::3], strict=True):
        signal = round_hidden(linear, norm, signal, below, trunk)
    head, middle, necked = vae.decoder.head, None, signal
    if isinstance(head, nn.Sequential):
        middle, necked = round_neck(head[0], signal)
        head = head[1]
    outputs: list[Output] = []
    images, row, guess = list(vae.decoder.towers), 0, 0
    for group in vae.decoder.groups:
        if not isinstance(group, SpanGroup):
            raise ValueError("the decoder's groups are not span groups")
        image = images.pop(0) if goes_through_tower(group.spans[0], vae.config) else None
        ordinal = group.spans[0].kind == "ordinal"
        kept = [number for number, span in enumerate(group.spans) if ordinal and _is_spoken_of(span, grids)]
        if kept:
            places = _Places(group, kept, grids, row, guess)
            inputs = necked if image is None else signal
            outputs.append(_output(places, image or head, vae.decoder.skip, inputs, latents, below))
        row += group.likelihood.outputs if image is None else 0
        guess += group.likelihood.count if ordinal else 0
    soft = torch.tensor(softplus_table(), dtype=torch.float64)
    return Parts(latents.interval.high, trunk, middle, outputs, below, soft)


def _is_spoken_of(span: Span, grids: Mapping[str, Span]) -> bool:
    return span.knee is None and grids.get(span.column, span).bins <= MOST_BINS


def _latents(vae: VAE, sample_k_BZ: Tensor | None) -> Signal:
    step_Z, active_Z = vae.latent_step_Z.double().cpu(), vae.latent_active_Z.cpu()
    if bool((active_Z & (step_Z <= 0)).any()):
        raise ValueError("the latents have no grid: only whole numbers of steps can be decoded exactly")
    step_Z = step_Z.masked_fill(~active_Z, 1.0)
    if sample_k_BZ is None:
        generator = torch.Generator().manual_seed(0)
        normal_BZ = torch.randn(_SAMPLE_ROWS, len(step_Z), generator=generator, dtype=torch.float64)
        k_BZ = torch.round(normal_BZ / step_Z)
    else:
        k_BZ = sample_k_BZ[:: max(1, len(sample_k_BZ) // _SAMPLE_ROWS)][: 2 * _SAMPLE_ROWS].double().cpu()
    seen_Z = ROOM * k_BZ.abs().amax(0)
    limit_Z = torch.maximum(torch.ceil(_PRIOR_REACH / step_Z), torch.ceil(seen_Z)).masked_fill(~active_Z, 0.0)
    k_BZ = torch.minimum(torch.maximum(k_BZ, -limit_Z), limit_Z)
    return Signal(k_BZ, step_Z, Interval(-limit_Z, limit_Z))


class _Places:
    """The symbols of a group that are spoken of, on the grids that are coded."""

    def __init__(
        self, group: SpanGroup, kept: list[int], grids: Mapping[str, Span], first_row: int, first_guess: int
    ) -> None:
        self.likelihood = group.likelihood
        self.spans = [grids.get(group.spans[number].column, group.spans[number]) for number in kept]
        for span, number in zip(self.spans, kept, strict=True):
            if (span.width, span.kind, span.knee) != (group.spans[number].width, "ordinal", None):
                raise ValueError(f"column {span.column!r} has another shape on the grid that is to be coded")
        self.grid = OrdinalGrid(self.spans)
        starts = [sum(span.width for span in group.spans[:number]) for number in kept]
        place_N = torch.cat([torch.arange(at, at + span.width) for at, span in zip(starts, self.spans, strict=True)])
        count, blocks = group.likelihood.count, group.likelihood.outputs // group.likelihood.count
        self.place_N, self.blocks = place_N, blocks
        self.row_R = (first_row + torch.arange(blocks)[:, None] * count + place_N).flatten()
        self.guess_N = first_guess + place_N
        self.numbers = [group.members[number] for number in kept]

    def log_scales(self, raw_BR: Tensor) -> Tensor:
        """Logarithms of a logistic's scale, in standardized units."""
        if isinstance(self.likelihood, DiscretizedLogisticMixture):
            floor_N = self.likelihood.floor_N.double().cpu()[self.place_N]
            raw = raw_BR.view(len(raw_BR), self.blocks, len(self.place_N))
            components = self.likelihood.components
            return floor_N + F.softplus(raw[:, components : 2 * components].clamp(max=20.0) - floor_N)
        if isinstance(self.likelihood, Gaussian):
            log_scale_N = self.likelihood.log_scale(raw_BR.float()).double().cpu()[self.place_N]
            return log_scale_N - math.log(_LOGISTIC_DEVIATION)
        raise ValueError(f"a {type(self.likelihood).__name__} has no location and scale")

    def members(self, log_scale_BKN: Tensor) -> tuple[ExactSpan, ...]:
        """The spans; their 64 levels begin with the smallest scale of a sample."""
        widths = [span.width for span in self.spans]
        low_N = (log_scale_BKN - torch.log(self.grid.step_N)).flatten(0, -2).amin(0)
        lows = torch.split(low_N, widths)
        levels = [max(_LOWEST_LEVEL, math.floor(8 * float(low.min()))) for low in lows]
        zipped = zip(self.numbers, self.spans, levels, strict=True)
        return tuple(ExactSpan(number, span.column, span.width, span.bins, level) for number, span, level in zipped)

    def readout(self, fraction: int, raw_bias_R: Tensor, members: tuple[ExactSpan, ...]) -> Readout:
        """The readout of raw numbers of so many fraction bits."""
        step_N, shift_N, last_N = self.grid.step_N, self.grid.shift_N, self.grid.last_N.double()
        ends_N = torch.maximum(shift_N.abs(), (shift_N + step_N * last_N).abs()) + (last_N + 1) * step_N * MOST_BEYOND
        limit = max(1, int(min(2.0**44, math.ceil(float(ends_N.max()) + 1) * 2.0**fraction)))
        units_N = LOCATION_UNITS / step_N
        largest = float(units_N.max()) * limit * 2.0**-fraction + float((units_N * shift_N).abs().max()) + 1
        shift = min(max(0, 50 - math.ceil(math.log2(largest))), fraction + 8)
        components, floor_N = 1, torch.zeros_like(step_N)
        if isinstance(self.likelihood, DiscretizedLogisticMixture):
            components = self.likelihood.components
            log_N = floor_N = self.likelihood.floor_N.double().cpu()[self.place_N]
        else:
            log_N = self.log_scales(torch.zeros(1, len(step_N))).flatten()
        levels_N = torch.tensor([span.first_level for span in members for _ in range(span.width)])
        base_N = (log_N - torch.log(step_N)) * 2**LOG_BITS - levels_N * 2.0 ** (LOG_BITS - 3)
        return Readout(
            components=components,
            fraction=fraction,
            limit=limit,
            shift=shift,
            bias_PN=torch.round(raw_bias_R.view(-1, len(step_N)).double().cpu() * 2.0**fraction),
            multiplier_N=torch.round(units_N * 2.0 ** (shift - fraction)),
            offset_N=torch.round(-shift_N * units_N * 2.0**shift) + 2.0**shift // 2,
            top_N=LOCATION_UNITS * last_N,
            floor_N=torch.round(floor_N * 2**LOG_BITS),
            base_N=torch.round(base_N) + 2.0 ** (LOG_BITS - 4),
        )


def _output(
    places: _Places, source: nn.Module | None, skip: nn.Linear | None, signal: Signal, latents: Signal, below: Tensor
) -> Output:
    """Head or tower, linear path and readout of one group."""
    raw_BR, bias_R = _raw(places, source, signal)
    log_scales = places.log_scales(raw_BR)
    members = places.members(log_scales.view(-1, 1, len(places.place_N)))
    noise = _SCALE_NOISE * float(log_scales.flatten().kthvalue(1 + log_scales.numel() // 10).values.exp())
    fineness = max(float(places.grid.step_N.min()) / LOCATION_UNITS, noise)
    fraction = min(max(math.ceil(1 - math.log2(fineness)), 6), 30)
    wanted = Wanted(fraction, min(2**44, int(max(ROOM * float(raw_BR.abs().max()), 32.0) * 2.0**fraction)), noise)
    made: Affine | Tower
    if isinstance(source, ImageDecoder):
        made = round_tower(source, signal, wanted, below)
    elif isinstance(source, nn.Linear):
        made = round_affine(source.weight[places.row_R], source.bias[places.row_R], signal, wanted)
    else:
        raise ValueError("the decoder's head is not a linear layer")
    guess = None
    if skip is not None:
        weight, bias = skip.weight[places.guess_N], skip.bias[places.guess_N]
        reach = int(
            max(ROOM * float(F.linear(latents.real(), weight.double().cpu()).abs().max()), 32.0) * 2.0**fraction
        )
        guess = round_affine(weight, bias, latents, Wanted(fraction, min(2**44, reach), noise))
    return Output(members, made, guess, places.readout(fraction, bias_R, members))


def _raw(places: _Places, source: nn.Module | None, signal: Signal) -> tuple[Tensor, Tensor]:
    """The float decoder's raw numbers of the sample, and the bias that the readout is to add."""
    if isinstance(source, ImageDecoder):
        exact = copy.deepcopy(source).double().cpu()
        return exact(signal.real()).flatten(1), source.bias_PN.flatten()
    if not isinstance(source, nn.Linear):
        raise ValueError("the decoder's head is not a linear layer")
    weight_RF, bias_R = source.weight[places.row_R].double().cpu(), source.bias[places.row_R].double().cpu()
    return F.linear(signal.real(), weight_RF, bias_R), torch.zeros(len(places.row_R))
