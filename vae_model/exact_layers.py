"""What an exact decoder is made of beside plain layers: towers, readouts, and how they lie in tensors and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vae_model.fixed_point import Affine, Gate, Interval, Multiply, Normalization, Store, sum_dtype

LOCATION_UNITS = 16
"""Locations are whole numbers of sixteenths of a bin."""
LEVELS = 64
"""Levels that a quantized log-scale takes, an eighth of a nat apart."""
LOG_BITS = 6
"""Fraction bits of log-scales before they are quantized."""
MOST_BINS = 2**40
MOST_BEYOND = 8
"""Locations may be asked for as far beyond their grid as this many times its size."""
_HIGHEST_LOG_SCALE = 20
MOST_COMPONENTS = 64
_READOUT_TENSORS = ("bias_PN", "multiplier_N", "offset_N", "top_N", "floor_N", "base_N")


@dataclass(frozen=True)
class ExactSpan:
    """A span that the decoder speaks about.

    Attributes:
        number: Its index in the layout of the VAE.
        column: Name of the column.
        width: Number of symbols.
        bins: Number of bins of each.
        first_level: The log-scale of level 0: the scale of level q is exp((q + first_level) / 8) bins.
    """

    number: int
    column: str
    width: int
    bins: int
    first_level: int


@dataclass(frozen=True)
class SpanParameters:
    """A logistic distribution a symbol, in bins of its span.

    Attributes:
        span: Which span.
        location_BN: int64, sixteenths of a bin, 0 … 16·(bins - 1) and as far beyond as was asked for.
        scale_BN: int64, level of the log-scale, 0 … 63.
    """

    span: ExactSpan
    location_BN: Tensor
    scale_BN: Tensor


class Tower:
    """`ImageDecoder` in whole numbers, without its bias by symbol.

    Args:
        first: The linear layer.
        stages: The transposed convolutions, each behind an activation.
        gates: Those activations.
        depth: Channels of the image.
    """

    def __init__(self, first: Affine, stages: Sequence[Affine], gates: Sequence[Gate], depth: int) -> None:
        self.first, self.stages, self.gates, self.depth = first, list(stages), list(gates), depth
        if any(before.numbers != stage.features for before, stage in pairwise((first, *stages))):
            raise ValueError("exact weights: a stage of an image does not fit what comes before it")
        if stages[-1].outputs % depth:
            raise ValueError(f"exact weights: {stages[-1].outputs} outputs are not images of depth {depth}")

    def __call__(self, x_BF: Tensor, multiply: Multiply, single: bool) -> Tensor:
        """Raw numbers raw_BR, R = P·H·W·C in this order, float64."""
        x = self.first(x_BF, multiply, single)
        for gate, stage in zip(self.gates, self.stages, strict=True):
            x = stage(gate(x), multiply, single)
        parts_BPCR = x.view(len(x), self.stages[-1].outputs // self.depth, self.depth, -1)
        return parts_BPCR.transpose(2, 3).flatten(1)

    @property
    def outputs(self) -> int:
        """R, the number of raw numbers."""
        return self.stages[-1].numbers

    @property
    def widest(self) -> int:
        """Numbers a row that the widest stage has."""
        return max(self.first.numbers, *(stage.widest for stage in self.stages))

    def save(self, store: Store, name: str) -> None:
        """Puts the tower into a store."""
        self.first.save(store, f"{name}.first")
        for number, stage in enumerate(self.stages):
            stage.save(store, f"{name}.{number}")
        store.numbers |= {f"{name}.stages": len(self.stages), f"{name}.depth": self.depth}

    @classmethod
    def load(cls, store: Store, name: str, inputs: Interval, below: Tensor) -> Tower:
        """Takes the tower out of a store.

        Raises:
            ValueError: If it is damaged, or its sums could be inexact.
        """
        before = first = Affine.load(store, f"{name}.first", inputs)
        stages: list[Affine] = []
        gates: list[Gate] = []
        for number in range(store.number(f"{name}.stages", 1, 16)):
            gates.append(Gate(below, before.limit))
            stages.append(Affine.load(store, f"{name}.{number}", gates[-1].outputs, image=True))
            before = stages[-1]
        return cls(first, stages, gates, store.number(f"{name}.depth", 1, 2**16))


@dataclass(frozen=True)
class Readout:
    """From raw numbers to locations and levels, symbol by symbol; whole numbers as float64.

    Attributes:
        components: K; of a mixture the heaviest component speaks.
        fraction: Fraction bits of raw numbers and guesses.
        limit: Largest absolute position, in their units.
        shift: Power of two that positions times the multiplier are divided by.
        bias_PN: What is added to raw numbers: P = K, 2·K or 3·K (locations, log-scales, weights).
        multiplier_N: Sixteenths of a bin a position, times 2^shift.
        offset_N: Sixteenths of a bin of position 0, times 2^shift, and the half that rounds.
        top_N: 16·(bins - 1).
        floor_N: Smallest log-scale, in positions, of LOG_BITS fraction bits.
        base_N: Added to log-scales to make them levels of LOG_BITS - 3 fraction bits.
    """

    components: int
    fraction: int
    limit: int
    shift: int
    bias_PN: Tensor
    multiplier_N: Tensor
    offset_N: Tensor
    top_N: Tensor
    floor_N: Tensor
    base_N: Tensor

    def __post_init__(self) -> None:
        blocks, rest = divmod(len(self.bias_PN), self.components)
        if rest or blocks not in (1, 2, 3) or (self.components > 1 and blocks != 3):
            raise ValueError(f"exact weights: {len(self.bias_PN)} numbers a symbol are not a mixture's")
        count = self.bias_PN.shape[1]
        by_symbol = (self.multiplier_N, self.offset_N, self.top_N, self.floor_N, self.base_N)
        if any(values.shape != (count,) for values in by_symbol):
            raise ValueError("exact weights: the symbols of a span group differ in number")
        sum_dtype(self.multiplier_N.abs() * self.limit + self.offset_N.abs(), "exact locations")
        if float(self.bias_PN.abs().max()) >= 2.0**45 or float(self.floor_N.abs().max()) >= 2.0**20:
            raise ValueError("exact weights: a bias is too large")

    def __call__(self, raw_BR: Tensor, guess_BN: Tensor | None, soft: Tensor, beyond: int) -> tuple[Tensor, Tensor]:
        """Locations, within `beyond` times the grid's size of it, and levels, int64."""
        blocks = len(self.bias_PN) // self.components
        raw_BPN = raw_BR.view(len(raw_BR), *self.bias_PN.shape) + self.bias_PN
        raw = raw_BPN.view(len(raw_BR), blocks, self.components, -1)
        if self.components > 1:
            order_K1 = torch.arange(self.components, dtype=raw.dtype, device=raw.device)[:, None]
            heaviest = (raw[:, 2] * self.components - order_K1).argmax(1, keepdim=True)
            raw = raw.gather(2, heaviest[:, None].expand(-1, blocks, -1, -1))
        y_BN = raw[:, 0, 0] if guess_BN is None else raw[:, 0, 0] + guess_BN
        location_BN = y_BN.clamp(-self.limit, self.limit).mul_(self.multiplier_N).add_(self.offset_N)
        location_BN = location_BN.mul_(2.0**-self.shift).floor_()
        margin_N = (self.top_N + LOCATION_UNITS) * beyond
        location_BN = torch.minimum(torch.maximum(location_BN, -margin_N), self.top_N + margin_N)
        if blocks == 1:
            level_BN = self.base_N.expand_as(location_BN)
        else:
            log_BN = (raw[:, 1, 0] * 2.0 ** (LOG_BITS - self.fraction)).floor_()
            above_BN = log_BN.clamp_(max=_HIGHEST_LOG_SCALE << LOG_BITS) - self.floor_N
            bend_BN = soft[above_BN.abs().clamp_(max=len(soft) - 1).to(torch.int64)]
            level_BN = above_BN.clamp_(min=0) + bend_BN + self.base_N
        level_BN = (level_BN * 2.0 ** (3 - LOG_BITS)).floor_().clamp_(0, LEVELS - 1)
        return location_BN.to(torch.int64), level_BN.to(torch.int64)

    def save(self, store: Store, name: str) -> None:
        """Puts the readout into a store."""
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                store.put(f"{name}.{part.name}", value)
            else:
                store.numbers[f"{name}.{part.name}"] = value

    @classmethod
    def load(cls, store: Store, name: str) -> Readout:
        """Takes the readout out of a store.

        Raises:
            ValueError: If it is damaged, or its products could be inexact.
        """
        tensors = [store.take(f"{name}.{part}", 2 if part == "bias_PN" else 1) for part in _READOUT_TENSORS]
        components = store.number(f"{name}.components", 1, MOST_COMPONENTS)
        fraction, shift = store.number(f"{name}.fraction", 0, 40), store.number(f"{name}.shift", 0, 52)
        return cls(components, fraction, store.number(f"{name}.limit", 1, 2**45), shift, *tensors)


