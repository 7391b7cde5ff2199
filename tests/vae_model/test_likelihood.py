"""Are likelihoods distributions over the bins, whatever the grid and the parameters?"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_model.layout import Span
from vae_model.likelihood import (
    Categorical,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianLearned,
    GaussianParameters,
    MixtureParameters,
)

KNEES = st.one_of(st.none(), st.floats(0.1, 10))


def _ordinal(bins: int, step: float, shift: float, knee: float | None = None, width: int = 1) -> Span:
    return Span("c", "value", "ordinal", 0, width, bins, (step,), (shift,), knee)


def _mixture(loc: list[float], log_scale: list[float], weights: list[float]) -> MixtureParameters:
    return MixtureParameters(*(torch.tensor(part).view(1, -1, 1) for part in (weights, loc, log_scale)))


@settings(max_examples=150, deadline=None)
@given(
    bins=st.integers(1, 300),
    log_step=st.floats(-4, 2),
    shift=st.floats(-50, 50),
    knee=KNEES,
    components=st.lists(st.tuples(st.floats(-20, 20), st.floats(-9, 4), st.floats(-5, 5)), min_size=1, max_size=4),
)
def test_discretized_mixture_sums_to_one(bins, log_step, shift, knee, components):
    likelihood = DiscretizedLogisticMixture([_ordinal(bins, 10**log_step, shift, knee)], len(components))
    loc, log_scale, weights = (list(part) for part in zip(*components, strict=True))
    log_prob = likelihood.log_prob(_mixture(loc, log_scale, weights), torch.arange(bins)[:, None])
    assert log_prob.shape == (bins, 1)
    assert torch.isfinite(log_prob).all()
    assert float(log_prob.double().exp().sum()) == pytest.approx(1.0, abs=2e-4)


@settings(max_examples=100, deadline=None)
@given(
    step=st.floats(0.05, 3),
    shift=st.floats(-5, 5),
    loc=st.floats(-6, 6),
    log_scale=st.floats(-2, 1),
    knee=KNEES,
)
def test_discretized_logistic_equals_differences_of_the_cdf(step, shift, loc, log_scale, knee):
    def warped(u: torch.Tensor) -> torch.Tensor:
        if knee is None:
            return u
        bent = u.sign() * knee * (1 + torch.log(u.abs().clamp(min=1e-300) / knee))
        return torch.where(u.abs() > knee, bent, u)

    bins = 21
    edges = warped((torch.arange(bins - 1, dtype=torch.float64) + 0.5) * step + shift)
    inner = torch.sigmoid((edges - loc) / math.exp(log_scale))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = torch.cat([ends[:1], inner, ends[1:]]).diff()
    likelihood = DiscretizedLogisticMixture([_ordinal(bins, step, shift, knee)], 1)
    log_prob = likelihood.log_prob(_mixture([loc], [log_scale], [0.0]), torch.arange(bins)[:, None])
    torch.testing.assert_close(log_prob[:, 0].double().exp(), expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-12])
def test_bins_far_finer_than_the_scale_have_density_times_width(step):
    center = 0.7
    bins = int(20 / step)
    chosen = int((center + 10) / step)
    likelihood = DiscretizedLogisticMixture([_ordinal(bins, step, -10.0)], 1)
    value = chosen * step - 10.0
    log_prob = likelihood.log_prob(_mixture([0.2], [0.0], [0.0]), torch.tensor([[chosen]]))
    t = value - 0.2
    log_density = -t - 2 * math.log1p(math.exp(-t))
    assert float(log_prob) == pytest.approx(log_density + math.log(step), abs=1e-4)


def test_a_bin_far_wider_than_the_scale_takes_everything_and_tails_are_whole():
    likelihood = DiscretizedLogisticMixture([_ordinal(10, 1.0, 0.0)], 1)
    bins = torch.tensor([[4], [0], [9]])
    inside = likelihood.log_prob(_mixture([4.0], [-7.0], [0.0]), bins)
    assert float(inside[0]) == pytest.approx(0.0, abs=1e-6)
    below = likelihood.log_prob(_mixture([-1e6], [0.0], [0.0]), bins)
    above = likelihood.log_prob(_mixture([1e6], [0.0], [0.0]), bins)
    assert float(below[1]) == pytest.approx(0.0, abs=1e-6)
    assert float(above[2]) == pytest.approx(0.0, abs=1e-6)


def test_far_tails_have_finite_log_probabilities_and_gradients():
    likelihood = DiscretizedLogisticMixture([_ordinal(100, 0.1, 0.0, 2.0)], 2)
    raw = (100 * torch.randn(4, likelihood.outputs)).requires_grad_()
    log_prob = likelihood.log_prob(likelihood.from_raw(raw, None), torch.tensor([[0], [3], [98], [99]]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(raw.grad).all()


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    scale=st.floats(0, 50),
)
def test_categorical_sums_to_one_over_each_vocabulary(sizes, seed, scale):
    spans = [Span(str(n), "value", "categorical", n, 1, size) for n, size in enumerate(sizes)]
    likelihood = Categorical(spans)
    generator = torch.Generator().manual_seed(seed)
    raw = scale * torch.randn(1, likelihood.outputs, generator=generator)
    parameters = likelihood.from_raw(raw.expand(max(sizes), -1), None)
    every = torch.arange(max(sizes))[:, None].expand(-1, len(sizes))
    probability = likelihood.log_prob(parameters, every).double().exp()
    for column, size in enumerate(sizes):
        assert float(probability[:size, column].sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(probability[size:, column].sum()) == 0.0
        assert int(likelihood.estimate(parameters)[0, column]) < size
        assert int(likelihood.sample(parameters, generator)[0, column]) < size


def test_gaussian_density_integrates_to_one_over_a_fine_grid():
    step = 0.01
    span = _ordinal(2001, step, -10.0)
    for likelihood in (Gaussian([span], 0.5), GaussianLearned([span])):
        parameters = likelihood.from_raw(torch.full((1, 1), 0.3), None)
        log_density = likelihood.log_prob(parameters, torch.arange(2001)[:, None])
        assert float(log_density.detach().double().exp().sum() * step) == pytest.approx(1.0, abs=1e-5)


def test_learned_scales_are_one_a_span_and_do_not_fall_below_the_grid():
    likelihood = GaussianLearned([_ordinal(10, 1e-3, 0.0, width=2), _ordinal(2, 2.0, -1.0)])
    with torch.no_grad():
        likelihood.raw_log_scale_G.copy_(torch.tensor([0.3, -1000.0]))
    scale = likelihood.from_raw(torch.zeros(1, 3), None).log_scale.exp()
    assert float(scale[0].detach()) == float(scale[1].detach())
    assert float(scale[2].detach()) == pytest.approx(2 / math.sqrt(12))


@pytest.mark.parametrize("knee", [None, 1.5])
def test_mixture_samples_follow_the_probabilities(knee):
    likelihood = DiscretizedLogisticMixture([_ordinal(8, 0.7, -2.5, knee)], 2)
    parameters = _mixture([-1.0, 1.2], [-1.0, -0.5], [0.0, 0.7])
    probability = likelihood.log_prob(parameters, torch.arange(8)[:, None])[:, 0].exp()
    many = MixtureParameters(*(part.expand(40_000, -1, -1) for part in parameters))
    drawn = likelihood.sample(many, torch.Generator().manual_seed(3))
    frequency = torch.bincount(drawn.flatten(), minlength=8) / 40_000
    torch.testing.assert_close(frequency, probability, atol=0.012, rtol=0)


def test_gaussian_samples_have_the_mean_and_deviation():
    likelihood = Gaussian([_ordinal(4001, 0.005, -10.0)], 0.5)
    parameters = GaussianParameters(torch.full((20_000, 1), 1.0), likelihood.log_scale(torch.zeros(1)))
    y = likelihood.sample(parameters, torch.Generator().manual_seed(0)) * 0.005 - 10.0
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(y.std()) == pytest.approx(0.5, abs=0.02)


def test_categorical_samples_follow_the_probabilities():
    likelihood = Categorical([Span("c", "value", "categorical", 0, 1, 3)])
    logits = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3).expand(40_000, -1)
    drawn = likelihood.sample(likelihood.from_raw(logits, None), torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn.flatten(), minlength=3) / 40_000
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.6, 0.3]), atol=0.012, rtol=0)


def test_estimates_are_the_mean_and_the_mode():
    mixture = DiscretizedLogisticMixture([_ordinal(100, 0.1, -5.0)], 2)
    assert int(mixture.estimate(_mixture([1.0, 2.0], [-5.0, -5.0], [0.0, 0.0]))) == 65
    assert int(mixture.estimate(_mixture([1e30, 1e30], [0.0, 0.0], [0.0, 0.0]))) == 99
    categorical = Categorical([Span("c", "value", "categorical", 0, 1, 3)])
    assert int(categorical.estimate(categorical.from_raw(torch.tensor([[0.0, 2.0, 1.0]]), None))) == 1
