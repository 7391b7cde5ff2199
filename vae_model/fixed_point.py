"""Layers of whole numbers held in floats: sums in any order, on any device, give the same bits.

A real number v is held as round(v·2^fraction). A layer knows the interval that its inputs are clamped to, and
refuses weights whose sums could pass 2^52, half of the whole numbers that float64 holds; where they stay below
2^24 it computes in float32. Only products, sums, floor, comparisons and gathers happen, and multiplications by powers
of two, all of them exact. There are no convolutions of torch's own: they may go through FFT or Winograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Multiply = Callable[[Tensor, Tensor], Tensor]
"""A matrix product that sums whole numbers without rounding, such as `torch.matmul`."""

FRACTION = 8
"""Fraction bits of what goes in and out of an activation."""
EXACT, EXACT_SINGLE = 2**52, 2**24
LARGEST_LIMIT = 2**15
"""Largest input that an activation is clamped to."""
_SQUARE_BITS = 10
_UNIT_BITS = 20
_SIDES = ("height", "width", "rows", "columns")
_WHOLE_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64)


class Interval(NamedTuple):
    """What the inputs of a layer are clamped to, 0 included: whole numbers, one or one a feature, float64."""

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, low: int, high: int, device: torch.device | None = None) -> Interval:
        """The same interval for every feature."""
        ends = torch.tensor([low, high], dtype=torch.float64, device=device)
        return cls(ends[0], ends[1])


@dataclass
class Store:
    """Where layers keep themselves: whole tensors and single whole numbers, by name.

    Attributes:
        tensors: Integer tensors, of the narrowest type that holds them.
        numbers: Single integers.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def put(self, name: str, values: Tensor) -> None:
        """Keeps whole numbers."""
        largest = float(values.abs().max()) if values.numel() else 0.0
        dtype = next(dtype for dtype in _WHOLE_DTYPES if largest <= torch.iinfo(dtype).max)
        self.tensors[name] = values.detach().to("cpu", dtype).contiguous()

    def take(self, name: str, dimensions: int) -> Tensor:
        """Kept whole numbers, as float64.

        Raises:
            ValueError: If there are none, they have another type or number of dimensions, or pass 2^52.
        """
        values = self.tensors.get(name)
        if not isinstance(values, Tensor) or values.dtype not in _WHOLE_DTYPES or values.layout != torch.strided:
            raise ValueError(f"exact weights: {name!r} is missing or holds no integers")
        if values.ndim != dimensions or not values.numel():
            raise ValueError(f"exact weights: {name!r} has shape {list(values.shape)}, not {dimensions} dimensions")
        wide = values.to(torch.int64)
        if bool((wide >= EXACT).any() | (wide <= -EXACT).any()):
            raise ValueError(f"exact weights: {name!r} holds numbers beyond 2^52")
        return wide.to(torch.float64)

    def number(self, name: str, low: int, high: int) -> int:
        """One kept number.

        Raises:
            ValueError: If there is none, or it does not lie in low … high.
        """
        value = self.numbers.get(name)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"exact weights: {name!r} is {value!r}, must be an integer in {low} … {high}")
        return value


def rescale_(values: Tensor, shift: int, limit: int) -> Tensor:
    """clamp(floor(values / 2^shift), ±limit), in place."""
    return values.mul_(2.0**-shift).floor_().clamp_(-limit, limit)


def overlap(parts_BOKKHW: Tensor) -> Tensor:
    """Adds up the 4×4 pixels that each pixel of a transposed convolution of stride 2, padding 1 gives.

    Row 2i takes kernel row 1 of pixel i and row 3 of pixel i-1, row 2i+1 takes row 2 of i and row 0 of i+1.

    Returns:
        The image, shape (B, O, 2·H, 2·W); `parts_BOKKHW` is overwritten.
    """
    parts_BOKKHW[:, :, 1, :, 1:] += parts_BOKKHW[:, :, 3, :, :-1]
    parts_BOKKHW[:, :, 2, :, :-1] += parts_BOKKHW[:, :, 0, :, 1:]
    rows = parts_BOKKHW[:, :, 1:3]
    rows[:, :, :, 1, :, 1:] += rows[:, :, :, 3, :, :-1]
    rows[:, :, :, 2, :, :-1] += rows[:, :, :, 0, :, 1:]
    pixels = rows[:, :, :, 1:3].permute(0, 1, 4, 2, 5, 3)
    return pixels.flatten(4, 5).flatten(2, 3)


def reach(weight_OI: Tensor, inputs: Interval) -> Tensor:
    """How far the sums of each output can go, whatever part of them is summed first: up and down, shape (2, O)."""
    up_OI, down_OI = weight_OI.clamp(min=0), (-weight_OI).clamp(min=0)
    high_I = inputs.high.expand(weight_OI.shape[1])
    low_I = (-inputs.low).expand(weight_OI.shape[1])
    return torch.stack([up_OI @ high_I + down_OI @ low_I, up_OI @ low_I + down_OI @ high_I])


