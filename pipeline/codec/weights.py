"""A row coder's weights as they lie in a model or archive: entropy-coded whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.entropy import pack_integers, unpack_integers
from vae_model.coder_shape import CoderShape, knot_offsets

if TYPE_CHECKING:
    from vae_model.context import ContextCoder
    from vae_model.integer import IntegerCoder

_MOST_WEIGHTS = 1 << 26


@dataclass(frozen=True)
class Network:
    """A deployed row coder.

    Attributes:
        shape: What it sees and codes.
        weights: Whole numbers by name, as `ContextCoder.integers` gives them.
    """

    shape: CoderShape
    weights: Mapping[str, npt.NDArray[np.int16]]

    @cached_property
    def coder(self) -> IntegerCoder:
        """The network, ready to evaluate."""
        import torch

        from vae_model.integer import IntegerCoder

        return IntegerCoder(self.shape, {name: torch.from_numpy(values) for name, values in self.weights.items()})

    @classmethod
    def trained(cls, coder: ContextCoder) -> Network:
        """What training gave."""
        return cls(coder.shape, {name: tensor.numpy() for name, tensor in coder.integers().items()})

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The weights as two arrays: `parameters` and `words` (see `entropy.pack_integers`)."""
        groups = [self.weights[name][index] for name, index in _groups(self.shape)]
        parameters, words = pack_integers(groups)
        return {"parameters": parameters, "words": words}

    @classmethod
    def from_arrays(cls, shape: CoderShape, arrays: Mapping[str, npt.NDArray[Any]]) -> Network:
        """Rebuilds a network from `to_arrays`' result.

        Raises:
            ValueError: If the arrays are damaged or belong to another shape.
        """
        sizes = weight_sizes(shape)
        if sum(int(np.prod(size)) for size in sizes.values()) > _MOST_WEIGHTS:
            raise ValueError("the description of a coder asks for more weights than any has")
        weights = {name: np.zeros(size, np.int16) for name, size in sizes.items()}
        groups = _groups(shape)
        counts = [weights[name][index].size for name, index in groups]
        for (name, index), values in zip(
            groups, unpack_integers(counts, arrays["parameters"], arrays["words"]), strict=True
        ):
            weights[name][index] = values.reshape(weights[name][index].shape)
        return cls(shape, weights)


def weight_sizes(shape: CoderShape) -> dict[str, tuple[int, ...]]:
    """The shape of every weight."""
    contexts = knot_offsets(shape.contexts, shape.ordinal_contexts, shape.knots)
    inputs = knot_offsets(shape.digits, shape.ordinal_digits, shape.knots)
    widest = max(shape.digits)
    return {
        "context_KH": (contexts[-1], shape.hidden),
        "input_KH": (inputs[-1], shape.hidden),
        "bias_DH": (len(shape.digits), shape.hidden),
        "output_DHR": (len(shape.digits), shape.hidden, widest),
        "logit_QR": (sum(_bias_rows(shape)), widest),
    }


def _bias_rows(shape: CoderShape) -> list[int]:
    return [shape.digits[given] if given >= 0 else 1 for given in shape.given]


def _groups(shape: CoderShape) -> list[tuple[str, tuple[Any, ...]]]:
    """Weights that share a distribution: one group a table, and a group a digit's outputs and biases."""
    groups: list[tuple[str, tuple[Any, ...]]] = []
    for name, sizes, ordinal in (
        ("context_KH", shape.contexts, shape.ordinal_contexts),
        ("input_KH", shape.digits, shape.ordinal_digits),
    ):
        offsets = knot_offsets(sizes, ordinal, shape.knots)
        groups += [(name, (slice(first, stop),)) for first, stop in pairwise(offsets)]
    groups.append(("bias_DH", (slice(None),)))
    first = 0
    for digit, (size, rows) in enumerate(zip(shape.digits, _bias_rows(shape), strict=True)):
        groups.append(("output_DHR", (digit, slice(None), slice(0, size))))
        groups.append(("logit_QR", (slice(first, first + rows), slice(0, size))))
        first += rows
    return groups
