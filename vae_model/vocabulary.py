"""p(x|z) over vocabularies of thousands: a softmax in two levels, so that no row pays for every category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.layout import Span
from vae_model.likelihood import Likelihood, draw_category

LARGE = 2048
"""Vocabularies with more categories than this take two levels."""
_QUERY = 16
_SEARCHED = 8


class TwoLevelParameters(NamedTuple):
    """Logits of G clusters (..., B, N, G), and what the categories within are asked with (..., B, N, E)."""

    logits: Tensor
    query: Tensor

    def take(self, first: int, stop: int, bins: int) -> TwoLevelParameters:
        """The parameters of symbols first … stop-1."""
        del bins
        return TwoLevelParameters(self.logits[..., first:stop, :], self.query[..., first:stop, :])


class TwoLevelCategorical(Likelihood[TwoLevelParameters]):
    """p(c|z) = p(cluster|z) · p(c|cluster, z), both softmaxes of about √V entries (Goodman 2001).

    Cluster g holds the categories g·R … g·R+R-1. Within it, category c has the logit b_c + k_c · query(z).

    Args:
        spans: Categorical spans with the same number of categories V.
    """

    padding_GR: Tensor

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__()
        self.count = sum(span.width for span in spans)
        categories = spans[0].bins
        self.size = math.isqrt(categories - 1) + 1
        self.clusters = -(-categories // self.size)
        self.outputs = self.count * (self.clusters + _QUERY)
        shape = (self.count, self.clusters, self.size)
        self.bias_NGR = nn.Parameter(torch.zeros(shape))
        self.key_NGRE = nn.Parameter(0.1 * torch.randn(*shape, _QUERY))
        padding = torch.zeros(self.clusters * self.size)
        padding[categories:] = -1e9
        self.register_buffer("padding_GR", padding.view(self.clusters, self.size), persistent=False)

    def first_bias(self) -> Tensor:
        """Equal probabilities."""
        return torch.zeros(self.outputs)

    def from_raw(self, raw: Tensor, guess: Tensor | None) -> TwoLevelParameters:
        """Cluster logits, then the query; a guess is not used."""
        del guess
        numbers = raw.view(*raw.shape[:-1], self.count, self.clusters + _QUERY)
        return TwoLevelParameters(numbers[..., : self.clusters], numbers[..., self.clusters :])

    def _within(self, cluster_BN: Tensor, query: Tensor) -> Tensor:
        """Log-probabilities of the categories of one cluster a symbol, (..., B, N, R)."""
        symbol_N = torch.arange(self.count, device=cluster_BN.device)
        asked = (self.key_NGRE[symbol_N, cluster_BN] @ query.unsqueeze(-1)).squeeze(-1)
        logits = asked + self.bias_NGR[symbol_N, cluster_BN] + self.padding_GR[cluster_BN]
        return F.log_softmax(logits, dim=-1)

    def log_prob(self, parameters: TwoLevelParameters, bins_BN: Tensor, beyond_BN: Tensor | None = None) -> Tensor:
        """Log-probability of each category."""
        del beyond_BN
        bins = bins_BN.clamp(min=0)
        cluster = bins // self.size
        within = self._within(cluster, parameters.query)
        among = F.log_softmax(parameters.logits, dim=-1)
        total = _pick(among, cluster) + _pick(within, bins % self.size)
        return total.masked_fill(bins_BN < 0, 0.0)

    def estimate(self, parameters: TwoLevelParameters) -> Tensor:
        """The most probable category of the 8 most probable clusters."""
        among, candidates = F.log_softmax(parameters.logits, -1).topk(min(_SEARCHED, self.clusters), -1)
        best = torch.full_like(among[..., 0], -torch.inf)
        category = torch.zeros_like(candidates[..., 0])
        for rank in range(candidates.shape[-1]):
            cluster = candidates[..., rank]
            within, member = self._within(cluster, parameters.query).max(-1)
            total = among[..., rank] + within
            category = torch.where(total > best, cluster * self.size + member, category)
            best = torch.maximum(total, best)
        return category

    def sample(self, parameters: TwoLevelParameters, generator: torch.Generator | None) -> Tensor:
        """Draws a cluster, then one of its categories."""
        cluster = draw_category(parameters.logits, generator)
        member = draw_category(self._within(cluster, parameters.query), generator)
        return cluster * self.size + member


def _pick(log_prob: Tensor, index_BN: Tensor) -> Tensor:
    return log_prob.gather(-1, index_BN.expand(log_prob.shape[:-1]).unsqueeze(-1)).squeeze(-1)
