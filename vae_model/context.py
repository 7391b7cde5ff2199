"""The row coder: a small autoregressive network over digits, trained for the size of the archive.

It is a NADE (Larochelle & Murray 2011) with inputs beside the row: digit j of a row is coded under

    p(x_j | x_<j, c) = softmax(V_j a_j + B_j),   a_j = relu(b_j + Σ_g T_g[c_g] + Σ_i<j E_i[x_i])

where c are *contexts* (the previous row, latents, neighbouring pixels) and every T_g, E_i is a table. The bias
B_j may depend on an earlier digit (the low digit of a number on its high digit).

Weights are whole numbers of 1/8, held by a straight-through estimator in the later part of training, and what
they cost to store is part of the loss: training minimizes the description length of data and model together
(Hinton & van Camp 1993). `vae_model.integer` evaluates the result exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.coder_shape import INTERPOLATION, CoderShape, knot_offsets

UNIT = 0.125
"""Weights and activations are multiples of this."""
LARGEST_WEIGHT = 127
"""In units."""
LARGEST_ACTIVATION = 255
"""In units."""
_BITS_PER_DOUBLING = 1.6
_ROUND_FROM = 0.4
_PRICE_RAMP = 0.3

Draw = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
"""Gives (contexts_BG, digits_BD) of a batch of random rows; -1 = absent."""


class Tables(nn.Module):
    """Where each table's entries and knots stand, for all contexts and digits together.

    A table of n entries has n + 1 rows, the last for "absent". Ordinal tables with many entries are
    interpolated between knots.

    Attributes:
        offset: First entry row of each table.
        left: For each entry, its left knot (a row of the parameters).
        right: For each entry, its right knot.
        share: For each entry, how many sixteenths the right knot has.
        knot_offset: First knot row of each table, and the total at the end.
    """

    left: Tensor
    right: Tensor
    share: Tensor
    _sizes: Tensor
    _first: Tensor

    def __init__(self, sizes: Sequence[int], ordinal: Sequence[bool], knots: int) -> None:
        super().__init__()
        left: list[int] = []
        right: list[int] = []
        share: list[int] = []
        self.offset: list[int] = []
        self.knot_offset = knot_offsets(sizes, ordinal, knots)
        for size, (first, stop) in zip(sizes, pairwise(self.knot_offset), strict=True):
            self.offset.append(len(left))
            count = stop - first - 1
            for entry in range(size):
                place = entry * (count - 1) * INTERPOLATION // max(1, size - 1)
                knot, part = divmod(place, INTERPOLATION)
                left.append(first + knot)
                right.append(first + min(knot + 1, count - 1))
                share.append(part)
            left.append(first + count)
            right.append(first + count)
            share.append(0)
        numbers = {"left": left, "right": right, "share": share, "_sizes": sizes, "_first": self.offset}
        for name, values in numbers.items():
            self.register_buffer(name, torch.tensor(list(values), dtype=torch.long), persistent=False)

    @property
    def knots(self) -> int:
        """Rows of the parameters."""
        return self.knot_offset[-1]

    def expand(self, knots_KH: Tensor) -> Tensor:
        """Every table's entries (in sixteenths of the knots' unit), from the knots."""
        share_S1 = self.share.to(knots_KH).unsqueeze(1)
        return knots_KH[self.left] * (INTERPOLATION - share_S1) + knots_KH[self.right] * share_S1

    def rows(self, values_BT: Tensor) -> Tensor:
        """Entry rows of values; -1 becomes each table's row for "absent"."""
        return torch.where(values_BT < 0, self._sizes, values_BT) + self._first


