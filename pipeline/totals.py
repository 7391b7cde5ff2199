"""What an epoch comes to, over all rows and all workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from vae_model.elbo import LossTerms


@dataclass
class Totals:
    """Sums over the rows of an epoch, in nats; workers add theirs up.

    Attributes:
        rows: Rows.
        reconstruction: E_q[log p(x|z)].
        kl_Z: KL by latent.
        sigma_Z: Posterior standard deviations.
    """

    rows: Tensor
    reconstruction: Tensor
    kl_Z: Tensor
    sigma_Z: Tensor

    @classmethod
    def empty(cls, latents: int, device: torch.device) -> Totals:
        """Sums over no rows."""
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in (1, 1, latents, latents)))

    def add(self, terms: LossTerms, rows: int, sigma_BZ: Tensor | None = None) -> None:
        """Adds one batch of `rows` rows."""
        self.rows += rows
        self.reconstruction += rows * terms.reconstruction.detach().double()
        self.kl_Z += rows * terms.kl_Z.detach().double()
        if sigma_BZ is not None:
            self.sigma_Z += sigma_BZ.double().sum(0)

    def reduce(self) -> None:
        """Adds up the sums of all workers."""
        for part in (self.rows, self.reconstruction, self.kl_Z, self.sigma_Z):
            torch.distributed.all_reduce(part)

    def per_row(self) -> tuple[float, float]:
        """Reconstruction and KL, in nats a row."""
        return float(self.reconstruction / self.rows), float(self.kl_Z.sum() / self.rows)
