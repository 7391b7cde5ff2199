"""Do weights come back as they were, and are damaged or foreign bytes refused?"""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from vae_model.elbo import Objective
from vae_model.network import VAE, NetworkConfig
from vae_model.weights import (
    fingerprint,
    from_bytes,
    optimizer_from_tensors,
    optimizer_to_tensors,
    to_bytes,
)

REFUSED = r"damaged|not VAE weights"
SMALL = NetworkConfig(latent_dim=3, hidden=(12,), conv_channels=(4,))


@pytest.fixture
def model(mixed_layout) -> VAE:
    model = VAE(mixed_layout, SMALL)
    model.set_latent_grid(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 0.0, 2.0]))
    return model


def test_a_model_comes_back_equal(model, mixed_layout, draw_rows):
    again = from_bytes(to_bytes(model))
    assert again.layout == mixed_layout
    assert again.config == model.config == dataclasses.replace(SMALL, encoder_hidden=SMALL.hidden)
    assert fingerprint(again) == fingerprint(model)
    assert to_bytes(again) == to_bytes(model)
    assert torch.equal(again.latent_step_Z, model.latent_step_Z)
    assert again.latent_active_Z.tolist() == [True, False, True]
    bins = draw_rows(mixed_layout, 5)
    assert torch.equal(again.encode(bins).mu_BZ, model.encode(bins).mu_BZ)
    assert torch.equal(again.log_prob(bins, torch.ones(5, 3)), model.log_prob(bins, torch.ones(5, 3)))


def test_loading_leaves_the_global_random_state_alone(model):
    data = to_bytes(model)
    before = torch.random.get_rng_state()
    from_bytes(data)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["encoder.head.weight", "latent_step_Z", "latent_active_Z"])
def test_the_fingerprint_changes_with_one_number(model, name):
    before = fingerprint(model)
    tensor = model.state_dict()[name].view(-1)
    tensor[1] = ~tensor[1] if tensor.dtype == torch.bool else torch.nextafter(tensor[1], torch.tensor(9.0))
    assert fingerprint(model) != before


def test_the_fingerprint_covers_the_config(mixed_layout):
    torch.manual_seed(0)
    first = VAE(mixed_layout, SMALL)
    torch.manual_seed(0)
    second = VAE(mixed_layout, NetworkConfig(**{**SMALL.to_json(), "decoder_scale": 0.5}))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert fingerprint(first) != fingerprint(second)


def test_damaged_bytes_are_refused(model):
    data = to_bytes(model)
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match=REFUSED):
            from_bytes(data[:length])
    with pytest.raises(ValueError, match=REFUSED):
        from_bytes(b"PAR1" * 1000)
    broken = bytearray(data)
    broken[20] ^= 0xFF
    with pytest.raises(ValueError, match=REFUSED):
        from_bytes(bytes(broken))


def test_foreign_and_newer_weights_are_refused(model):
    def described(**parts) -> bytes:
        return safetensors.torch.save({"a": torch.zeros(3)}, {"parvae-vae": json.dumps(parts)})

    with pytest.raises(ValueError, match="not VAE weights"):
        from_bytes(safetensors.torch.save({"a": torch.zeros(3)}))
    with pytest.raises(ValueError, match="version 99"):
        from_bytes(described(version=99))
    with pytest.raises(ValueError, match="do not fit"):
        from_bytes(described(version=1, layout=model.layout.to_json(), config=SMALL.to_json()))
    with pytest.raises(ValueError, match="damaged"):
        from_bytes(described(version=1, layout={}, config={}))


def _train(model: VAE, optimizer: torch.optim.Optimizer, bins: torch.Tensor, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(bins, Objective(), generator).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_training_goes_on_from_saved_weights_and_optimizer_as_if_nothing_happened(model, mixed_layout, draw_rows, kind):
    bins = draw_rows(mixed_layout, 8)
    optimizer = kind(model.parameters(), lr=1e-2)
    _train(model, optimizer, bins, 3, seed=1)
    weights = to_bytes(model)
    moments = safetensors.torch.save(optimizer_to_tensors(optimizer, model))
    _train(model, optimizer, bins, 3, seed=2)

    resumed = from_bytes(weights)
    fresh = kind(resumed.parameters(), lr=1e-2)
    optimizer_from_tensors(fresh, resumed, safetensors.torch.load(moments))
    _train(resumed, fresh, bins, 3, seed=2)
    assert fingerprint(resumed) == fingerprint(model)


def test_optimizer_state_of_another_model_is_refused(model):
    optimizer = torch.optim.Adam(model.parameters())
    assert optimizer_to_tensors(optimizer, model) == {}
    with pytest.raises(ValueError, match="elsewhere"):
        optimizer_from_tensors(optimizer, model, {"elsewhere//exp_avg": torch.zeros(2)})
    with pytest.raises(ValueError, match="shape"):
        optimizer_from_tensors(optimizer, model, {"encoder.head.weight//exp_avg": torch.zeros(2)})
