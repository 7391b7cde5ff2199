"""Does a training step learn, stop at what is not finite, and do the same recorded as step by step?"""

from __future__ import annotations

import copy

import pytest
import torch

from vae_model.config import NetworkConfig
from vae_model.elbo import Objective
from vae_model.network import VAE
from vae_model.training_step import TrainingStep

CONFIG = NetworkConfig(latent_dim=4, hidden=(16,), conv_channels=(4,))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def weights(vae):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in vae.parameters()])


def test_does_the_loss_fall(mixed_layout, draw_rows):
    vae, bins = VAE(mixed_layout, CONFIG), draw_rows(mixed_layout, 64)
    step = TrainingStep(vae, 1e-2, 1.0, torch.Generator().manual_seed(1))
    losses = [float(step(bins, Objective(), 1e-2).loss) for _ in range(60)]
    assert sum(losses[-5:]) < 0.92 * sum(losses[:5])


def test_is_a_step_that_of_plain_torch(mixed_layout, draw_rows):
    ours, bins = VAE(mixed_layout, CONFIG), draw_rows(mixed_layout, 32)
    plain = copy.deepcopy(ours)
    objective = Objective(beta=0.3, free_bits=0.2)
    step = TrainingStep(ours, 1.0, 0.5, torch.Generator().manual_seed(1))
    adam, noise = torch.optim.Adam(plain.parameters(), lr=1e-3), torch.Generator().manual_seed(1)
    for _ in range(3):
        terms = step(bins, objective, 1e-3)
        adam.zero_grad()
        expected = plain(bins, objective, noise).loss
        (expected / mixed_layout.n_symbols).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adam.step()
        assert float(terms.loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-4, atol=1e-6)


def test_does_what_is_not_finite_leave_the_weights_alone(mixed_layout, draw_rows):
    vae, bins = VAE(mixed_layout, CONFIG), draw_rows(mixed_layout, 32)
    step = TrainingStep(vae, 1e-2, 1.0, torch.Generator().manual_seed(1))
    step(bins, Objective(), 1e-2)
    before, moments = weights(vae), copy.deepcopy(step.optimizer.state_dict()["state"])
    assert not bool(step.overflow)
    assert not bool(step.overflow_S.any())
    step(bins, Objective(beta=float("inf")), 1e-2)
    assert bool(step.overflow)
    assert torch.equal(weights(vae), before)
    for number, state in step.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[number][name]) for name, value in state.items())


def test_are_the_spans_named_that_are_not_finite(mixed_layout, draw_rows):
    vae = VAE(mixed_layout, CONFIG)
    with torch.no_grad():
        vae.decoder.skip.weight.fill_(float("nan"))
    step = TrainingStep(vae, 1e-2, 1.0, torch.Generator().manual_seed(1))
    step(draw_rows(mixed_layout, 32, absent=0.0), Objective(), 1e-2)
    kinds = [span.kind for span, bad in zip(mixed_layout.spans, step.overflow_S.tolist(), strict=True) if bad]
    assert kinds
    assert set(kinds) == {"ordinal"}


def test_do_sums_add_up(mixed_layout, draw_rows):
    vae, bins = VAE(mixed_layout, CONFIG), draw_rows(mixed_layout, 32)
    step = TrainingStep(vae, 1e-2, 1.0, torch.Generator().manual_seed(1))
    for _ in range(2):
        step.restart()
        terms = [step(bins, Objective(), 1e-2) for _ in range(3)]
        assert float(step.reconstruction) == pytest.approx(sum(float(term.reconstruction) for term in terms))
        torch.testing.assert_close(step.kl_Z.float(), torch.stack([term.kl_Z for term in terms]).sum(0))


def losses_of(layout, draw_rows, objective, record):
    torch.manual_seed(0)
    vae = VAE(layout, CONFIG).cuda()
    vae.set_latent_grid(torch.full((4,), 0.3), torch.ones(4))
    noise = torch.Generator("cuda").manual_seed(1)
    step, losses = TrainingStep(vae, 1e-3, 1.0, noise, record=record), []
    for number in range(12):
        rows = draw_rows(layout, 256, seed=number).cuda()
        losses.append(float(step(rows, objective, 1e-3 / (1 + number)).loss))
    return torch.tensor(losses), weights(vae)


@needs_gpu
def test_does_a_recorded_step_do_what_one_of_its_own_does(mixed_layout, draw_rows):
    alone, recorded = (losses_of(mixed_layout, draw_rows, Objective(0.5, noise="none"), on) for on in (False, True))
    torch.testing.assert_close(recorded[0], alone[0], rtol=2e-3, atol=1e-2)
    torch.testing.assert_close(recorded[1], alone[1], rtol=1e-2, atol=2e-3)


@needs_gpu
@pytest.mark.parametrize(
    "objective", [Objective(free_bits=0.1, corruption=0.2, mc_samples=2), Objective(noise="uniform")]
)
def test_is_the_noise_of_recorded_steps_its_own_every_time(mixed_layout, draw_rows, objective):
    vae, rows = VAE(mixed_layout, CONFIG).cuda(), draw_rows(mixed_layout, 64).cuda()
    vae.set_latent_grid(torch.full((4,), 0.3), torch.ones(4))
    noise = torch.Generator("cuda").manual_seed(1)
    step = TrainingStep(vae, 0.0, 1.0, noise)
    losses = [float(step(rows, objective, 0.0).loss) for _ in range(12)]
    assert len(set(losses)) == 12
    assert max(losses) - min(losses) < 0.1 * abs(sum(losses) / 12)
    again = []
    for _ in range(2):
        noise.manual_seed(5)
        again.append(float(step(rows, objective, 0.0).loss))
    assert again[0] == pytest.approx(again[1])


@needs_gpu
def test_does_a_recorded_step_leave_the_weights_alone_where_it_must(mixed_layout, draw_rows):
    vae, bins = VAE(mixed_layout, CONFIG).cuda(), draw_rows(mixed_layout, 32).cuda()
    step = TrainingStep(vae, 1e-3, 1.0, torch.Generator("cuda").manual_seed(1))
    for _ in range(6):
        step(bins, Objective(), 1e-3)
    before = weights(vae)
    step(bins, Objective(beta=float("inf")), 1e-3)
    assert bool(step.overflow)
    assert torch.equal(weights(vae), before)
    step(bins, Objective(), 1e-3)
    assert not torch.equal(weights(vae), before)
