"""A density over latents: each given those before it, as a mixture of logistics over the cells of its grid.

log p(z) = Σ_d log p(z_d | z_1 … z_{d-1}), from one masked network (MADE, Germain et al. 2015). Where a latent has a
grid with step s, the mixture is integrated over the cell z_d ± s/2 (Salimans et al. 2017), so that p is a probability
of cells; where it has none, p is a density.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_LOG_SCALE = -6.0


class Mixture(NamedTuple):
    """Logistic mixtures: log-weights, locations, log-scales, each (..., A, K), in standardized units."""

    log_weight: Tensor
    loc: Tensor
    log_scale: Tensor


class LatentDensity(nn.Module):
    """An autoregressive density over A latents.

    Args:
        mean_A: Means of the latents.
        scale_A: Standard deviations of the latents, above 0.
        step_A: Their grids; 0: none.
        hidden: Width of both hidden layers.
        components: K, the logistics of each conditional.
    """

    mean_A: Tensor
    scale_A: Tensor
    step_A: Tensor
    mask_HA: Tensor
    mask_HH: Tensor
    mask_OH: Tensor

    def __init__(self, mean_A: Tensor, scale_A: Tensor, step_A: Tensor, hidden: int = 128, components: int = 8) -> None:
        super().__init__()
        latents = len(mean_A)
        self.components = components
        for name, values in (("mean_A", mean_A), ("scale_A", scale_A), ("step_A", step_A)):
            self.register_buffer(name, values.detach().float().clone())
        degree_A, degree_H = torch.arange(1, latents + 1), torch.arange(hidden) % max(1, latents - 1) + 1
        degree_O = degree_A.repeat_interleave(3 * components)
        self.register_buffer("mask_HA", (degree_H[:, None] >= degree_A).float(), persistent=False)
        self.register_buffer("mask_HH", (degree_H[:, None] >= degree_H).float(), persistent=False)
        self.register_buffer("mask_OH", (degree_O[:, None] > degree_H).float(), persistent=False)
        self.first, self.second = nn.Linear(latents, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 3 * components * latents)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            bias = self.last.bias.zero_().view(latents, 3, components)
            bias[:, 1] = torch.linspace(-2.0, 2.0, components)
            bias[:, 2] = -1.0

    def conditionals(self, z_BA: Tensor) -> Mixture:
        """The conditional of every latent given those before it."""
        y_BA = (z_BA - self.mean_A) / self.scale_A
        one = F.silu(F.linear(y_BA, self.first.weight * self.mask_HA, self.first.bias))
        two = one + F.silu(F.linear(one, self.second.weight * self.mask_HH, self.second.bias))
        raw = F.linear(two, self.last.weight * self.mask_OH, self.last.bias)
        logits, loc, log_scale = raw.view(*y_BA.shape, 3, self.components).unbind(-2)
        return Mixture(F.log_softmax(logits, -1), loc, _LEAST_LOG_SCALE + F.softplus(log_scale - _LEAST_LOG_SCALE))

    def log_prob(self, z_BA: Tensor) -> Tensor:
        """Log-probability of rows in nats, shape B: of their cells, and densities where there is no grid."""
        mixture = self.conditionals(z_BA)
        inverse = torch.exp(-mixture.log_scale)
        width = (self.step_A / self.scale_A).unsqueeze(-1)
        offset = ((z_BA - self.mean_A) / self.scale_A).unsqueeze(-1) - mixture.loc
        lower, upper = (offset - width / 2) * inverse, (offset + width / 2) * inverse
        cell = torch.log(-torch.expm1(-(width * inverse).clamp(min=1e-12)))
        spread = mixture.log_scale + torch.log(self.scale_A).unsqueeze(-1)
        component = torch.where(width > 0, cell, -spread) - F.softplus(lower) - F.softplus(-upper)
        return torch.logsumexp(component + mixture.log_weight, -1).sum(-1)

    @torch.no_grad()
    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draws latents z_BA, on their grids, one latent after the other."""
        z_BA = torch.zeros(rows, len(self.mean_A), device=self.mean_A.device)
        for number in range(z_BA.shape[1]):
            log_weight, loc, log_scale = (part[:, number] for part in self.conditionals(z_BA))
            chosen = torch.multinomial(log_weight.exp(), 1, generator=generator)
            uniform = torch.rand(rows, 1, generator=generator, device=z_BA.device)
            y = loc.gather(1, chosen) + log_scale.gather(1, chosen).exp() * torch.logit(uniform, eps=1e-6)
            z = (y * self.scale_A[number] + self.mean_A[number]).squeeze(1)
            step = self.step_A[number]
            z_BA[:, number] = torch.where(step > 0, torch.round(z / step.clamp(min=1e-12)) * step, z)
        return z_BA
