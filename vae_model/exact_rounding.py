"""Float layers to whole numbers: how many bits the weights get, and what activations are clamped to.

Both are found on sample latents. Weights get the fewest fraction bits whose rounding disturbs a layer's outputs
by no more than a small part of their spread: small weights keep sums below 2^24, where float32 is exact. Any
arithmetic may be used here: the whole numbers that come out are what is stored.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.exact_layers import LOG_BITS, Tower
from vae_model.fixed_point import FRACTION, LARGEST_LIMIT, Affine, Gate, Interval, Normalization
from vae_model.images import ImageDecoder

ROOM = 1.5
"""How far beyond those of the sample activations may go before they are clamped."""
_NOISE = 1 / 128
"""Rounding noise of hidden layers' weights, in standard deviations of the outputs."""
_ROOT_12 = math.sqrt(12)


@dataclass(frozen=True)
class Signal:
    """What flows through the sample: whole numbers, the real value of one, and what they are clamped to."""

    x_BI: Tensor
    unit: Tensor | float
    interval: Interval

    def real(self) -> Tensor:
        """The real values."""
        return self.x_BI.to(torch.float64) * self.unit

    def length(self) -> float:
        """Root mean square of the norm of `x_BI`."""
        return float(self.x_BI.to(torch.float64).square().sum(1).mean().sqrt())

    def length_of_taps(self, sides: tuple[int, int, int, int]) -> float:
        """The same of what a pixel of a transposed convolution's output sums: two rows, two columns."""
        return 2 * self.length() / math.sqrt(sides[0] * sides[1])


@dataclass(frozen=True)
class Wanted:
    """What an exported layer should be.

    Attributes:
        fraction: Fraction bits of its outputs.
        limit: What they are clamped to.
        noise: Rounding noise that its weights may add, in real units.
    """

    fraction: int
    limit: int
    noise: float


def round_affine(
    weight_OI: Tensor,
    bias_O: Tensor,
    signal: Signal,
    wanted: Wanted,
    sides: tuple[int, int, int, int] | None = None,
) -> Affine:
    """Rounds a layer; an image's kernels (O·16, I) add two rows and two columns at each pixel."""
    scaled_OI = weight_OI.double().cpu() * signal.unit
    length = signal.length() if sides is None else signal.length_of_taps(sides)
    needed = math.log2(max(length, 1.0) / (_ROOT_12 * max(wanted.noise, 1e-30)))
    bits = min(max(math.ceil(needed), wanted.fraction - 20, 0), 48)
    shift = bits - wanted.fraction
    half = 2.0 ** (shift - 1) if shift > 0 else 0.0
    bias_O = torch.round(bias_O.double().cpu() * 2.0**bits) + half
    return Affine(torch.round(scaled_OI * 2.0**bits), bias_O, shift, wanted.limit, signal.interval, sides)


def _limit(real: Tensor) -> int:
    """What an activation's inputs are clamped to."""
    largest = float(real.abs().max()) * ROOM
    return int(min(max(largest, 4.0) * 2**FRACTION, LARGEST_LIMIT))


def _spread(real: Tensor) -> float:
    return float((real - real.mean(0)).square().mean().sqrt())


