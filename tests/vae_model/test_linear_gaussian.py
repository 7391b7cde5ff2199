"""Does the model agree with what is known in closed form about linear Gaussian models?"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_model.elbo import Objective, importance_weighted_bound, kl_gaussians, kl_standard_normal
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE, NetworkConfig

_STEP, _SHIFT = 1e-3, -20.0


class Affine(NamedTuple):
    """p(x|z) = N(x | weight z + bias, scale²)."""

    weight_DZ: Tensor
    bias_D: Tensor
    scale: float


def _layout(width: int) -> FeatureLayout:
    bins = int(-2 * _SHIFT / _STEP) + 1
    return FeatureLayout.assemble([Span("x", "value", "ordinal", 0, width, bins, (_STEP,), (_SHIFT,))])


def _bins(y_BD: Tensor) -> Tensor:
    return torch.round((y_BD - _SHIFT) / _STEP).to(torch.int64)


def _decoder(model: VAE) -> Affine:
    """Reads the affine decoder off the model by decoding 0 and the unit vectors."""
    latents = model.config.latent_dim
    points = torch.cat([torch.zeros(1, latents), torch.eye(latents)]).to(model.latent_step_Z)
    with torch.no_grad():
        (parameters,) = model.decode(points)
    scales = parameters.log_scale.exp()
    assert float(scales.max()) == float(scales.min())
    return Affine((parameters.loc[1:] - parameters.loc[0]).T, parameters.loc[0], float(scales[0]))


def _exact_reconstruction(model: VAE, bins_BD: Tensor) -> Tensor:
    """E_q[log p(x|z)] by row: a quadratic in z, so 2Z symmetric points give its expectation exactly."""
    with torch.no_grad():
        mu_BZ, logvar_BZ = model.encode(bins_BD)
        latents = mu_BZ.shape[1]
        offset_BZZ = math.sqrt(latents) * torch.diag_embed(torch.exp(0.5 * logvar_BZ))
        points_MBZ = mu_BZ + torch.cat([offset_BZZ, -offset_BZZ], dim=1).movedim(1, 0)
        return model.log_prob(bins_BD, points_MBZ).sum(-1).mean(0)


def _exact_elbo(model: VAE, bins_BD: Tensor) -> Tensor:
    with torch.no_grad():
        kl_BZ = kl_standard_normal(*model.encode(bins_BD))
    return _exact_reconstruction(model, bins_BD) - kl_BZ.sum(-1)


def _log_evidence(affine: Affine, y_BD: Tensor) -> Tensor:
    """log p(x) = log N(x | bias, W Wᵀ + σ² I) by row."""
    noise = affine.scale**2 * torch.eye(len(affine.bias_D), dtype=y_BD.dtype)
    covariance = affine.weight_DZ @ affine.weight_DZ.T + noise
    return MultivariateNormal(affine.bias_D, covariance).log_prob(y_BD)


def _fit(model: VAE, bins_BD: Tensor, steps: int, rate: float, samples: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=rate * 1e-3)
    objective, generator = Objective(mc_samples=samples), torch.Generator().manual_seed(7)
    for _ in range(steps):
        optimizer.zero_grad()
        model(bins_BD, objective, generator).loss.backward()
        optimizer.step()
        schedule.step()


def _correlated_data(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    weight = torch.tensor([[2.0, 0.3], [1.0, -0.8], [-0.5, 1.0], [0.2, 0.4], [1.5, 0.6]])
    z, noise = torch.randn(rows, 2, generator=generator), torch.randn(rows, 5, generator=generator)
    return z @ weight.T + 0.4 * noise + torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3])


def test_training_reaches_the_likelihood_of_probabilistic_pca():
    bins = _bins(_correlated_data(1000))
    y = bins.double() * _STEP + _SHIFT
    latents, width = 2, y.shape[1]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(y.T, correction=0)).flip(0)
    noise = float(eigenvalues[latents:].mean())
    log_kept = float(eigenvalues[:latents].log().sum())
    constant = width * math.log(2 * math.pi) + width
    optimum = -0.5 * (constant + log_kept + (width - latents) * math.log(noise))

    model = VAE(_layout(width), NetworkConfig(latent_dim=latents, hidden=(), likelihood="gaussian_learned"))
    start = float(_exact_elbo(model, bins).mean())
    assert start < optimum - 1
    _fit(model, bins, steps=1500, rate=0.03, samples=4)
    reached = float(_exact_elbo(model.double(), bins).mean())
    evidence = float(_log_evidence(_decoder(model), y).mean())
    assert optimum - 0.01 < reached <= evidence <= optimum + 1e-6
    assert _decoder(model).scale ** 2 == pytest.approx(noise, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_evidence_is_elbo_plus_kl_to_the_true_posterior(seed):
    torch.manual_seed(seed)
    bins = _bins(_correlated_data(50))
    y = bins.double() * _STEP + _SHIFT
    model = VAE(_layout(5), NetworkConfig(latent_dim=3, hidden=(), likelihood="gaussian_learned")).double()
    affine = _decoder(model)
    precision = torch.eye(3, dtype=torch.float64) + affine.weight_DZ.T @ affine.weight_DZ / affine.scale**2
    covariance = torch.linalg.inv(precision)
    mean = (y - affine.bias_D) @ affine.weight_DZ @ covariance / affine.scale**2
    with torch.no_grad():
        mu, logvar = model.encode(bins)
    gap = kl_gaussians(mu, torch.diag_embed(logvar.exp()), mean, covariance.expand(len(mu), -1, -1))
    assert float(gap.min()) > 0.01
    torch.testing.assert_close(_exact_elbo(model, bins) + gap, _log_evidence(affine, y), rtol=1e-9, atol=1e-9)


def test_the_importance_weighted_bound_lies_between_elbo_and_log_evidence():
    bins = _bins(_correlated_data(40))
    y = bins.double() * _STEP + _SHIFT
    model = VAE(_layout(5), NetworkConfig(latent_dim=2, hidden=(), likelihood="gaussian", decoder_scale=1.0))
    _fit(model, bins, steps=100, rate=0.03, samples=1)
    log_weights = model.double().elbo_samples(bins, 2000, torch.Generator().manual_seed(0))
    bound = importance_weighted_bound(log_weights)
    assert (bound >= log_weights.mean(0)).all()
    elbo, evidence = _exact_elbo(model, bins), _log_evidence(_decoder(model), y)
    assert float((log_weights.mean(0) - elbo).mean().abs()) < 0.01
    assert float((evidence - elbo).mean()) > 0.03
    assert abs(float((bound - evidence).mean())) < 0.2 * float((evidence - elbo).mean())


def test_the_affine_example_recovers_the_standardizing_encoder():
    mean, deviation, scale = 3.0, 2.0, 0.3
    x = mean + deviation * torch.randn(500, 1, generator=torch.Generator().manual_seed(5))
    x = mean + deviation * (x - x.mean()) / x.std(correction=0)
    bins = _bins(x)
    model = VAE(_layout(1), NetworkConfig(latent_dim=1, hidden=(), likelihood="gaussian", decoder_scale=scale))
    _fit(model, bins, steps=1500, rate=0.05, samples=4)
    with torch.no_grad():
        mu, logvar = model.encode(bins)
    # With s fixed the optimum is c² = σ² - s², a = c/σ², t² = s²/σ²; a -> 1/σ as s -> 0.
    slope = math.sqrt(deviation**2 - scale**2) / deviation**2
    expected = slope * (x - mean) * torch.sign((mu * (x - mean)).sum())
    torch.testing.assert_close(mu, expected, atol=0.01, rtol=0.01)
    torch.testing.assert_close(expected.abs(), ((x - mean) / deviation).abs(), atol=0.02, rtol=0.02)
    assert float(logvar.mul(0.5).exp().mean()) == pytest.approx(scale / deviation, rel=0.05)
    affine = _decoder(model)
    assert float(affine.weight_DZ.abs()) == pytest.approx(math.sqrt(deviation**2 - scale**2), rel=0.01)
    assert float(affine.bias_D) == pytest.approx(mean, abs=0.02)