@dataclass(frozen=True)
class Output:
    """One group of spans: head or tower, the linear path, the readout, and whose symbols they are."""

    spans: tuple[ExactSpan, ...]
    source: Affine | Tower
    skip: Affine | None
    readout: Readout

    def __post_init__(self) -> None:
        symbols = self.readout.bias_PN.shape[1]
        if self.source.outputs != self.readout.bias_PN.numel() or sum(span.width for span in self.spans) != symbols:
            raise ValueError("exact weights: a head does not fit its spans")
        if self.skip is not None and self.skip.outputs != symbols:
            raise ValueError("exact weights: a linear path does not fit its spans")
        tops = [LOCATION_UNITS * (span.bins - 1) for span in self.spans for _ in range(span.width)]
        if self.readout.top_N.tolist() != tops:
            raise ValueError("exact weights: a readout does not fit its spans' bins")


class Parts(NamedTuple):
    """All that an exact decoder computes with.

    Attributes:
        limit_Z: Largest absolute latent index; what goes beyond is clipped. 0 where a latent is inactive.
        trunk: Hidden layers.
        neck: What comes before a factored head, if there is one.
        outputs: The groups of spans.
        below: The table of the activation, see `Gate`.
        soft: log(1 + exp(-t)) of LOG_BITS fraction bits for t = 0, 1, …; 0 at its end.
    """

    limit_Z: Tensor
    trunk: list[tuple[Affine, Normalization, Gate]]
    neck: Affine | None
    outputs: list[Output]
    below: Tensor
    soft: Tensor

    @property
    def widest(self) -> int:
        """Numbers a row that the widest layer has."""
        layers = [affine for affine, _, _ in self.trunk] + [output.source for output in self.outputs]
        return max(layer.widest for layer in ([] if self.neck is None else [self.neck]) + layers)

    def save(self) -> Store:
        """Everything, in a store."""
        store = Store()
        for name in ("limit_Z", "below", "soft"):
            store.put(name, getattr(self, name))
        for number, (affine, norm, _) in enumerate(self.trunk):
            affine.save(store, f"trunk.{number}")
            norm.save(store, f"norm.{number}")
        if self.neck is not None:
            self.neck.save(store, "neck")
        for number, output in enumerate(self.outputs):
            output.source.save(store, f"source.{number}")
            output.readout.save(store, f"readout.{number}")
            if output.skip is not None:
                output.skip.save(store, f"skip.{number}")
            store.numbers |= {f"tower.{number}": int(isinstance(output.source, Tower))}
            store.numbers |= {f"guesses.{number}": int(output.skip is not None)}
        store.numbers |= {"layers": len(self.trunk), "necked": int(self.neck is not None), "groups": len(self.outputs)}
        return store

    @classmethod
    def load(cls, store: Store, spans: Sequence[Sequence[ExactSpan]]) -> Parts:
        """Everything, out of a store.

        Raises:
            ValueError: If something is damaged, or could sum inexactly.
        """
        limit_Z, below, soft = store.take("limit_Z", 1), store.take("below", 1), store.take("soft", 1)
        if bool((limit_Z < 0).any()) or float(soft.abs().max()) > 2**LOG_BITS or float(soft[-1]) != 0:
            raise ValueError("exact weights: a table is damaged")
        latents = x = Interval(-limit_Z, limit_Z)
        trunk: list[tuple[Affine, Normalization, Gate]] = []
        for number in range(store.number("layers", 0, 64)):
            affine = Affine.load(store, f"trunk.{number}", x)
            norm = Normalization.load(store, f"norm.{number}", affine)
            trunk.append((affine, norm, Gate(below, norm.limit)))
            x = trunk[-1][2].outputs
        neck = Affine.load(store, "neck", x) if store.number("necked", 0, 1) else None
        necked = x if neck is None else Interval.around(-neck.limit, neck.limit, below.device)
        outputs = []
        if store.number("groups", 0, 2**16) != len(spans):
            raise ValueError("exact weights: groups of spans are missing")
        for number, group in enumerate(spans):
            source: Affine | Tower
            if store.number(f"tower.{number}", 0, 1):
                source = Tower.load(store, f"source.{number}", x, below)
            else:
                source = Affine.load(store, f"source.{number}", necked)
            guesses = store.number(f"guesses.{number}", 0, 1)
            skip = Affine.load(store, f"skip.{number}", latents) if guesses else None
            outputs.append(Output(tuple(group), source, skip, Readout.load(store, f"readout.{number}")))
        return cls(limit_Z, trunk, neck, outputs, below, soft)
