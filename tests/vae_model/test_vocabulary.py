"""Is the two-level softmax a distribution, and is it used where vocabularies are large?"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_model.elbo import Objective
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE, NetworkConfig
from vae_model.vocabulary import LARGE, TwoLevelCategorical
from vae_model.weights import fingerprint, from_bytes, to_bytes


def _likelihood(categories: int, width: int = 1, scale: float = 1.0) -> TwoLevelCategorical:
    likelihood = TwoLevelCategorical([Span("c", "value", "categorical", 0, width, categories)])
    with torch.no_grad():
        likelihood.bias_NGR.normal_(0, scale)
        likelihood.key_NGRE.normal_(0, scale)
    return likelihood.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(categories=st.integers(1, 3000), seed=st.integers(0, 1000), scale=st.floats(0, 4))
def test_two_levels_sum_to_one(categories, seed, scale):
    torch.manual_seed(seed)
    likelihood = _likelihood(categories, 2, scale)
    raw = (scale * torch.randn(1, likelihood.outputs)).expand(categories, -1)
    every = torch.arange(categories)[:, None].expand(-1, 2)
    log_prob = likelihood.log_prob(likelihood.from_raw(raw, None), every)
    torch.testing.assert_close(log_prob.double().exp().sum(0), torch.ones(2).double(), atol=1e-5, rtol=0)


def test_samples_follow_the_probabilities_and_estimates_are_the_most_probable():
    torch.manual_seed(1)
    likelihood = _likelihood(30)
    raw = torch.randn(1, likelihood.outputs)
    every = torch.arange(30)[:, None]
    log_prob = likelihood.log_prob(likelihood.from_raw(raw.expand(30, -1), None), every)[:, 0]
    many = likelihood.from_raw(raw.expand(40_000, -1), None)
    drawn = likelihood.sample(many, torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn.flatten(), minlength=30) / 40_000
    torch.testing.assert_close(frequency, log_prob.exp(), atol=0.012, rtol=0)
    assert int(likelihood.estimate(likelihood.from_raw(raw, None))) == int(log_prob.argmax())


@pytest.mark.parametrize("categories", [LARGE + 1, 100_000])
def test_estimates_and_samples_are_categories(categories):
    likelihood = _likelihood(categories)
    parameters = likelihood.from_raw(10 * torch.randn(200, likelihood.outputs), None)
    for bins in (likelihood.estimate(parameters), likelihood.sample(parameters, None)):
        assert int(bins.min()) >= 0
        assert int(bins.max()) < categories


def test_a_model_learns_large_vocabularies_beside_small_ones():
    categorical = Span("c", "value", "categorical", 0, 1, 5000)
    spans = [categorical, dataclasses.replace(categorical, bins=3), dataclasses.replace(categorical, width=2)]
    layout = FeatureLayout.assemble(spans)
    model = VAE(layout, NetworkConfig(latent_dim=4, hidden=(32,)))
    rows = torch.tensor([[4999, 0, 17, 2500], [3, 2, -1, 0], [1234, 1, 4000, 72]])
    bins = rows.repeat(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model(bins, Objective(mc_samples=2)).loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = model.reconstruct(model.encode(rows).mu_BZ)
    assert torch.equal(found[rows >= 0], rows[rows >= 0])
    again = from_bytes(to_bytes(model))
    assert fingerprint(again) == fingerprint(model)
    z = torch.randn(3, 4)
    assert torch.equal(again.log_prob(rows, z), model.log_prob(rows, z))
    assert float(model.log_prob(rows, z)[1, 2].detach()) != 0  # one of its two symbols is there
    assert (model.log_prob(torch.full_like(rows, -1), z) == 0).all()
