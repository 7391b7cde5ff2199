"""The row coder as it is deployed: whole numbers only, bit-identical for any batch, thread count and device.

Tables are sums of whole numbers; activations are rounded and clamped to 0 … 255; products of activations and
weights are whole numbers held in float32 while Σ|w||a| < 2^24 and in float64 while it is < 2^53, so that sums
come out the same in any order. Logits are in units of 1/64 nat. Probabilities are proportional to the whole
numbers of an integer table of exp, so nothing is computed by floating-point exp, and each is at least 1.
"""

from __future__ import annotations

import decimal
import hashlib
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_model.coder_shape import INTERPOLATION, CoderShape
from vae_model.context import LARGEST_ACTIVATION, LARGEST_WEIGHT, Tables

LOGITS_PER_NAT = 64
_WEIGHT_BITS = 32
_FARTHEST = 1024
"""Logits further than this below the largest count as this far (16 nats)."""
_BIAS_UNITS = 8
"""A bias of one unit (1/8 nat) in logits."""

MatMul = Callable[[Tensor, Tensor], Tensor]


@cache
def exponential_table() -> Tensor:
    """round(2^32 · exp(-k/64)) for k = 0 … 1024, as float64; correctly rounded by decimal arithmetic."""
    with decimal.localcontext() as context:
        context.prec = 60
        scale = decimal.Decimal(1 << _WEIGHT_BITS)
        values = [
            int((scale * (decimal.Decimal(-k) / LOGITS_PER_NAT).exp()).to_integral_value())
            for k in range(_FARTHEST + 1)
        ]
    return torch.tensor(values, dtype=torch.float64)


class IntegerCoder:
    """Evaluates a row coder exactly.

    Args:
        shape: What is seen and coded.
        weights: Whole numbers, as `ContextCoder.integers` gives them.
        matmul: The matrix product; any that is exact on whole numbers below the dtype's limit.
        device: Torch device.

    Raises:
        ValueError: If the weights do not fit the shape, or could leave the exact range.
    """

    def __init__(
        self,
        shape: CoderShape,
        weights: Mapping[str, Tensor],
        matmul: MatMul = torch.matmul,
        device: str = "cpu",
    ) -> None:
        self.shape, self._matmul, self.device = shape, matmul, device
        self._contexts = Tables(shape.contexts, shape.ordinal_contexts, shape.knots).to(device)
        self._inputs = Tables(shape.digits, shape.ordinal_digits, shape.knots).to(device)
        _check_weights(shape, weights, self._contexts, self._inputs)
        tables = (len(shape.contexts) + len(shape.digits) + 1) * LARGEST_WEIGHT * INTERPOLATION
        self._sum_dtype = torch.float32 if tables < 1 << 24 else torch.float64
        product = LARGEST_ACTIVATION * LARGEST_WEIGHT * shape.hidden + LARGEST_WEIGHT * _BIAS_UNITS
        self._dtype = torch.float32 if product < 1 << 24 else torch.float64
        moved = {name: weight.to(device).long() for name, weight in weights.items()}
        self._context_SH = self._contexts.expand(moved["context_KH"]).to(self._sum_dtype)
        self._input_SH = self._inputs.expand(moved["input_KH"]).to(self._sum_dtype)
        self._bias_DH = (moved["bias_DH"] * INTERPOLATION).to(self._sum_dtype)
        self._output = [
            moved["output_DHR"][number, :, :size].to(self._dtype).contiguous()
            for number, size in enumerate(shape.digits)
        ]
        self._logits = []
        first = 0
        for given, size in zip(shape.given, shape.digits, strict=True):
            rows = shape.digits[given] if given >= 0 else 1
            self._logits.append((moved["logit_QR"][first : first + rows, :size] * _BIAS_UNITS).to(self._dtype))
            first += rows
        self._exponential = exponential_table().to(device)

    def start(self, contexts_BG: Tensor) -> Tensor:
        """The sum of the contexts' table rows, hidden_BH, in sixteenths of a unit."""
        if not self.shape.contexts:
            return torch.zeros(len(contexts_BG), self.shape.hidden, dtype=self._sum_dtype, device=self.device)
        return F.embedding_bag(self._contexts.rows(contexts_BG), self._context_SH, mode="sum")

    def absorb(self, hidden_BH: Tensor, digit: int, values_B: Tensor) -> None:
        """Adds what digit `digit` says to hidden_BH, in place; -1 = absent."""
        row_B = torch.where(values_B < 0, self.shape.digits[digit], values_B) + self._inputs.offset[digit]
        hidden_BH += torch.index_select(self._input_SH, 0, row_B)

    def weights(self, hidden_BH: Tensor, digit: int, given_B: Tensor | None) -> Tensor:
        """Whole-number probabilities weight_BR (float64, each at least 1, sums below 2^53) of a digit.

        Args:
            hidden_BH: What is known so far.
            digit: Number of the digit.
            given_B: Values of the digit that chooses its biases; None if it has none.
        """
        active_BH = (hidden_BH + self._bias_DH[digit]).add_(INTERPOLATION // 2).div_(INTERPOLATION).floor_()
        active_BH = active_BH.clamp_(0, LARGEST_ACTIVATION).to(self._dtype)
        logits_BR = self._matmul(active_BH, self._output[digit])
        bias = self._logits[digit]
        logits_BR = logits_BR + (bias if given_B is None else bias[given_B])
        below_BR = logits_BR.amax(1, keepdim=True).sub(logits_BR).clamp_(max=_FARTHEST)
        return torch.take(self._exponential, below_BR.to(torch.int64))


def fingerprint(shape: CoderShape, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a deployed coder."""
    digest = hashlib.sha256(repr(sorted(shape.to_json().items())).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(bytes(weights[name].cpu().to(torch.int16).contiguous().view(torch.uint8).flatten().tolist()))
    return digest.hexdigest()


def _check_weights(shape: CoderShape, weights: Mapping[str, Tensor], contexts: Tables, inputs: Tables) -> None:
    widest, count = max(shape.digits), len(shape.digits)
    rows = sum(shape.digits[given] if given >= 0 else 1 for given in shape.given)
    expected = {
        "context_KH": (contexts.knots, shape.hidden),
        "input_KH": (inputs.knots, shape.hidden),
        "bias_DH": (count, shape.hidden),
        "output_DHR": (count, shape.hidden, widest),
        "logit_QR": (rows, widest),
    }
    if set(weights) != set(expected):
        raise ValueError(f"a row coder has the weights {sorted(expected)}, found {sorted(weights)}")
    for name, size in expected.items():
        weight = weights[name]
        if tuple(weight.shape) != size or weight.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)} and dtype {weight.dtype}, expected {size} integers"
            )
        if weight.numel() and int(weight.abs().max()) > LARGEST_WEIGHT:
            raise ValueError(f"{name} holds a weight beyond {LARGEST_WEIGHT}; products would not be exact")
