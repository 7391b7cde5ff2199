"""Convolutional towers for image spans: stride-2 stages down, the same sides back up."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_model.layers import Activation


def _sides(shape: tuple[int, ...], stages: int) -> list[tuple[int, int]]:
    """Height and width before the first stage and after each; odd sides are rounded up."""
    sides = [(shape[0], shape[1])]
    for _ in range(stages):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    return sides


class ImageEncoder(nn.Module):
    """Image → features: 3×3 convolutions of stride 2, flattened, then a linear layer.

    Args:
        shape: (H, W) or (H, W, C); the image comes as H·W·C numbers in this order.
        channels: Channels after each stage.
        outputs: Number of features.
    """

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        depth = shape[2] if len(shape) == 3 else 1
        self.shape = (shape[0], shape[1], depth)
        self.stages = nn.Sequential()
        for inner, outer in pairwise((depth, *channels)):
            self.stages.append(nn.Conv2d(inner, outer, kernel_size=3, stride=2, padding=1))
            self.stages.append(Activation())
        height, width = _sides(shape, len(channels))[-1]
        self.head = nn.Linear(channels[-1] * height * width, outputs)

    def forward(self, x_BN: Tensor) -> Tensor:
        """Features, shape (B, outputs)."""
        image = x_BN.view(-1, *self.shape).movedim(-1, 1)
        features: Tensor = self.head(self.stages(image).flatten(1))
        return features


class ImageDecoder(nn.Module):
    """Features → raw numbers a symbol: a linear layer, then transposed 4×4 convolutions of stride 2.

    What a stage makes too many, because the side before it was odd, is cut off at the lower right.

    Args:
        shape: (H, W) or (H, W, C); N = H·W·C symbols.
        channels: The encoder's channels, mirrored here.
        inputs: Number of features.
        outputs: P, raw numbers a symbol.
    """

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], inputs: int, outputs: int) -> None:
        super().__init__()
        self.depth = shape[2] if len(shape) == 3 else 1
        self.outputs = outputs
        self.sides = _sides(shape, len(channels))[::-1]
        height, width = self.sides[0]
        upward = channels[::-1]
        self.start = (upward[0], height, width)
        self.first = nn.Linear(inputs, upward[0] * height * width)
        self.stages = nn.ModuleList(
            nn.ConvTranspose2d(inner, outer, kernel_size=4, stride=2, padding=1)
            for inner, outer in pairwise((*upward, outputs * self.depth))
        )
        self.activation = Activation()
        self.bias_PN = nn.Parameter(torch.zeros(outputs, shape[0] * shape[1] * self.depth))

    def forward(self, features_BF: Tensor) -> Tensor:
        """Raw numbers raw_BPN, with a bias of every symbol's own."""
        image = self.first(features_BF).view(-1, *self.start)
        for stage, (height, width) in zip(self.stages, self.sides[1:], strict=True):
            image = stage(self.activation(image))[:, :, :height, :width]
        height, width = self.sides[-1]
        raw_BPHWC = image.reshape(-1, self.outputs, self.depth, height, width).movedim(2, -1)
        raw_BPN: Tensor = raw_BPHWC.flatten(2) + self.bias_PN
        return raw_BPN
