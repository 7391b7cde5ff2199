"""p(x|z): one class each. Log-probabilities are in nats, absent symbols have log-probability 0.

The decoder gives each group of N symbols raw numbers (P a symbol) and, for ordinal symbols, a linear
guess of their location. A likelihood turns them into parameters, and parameters into log-probabilities,
estimates and samples. Parameters may carry leading sample dimensions (M) that the bins do not have.

The Gaussians are densities over the standardized, warped value y, so their log-probability may be positive
and their -ELBO negative. The discretized mixture and the softmax are probabilities of bins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.elbo import draw_normal, draw_uniform, log_normal
from vae_model.features import OrdinalGrid
from vae_model.layout import Span

_SMALLEST_SCALE = 1e-5
_FIRST_LOG_SCALE = -0.5
_LOG_SCALE_GAIN = 4.0


class MixtureParameters(NamedTuple):
    """A logistic mixture a symbol: unnormalized log-weights, locations, log-scales, each (..., B, K, N)."""

    logits: Tensor
    loc: Tensor
    log_scale: Tensor

    def take(self, first: int, stop: int, bins: int) -> MixtureParameters:
        """The parameters of symbols first … stop-1."""
        del bins
        return MixtureParameters(*(values[..., first:stop] for values in self))


class GaussianParameters(NamedTuple):
    """A Gaussian a symbol: location (..., B, N) and log-scale (N)."""

    loc: Tensor
    log_scale: Tensor

    def take(self, first: int, stop: int, bins: int) -> GaussianParameters:
        """The parameters of symbols first … stop-1."""
        del bins
        return GaussianParameters(self.loc[..., first:stop], self.log_scale[..., first:stop])


class CategoricalParameters(NamedTuple):
    """A softmax a symbol: unnormalized log-probabilities (..., B, N, V)."""

    logits: Tensor

    def take(self, first: int, stop: int, bins: int) -> CategoricalParameters:
        """The parameters of symbols first … stop-1, cut to their own `bins` categories."""
        return CategoricalParameters(self.logits[..., first:stop, :bins])


class Parameters(Protocol):
    """What every kind of parameters can do."""

    def take(self, first: int, stop: int, bins: int) -> Parameters:
        """The parameters of symbols first … stop-1 of a group, which take `bins` values."""
        ...


P = TypeVar("P", bound=Parameters)


class Likelihood(nn.Module, ABC, Generic[P]):
    """A distribution over the bins of N symbols.

    Attributes:
        count: N.
        outputs: How many raw numbers the N symbols take together (P·N).
    """

    count: int
    outputs: int

    @abstractmethod
    def first_bias(self) -> Tensor:
        """What `outputs` raw numbers should be before training, shape (outputs,)."""

    @abstractmethod
    def from_raw(self, raw: Tensor, guess: Tensor | None) -> P:
        """Parameters from raw numbers (..., B, outputs) and a guess of the locations (..., B, N)."""

    @abstractmethod
    def log_prob(self, parameters: P, bins_BN: Tensor, beyond_BN: Tensor | None = None) -> Tensor:
        """The log-probability of bins by symbol, (..., B, N), nats.

        Args:
            parameters: The parameters.
            bins_BN: The bins.
            beyond_BN: Ordinal symbols only: how far values lie outside of the grid, see `OrdinalGrid.cells`. The
                farther, the less probable, whatever the parameters.
        """

    @abstractmethod
    def estimate(self, parameters: P) -> Tensor:
        """One valid bin a symbol, (..., B, N), int64: the mean's, or the most probable category."""

    @abstractmethod
    def sample(self, parameters: P, generator: torch.Generator | None) -> Tensor:
        """One bin a symbol drawn from the distribution, (..., B, N), int64."""


