"""The objective: ELBO terms, KL divergences, reparameterization, schedules. All quantities are in nats."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Noise = Literal["gaussian", "uniform", "none"]
ROUNDING_KL = 0.5 * (math.log(2 * math.pi) + 1 - math.log(12))
"""KL in nats of a constant latent of unit variance once it is rounded: `kl_uniform` at mu = 0, step = √12."""


class Posterior(NamedTuple):
    """q(z|x) = N(mu, diag exp(logvar)) of each row.

    Attributes:
        mu_BZ: Means.
        logvar_BZ: Logarithms of the variances.
    """

    mu_BZ: Tensor
    logvar_BZ: Tensor

    @property
    def sigma_BZ(self) -> Tensor:
        """Standard deviations."""
        return torch.exp(0.5 * self.logvar_BZ)


@dataclass(frozen=True)
class Objective:
    """What one training step optimizes.

    Attributes:
        beta: Factor of the KL term (β-VAE, Higgins et al. 2017); `warm_up` raises it from 0 to 1.
        free_bits: Nats a latent: the batch-mean KL of a latent counts as at least this much in the loss,
            so that nothing is gained by switching it off (Kingma et al. 2016).
        mc_samples: M, the number of Monte-Carlo samples of z a row.
        noise: `"gaussian"`: z ~ q(z|x). `"uniform"`: z = mu + U(±step/2), the noise of a rounded latent
            (universal quantization, Agustsson & Theis 2020), for the last training phase. `"none"`: z is the
            rounded mean (gradients pass straight through), or the mean itself where no grid is set.
        corruption: Share of the symbols that the encoder, not the likelihood, sees swapped; see `swap_symbols`.

    Raises:
        ValueError: If a field is out of its range.
    """

    beta: float = 1.0
    free_bits: float = 0.0
    mc_samples: int = 1
    noise: Noise = "gaussian"
    corruption: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.corruption < 1:
            raise ValueError(f"corruption is {self.corruption}, must be at least 0 and less than 1")
        if self.beta < 0 or self.free_bits < 0 or self.mc_samples < 1:
            raise ValueError(f"{self}: beta and free_bits must not be negative, mc_samples at least 1")
        if self.noise not in ("gaussian", "uniform", "none"):
            raise ValueError(f"noise {self.noise!r} is unknown; known are gaussian, uniform, none")


@dataclass(frozen=True)
class BitsPerRow:
    """Loss terms as code lengths: bits a row.

    Attributes:
        minus_elbo: The length that a bits-back code of the rows would have.
        minus_reconstruction: -E_q[log2 p(x|z)]: the part for x given z.
        kl: The part for z.
    """

    minus_elbo: float
    minus_reconstruction: float
    kl: float


@dataclass(frozen=True)
class LossTerms:
    """The terms of one batch: nats a row, means over the batch.

    Attributes:
        loss: What training minimizes, with β and free bits in it.
        reconstruction: E_q[log p(x|z)].
        kl: KL(q(z|x) ‖ p(z)) as it is.
        elbo: `reconstruction - kl`, a lower bound of log p(x) (Kingma & Welling 2014), to be maximized.
        kl_Z: `kl` by latent.
        log_prob_S: `reconstruction` by span.
        kl_counted: `kl` as the loss counts it, free bits included: `loss` is β times it less `reconstruction`.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    elbo: Tensor
    kl_Z: Tensor
    log_prob_S: Tensor
    kl_counted: Tensor

    def detach(self) -> LossTerms:
        """The terms without their gradients."""
        return LossTerms(**{field.name: getattr(self, field.name).detach() for field in fields(self)})

    def bits_per_row(self) -> BitsPerRow:
        """The terms in bits, as Python floats."""
        nats = torch.stack([-self.elbo, -self.reconstruction, self.kl]).detach()
        return BitsPerRow(*(value / math.log(2) for value in nats.tolist()))

    def active_units(self, threshold: float = 0.01) -> int:
        """How many latents have a batch-mean KL above `threshold` nats."""
        return int((self.kl_Z > threshold).sum())


def loss_terms(log_prob_MBS: Tensor, kl_BZ: Tensor, objective: Objective) -> LossTerms:
    """Puts the terms together: loss = -reconstruction + β·KL, the KL clamped from below by free bits.

    Args:
        log_prob_MBS: log p(x|z) by sample, row and span.
        kl_BZ: KL by row and latent.
        objective: β and free bits.
    """
    log_prob_S = log_prob_MBS.mean(dim=(0, 1))
    kl_Z = kl_BZ.mean(dim=0)
    reconstruction, kl = log_prob_S.sum(), kl_Z.sum()
    counted = kl_Z.clamp(min=objective.free_bits).sum() if objective.free_bits > 0 else kl
    loss = objective.beta * counted - reconstruction
    return LossTerms(loss, reconstruction, kl, reconstruction - kl, kl_Z, log_prob_S, counted)


