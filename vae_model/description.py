"""Description: what weights say of themselves before they are loaded; to read it takes no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vae_model.config import NetworkConfig
from vae_model.layout import FeatureLayout

VERSION = 1
KEY = "parvae-vae"
"""What the description is called in a safetensors file's metadata."""
_ACTIVE = "latent_active_Z"
_BUFFERS = ("latent_step_Z", _ACTIVE)


@dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
        layout: Which symbols it sees.
        config: Its network.
        parameters: The number of its weights.
        active_latents: The number of latents that are in use.
    """

    layout: FeatureLayout
    config: NetworkConfig
    parameters: int
    active_latents: int

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """Reads the description out of weights (`vae_model.weights.to_bytes`).

        Source: https://huggingface.co/docs/safetensors/index#format

        Raises:
            ValueError: If the bytes are damaged, are something else, or come from a newer version.
        """
        header, body = _header(data)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or KEY not in metadata:
            raise ValueError(f"these bytes are not VAE weights: they do not say {KEY!r}")
        try:
            said = json.loads(metadata[KEY])
            if said["version"] != VERSION:
                raise ValueError(f"they have version {said['version']}, and version {VERSION} can be read")
            layout, config = FeatureLayout.from_json(said["layout"]), NetworkConfig.from_json(said["config"])
            if _ACTIVE not in header:
                raise ValueError(f"they do not fit their own description: {_ACTIVE} is missing")
            first, stop = header[_ACTIVE]["data_offsets"]
            parameters = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name not in _BUFFERS)
            return cls(layout, config, parameters, sum(map(bool, body[first:stop])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the VAE weights are damaged or foreign: {error}") from error


def to_text(layout: FeatureLayout, config: NetworkConfig) -> str:
    """What is kept under `KEY`."""
    return json.dumps({"version": VERSION, "layout": layout.to_json(), "config": config.to_json()}, sort_keys=True)


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file (8 bytes of length, then JSON), and what follows it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ValueError("the VAE weights are damaged: the file ends before its header")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise ValueError(f"these bytes are not VAE weights: {error}") from error
    if not isinstance(header, Mapping):
        raise ValueError("these bytes are not VAE weights: their header is no object")
    return dict(header), data[8 + length :]
