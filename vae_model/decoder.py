"""The decoder: latents → parameters of p(x|z), by groups of spans that share one tensor operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_model.config import NetworkConfig
from vae_model.elbo import full_precision
from vae_model.encoder import goes_through_tower
from vae_model.features import Columns, symbols
from vae_model.images import ImageDecoder
from vae_model.layers import hidden_layers
from vae_model.layout import FeatureLayout, Span
from vae_model.likelihood import (
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianLearned,
    Likelihood,
    Parameters,
)
from vae_model.vocabulary import LARGE, TwoLevelCategorical

_HEAD_LIMIT = 8_000_000


class SpanGroup(nn.Module):
    """Spans whose likelihood is evaluated in one go; scalar spans first, then wide ones.

    Args:
        layout: The layout of a row.
        members: Which spans, as indices into `layout.spans`.
        config: Says which likelihood ordinal spans take.
    """

    likelihood: Likelihood[Any]

    def __init__(self, layout: FeatureLayout, members: Sequence[int], config: NetworkConfig) -> None:
        super().__init__()
        self.members = sorted(members, key=lambda number: layout.spans[number].width > 1)
        self.spans = [layout.spans[number] for number in self.members]
        self.columns = Columns(symbols(self.spans))
        self.likelihood = make_likelihood(self.spans, config)
        self.scalars = sum(span.width == 1 for span in self.spans)
        self._wide = [span.width for span in self.spans if span.width > 1]

    def by_span(self, value_BN: Tensor) -> Tensor:
        """Sums a value by symbol to one by span."""
        if not self._wide:
            return value_BN
        scalars, *wide = torch.split(value_BN, [self.scalars, *self._wide], dim=-1)
        return torch.cat([scalars, *(part.sum(-1, keepdim=True) for part in wide)], dim=-1)


def make_likelihood(spans: Sequence[Span], config: NetworkConfig) -> Likelihood[Any]:
    """The likelihood that spans of one group share."""
    if spans[0].kind == "categorical":
        return TwoLevelCategorical(spans) if spans[0].bins > LARGE else Categorical(spans)
    if config.likelihood == "gaussian":
        return Gaussian(spans, config.decoder_scale)
    if config.likelihood == "gaussian_learned":
        return GaussianLearned(spans)
    return DiscretizedLogisticMixture(spans, spans[0].components)


def group_spans(layout: FeatureLayout, config: NetworkConfig) -> list[list[int]]:
    """Spans that share an operation: same likelihood and components, vocabularies of one power of two."""
    groups: dict[tuple[str, int], list[int]] = {}
    for number, span in enumerate(layout.spans):
        if goes_through_tower(span, config):
            key = ("image", number)
        elif span.kind == "categorical" and span.bins > LARGE:
            key = ("large", span.bins)
        elif span.kind == "categorical":
            key = ("categorical", (span.bins - 1).bit_length())
        else:
            key = ("ordinal", span.components if config.likelihood == "logistic_mixture" else 1)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


class Decoder(nn.Module):
    """p(x|z): hidden layers, one head for all flat groups, a tower an image, a linear path to locations.

    Args:
        layout: The layout of a row.
        config: Widths, image stages, likelihood.
    """

    def __init__(self, layout: FeatureLayout, config: NetworkConfig) -> None:
        super().__init__()
        self.groups = nn.ModuleList(SpanGroup(layout, members, config) for members in group_spans(layout, config))
        latents, hidden = config.latent_dim, config.hidden[::-1]
        self.trunk = hidden_layers(latents, hidden)
        width = hidden[-1] if hidden else latents
        self._is_image = [goes_through_tower(group.spans[0], config) for group in self._groups()]
        self._outputs: list[int] = []
        biases: list[Tensor] = []
        self.towers = nn.ModuleList()
        self._guesses = [g.likelihood.count if g.spans[0].kind == "ordinal" else 0 for g in self._groups()]
        for group, image in zip(self._groups(), self._is_image, strict=True):
            if image:
                self.towers.append(_make_tower(group, config, width))
                self._outputs.append(0)
            else:
                self._outputs.append(group.likelihood.outputs)
                biases.append(group.likelihood.first_bias())
        self.head = _make_head(width, torch.cat(biases), small=bool(hidden)) if biases else None
        self.skip: nn.Linear | None = None
        if hidden and sum(self._guesses):
            self.skip = nn.Linear(latents, sum(self._guesses))
            nn.init.zeros_(self.skip.bias)

    def _groups(self) -> list[SpanGroup]:
        return [group for group in self.groups if isinstance(group, SpanGroup)]

    def forward(self, z_BZ: Tensor) -> list[Parameters]:
        """Parameters by group, in the order of `groups`; z may have more leading dimensions."""
        lead = z_BZ.shape[:-1]
        flat_z = z_BZ.flatten(0, -2)
        hidden = self.trunk(flat_z)
        images = [tower(hidden).to(z_BZ.dtype).flatten(1) for tower in self.towers]
        with full_precision(z_BZ):
            whole = self.head(hidden.to(z_BZ.dtype)) if self.head is not None else flat_z[:, :0]
            raws = whole.split(self._outputs, dim=-1)
            guesses = self.skip(flat_z).split(self._guesses, dim=-1) if self.skip is not None else None
            parameters: list[Parameters] = []
            for number, group in enumerate(self._groups()):
                raw = images.pop(0) if self._is_image[number] else raws[number]
                guess = guesses[number] if guesses is not None and self._guesses[number] else None
                guess = None if guess is None else guess.unflatten(0, lead)
                parameters.append(group.likelihood.from_raw(raw.unflatten(0, lead), guess))
        return parameters


def _make_tower(group: SpanGroup, config: NetworkConfig, inputs: int) -> ImageDecoder:
    shape = group.spans[0].shape
    if shape is None:
        raise ValueError(f"column {group.spans[0].column!r} has no image shape")
    likelihood = group.likelihood
    tower = ImageDecoder(shape, config.conv_channels, inputs, likelihood.outputs // likelihood.count)
    with torch.no_grad():
        tower.bias_PN.copy_(likelihood.first_bias().view_as(tower.bias_PN))
    return tower


def _make_head(inputs: int, bias: Tensor, small: bool) -> nn.Module:
    """A linear layer with given biases, factored where it would pass 8 million weights."""
    outputs = len(bias)
    rank = max(16, _HEAD_LIMIT // outputs)
    last = nn.Linear(min(inputs, rank), outputs)
    with torch.no_grad():
        last.bias.copy_(bias)
        if small:
            last.weight.mul_(0.1)
    return last if inputs <= rank else nn.Sequential(nn.Linear(inputs, rank, bias=False), last)
