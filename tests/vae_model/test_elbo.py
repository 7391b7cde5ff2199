"""Are the terms of the objective the formulas that they claim to be?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vae_model import elbo
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE, NetworkConfig


def _covariance(k: int, seed: int) -> torch.Tensor:
    root = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.3 * torch.eye(k, dtype=torch.float64)


def test_kl_standard_normal_equals_torch_distributions():
    mu, logvar = torch.randn(50, 7, dtype=torch.float64), 3 * torch.randn(50, 7, dtype=torch.float64)
    posterior = Normal(mu, torch.exp(0.5 * logvar))
    expected = kl_divergence(posterior, Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    torch.testing.assert_close(elbo.kl_standard_normal(mu, logvar), expected)


def test_kl_standard_normal_equals_the_full_covariance_formula():
    mu, logvar = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    zero, unit = torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    expected = elbo.kl_gaussians(mu, torch.diag_embed(logvar.exp()), zero, unit)
    torch.testing.assert_close(elbo.kl_standard_normal(mu, logvar).sum(-1), expected)


def test_full_covariance_formula_equals_torch_distributions_and_monte_carlo():
    mean0, mean1 = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    first = MultivariateNormal(mean0, _covariance(3, 1))
    second = MultivariateNormal(mean1, _covariance(3, 2))
    value = elbo.kl_gaussians(mean0, _covariance(3, 1), mean1, _covariance(3, 2))
    torch.testing.assert_close(value, kl_divergence(first, second))
    sample = first.sample((200_000,))
    ratio = first.log_prob(sample) - second.log_prob(sample)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert abs(float(ratio.mean() - value)) < 5 * error
    assert error < 0.05 * float(value)


def test_full_covariance_formula_takes_batches():
    means = torch.randn(5, 3, dtype=torch.float64)
    covariances = torch.stack([_covariance(3, seed) for seed in range(5)])
    whole = elbo.kl_gaussians(means, covariances, means.flip(0), covariances.flip(0))
    one = elbo.kl_gaussians(means[1], covariances[1], means[3], covariances[3])
    torch.testing.assert_close(whole[1], one)


@settings(max_examples=20, deadline=None)
@given(mu=st.floats(-4, 4), step=st.floats(0.01, 6))
def test_kl_uniform_equals_monte_carlo(mu: float, step: float):
    center, width = torch.tensor([[mu]], dtype=torch.float64), torch.tensor([step], dtype=torch.float64)
    points = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = mu + (points - 0.5) * step
    ratio = -math.log(step) - Normal(0.0, 1.0).log_prob(z)
    error = float(ratio.std()) / math.sqrt(len(z))
    assert abs(float(ratio.mean() - elbo.kl_uniform(center, width))) < 6 * error + 1e-12


def test_reparameterized_samples_have_the_posterior_moments_and_pass_gradients():
    mu = torch.tensor([[1.5, -2.0]], requires_grad=True)
    logvar = torch.tensor([[0.5, -3.0]], requires_grad=True)
    z_MBZ = elbo.reparameterize(mu, logvar, 50_000, torch.Generator().manual_seed(1))
    assert z_MBZ.shape == (50_000, 1, 2)
    torch.testing.assert_close(z_MBZ.mean(0), mu, atol=0.03, rtol=0)
    torch.testing.assert_close(z_MBZ.var(0).log(), logvar, atol=0.03, rtol=0)
    z_MBZ.square().mean(0).sum().backward()  # d E[z²]/dmu = 2 mu, d E[z²]/dlogvar = σ²
    torch.testing.assert_close(mu.grad, 2 * mu.detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(logvar.grad, logvar.detach().exp(), atol=0.1, rtol=0)


def test_importance_weighted_bound_lies_between_the_mean_and_the_largest_weight():
    log_weights = 5 * torch.randn(16, 100)
    bound = elbo.importance_weighted_bound(log_weights)
    assert (bound >= log_weights.mean(0)).all()
    assert (bound <= log_weights.amax(0)).all()
    torch.testing.assert_close(elbo.importance_weighted_bound(log_weights[:1]), log_weights[0])


def test_free_bits_hold_the_loss_but_not_the_reported_kl():
    kl_BZ = torch.tensor([[0.5, 0.0], [1.5, 0.0]])
    log_prob = torch.full((1, 2, 1), -10.0)
    plain = elbo.loss_terms(log_prob, kl_BZ, elbo.Objective())
    free = elbo.loss_terms(log_prob, kl_BZ, elbo.Objective(beta=0.5, free_bits=0.25))
    assert float(plain.loss) == pytest.approx(11.0)
    assert float(free.loss) == pytest.approx(10 + 0.5 * 1.25)
    assert float(free.kl) == float(plain.kl) == pytest.approx(1.0)
    assert float(free.elbo) == pytest.approx(-11.0)
    assert free.active_units() == 1
    assert free.bits_per_row().minus_elbo == pytest.approx(11 / math.log(2))
    assert free.bits_per_row().kl == pytest.approx(1 / math.log(2))


def test_warm_up_rises_to_one_and_stays():
    assert [elbo.warm_up(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert elbo.warm_up(0, 0) == 1


def test_latent_step_has_the_posterior_variance():
    sigma = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(elbo.latent_step(sigma).square() / 12, sigma.square())


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"mc_samples": 0}, {"free_bits": -0.1}, {"noise": "loud"}])
def test_an_objective_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        elbo.Objective(**wrong)


def test_autocast_does_nothing_on_the_cpu():
    with elbo.autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_does_swapping_keep_columns_and_change_the_share_asked_for() -> None:
    bins_BD = torch.arange(4000).view(1000, 4) * torch.tensor([1, -1, 1, 1])
    swapped = elbo.swap_symbols(bins_BD, 0.25, torch.Generator().manual_seed(0))
    changed = swapped != bins_BD
    assert 0.2 < float(changed.float().mean()) < 0.3
    for column in range(4):
        assert set(swapped[:, column].tolist()) <= set(bins_BD[:, column].tolist())
    again = elbo.swap_symbols(bins_BD, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(swapped, again)
    rows = changed.any(1).float().mean()
    assert 0.6 < float(rows) < 0.76  # 1 - 0.75^4: symbols are swapped one by one


def test_is_what_the_likelihood_sees_never_corrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = FeatureLayout.assemble([Span("x", "value", "ordinal", 0, 1, 9, (0.25,), (-1.0,))])
    vae = VAE(layout, NetworkConfig(latent_dim=1, hidden=(4,)))
    bins_BD = torch.randint(0, 9, (64, 1), generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}
    encode, log_prob = vae.encode, vae.log_prob
    monkeypatch.setattr(vae, "encode", lambda bins: (seen.update(encoder=bins), encode(bins))[1])
    monkeypatch.setattr(vae, "log_prob", lambda bins, z: (seen.update(likelihood=bins), log_prob(bins, z))[1])
    vae(bins_BD, elbo.Objective(corruption=0.5), torch.Generator().manual_seed(1))
    assert torch.equal(seen["likelihood"], bins_BD)
    assert not torch.equal(seen["encoder"], bins_BD)
    with pytest.raises(ValueError, match="corruption"):
        elbo.Objective(corruption=1.0)
