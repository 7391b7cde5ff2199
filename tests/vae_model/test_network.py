"""Does the network hold its contract for every layout: shapes, validity, gradients, determinism?"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vae_model.config import NetworkConfig
from vae_model.decoder import make_likelihood
from vae_model.elbo import Objective
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE

SMALL = NetworkConfig(latent_dim=4, hidden=(24, 16), conv_channels=(4, 6))
CONFIGS = {
    "mixture": SMALL,
    "gaussian": dataclasses.replace(SMALL, likelihood="gaussian", decoder_scale=0.5),
    "learned": dataclasses.replace(SMALL, likelihood="gaussian_learned"),
    "flat": dataclasses.replace(SMALL, conv_channels=()),
    "linear": dataclasses.replace(SMALL, hidden=()),
    "autoencoder": dataclasses.replace(SMALL, autoencoder=True),
    "narrow encoder": dataclasses.replace(SMALL, encoder_hidden=(8,)),
    "affine encoder": dataclasses.replace(SMALL, encoder_hidden=()),
}


def _gridded(model: VAE) -> VAE:
    model.set_latent_grid(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 1.0, 0.001, 1.0]))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("noise", ["gaussian", "uniform", "none"])
def test_every_parameter_gets_a_finite_gradient(mixed_layout, draw_rows, name, noise):
    model = _gridded(VAE(mixed_layout, CONFIGS[name]))
    terms = model(draw_rows(mixed_layout, 16), Objective(noise=noise, mc_samples=2))
    terms.loss.backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert torch.isfinite(parameter.grad).all(), label
    assert terms.kl_Z.shape == (4,)
    assert terms.log_prob_S.shape == (len(mixed_layout.spans),)
    torch.testing.assert_close(terms.log_prob_S.sum(), terms.reconstruction)
    torch.testing.assert_close(terms.reconstruction - terms.kl, terms.elbo)


@pytest.mark.parametrize("name", CONFIGS)
def test_reconstructions_and_samples_are_valid_bins(mixed_layout, name):
    model = VAE(mixed_layout, CONFIGS[name])
    z = 100 * torch.randn(50, 4)
    limit = torch.tensor([span.bins for span in mixed_layout.spans for _ in range(span.width)])
    for bins in (model.reconstruct(z), model.sample(z, torch.Generator().manual_seed(0))):
        assert bins.dtype == torch.int64
        assert bins.shape == (50, mixed_layout.n_symbols)
        assert (bins >= 0).all()
        assert (bins < limit).all()


@pytest.mark.parametrize("name", ["mixture", "learned", "flat"])
def test_a_group_gives_each_span_what_the_span_alone_would_give(mixed_layout, draw_rows, name):
    model = VAE(mixed_layout, CONFIGS[name])
    bins, z = draw_rows(mixed_layout, 8), torch.randn(3, 8, 4)
    log_prob = model.log_prob(bins, z)
    for number, (span, parameters) in enumerate(zip(mixed_layout.spans, model.decode(z), strict=True)):
        alone = make_likelihood([dataclasses.replace(span, start=0)], CONFIGS[name])
        expected = alone.log_prob(parameters, bins[:, span.start : span.stop]).sum(-1)
        torch.testing.assert_close(log_prob[..., number], expected)


def test_a_symbol_changes_the_log_probability_of_its_own_span_alone(mixed_layout):
    model = VAE(mixed_layout, SMALL)
    z = torch.randn(1, 4)
    bins = torch.zeros(1, mixed_layout.n_symbols, dtype=torch.int64)
    before = model.log_prob(bins, z)[0]
    for number, span in enumerate(mixed_layout.spans):
        changed = bins.clone()
        changed[0, span.stop - 1] = span.bins - 1
        difference = model.log_prob(changed, z)[0] - before
        assert set(difference.nonzero().flatten().tolist()) == ({number} if span.bins > 1 else set())


def test_absent_symbols_contribute_nothing(mixed_layout, draw_rows):
    model = VAE(mixed_layout, SMALL)
    z = torch.randn(6, 4)
    absent = torch.full((6, mixed_layout.n_symbols), -1)
    assert (model.log_prob(absent, z) == 0).all()
    bins = draw_rows(mixed_layout, 6, absent=0.0)
    half = bins.clone()
    half[:, 4] = -1  # one of the four symbols of "board"
    (_, _, _, board, *_) = model.decode(z)
    share = torch.log_softmax(board.logits[:, 1], -1).gather(-1, bins[:, 4:5])[:, 0]
    torch.testing.assert_close((model.log_prob(bins, z) - model.log_prob(half, z))[:, 3], share)


def test_before_training_the_encoder_gets_nothing_from_absent_symbols(mixed_layout):
    encoder = VAE(mixed_layout, SMALL).encoder
    absent = torch.full((1, mixed_layout.n_symbols), -1)
    hidden = encoder.input(encoder.features(absent), encoder.features.rows(absent))
    assert torch.equal(hidden[0], encoder.input.bias)
    present = encoder.input(encoder.features(absent), encoder.features.rows(absent + 1))
    assert not torch.equal(present, hidden)


@pytest.mark.parametrize("name", ["mixture", "gaussian", "flat"])
def test_training_puts_every_constant_where_it_belongs(mixed_layout, draw_rows, name):
    row = draw_rows(mixed_layout, 1, seed=3, absent=0.0)
    bins = row.expand(8, -1)
    model = VAE(mixed_layout, CONFIGS[name])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 250)
        optimizer.zero_grad()
        model(bins, Objective()).loss.backward()
        optimizer.step()
    wrong = (model.reconstruct(model.encode(bins).mu_BZ) - row).abs()
    tolerance = torch.zeros(mixed_layout.n_symbols, dtype=torch.int64)
    for span in mixed_layout.spans:
        if span.bins > 50:
            tolerance[span.start : span.stop] = span.bins // 40
    assert (wrong <= tolerance).all(), wrong.amax(0)


@pytest.mark.parametrize("noise", ["gaussian", "uniform", "none"])
def test_gradients_equal_finite_differences(mixed_layout, draw_rows, noise):
    model = _gridded(VAE(mixed_layout, dataclasses.replace(SMALL, hidden=(12,)))).double()
    bins = draw_rows(mixed_layout, 5)
    objective = Objective(beta=0.7, free_bits=0.01, mc_samples=2, noise=noise)
    if noise == "none":  # rounding has no derivative; without a grid z is the mean itself
        model.latent_step_Z.zero_()

    def loss() -> torch.Tensor:
        return model(bins, objective, torch.Generator().manual_seed(1)).loss

    loss().backward()
    for label, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        expected = float((parameter.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-6)
                values.append(float(loss()))
                parameter.add_(direction, alpha=-sign * 1e-6)
        found = (values[0] - values[1]) / 2e-6
        assert found == pytest.approx(expected, rel=2e-4, abs=2e-5), label


@pytest.mark.parametrize("knee", [None, 5.0])
@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian", "gaussian_learned"])
def test_heavy_tails_do_not_blow_up(knee, likelihood):
    spans = [Span(str(n), "value", "ordinal", n, 1, 10**15, (1e-2,), (-5e12,), knee, None, 2) for n in range(3)]
    layout = FeatureLayout(tuple(spans))
    model = VAE(layout, dataclasses.replace(SMALL, likelihood=likelihood))
    bins = 5 * 10**14 + torch.randint(-100, 100, (64, 3))
    bins[0], bins[1], bins[2, 0] = 0, 10**15 - 1, 6 * 10**14  # 10^12 deviations away
    terms = model(bins, Objective())
    terms.loss.backward()
    assert torch.isfinite(terms.loss)
    for parameter in model.parameters():
        assert torch.isfinite(parameter.grad).all()
    if knee is not None:
        assert float(model.encoder.features(bins).abs().max()) < 200


@pytest.mark.parametrize("shape", [(28, 28), (7, 7), (3, 5), (1, 1), (1, 9), (5, 4, 3), (2, 1, 2)])
@pytest.mark.parametrize("channels", [(3,), (3, 5, 4)])
def test_images_of_any_side_work(shape, channels, draw_rows):
    width = int(torch.tensor(shape).prod())
    layout = FeatureLayout.assemble([Span("image", "value", "ordinal", 0, width, 256, (0.02,), (-2.0,), None, shape)])
    model = VAE(layout, dataclasses.replace(SMALL, conv_channels=channels))
    bins = draw_rows(layout, 4, absent=0.0)
    terms = model(bins, Objective())
    terms.loss.backward()
    assert torch.isfinite(terms.loss)
    assert model.reconstruct(model.encode(bins).mu_BZ).shape == bins.shape


def test_convolutions_see_and_make_pixels_at_their_places():
    shape = (8, 6, 2)
    layout = FeatureLayout.assemble([Span("i", "value", "ordinal", 0, 96, 4, (1.0,), (-1.5,), None, shape)])
    model = VAE(layout, dataclasses.replace(SMALL, conv_channels=(4,)))
    (tower,) = model.encoder.towers
    image = torch.zeros(8, 6, 2)
    image[6:, 4:, 1] = 1.0
    response = tower.stages[0](image.reshape(1, *shape).movedim(-1, 1)) - tower.stages[0].bias[:, None, None]
    assert set(response[0, 0].nonzero()[:, 0].tolist()) <= {2, 3}
    assert set(response[0, 0].nonzero()[:, 1].tolist()) <= {1, 2}
    seen: list[torch.Tensor] = []
    tower.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tower(image.reshape(1, 96))
    torch.testing.assert_close(seen[0], image.movedim(-1, 0)[None])
    (making,) = model.decoder.towers
    with torch.no_grad():
        making.stages[-1].weight.zero_()
        making.stages[-1].bias.copy_(torch.arange(4.0))  # parameter-major, then channel
        making.bias_PN.zero_()
    raw = making(torch.zeros(1, SMALL.hidden[0])).view(2, 8, 6, 2)
    assert raw[0, 3, 3].tolist() == [0.0, 1.0]
    assert raw[1, 3, 3].tolist() == [2.0, 3.0]


def test_each_tower_sees_its_own_image(mixed_layout, draw_rows):
    model = VAE(mixed_layout, SMALL)
    seen: list[torch.Tensor] = []
    for tower in model.encoder.towers:
        tower.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    bins = draw_rows(mixed_layout, 3, absent=0.0)
    model.encode(bins)
    for x_BN, span in zip(seen, (mixed_layout.spans[6], mixed_layout.spans[9]), strict=True):
        torch.testing.assert_close(x_BN, bins[:, span.start : span.stop] * span.step[0] + span.shift[0])


@pytest.mark.parametrize("kind", ["ordinal", "categorical"])
def test_two_thousand_columns_train(kind, draw_rows):
    extra = {"step": (0.1,), "shift": (-1.0,), "components": 2} if kind == "ordinal" else {}
    layout = FeatureLayout.assemble(Span(str(n), "value", kind, 0, 1, 20, **extra) for n in range(2000))
    model = VAE(layout, NetworkConfig(latent_dim=4, hidden=(32,)))
    bins = draw_rows(layout, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        terms = model(bins, Objective())
        terms.loss.backward()
        optimizer.step()
        losses.append(float(terms.loss.detach()))
    assert losses[2] < losses[0]
    assert terms.log_prob_S.shape == (2000,)


def test_the_same_seed_gives_the_same_numbers(mixed_layout, draw_rows):
    def run() -> list[torch.Tensor]:
        torch.manual_seed(5)
        model = VAE(mixed_layout, SMALL)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(6)
        for seed in range(3):
            optimizer.zero_grad()
            model(draw_rows(mixed_layout, 8, seed), Objective(), generator).loss.backward()
            optimizer.step()
        return [*model.state_dict().values(), model.sample(torch.zeros(5, 4), generator)]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


def test_rounding_is_idempotent_and_stays_within_half_a_step(mixed_layout):
    model = _gridded(VAE(mixed_layout, SMALL))
    mu = 3 * torch.randn(1000, 4)
    rounded = model.round_latents(mu)
    assert torch.equal(model.round_latents(rounded), rounded)
    assert (rounded[:, 2] == 0).all()
    active = model.latent_active_Z
    assert ((rounded - mu).abs() <= model.latent_step_Z / 2 * 1.0001)[:, active].all()
    assert len(rounded[:, 0].unique()) < 100
    model.latent_step_Z.zero_()
    assert torch.equal(model.round_latents(mu)[:, active], mu[:, active])


def test_inactive_latents_are_invisible_to_the_decoder_and_free(mixed_layout, draw_rows):
    model = _gridded(VAE(mixed_layout, SMALL))
    bins, z = draw_rows(mixed_layout, 4), torch.randn(4, 4)
    moved = z.clone()
    moved[:, 2] += 100.0
    assert torch.equal(model.log_prob(bins, z), model.log_prob(bins, moved))
    for noise in ("gaussian", "uniform", "none"):
        kl_Z = model(bins, Objective(noise=noise)).kl_Z
        assert float(kl_Z[2].detach()) == 0
        assert (kl_Z[[0, 1, 3]] > 0).all()


def test_uniform_noise_without_a_grid_is_refused(mixed_layout, draw_rows):
    with pytest.raises(ValueError, match="set_latent_grid"):
        VAE(mixed_layout, SMALL)(draw_rows(mixed_layout, 2), Objective(noise="uniform"))


def test_an_autoencoder_has_no_noise_and_no_kl(mixed_layout, draw_rows):
    model = VAE(mixed_layout, CONFIGS["autoencoder"])
    bins = draw_rows(mixed_layout, 4)
    first, second = model(bins, Objective()), model(bins, Objective())
    assert torch.equal(first.loss, second.loss)
    assert float(first.kl.detach()) == 0


def test_without_hidden_layers_encoder_and_decoder_are_affine():
    layout = FeatureLayout.assemble(
        [
            Span("x", "value", "ordinal", 0, 16, 10**6, (1e-4,), (-50.0,), None, (4, 4)),
            Span("c", "value", "categorical", 0, 1, 5),
        ]
    )
    model = VAE(layout, NetworkConfig(latent_dim=3, hidden=(), likelihood="gaussian")).double()
    bins = torch.randint(0, 5, (2, 17))
    bins[:, :16] = torch.randint(400_000, 600_000, (2, 16))
    middle = torch.stack([bins[0], bins[1]])
    middle[:, 16] = bins[0, 16]
    mu = model.encode(middle).mu_BZ
    between = middle[:1].clone()
    between[0, :16] = 2 * middle[1, :16] - middle[0, :16]
    torch.testing.assert_close(model.encode(between).mu_BZ[0], 2 * mu[1] - mu[0])
    z = torch.randn(2, 3, dtype=torch.float64)
    loc = [model.decode(point)[0].loc for point in (z[:1], z[1:], 2 * z[1:] - z[:1])]
    torch.testing.assert_close(loc[2], 2 * loc[1] - loc[0])


def test_a_layout_without_symbols_is_refused():
    with pytest.raises(ValueError, match="without symbols"):
        VAE(FeatureLayout(()), SMALL)


def test_likelihoods_stay_in_float32_under_autocast(mixed_layout, draw_rows):
    model = VAE(mixed_layout, SMALL)
    bins = draw_rows(mixed_layout, 4)
    plain = model(bins, Objective(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = model.encode(bins)
        terms = model(bins, Objective(), torch.Generator().manual_seed(0))
        assert all(part.dtype == torch.float32 for spans in model.decode(posterior.mu_BZ) for part in spans)
    assert posterior.mu_BZ.dtype == posterior.logvar_BZ.dtype == terms.loss.dtype == torch.float32
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=0.05)


@pytest.mark.parametrize("pick", ["reconstruct", "sample"])
def test_nothing_follows_the_end_of_a_sequence(pick):
    text = Span("text", "value", "categorical", 0, 6, 4, ends=True)
    layout = FeatureLayout.assemble([Span("a", "value", "categorical", 0, 1, 4), text, text])
    assert FeatureLayout.from_json(layout.to_json()) == layout
    vae = VAE(layout, NetworkConfig(latent_dim=2, hidden=(8,)))
    bins_BD = getattr(vae, pick)(3 * torch.randn(300, 2))
    assert bins_BD[:, 0].min() >= 0
    for start in (1, 7):
        own_BN = bins_BD[:, start : start + 6]
        before_BN, after_BN = own_BN[:, :-1], own_BN[:, 1:]
        assert own_BN[:, 0].min() >= 0
        assert (after_BN[before_BN <= 0] == -1).all()
        assert (after_BN[before_BN > 0] >= 0).all()
        assert (own_BN == 0).sum(1).max() == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_mean_alone_is_the_mean_of_the_posterior(mixed_layout, draw_rows, name):
    bins = draw_rows(mixed_layout, 50, seed=4)
    model = VAE(mixed_layout, CONFIGS[name]).double()
    torch.testing.assert_close(model.encode_mean(bins), model.encode(bins).mu_BZ)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kinds", [("ordinal", "categorical"), ("ordinal",), ("categorical",)])
def test_what_is_computed_in_place_is_what_gradients_are_of(mixed_layout, draw_rows, name, kinds):
    layout = FeatureLayout.assemble([span for span in mixed_layout.spans if span.kind in kinds])
    model = _gridded(VAE(layout, CONFIGS[name]))
    bins, z = draw_rows(layout, 50, seed=4), torch.randn(50, 4)
    weights = {label: value.clone() for label, value in model.state_dict().items()}

    def results() -> list[torch.Tensor]:
        mean = model.encode_mean(bins)
        return [*model.encode(bins), mean, model.round_latents(mean), mean, model.log_prob(bins, z), z, bins]

    expected = [value.detach().clone() for value in results()]
    with torch.inference_mode():
        for _ in range(2):
            for value, wanted in zip(results(), expected, strict=True):
                torch.testing.assert_close(value, wanted)
    assert all(torch.equal(value, weights[label]) for label, value in model.state_dict().items())