def sum_dtype(bound: Tensor, what: str) -> torch.dtype:
    """float32 where sums stay below 2^24, else float64.

    Raises:
        ValueError: If they could pass 2^52.
    """
    largest = float(bound.max())
    if not largest < EXACT:
        raise ValueError(f"{what}: sums of up to {largest:.3g} are not exact in float64")
    return torch.float32 if largest < EXACT_SINGLE else torch.float64


class Affine:
    """clamp(floor((W x + b) / 2^shift), ±limit).

    Args:
        weight_OI: W, whole numbers as float64.
        bias_O: b, likewise; half of 2^shift in it makes the floor a rounding.
        shift: Power of two that the sums are divided by; negative ones multiply.
        limit: Largest absolute output.
        inputs: What x is clamped to.
        sides: H, W of an image and what its 4×4 transposed convolution of stride 2 is cut to; W is then
            (O·16, I) for O channels, and x is (B, I·H·W).

    Raises:
        ValueError: If shapes contradict each other or sums could be inexact.
    """

    def __init__(
        self,
        weight_OI: Tensor,
        bias_O: Tensor,
        shift: int,
        limit: int,
        inputs: Interval,
        sides: tuple[int, int, int, int] | None = None,
    ) -> None:
        taps = 1 if sides is None else 16
        outputs, features = weight_OI.shape
        if outputs != len(bias_O) * taps or any(part.ndim and len(part) != features for part in inputs):
            raise ValueError(f"exact weights of shape {list(weight_OI.shape)} do not fit their bias or inputs")
        bound = reach(weight_OI, inputs)
        if sides is not None:
            # a pixel of the output sums two rows and two columns of the kernel, of one parity each
            bound = bound.view(2, -1, 2, 2, 2, 2).sum(dim=(2, 4)).flatten(2).amax(-1)
        self.dtype = sum_dtype(bound + bias_O.abs(), "exact weights")
        self.weight_OI, self.bias_O = weight_OI.to(self.dtype), bias_O.to(self.dtype)
        self.shift, self.limit, self.sides = shift, limit, sides
        self.outputs, self.features = len(bias_O), features
        self.numbers = self.outputs
        if sides is not None:
            height, width, rows, columns = sides
            if not (2 * height - 1 <= rows <= 2 * height and 2 * width - 1 <= columns <= 2 * width):
                raise ValueError(f"exact weights: an image of {height}×{width} does not become one of {rows}×{columns}")
            self.features, self.numbers = features * height * width, self.outputs * rows * columns

    def __call__(self, x: Tensor, multiply: Multiply, single: bool) -> Tensor:
        """The outputs: (B, I) → (B, O), or (B, I·H·W) → (B, O·H'·W').

        Args:
            x: Whole numbers within the interval.
            multiply: The matrix product.
            single: Whether float32 products may be trusted to be float32.
        """
        dtype = self.dtype if single else torch.float64
        weight_OI, bias_O, x = self.weight_OI.to(dtype), self.bias_O.to(dtype), x.to(dtype)
        if self.sides is None:
            total = multiply(x, weight_OI.T) + bias_O
        else:
            height, width, rows, columns = self.sides
            parts = multiply(weight_OI, x.view(len(x), -1, height * width))
            image = overlap(parts.view(len(x), -1, 4, 4, height, width))[:, :, :rows, :columns]
            total = (image + bias_O[:, None, None]).flatten(1)
        if self.limit >= EXACT_SINGLE:
            total = total.to(torch.float64)
        return rescale_(total, self.shift, self.limit)

    @property
    def widest(self) -> int:
        """Numbers a row that it computes on the way: of an image, every tap of every pixel."""
        return self.numbers if self.sides is None else 16 * self.outputs * self.sides[0] * self.sides[1]

    def save(self, store: Store, name: str) -> None:
        """Puts the layer into a store."""
        store.put(f"{name}.weight", self.weight_OI)
        store.put(f"{name}.bias", self.bias_O)
        numbers = {"shift": self.shift, "limit": self.limit, **dict(zip(_SIDES, self.sides or (), strict=False))}
        store.numbers |= {f"{name}.{key}": value for key, value in numbers.items()}

    @classmethod
    def load(cls, store: Store, name: str, inputs: Interval, image: bool = False) -> Affine:
        """Takes the layer out of a store.

        Raises:
            ValueError: If it is damaged, or its sums could be inexact.
        """
        weight_OI, bias_O = store.take(f"{name}.weight", 2), store.take(f"{name}.bias", 1)
        shift, limit = store.number(f"{name}.shift", -40, 52), store.number(f"{name}.limit", 1, 2**45)
        sides = None
        if image:
            height, width, rows, columns = (store.number(f"{name}.{key}", 1, 2**16) for key in _SIDES)
            sides = (height, width, rows, columns)
        return cls(weight_OI, bias_O, shift, limit, inputs, sides)


