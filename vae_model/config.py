"""NetworkConfig: the shape of a VAE, as it is written into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

OrdinalLikelihood = Literal["logistic_mixture", "gaussian", "gaussian_learned"]
_FIRST_WIDTH, _LATER_WIDTH = 128, 64
_WIDTHS = ("hidden", "encoder_hidden", "conv_channels")


@dataclass(frozen=True)
class NetworkConfig:
    """What has to be known beside the layout to rebuild a network.

    Attributes:
        latent_dim: Z, the number of latents.
        hidden: Widths of the decoder's hidden layers, the one beside the outputs first; () makes it exactly affine.
        likelihood: p(x|z) of ordinal spans; categorical spans always take a softmax.
        decoder_scale: σ_dec of the `"gaussian"` likelihood, in standardized units.
        conv_channels: Channels of the stride-2 stages that image spans go through; () treats images as flat.
        autoencoder: A plain autoencoder, for comparison: no noise, no KL.
        encoder_hidden: Widths of the encoder's hidden layers, the one beside the inputs first; () makes it affine (but
            for images). None leaves them to `encoder_widths`; a network's own config names them.

    Raises:
        ValueError: If a field is out of its range.
    """

    latent_dim: int = 16
    hidden: tuple[int, ...] = (256, 256)
    likelihood: OrdinalLikelihood = "logistic_mixture"
    decoder_scale: float = 1.0
    conv_channels: tuple[int, ...] = (16, 32)
    autoencoder: bool = False
    encoder_hidden: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim is {self.latent_dim}, must be at least 1")
        for name in _WIDTHS:
            widths = getattr(self, name)
            if any(width < 1 for width in widths or ()):
                raise ValueError(f"{name} {widths} must be positive")
        if self.likelihood not in get_args(OrdinalLikelihood):
            known = ", ".join(get_args(OrdinalLikelihood))
            raise ValueError(f"likelihood {self.likelihood!r} is unknown; known are {known}")
        if not self.decoder_scale > 0:
            raise ValueError(f"decoder_scale is {self.decoder_scale}, must be positive")

    def encoder_widths(self, symbols: int) -> tuple[int, ...]:
        """Widths of the encoder's hidden layers for rows of so many symbols.

        Where `encoder_hidden` does not say, `hidden`, but the first no wider than 128 and those after it than 64, or
        than the symbols or a quarter of the latents' square, whichever is most: of narrow rows such an encoder says as
        much, in a fraction of the time.
        """
        if self.encoder_hidden is not None:
            return self.encoder_hidden
        least = max(symbols, self.latent_dim**2 // 4)
        first, later = max(_FIRST_WIDTH, least), max(_LATER_WIDTH, least)
        return tuple(min(width, later if place else first) for place, width in enumerate(self.hidden))

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description; `from_json` gives an equal config back.

        It names the encoder's widths only where they differ from the decoder's, as files of before do not.
        """
        data = dataclasses.asdict(self)
        if self.encoder_hidden == self.hidden:
            del data["encoder_hidden"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Rebuilds a config from `to_json`'s result.

        Without `encoder_hidden` the encoder's layers are as wide as the decoder's: once there was nothing else.

        Raises:
            ValueError: If a key is unknown or a value is out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown network settings {unknown}; known are {sorted(known)}")
        fields = {"encoder_hidden": data["hidden"], **data} if "hidden" in data else dict(data)
        for name in _WIDTHS:
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        return cls(**fields)
