"""Where sampling draws latents from: the model's prior N(0, I), or a density fitted to the latents of an archive.

An archive's latents are the aggregate posterior of its rows, from which the prior differs: regions that the prior
holds probable but no row is encoded to decode to rows that no dataset has (Hoffman & Johnson 2016, "ELBO surgery"). A
density fitted to the latents afterwards closes most of that gap (Ghosh et al. 2020, "From variational to deterministic
autoencoders"). Here it is autoregressive (`vae_model.latent_density`), with the grid of the latents built in: a stored
latent is a cell of its grid, and cells are what is fitted and drawn.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from vae_model.latent_density import LatentDensity

LOG = logging.getLogger(__name__)
Latents = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
HELD_OUT = 0.1
"""Share of the latents that training is stopped by."""
_EPOCHS, _STEPS, _BATCH, _LEARNING_RATE = 60, (200, 4000), 512, 5e-3
_CHECKS = 20
_PIECE = 8192
_PATIENCE = 4


class LatentPrior(ABC):
    """A distribution over the latents of rows."""

    @abstractmethod
    def draw(self, rows: int, generator: np.random.Generator) -> Latents:
        """Draws latents, shape (rows, Z); 0 where the model does not use a latent."""


@dataclass(frozen=True)
class NormalPrior(LatentPrior):
    """N(0, I), which the model was trained towards.

    Attributes:
        active: Which latents the model uses, shape (Z,).
    """

    active: npt.NDArray[np.bool_]

    def draw(self, rows: int, generator: np.random.Generator) -> Latents:
        """Draws latents, shape (rows, Z); not rounded, for the model was trained on rows' latents with noise."""
        drawn = generator.standard_normal((rows, len(self.active)), np.float32)
        return np.where(self.active, drawn, np.float32(0))


@dataclass(frozen=True)
class AggregatePrior(LatentPrior):
    """A density that was fitted to the latents of rows.

    Attributes:
        active: Which latents the model uses, shape (Z,).
        weights: The density's tensors by name; empty if no latent is used.
        bits: -log2 p of a held-out row's latents, on average; of cells where they have a grid.
    """

    active: npt.NDArray[np.bool_]
    weights: Mapping[str, npt.NDArray[np.float32]]
    bits: float

    @cached_property
    def density(self) -> LatentDensity:
        """The density over the latents in use."""
        import torch

        from vae_model.latent_density import LatentDensity

        state = {name: torch.from_numpy(values.copy()) for name, values in self.weights.items()}
        with torch.random.fork_rng():
            density = LatentDensity(state["mean_A"], state["scale_A"], state["step_A"])
        density.load_state_dict(state)
        return density.eval()

    def draw(self, rows: int, generator: np.random.Generator) -> Latents:
        """Draws latents, shape (rows, Z), on the grid where there is one."""
        import torch

        latents = np.zeros((rows, len(self.active)), np.float32)
        noise = torch.Generator().manual_seed(int(generator.integers(1 << 63)))
        if self.weights:
            latents[:, self.active] = self.density.sample(rows, noise).numpy()
        return latents


def fit_aggregate(latents: Latents, active: npt.NDArray[np.bool_], steps: Floats, seed: int) -> AggregatePrior:
    """Fits a density to the latents of rows, until held-out ones are no longer better told.

    Args:
        latents: Stored latents, shape (rows, Z), at least two rows. Where there is no grid, they must be draws from
            q(z|x), not its means.
        active: Which latents the model uses, shape (Z,).
        steps: The grid of the latents, shape (Z,); 0: none.
        seed: Seed of weights and batches.
    """
    import torch

    from vae_model.latent_density import LatentDensity

    if not active.any():
        return AggregatePrior(active, {}, 0.0)
    values = torch.from_numpy(np.ascontiguousarray(latents[:, active]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        order = torch.randperm(len(values))
        held_out = max(1, int(HELD_OUT * len(values)))
        test, rest = values[order[:held_out]], values[order[held_out:]]
        scale = rest.std(0, correction=0)
        step = torch.from_numpy(steps[active]).float()
        scale = torch.where(scale > 0, scale, torch.where(step > 0, step, torch.ones_like(step)))
        density = LatentDensity(rest.mean(0), scale, step)
        nats, state = _train(density, rest, test)
    LOG.info("aggregate posterior of %d latents: %.2f bits a held-out row", len(values), nats / math.log(2))
    return AggregatePrior(active, {name: part.numpy() for name, part in state.items()}, nats / math.log(2))


def _train(density: LatentDensity, rest: Tensor, test: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Trains by Adam; returns the least -log p of the held-out rows, in nats, and the tensors that reached it."""
    import torch

    batch = min(_BATCH, len(rest))
    steps = int(np.clip(_EPOCHS * len(rest) // batch, *_STEPS))
    optimizer = torch.optim.Adam(density.parameters(), lr=_LEARNING_RATE)
    state: dict[str, Tensor] = {}
    best, stale = math.inf, 0
    for number in range(steps + 1):
        if number % max(1, steps // _CHECKS) == 0:
            with torch.no_grad():
                parts = [test[first : first + _PIECE] for first in range(0, len(test), _PIECE)]
                found = float(-torch.cat([density.log_prob(part) for part in parts]).mean())
            stale += 1
            if found < best:
                best, stale = found, 0
                state = {name: part.clone() for name, part in density.state_dict().items()}
            if stale >= _PATIENCE:
                break
        ramp = min(1.0, (number + 1) / 50) * 0.5 * (1 + math.cos(math.pi * number / (steps + 1)))
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * ramp
        loss = -density.log_prob(rest[torch.randint(len(rest), (batch,))]).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(density.parameters(), 1.0)
        optimizer.step()
    return best, state