class DiscretizedLogisticMixture(Likelihood[MixtureParameters]):
    """A mixture of logistic distributions, integrated over each bin (Salimans et al. 2017, PixelCNN++).

    Bin b takes the mass between warp((b-½)·step + shift) and warp((b+½)·step + shift); bin 0 and the last bin
    take the whole tails, so that the bins' probabilities sum to 1. With edges a < b in units of the scale,

        σ(b) - σ(a) = σ(b) · σ(-a) · (1 - exp(-(b-a)))

    holds exactly and loses nothing for bins that are wide or 10^-9 of the scale, near or in the tails.

    Args:
        spans: The ordinal spans.
        components: K, the mixture components of every symbol.
    """

    floor_N: Tensor

    def __init__(self, spans: Sequence[Span], components: int) -> None:
        super().__init__()
        self.grid = OrdinalGrid(spans)
        self.components = components
        self.count = self.grid.count
        self._blocks = 3 if components > 1 else 2
        self.outputs = self._blocks * components * self.count
        floor_N = torch.log((self.grid.narrowest() / 16).clamp(min=_SMALLEST_SCALE)).float()
        self.register_buffer("floor_N", floor_N, persistent=False)

    def first_bias(self) -> Tensor:
        """Locations spread over ±1, equal weights."""
        bias = torch.zeros(self._blocks, self.components, self.count)
        if self.components > 1:
            bias[0] = torch.linspace(-1, 1, self.components)[:, None]
        bias[1] = _FIRST_LOG_SCALE
        return bias.flatten()

    def from_raw(self, raw: Tensor, guess: Tensor | None) -> MixtureParameters:
        """Blocks of location, log-scale and (K > 1) weight; the log-scale is softly bounded from below."""
        blocks = raw.view(*raw.shape[:-1], self._blocks, self.components, self.count).unbind(-3)
        loc = blocks[0] if guess is None else blocks[0] + guess.unsqueeze(-2)
        log_scale = self.floor_N + F.softplus(blocks[1].clamp(max=20.0) - self.floor_N)
        logits = blocks[2] if self.components > 1 else torch.zeros_like(loc)
        return MixtureParameters(logits, loc, log_scale)

    def log_prob(self, parameters: MixtureParameters, bins_BN: Tensor, beyond_BN: Tensor | None = None) -> Tensor:
        """Log-mass of each bin; of the tail that begins at a value outside of the grid."""
        cells = self.grid.cells(bins_BN, parameters.loc.dtype, beyond_BN)
        y, below, above, width = (part.unsqueeze(-2) for part in cells)
        inverse = torch.exp(-parameters.log_scale)
        offset = y - parameters.loc
        lower, upper = (offset + below) * inverse, (offset + above) * inverse
        inside = torch.log(-torch.expm1(-(width * inverse).clamp(min=1e-30)))
        component = inside - F.softplus(lower) - F.softplus(-upper)
        if self.components == 1:
            total = component.squeeze(-2)
        else:
            total = torch.logsumexp(component + F.log_softmax(parameters.logits, dim=-2), dim=-2)
        return total.masked_fill(bins_BN < 0, 0.0)

    def estimate(self, parameters: MixtureParameters) -> Tensor:
        """The bin of the mixture's mean."""
        mean = (F.softmax(parameters.logits, dim=-2) * parameters.loc).sum(-2)
        return self.grid.nearest(mean)

    def sample(self, parameters: MixtureParameters, generator: torch.Generator | None) -> Tensor:
        """Draws a component, then a value from its logistic, then takes the bin that holds it."""
        chosen = draw_category(parameters.logits.transpose(-1, -2), generator).unsqueeze(-2)
        loc = parameters.loc.gather(-2, chosen).squeeze(-2)
        scale = parameters.log_scale.gather(-2, chosen).squeeze(-2).exp()
        uniform = draw_uniform(tuple(loc.shape), loc, generator)
        return self.grid.nearest(loc + scale * torch.logit(uniform, eps=1e-7))


class Gaussian(Likelihood[GaussianParameters]):
    """A density over y with the same fixed deviation σ_dec for every symbol.

    Args:
        spans: The ordinal spans.
        scale: σ_dec, in standardized units.
    """

    def __init__(self, spans: Sequence[Span], scale: float) -> None:
        super().__init__()
        self.grid = OrdinalGrid(spans)
        self.count = self.outputs = self.grid.count
        self.scale = scale

    def log_scale(self, like: Tensor) -> Tensor:
        """The log-scale by symbol, shape N."""
        return like.new_full((self.count,), math.log(self.scale))

    def first_bias(self) -> Tensor:
        """Locations at 0."""
        return torch.zeros(self.outputs)

    def from_raw(self, raw: Tensor, guess: Tensor | None) -> GaussianParameters:
        """The raw numbers are the locations."""
        return GaussianParameters(raw if guess is None else raw + guess, self.log_scale(raw))

    def log_prob(self, parameters: GaussianParameters, bins_BN: Tensor, beyond_BN: Tensor | None = None) -> Tensor:
        """Log-density at the bins' centres; outside of the grid it falls as if the location were within."""
        y_BN = self.grid.positions(bins_BN, parameters.loc.dtype)
        log_prob = log_normal(y_BN, parameters.loc, 2 * parameters.log_scale)
        if beyond_BN is not None:
            far_BN = self.grid.cells(bins_BN, parameters.loc.dtype, beyond_BN).y_BN
            loc = torch.where(beyond_BN > 0, parameters.loc.minimum(y_BN), parameters.loc.maximum(y_BN))
            fall = 0.5 * (far_BN - y_BN) * (far_BN + y_BN - 2 * loc) * torch.exp(-2 * parameters.log_scale)
            log_prob = log_prob - fall.masked_fill(beyond_BN == 0, 0.0)
        return log_prob.masked_fill(bins_BN < 0, 0.0)

    def estimate(self, parameters: GaussianParameters) -> Tensor:
        """The mean's bin."""
        return self.grid.nearest(parameters.loc)

    def sample(self, parameters: GaussianParameters, generator: torch.Generator | None) -> Tensor:
        """The bin of mean + σ·noise."""
        noise = draw_normal(tuple(parameters.loc.shape), parameters.loc, generator)
        return self.grid.nearest(parameters.loc + parameters.log_scale.exp() * noise)


