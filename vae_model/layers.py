"""Layers that encoder and decoder share, in place where they may be: what is written stays in a core's cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def in_place(x: Tensor) -> bool:
    """Whether results may take the place of operands: neither gradients nor mixed precision are wanted."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))


def add_product(total_BH: Tensor, x_BF: Tensor, weight_HF: Tensor) -> Tensor:
    """Adds x·weightᵀ to a total; the sum takes the place of `total_BH` where it may."""
    return total_BH.addmm_(x_BF, weight_HF.t()) if in_place(x_BF) else total_BH + F.linear(x_BF, weight_HF)


class Activation(nn.SiLU):
    """SiLU of what a layer before it made, whose place it takes where no gradient is wanted."""

    def forward(self, input: Tensor) -> Tensor:
        """SiLU(input), of the same shape."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


def hidden_layers(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear, layer norm, SiLU, for each width after the first activation."""
    layers = nn.Sequential()
    for width in widths:
        layers.extend([nn.Linear(inputs, width), nn.LayerNorm(width), Activation()])
        inputs = width
    return layers