def round_hidden(
    linear: nn.Module, norm: nn.Module, signal: Signal, below: Tensor, trunk: list[tuple[Affine, Normalization, Gate]]
) -> Signal:
    """Appends linear, layer norm and SiLU to the trunk."""
    if not isinstance(linear, nn.Linear) or not isinstance(norm, nn.LayerNorm):
        raise ValueError("the decoder's trunk is not made of linear layers and norms")
    real = F.linear(signal.real(), linear.weight.double().cpu(), linear.bias.double().cpu())
    features = len(linear.bias)
    limit = 2 ** min(20, (50 - math.ceil(math.log2(features))) // 2)
    fraction = int(math.log2(limit)) - math.ceil(math.log2(float(real.abs().max()) * ROOM + 1e-9))
    fraction = min(max(fraction, -20), 30)
    affine = round_affine(linear.weight, linear.bias, signal, Wanted(fraction, limit, _NOISE * _spread(real)))
    gain_F, bias_F = norm.weight.double().cpu(), norm.bias.double().cpu()
    limit = _limit(F.layer_norm(real, (features,), gain_F, bias_F, norm.eps))
    largest = max(math.sqrt(features) * float(gain_F.abs().max()), 1e-6)
    shift = min(max(24 - math.floor(math.log2(largest)), 1), 40)
    whole_F = torch.round(gain_F * (math.sqrt(features) * 2.0 ** (shift - 20 + FRACTION)))
    bias_F = torch.round(bias_F * 2.0 ** (shift + FRACTION)) + 2.0 ** (shift - 1)
    epsilon = max(1, round(norm.eps * features * 4.0**fraction))
    layer = affine, Normalization(whole_F, bias_F, epsilon, shift, limit, affine), Gate(below, limit)
    trunk.append(layer)
    x_BF = layer[2](layer[1](affine(signal.x_BI, torch.matmul, False)))
    return Signal(x_BF, 2.0**-FRACTION, layer[2].outputs)


def round_neck(linear: nn.Module, signal: Signal) -> tuple[Affine, Signal]:
    """The first factor of a factored head."""
    if not isinstance(linear, nn.Linear):
        raise ValueError("the decoder's head is not made of linear layers")
    real = F.linear(signal.real(), linear.weight.double().cpu())
    fraction = 11 - math.ceil(math.log2(float(real.abs().max()) * ROOM + 1e-9))
    zero = torch.zeros(len(linear.weight))
    layer = round_affine(linear.weight, zero, signal, Wanted(fraction, 2**11, _NOISE * _spread(real)))
    return layer, Signal(layer(signal.x_BI, torch.matmul, False), 2.0**-fraction, Interval.around(-(2**11), 2**11))


def round_tower(source: ImageDecoder, signal: Signal, wanted: Wanted, below: Tensor) -> Tower:
    """A tower whose last stage gives what is wanted."""
    real = F.linear(signal.real(), source.first.weight.double().cpu(), source.first.bias.double().cpu())
    inner = Wanted(FRACTION, _limit(real), _NOISE * _spread(real))
    first = round_affine(source.first.weight, source.first.bias, signal, inner)
    x = first(signal.x_BI, torch.matmul, False)
    stages: list[Affine] = []
    gates: list[Gate] = []
    image = real.view(-1, *source.start)
    for number, stage in enumerate(source.stages):
        if not isinstance(stage, nn.ConvTranspose2d) or stage.bias is None:
            raise ValueError("an image decoder's stages are not transposed convolutions")
        gates.append(Gate(below, first.limit if not stages else stages[-1].limit))
        (height, width), (rows, columns) = source.sides[number : number + 2]
        kernel, bias = stage.weight.double().cpu(), stage.bias.double().cpu()
        image = F.conv_transpose2d(F.silu(image), kernel, bias, stride=2, padding=1)[:, :, :rows, :columns]
        inner = Wanted(FRACTION, _limit(image), _NOISE * _spread(image))
        target = wanted if number == len(source.stages) - 1 else inner
        active = Signal(gates[-1](x), 2.0**-FRACTION, gates[-1].outputs)
        taps_OI = kernel.permute(1, 2, 3, 0).flatten(0, 2)
        stages.append(round_affine(taps_OI, bias, active, target, (height, width, rows, columns)))
        x = stages[-1](active.x_BI, torch.matmul, False)
    return Tower(first, stages, gates, source.depth)


@lru_cache
def silu_table() -> tuple[float, ...]:
    """round(2^8·t·σ(-t)) for t = 0, 2^-8, … until it is 0: how far SiLU lies below max(x, 0)."""
    values = [0.0]
    with decimal.localcontext(decimal.Context(prec=40)):
        while len(values) < 2**FRACTION or values[-1] > 0:
            t = decimal.Decimal(len(values)) / 2**FRACTION
            values.append(float(round(len(values) / (1 + t.exp()))))
    return tuple(values)


@lru_cache
def softplus_table() -> tuple[float, ...]:
    """round(2^6·log(1 + exp(-t))) for t = 0, 2^-6, … until it is 0."""
    values: list[float] = []
    with decimal.localcontext(decimal.Context(prec=40)):
        while not values or values[-1] > 0:
            t = decimal.Decimal(len(values)) / 2**LOG_BITS
            values.append(float(round(2**LOG_BITS * (1 + (-t).exp()).ln())))
    return tuple(values)