def kl_standard_normal(mu_BZ: Tensor, logvar_BZ: Tensor) -> Tensor:
    """KL(N(mu, diag exp(logvar)) ‖ N(0, I)) by latent: ½(σ² + μ² - 1 - log σ²), shape BZ."""
    return 0.5 * (torch.expm1(logvar_BZ) - logvar_BZ + mu_BZ.square())


def kl_uniform(mu_BZ: Tensor, step_Z: Tensor) -> Tensor:
    """KL(U(mu ± step/2) ‖ N(0, 1)) by latent: -log s + ½ log 2π + ½(μ² + s²/12), shape BZ.

    It is infinite where the step is 0.
    """
    constant_Z = 0.5 * (math.log(2 * math.pi) + step_Z.square() / 12) - torch.log(step_Z)
    return constant_Z + 0.5 * mu_BZ.square()


def kl_gaussians(mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor) -> Tensor:
    """KL(N(mean0, cov0) ‖ N(mean1, cov1)) for full covariance matrices.

    ½ [tr(Σ₁⁻¹Σ₀) + (μ₁-μ₀)ᵀ Σ₁⁻¹ (μ₁-μ₀) - k + log det Σ₁ - log det Σ₀]

    Args:
        mean0: Shape (..., k).
        cov0: Shape (..., k, k), symmetric positive definite.
        mean1: As `mean0`.
        cov1: As `cov0`.

    Returns:
        The divergence, shape (...).

    Raises:
        torch.linalg.LinAlgError: If a covariance is not positive definite.
    """
    root0, root1 = torch.linalg.cholesky(cov0), torch.linalg.cholesky(cov1)
    spread: Tensor = torch.linalg.solve_triangular(root1, root0, upper=False).square().sum(dim=(-2, -1))
    difference = (mean1 - mean0).unsqueeze(-1)
    distance = torch.linalg.solve_triangular(root1, difference, upper=False).square().sum(dim=(-2, -1))
    log_det0, log_det1 = (2 * torch.log(torch.diagonal(root, dim1=-2, dim2=-1)).sum(-1) for root in (root0, root1))
    divergence: Tensor = 0.5 * (spread + distance - mean0.shape[-1] + log_det1 - log_det0)
    return divergence


def draw_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `like`'s dtype and device, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def draw_uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise uniform in [0, 1) of `like`'s dtype and device, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def swap_symbols(bins_BD: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Corrupts rows for a denoising VAE (Im, Ahn, Memisevic & Bengio 2017; Vincent et al. 2010).

    Each symbol becomes, with probability `share`, that of the same column in another row of the batch: its marginal
    distribution stays, and only the other columns can tell what it was.
    """
    uniform_2BD = draw_uniform((2, *bins_BD.shape), bins_BD.new_zeros((), dtype=torch.float32), generator)
    rows_BD = (uniform_2BD[0] * len(bins_BD)).long().clamp(max=len(bins_BD) - 1)
    return torch.where(uniform_2BD[1] < share, bins_BD.gather(0, rows_BD), bins_BD)


def reparameterize(
    mu_BZ: Tensor, logvar_BZ: Tensor, n_samples: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Draws z = mu + sigma * noise, so that gradients flow through z (Kingma & Welling 2014).

    Returns:
        z_MBZ with M = `n_samples`.
    """
    noise_MBZ = draw_normal((n_samples, *mu_BZ.shape), mu_BZ, generator)
    return mu_BZ + torch.exp(0.5 * logvar_BZ) * noise_MBZ


def log_normal(value: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """The log-density of N(value | mean, exp(logvar)), nats, elementwise."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (value - mean).square() * torch.exp(-logvar))


def importance_weighted_bound(log_weights_MB: Tensor) -> Tensor:
    """The IWAE bound log (1/M) Σ_m w_m of each row (Burda et al. 2016), never below the mean of log w.

    Args:
        log_weights_MB: log p(x|z) + log p(z) - log q(z|x) of M samples a row.

    Returns:
        The bound of log p(x) by row, shape B.
    """
    return torch.logsumexp(log_weights_MB, dim=0) - math.log(log_weights_MB.shape[0])


def warm_up(step: int, steps: int) -> float:
    """The KL's factor at training step `step`: rises linearly from 0 to 1 in `steps` steps."""
    return 1.0 if steps <= 0 else min(1.0, max(0, step) / steps)


def latent_step(mean_sigma_Z: Tensor) -> Tensor:
    """The grid step √12·σ̄: rounding to it makes noise of the posterior's own variance (step²/12)."""
    return math.sqrt(12.0) * mean_sigma_Z


def autocast(device: torch.device | str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on a GPU, nothing on a CPU; heads and likelihoods stay float32 inside."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switches autocast off for work on `tensor`'s device, where it is on."""
    if torch.is_autocast_enabled(tensor.device.type):
        return torch.autocast(tensor.device.type, enabled=False)
    return contextlib.nullcontext()