class Normalization:
    """Layer norm of F whole numbers: clamp(floor((x - mean) / deviation · gain + bias), ±limit).

    The inverse root comes from a table of 3072 integers over the leading bits of the sum of squares.

    Args:
        gain_F: Gain by feature, times √F · 2^(shift - 20 + FRACTION).
        bias_F: Bias by feature, times 2^(shift + FRACTION), and the half that rounds.
        epsilon: What is added to the sum of squares, at least 1.
        shift: Power of two that brings the result to FRACTION bits.
        limit: Largest absolute output.
        before: The layer whose outputs are normalized.

    Raises:
        ValueError: If a sum could be inexact.
    """

    def __init__(self, gain_F: Tensor, bias_F: Tensor, epsilon: int, shift: int, limit: int, before: Affine) -> None:
        features, inputs = before.outputs, before.limit
        squares = float(features) * (2 * inputs + 1) ** 2 + epsilon
        if not len(gain_F) == len(bias_F) == features or not squares < EXACT:
            raise ValueError(f"a norm of {features} numbers of up to {inputs} is not exact")
        sum_dtype(gain_F.abs() * 2.0 ** (_UNIT_BITS + 1) + bias_F.abs(), "exact norm")
        self.gain_F, self.bias_F, self.epsilon = gain_F, bias_F, epsilon
        self.shift, self.limit = shift, limit
        self._share = float(round(2**22 / features))
        device = gain_F.device
        self._fours = torch.tensor([4.0**power for power in range(1, 27)], dtype=torch.float64, device=device)
        self._halves = torch.tensor([0.5**power for power in range(27)], dtype=torch.float64, device=device)
        self._roots = torch.tensor(_inverse_roots(), dtype=torch.float64, device=device)

    def __call__(self, x_BF: Tensor) -> Tensor:
        """The outputs, float64 whole numbers of FRACTION bits."""
        x_BF = x_BF.to(torch.float64)
        mean_B1 = (x_BF.sum(-1, keepdim=True) * self._share).mul_(2.0**-22).floor_()
        away_BF = x_BF - mean_B1
        squares_B1 = away_BF.square().sum(-1, keepdim=True) + self.epsilon
        power_B1 = torch.bucketize(squares_B1, self._fours, right=True)
        half_B1 = self._halves[power_B1]
        leading_B1 = (squares_B1 * half_B1 * half_B1 * 2.0**_SQUARE_BITS).floor().to(torch.int64) - 2**_SQUARE_BITS
        unit_BF = away_BF.mul_(self._roots[leading_B1]).mul_(half_B1).floor_()
        return rescale_(unit_BF.mul_(self.gain_F).add_(self.bias_F), self.shift, self.limit)

    def save(self, store: Store, name: str) -> None:
        """Puts the layer into a store."""
        store.put(f"{name}.gain", self.gain_F)
        store.put(f"{name}.bias", self.bias_F)
        for key in ("epsilon", "shift", "limit"):
            store.numbers[f"{name}.{key}"] = getattr(self, key)

    @classmethod
    def load(cls, store: Store, name: str, before: Affine) -> Normalization:
        """Takes the layer out of a store.

        Raises:
            ValueError: If it is damaged, or its sums could be inexact.
        """
        gain_F, bias_F = store.take(f"{name}.gain", 1), store.take(f"{name}.bias", 1)
        epsilon, shift = store.number(f"{name}.epsilon", 1, EXACT), store.number(f"{name}.shift", 0, 52)
        limit = store.number(f"{name}.limit", 1, LARGEST_LIMIT)
        return cls(gain_F, bias_F, epsilon, shift, limit, before)


class Gate:
    """SiLU of whole numbers within ±limit, of FRACTION bits, by table.

    Args:
        below: max(x, 0) - SiLU(x) for x = 0, ±1, ±2, …: it is even, and 0 beyond its last entry.
        limit: Largest absolute input.
    """

    def __init__(self, below: Tensor, limit: int) -> None:
        if not 0 < limit <= LARGEST_LIMIT or not bool(((below >= 0) & (below <= LARGEST_LIMIT)).all()):
            raise ValueError("exact weights: the activation's table is damaged")
        x = torch.arange(-limit, limit + 1, device=below.device)
        padded = torch.cat([below, below.new_zeros(1)])
        values = x.clamp(min=0).to(torch.float64) - padded[x.abs().clamp(max=len(below))]
        self.table, self.limit = values.to(torch.float32), limit
        self.outputs = Interval(values.min().clamp(max=0), values.max().clamp(min=0))

    def __call__(self, x: Tensor) -> Tensor:
        """The activations, of x's shape."""
        index = (x + self.limit).to(torch.int32)
        return self.table.index_select(0, index.flatten()).view(x.shape)


@lru_cache
def _inverse_roots() -> tuple[int, ...]:
    """round(2^20 / √v) for the v of [1, 4) whose leading bits are 1024 … 4095."""
    # 2^20 / √((2i+1) / 2048) = √(2^51 / (2i+1))
    return tuple((math.isqrt(2**53 // (2 * i + 1)) + 1) // 2 for i in range(2**_SQUARE_BITS, 4 * 2**_SQUARE_BITS))