class ContextCoder(nn.Module):
    """The row coder in training; `integers` gives the weights that are deployed.

    Args:
        shape: What is seen and coded.
        counts: For each digit, how often each value occurs (for the first biases).
        seed: Seed of the first weights.
    """

    def __init__(self, shape: CoderShape, counts: Sequence[Tensor], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.contexts = Tables(shape.contexts, shape.ordinal_contexts, shape.knots)
        self.inputs = Tables(shape.digits, shape.ordinal_digits, shape.knots)
        widest, count = max(shape.digits), len(shape.digits)

        def normal(*size: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*size, generator=generator) * scale)

        self.context_KH = normal(self.contexts.knots, shape.hidden, scale=0.05)
        self.input_KH = normal(self.inputs.knots, shape.hidden, scale=0.05)
        self.bias_DH = normal(count, shape.hidden, scale=0.1)
        self.output_DHR = normal(count, shape.hidden, widest, scale=0.05)
        rows = [shape.digits[given] if given >= 0 else 1 for given in shape.given]
        self.bias_rows = [0, *torch.tensor(rows).cumsum(0).tolist()]
        self.logit_QR = nn.Parameter(_first_logits(shape, counts, rows, widest))
        by_size: dict[int, list[int]] = {}
        for number, size in enumerate(shape.digits):
            by_size.setdefault((size - 1).bit_length() // 2, []).append(number)
        self._groups = list(by_size.values())
        self._order = torch.argsort(torch.tensor([number for group in self._groups for number in group])).tolist()
        mask_DR = torch.arange(widest) < torch.tensor(shape.digits)[:, None]
        self.register_buffer("mask_DR", mask_DR, persistent=False)
        self.register_buffer("mask_QR", mask_DR.repeat_interleave(torch.tensor(rows), 0), persistent=False)
        self.register_buffer("before_DD", torch.ones(count, count).tril(-1), persistent=False)

    mask_DR: Tensor
    mask_QR: Tensor
    before_DD: Tensor

    def rounded(self, on: bool) -> tuple[Tensor, ...]:
        """All weights, rounded with straight-through gradients if `on`."""
        return tuple(_round(weight) if on else weight for weight in self.parameters())

    def bits(self, contexts_BG: Tensor, digits_BD: Tensor, rounding: bool) -> Tensor:
        """Code length of each digit, bits_BD; 0 where absent."""
        context_KH, input_KH, bias_DH, output_DHR, logit_QR = self.rounded(rounding)
        entry_BDH = F.embedding(self.inputs.rows(digits_BD), self.inputs.expand(input_KH) / INTERPOLATION)
        hidden_BDH = torch.matmul(self.before_DD, entry_BDH) + bias_DH  # the sum over the digits before
        if self.shape.contexts:
            table_SH = self.contexts.expand(context_KH) / INTERPOLATION
            hidden_BDH = hidden_BDH + F.embedding_bag(self.contexts.rows(contexts_BG), table_SH, mode="sum")[:, None]
        active_BDH: Tensor = _Activation.apply(hidden_BDH, rounding)  # type: ignore[no-untyped-call]
        nats = [self._nats(active_BDH, digits_BD, output_DHR, logit_QR, group) for group in self._groups]
        nats_BD = torch.cat(nats, 1)[:, self._order]
        return nats_BD.masked_fill(digits_BD < 0, 0.0) / math.log(2)

    def _nats(
        self, active_BDH: Tensor, digits_BD: Tensor, output_DHR: Tensor, logit_QR: Tensor, group: list[int]
    ) -> Tensor:
        """Code length in nats of the digits of one group, which have alphabets of about one size."""
        widest = max(self.shape.digits[number] for number in group)
        bias_QR = logit_QR[:, :widest].masked_fill(~self.mask_QR[:, :widest], -1e9)
        bias_DBR = F.embedding(self._bias_rows(digits_BD, group), bias_QR)
        active_DBH = active_BDH[:, group].transpose(0, 1)
        logits_DBR = torch.baddbmm(bias_DBR, active_DBH, output_DHR[group, :, :widest])
        digits_DB = digits_BD[:, group].clamp(min=0).T
        nats_N = F.cross_entropy(logits_DBR.flatten(0, 1), digits_DB.flatten(), reduction="none")
        return nats_N.view(len(group), -1).T

    def _bias_rows(self, digits_BD: Tensor, group: list[int]) -> Tensor:
        """The row of biases of every digit of a group, rows_DB."""
        picked = []
        for number in group:
            given, first = self.shape.given[number], self.bias_rows[number]
            if given < 0:
                picked.append(torch.full_like(digits_BD[:, 0], first))
            else:
                picked.append(digits_BD[:, given].clamp(min=0) + first)
        return torch.stack(picked)

    def weight_bits(self) -> Tensor:
        """About what the weights cost once they are entropy-coded; differentiable."""
        total = torch.zeros((), device=self.bias_DH.device)
        for name, weight in self.named_parameters():
            used = weight * self.mask_DR[:, None] if name == "output_DHR" else weight
            total = total + torch.log2(1 + (used / UNIT).abs()).sum() * _BITS_PER_DOUBLING
        return total

    @torch.no_grad()
    def integers(self) -> dict[str, Tensor]:
        """The weights as int16 tensors, in units of `UNIT`."""
        weights = {name: _units(weight).to(torch.int16) for name, weight in self.named_parameters()}
        weights["output_DHR"] = weights["output_DHR"] * self.mask_DR[:, None]
        return weights


class _Activation(torch.autograd.Function):
    """relu, clamped and, with `rounding`, rounded to units; its gradient is the clamped relu's."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, rounding: bool) -> Tensor:
        context.save_for_backward((hidden > 0) & (hidden < LARGEST_ACTIVATION * UNIT))
        if rounding:
            return (hidden / UNIT).round_().clamp_(0, LARGEST_ACTIVATION).mul_(UNIT)
        return hidden.clamp(0, LARGEST_ACTIVATION * UNIT)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (passes,) = context.saved_tensors
        return gradient * passes, None


def _units(weight: Tensor) -> Tensor:
    return torch.round(weight / UNIT).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)


def _round(weight: Tensor) -> Tensor:
    return weight + (_units(weight) * UNIT - weight).detach()


def _first_logits(shape: CoderShape, counts: Sequence[Tensor], rows: Sequence[int], widest: int) -> Tensor:
    """Log-frequencies, so that training starts from the order-0 code; the unused end of a row stays 0."""
    parts = []
    for size, repeats, count in zip(shape.digits, rows, counts, strict=True):
        smoothed = count.double() + 0.5
        logits = torch.zeros(repeats, widest)
        logits[:, :size] = torch.log(smoothed / smoothed.max()).float().clamp(min=-LARGEST_WEIGHT * UNIT)
        parts.append(logits)
    return torch.cat(parts)


@dataclass(frozen=True)
class CoderTraining:
    """How a row coder is trained.

    Attributes:
        steps: Optimization steps.
        batch: Rows a step.
        learning_rate: Adam's peak learning rate (one cycle, Smith & Topin 2018).
        rows: Rows that the archive will have: they share the weights' cost.
        seed: Seed of every random draw.
    """

    steps: int
    batch: int
    rows: int
    learning_rate: float = 0.04
    seed: int = 0


def train_coder(
    coder: ContextCoder, draw: Draw, options: CoderTraining, report: Callable[[int, float], None] | None = None
) -> None:
    """Trains a coder in place to the least description length of `options.rows` rows and its own weights.

    Args:
        coder: The coder.
        draw: Gives random rows.
        options: Steps, batch, seed.
        report: Called with the step and the bits a row, about ten times.
    """
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(coder.parameters(), lr=options.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=max(10, options.steps), pct_start=0.1
    )
    for step in range(options.steps):
        contexts_BG, digits_BD = draw(generator, options.batch)
        bits = coder.bits(contexts_BG, digits_BD, step > _ROUND_FROM * options.steps).sum(1).mean()
        price = min(1.0, step / (_PRICE_RAMP * options.steps))
        loss = bits + coder.weight_bits() * (price / options.rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if report is not None and step % max(1, options.steps // 10) == 0:
            report(step, float(bits.detach()))
