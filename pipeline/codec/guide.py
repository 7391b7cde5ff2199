"""What the VAE's decoder says of a vector's elements, exactly: contexts of the element coders.

Where an archive stores latents, its decoder f_θ(ẑ) is known before anything is decoded. `vae_model.exact` evaluates
it in whole numbers; an element's location becomes a level like those of its neighbours, its scale one of 64.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch

from pipeline.codec.elements import Levels, levels_of
from pipeline.codec.model import Bins, Latents
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
    """The exact decoder of an archive's VAE.

    Attributes:
        decoder: The decoder, in bins of the coding transform.
        steps: Grid step of each latent, 0 for those that are switched off.
    """

    decoder: ExactDecoder
    steps: npt.NDArray[np.float32]

    def speaks_of(self, column: str) -> bool:
        """Whether it knows a column."""
        return any(span.column == column and span.width > 1 for span in self.decoder.spans)

    def levels(self, latents: Latents, column: str) -> Levels:
        """Location as a level and scale of every element, shape (rows, elements, 2)."""
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

    def to_bytes(self) -> bytes:
        """The decoder's tensors and description, packed by xz."""
        description = json.dumps(self.decoder.to_json(), separators=(",", ":"))
        data: bytes = safetensors.torch.save(self.decoder.to_tensors(), {"exact": description})
        return lzma.compress(data, preset=6)

    @classmethod
    def from_bytes(cls, data: bytes, steps: npt.NDArray[np.float32]) -> Guide:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: If the bytes are damaged.
        """
        try:
            unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, _MOST_BYTES)
            whole = unpacker.decompress(data, _MOST_BYTES)
            size = int.from_bytes(whole[:8], "little")
            description = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"]["exact"])
            return cls(ExactDecoder.from_tensors(safetensors.torch.load(whole), description), steps)
        except (lzma.LZMAError, safetensors.SafetensorError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"the exact decoder is damaged: {error!r}") from error
