"""What the VAE's decoder says of a vector's elements, exactly: contexts of the element coders.

Where an archive stores latents, its decoder f_θ(ẑ) is known before anything is decoded. `vae_model.exact` evaluates
it in whole numbers; an element's location becomes a level like those of its neighbours, its scale one of 64.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.elements import Levels, levels_of
from pipeline.codec.model import Bins, Latents
from pipeline.errors import ModelError

if TYPE_CHECKING:
    from vae_model.exact import ExactDecoder

_ROWS = 4096
_MOST_BYTES = 1 << 30
_SIXTEENTHS = 16


def latent_indices(latents: Latents, steps: npt.NDArray[np.float32]) -> Bins:
    """Stored latents in steps of their grid; 0 where a latent has no step, far ones are clipped."""
    whole = np.where(steps > 0, steps, 1).astype(np.float64)
    indices = np.rint(np.where(steps > 0, latents, 0).astype(np.float64) / whole)
    return np.clip(indices, -(2**31), 2**31).astype(np.int64)


@dataclass(frozen=True)
class Guide:
    """The exact decoder of an archive's VAE, in bins of the coding transform; unpacked when it is first asked.

    Attributes:
        packed: Its tensors and description, packed by xz.
        columns: The vector columns that it speaks of.
        steps: Grid step of each latent, 0 for those that are switched off.
    """

    packed: bytes
    columns: frozenset[str]
    steps: npt.NDArray[np.float32]

    @classmethod
    def of(cls, decoder: ExactDecoder, steps: npt.NDArray[np.float32]) -> Guide:
        """Packs a decoder."""
        import safetensors.torch

        description = json.dumps(decoder.to_json(), separators=(",", ":"))
        data: bytes = safetensors.torch.save(decoder.to_tensors(), {"exact": description})
        return cls.from_bytes(lzma.compress(data, preset=6), steps)

    @classmethod
    def from_bytes(cls, packed: bytes, steps: npt.NDArray[np.float32]) -> Guide:
        """Rebuilds a guide from its fields.

        Raises:
            ValueError: If the bytes are damaged.
        """
        try:
            _, description = _unpack(packed)
            spans = [span for group in description["spans"] for span in group]
            columns = frozenset(str(span["column"]) for span in spans if span["width"] > 1)
        except (lzma.LZMAError, LookupError, TypeError) as error:
            raise ValueError(f"the exact decoder is damaged: {error!r}") from error
        return cls(packed, columns, steps)

    @cached_property
    def decoder(self) -> ExactDecoder:
        """The decoder.

        Raises:
            ModelError: If it is damaged.
        """
        import safetensors.torch

        from vae_model.exact import ExactDecoder

        try:
            data, description = _unpack(self.packed)
            return ExactDecoder.from_tensors(safetensors.torch.load(data), description)
        except (safetensors.SafetensorError, LookupError, ValueError, TypeError, OverflowError) as error:
            raise ModelError(f"the exact decoder is damaged ({error!r}); copy the model again") from error

    def levels(self, latents: Latents, column: str) -> Levels:
        """Location as a level and scale of every element, shape (rows, elements, 2).

        Raises:
            ModelError: If the decoder is damaged.
        """
        import torch

        place = next(n for n, span in enumerate(self.decoder.spans) if span.column == column and span.width > 1)
        span = self.decoder.spans[place]
        found = np.zeros((len(latents), span.width, 2), np.int16)
        for start in range(0, len(latents), _ROWS):
            indices = latent_indices(latents[start : start + _ROWS], self.steps)
            said = self.decoder.parameters(torch.from_numpy(indices))[place]
            bins = np.clip((said.location_BN.numpy() + _SIXTEENTHS // 2) // _SIXTEENTHS, 0, span.bins - 1)
            found[start : start + _ROWS, :, 0] = levels_of(bins, span.bins)
            found[start : start + _ROWS, :, 1] = np.clip(said.scale_BN.numpy(), 0, 63)
        return found


def _unpack(packed: bytes) -> tuple[bytes, dict[str, Any]]:
    """The decoder's safetensors and what their metadata says."""
    data = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_BYTES).decompress(packed, _MOST_BYTES)
    size = int.from_bytes(data[:8], "little")
    description: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["exact"])
    return data, description
