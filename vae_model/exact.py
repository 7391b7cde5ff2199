"""ExactDecoder: where p(x|z) lies and how wide it is, as integers that are the same for anyone who computes them.

Latents come as the integers k = z/step that an archive stores. Out come, for every linear ordinal span, a
location in sixteenths of a bin and a quantized log-scale: what an entropy coder needs of the decoder. The float
decoder stays what reconstructs and samples; see `fixed_point` for why it cannot code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vae_model.exact_export import export
from vae_model.exact_layers import MOST_BEYOND, MOST_BINS, ExactSpan, Parts, SpanParameters, Tower
from vae_model.fixed_point import Multiply, Store
from vae_model.layout import Span
from vae_model.network import VAE

VERSION = 1
_ROWS = 128
_GPU_NUMBERS = 2**25
"""Numbers of a layer that a GPU computes at a time, at most: rows by the hundred would leave it idle."""


class ExactDecoder:
    """The fixed-point evaluation of a decoder; make one by `from_vae` or `from_tensors`.

    Attributes:
        spans: The spans that it speaks about: ordinal ones without a knee, in the layout's order.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        grouped = [span for output in parts.outputs for span in output.spans]
        self._order = sorted(range(len(grouped)), key=lambda place: grouped[place].number)
        self.spans = [grouped[place] for place in self._order]

    @classmethod
    def from_vae(
        cls, vae: VAE, grids: Mapping[str, Span] | None = None, sample_k_BZ: Tensor | None = None
    ) -> ExactDecoder:
        """Rounds a decoder's weights to fixed point.

        Spans with a knee, or of more than 2^40 bins, are left out.

        Args:
            vae: A model whose active latents have a grid.
            grids: Column name → the value span whose bins are to be coded, standardized like the VAE's own
                (same centre and scale): locations and scales are then in bins of that one. The VAE's own bins
                where a column is not named.
            sample_k_BZ: Latent indices of real rows, int64: they say how far activations go. Draws from the
                prior if None.

        Raises:
            ValueError: If an active latent has no grid, a weight is not finite, or sums could be inexact.
        """
        return cls(export(vae, grids or {}, sample_k_BZ))

    @torch.no_grad()
    def parameters(self, k_BZ: Tensor, beyond: int = 0, multiply: Multiply | None = None) -> list[SpanParameters]:
        """Locations and levels of every span in `spans`.

        Args:
            k_BZ: Latent indices z/step, int64, on the decoder's device.
            beyond: How far beyond the grid locations may lie, as a multiple of its size, at most 8. A location
                far outside says that the first or the last bin is sure.
            multiply: Another matrix product than torch's; it must sum float64 (float32 below 2^24) whole
                numbers without loss.

        Raises:
            ValueError: If `k_BZ` has another type or width, or `beyond` is out of its range.
        """
        if not 0 <= beyond <= MOST_BEYOND:
            raise ValueError(f"beyond is {beyond}, must be 0 … {MOST_BEYOND}")
        if k_BZ.dtype != torch.int64 or k_BZ.shape[1:] != self._parts.limit_Z.shape:
            raise ValueError(f"latent indices are {k_BZ.dtype} of shape {list(k_BZ.shape)}")
        on_cpu = k_BZ.device.type == "cpu"
        rows = _ROWS if on_cpu else max(_ROWS, _GPU_NUMBERS // self._parts.widest)
        single = on_cpu and _single_is_single()
        with torch.autocast(k_BZ.device.type, enabled=False):
            chunks = [self._rows(part, beyond, multiply or torch.matmul, single) for part in torch.split(k_BZ, rows)]
        columns = zip(*chunks, strict=True)
        pairs = [[torch.cat(parts) for parts in zip(*column, strict=True)] for column in columns]
        return [SpanParameters(span, *pairs[place]) for span, place in zip(self.spans, self._order, strict=True)]

    def _rows(self, k_BZ: Tensor, beyond: int, multiply: Multiply, single: bool) -> list[tuple[Tensor, Tensor]]:
        parts = self._parts
        limit_Z = parts.limit_Z.to(torch.int64)
        z_BZ = torch.minimum(torch.maximum(k_BZ, -limit_Z), limit_Z).to(torch.float64)
        x = z_BZ
        for affine, norm, gate in parts.trunk:
            x = gate(norm(affine(x, multiply, single)))
        necked = x if parts.neck is None else parts.neck(x, multiply, single)
        parameters: list[tuple[Tensor, Tensor]] = []
        for output in parts.outputs:
            raw_BR = output.source(x if isinstance(output.source, Tower) else necked, multiply, single)
            guess_BN = None if output.skip is None else output.skip(z_BZ, multiply, single).to(torch.float64)
            both = output.readout(raw_BR.to(torch.float64), guess_BN, parts.soft, beyond)
            widths = [span.width for span in output.spans]
            parameters += zip(*(torch.split(values, widths, dim=1) for values in both), strict=True)
        return parameters

    def to_tensors(self) -> dict[str, Tensor]:
        """Every weight and table, integers of 8 to 64 bits, on the CPU."""
        return self._parts.save().tensors

    def to_json(self) -> dict[str, Any]:
        """What `from_tensors` needs beside the tensors, JSON-serializable."""
        spans = [[asdict(span) for span in output.spans] for output in self._parts.outputs]
        return {"version": VERSION, "spans": spans, "numbers": self._parts.save().numbers}

    def fingerprint(self) -> str:
        """SHA-256, in hex, over `to_json` and every tensor's name, dtype, shape and bytes."""
        digest = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(self.to_tensors().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ExactDecoder:
        """The same decoder on another device."""
        return ExactDecoder.from_tensors(self.to_tensors(), self.to_json(), device)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], description: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> ExactDecoder:
        """Rebuilds a decoder from `to_tensors` and `to_json`.

        Raises:
            ValueError: If they are damaged, come from a newer version, or could sum inexactly.
        """
        if description.get("version") != VERSION:
            raise ValueError(f"exact weights have version {description.get('version')!r}, {VERSION} can be read")
        numbers = description.get("numbers")
        store = Store(
            {name: tensor.to(device) for name, tensor in tensors.items()},
            dict(numbers) if isinstance(numbers, Mapping) else {},
        )
        try:
            spans = [[_span(item) for item in group] for group in description["spans"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"exact weights have a damaged description: {error!r}") from error
        return cls(Parts.load(store, spans))


def _span(item: Mapping[str, Any]) -> ExactSpan:
    span = ExactSpan(**item)
    for value, low, high in ((span.number, 0, 2**31), (span.width, 1, 2**31), (span.bins, 1, MOST_BINS)):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"exact weights describe a span {item}")
    if type(span.column) is not str or type(span.first_level) is not int or abs(span.first_level) > 2**10:
        raise ValueError(f"exact weights describe a span {item}")
    return span


def _single_is_single() -> bool:
    """Whether float32 products on the CPU are float32 inside, and not bfloat16."""
    onednn = getattr(torch.backends, "mkldnn", None)
    switches = (torch.backends, onednn, getattr(onednn, "matmul", None))
    if any(getattr(switch, "fp32_precision", "none") not in ("none", "ieee") for switch in switches):
        return False
    # sums of up to 2^24 of numbers of 11 bits: an environment variable may ask for bfloat16 too
    a = torch.arange(64 * 64, dtype=torch.float64).view(64, 64).remainder_(2039)
    b = torch.arange(64 * 64, dtype=torch.float64).view(64, 64).remainder_(127)
    return torch.equal((a.float() @ b.float()).double(), a @ b)