class GaussianLearned(Gaussian):
    """A density over y whose deviation is learned, one a span (σ-VAE, Rybkin, Daniilidis & Levine 2021).

    The deviation does not fall below that of the grid's own rounding (step/√12): on values that repeat
    exactly a density has no maximum.

    Args:
        spans: The ordinal spans.
    """

    floor_G: Tensor
    span_N: Tensor

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__(spans, 1.0)
        self.raw_log_scale_G = nn.Parameter(torch.zeros(len(spans)))
        smallest = [max(min(span.step) / math.sqrt(12), _SMALLEST_SCALE) for span in spans]
        self.register_buffer("floor_G", torch.tensor(smallest).log(), persistent=False)
        owner = [number for number, span in enumerate(spans) for _ in range(span.width)]
        self.register_buffer("span_N", torch.tensor(owner, dtype=torch.int64), persistent=False)

    def log_scale(self, like: Tensor) -> Tensor:
        """The log-scale by symbol, shape N."""
        del like
        log_scale_G = self.floor_G + F.softplus(_LOG_SCALE_GAIN * self.raw_log_scale_G - self.floor_G)
        return log_scale_G[self.span_N]


class Categorical(Likelihood[CategoricalParameters]):
    """A softmax a symbol, padded to the largest vocabulary V of the group.

    Args:
        spans: Categorical spans with vocabularies of similar size.
    """

    padding_NV: Tensor

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__()
        sizes = torch.tensor([span.bins for span in spans for _ in range(span.width)])
        self.count, self.categories = len(sizes), int(sizes.max())
        self.outputs = self.count * self.categories
        padding_NV = torch.zeros(self.count, self.categories)
        padding_NV[torch.arange(self.categories) >= sizes[:, None]] = -1e9
        self._padded = bool((padding_NV < 0).any())
        self.register_buffer("padding_NV", padding_NV, persistent=False)

    def first_bias(self) -> Tensor:
        """Equal probabilities."""
        return torch.zeros(self.outputs)

    def from_raw(self, raw: Tensor, guess: Tensor | None) -> CategoricalParameters:
        """The raw numbers are the logits; a guess is not used."""
        del guess
        logits = raw.view(*raw.shape[:-1], self.count, self.categories)
        return CategoricalParameters(logits + self.padding_NV if self._padded else logits)

    def log_prob(self, parameters: CategoricalParameters, bins_BN: Tensor, beyond_BN: Tensor | None = None) -> Tensor:
        """Log-probability of each category."""
        del beyond_BN
        logits = parameters.logits
        index = bins_BN.clamp(min=0).expand(logits.shape[:-1]).unsqueeze(-1)
        chosen = logits.gather(-1, index).squeeze(-1)
        return (chosen - torch.logsumexp(logits, dim=-1)).masked_fill(bins_BN < 0, 0.0)

    def estimate(self, parameters: CategoricalParameters) -> Tensor:
        """The most probable category."""
        return parameters.logits.argmax(-1)

    def sample(self, parameters: CategoricalParameters, generator: torch.Generator | None) -> Tensor:
        """A category drawn from the softmax."""
        return draw_category(parameters.logits, generator)


def draw_category(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws an index of the last dimension with the softmax's probabilities (Gumbel-max)."""
    uniform = draw_uniform(tuple(logits.shape), logits, generator)
    return (logits - torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-7)))).argmax(-1)
