"""NetworkConfig: the shape of a VAE, as it is written into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

OrdinalLikelihood = Literal["logistic_mixture", "gaussian", "gaussian_learned"]


@dataclass(frozen=True)
class NetworkConfig:
    """What has to be known beside the layout to rebuild a network.

    Attributes:
        latent_dim: Z, the number of latents.
        hidden: Widths of the encoder's hidden layers, mirrored by the decoder; () makes both exactly affine.
        likelihood: p(x|z) of ordinal spans; categorical spans always take a softmax.
        decoder_scale: σ_dec of the `"gaussian"` likelihood, in standardized units.
        conv_channels: Channels of the stride-2 stages that image spans go through; () treats images as flat.
        autoencoder: A plain autoencoder, for comparison: no noise, no KL.

    Raises:
        ValueError: If a field is out of its range.
    """

    latent_dim: int = 16
    hidden: tuple[int, ...] = (256, 256)
    likelihood: OrdinalLikelihood = "logistic_mixture"
    decoder_scale: float = 1.0
    conv_channels: tuple[int, ...] = (16, 32)
    autoencoder: bool = False

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}, must be at least 1")
        if any(width < 1 for width in (*self.hidden, *self.conv_channels)):
            raise ValueError(f"hidden {self.hidden} and conv_channels {self.conv_channels} must be positive")
        if self.likelihood not in get_args(OrdinalLikelihood):
            known = ", ".join(get_args(OrdinalLikelihood))
            raise ValueError(f"likelihood {self.likelihood!r} is unknown; known are {known}")
        if not self.decoder_scale > 0:
            raise ValueError(f"decoder_scale is {self.decoder_scale}, must be positive")

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description; `from_json` gives an equal config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Rebuilds a config from `to_json`'s result.

        Raises:
            ValueError: If a key is unknown or a value is out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown network settings {unknown}; known are {sorted(known)}")
        fields = dict(data)
        for name in ("hidden", "conv_channels"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return cls(**fields)
