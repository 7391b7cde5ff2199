"""Is a network what its configuration says, and is that written and read as it was meant?"""

from __future__ import annotations

import pytest
import torch

from vae_model.config import NetworkConfig
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE
from vae_model.weights import from_bytes, to_bytes


@pytest.mark.parametrize(
    "wrong",
    [{"latent_dim": 0}, {"likelihood": "poisson"}, {"decoder_scale": 0.0}, {"hidden": (0,)}, {"encoder_hidden": (-1,)}],
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NetworkConfig(**wrong)


def test_a_config_comes_back_from_json_and_unknown_settings_are_named():
    own = NetworkConfig(hidden=(24, 16), conv_channels=(4, 6), likelihood="gaussian", decoder_scale=0.5)
    for config in (NetworkConfig(), own, NetworkConfig(hidden=()), NetworkConfig(hidden=(300,), autoencoder=True)):
        assert NetworkConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="depth"):
        NetworkConfig.from_json({"depth": 3})


@pytest.mark.parametrize(
    ("config", "symbols", "widths"),
    [
        (NetworkConfig(), 24, (128, 64)),
        (NetworkConfig(), 100, (128, 100)),
        (NetworkConfig(), 200, (200, 200)),
        (NetworkConfig(hidden=(512, 256, 48)), 24, (128, 64, 48)),
        (NetworkConfig(latent_dim=20, hidden=(512, 256)), 24, (128, 100)),
        (NetworkConfig(latent_dim=32), 24, (256, 256)),
        (NetworkConfig(hidden=(512, 64)), 784, (512, 64)),
        (NetworkConfig(hidden=()), 24, ()),
        (NetworkConfig(hidden=(64,), encoder_hidden=(512, 8)), 24, (512, 8)),
        (NetworkConfig(encoder_hidden=()), 24, ()),
        (NetworkConfig.from_json({"latent_dim": 3, "hidden": [256, 300]}), 24, (256, 300)),  # as models once were
        (NetworkConfig.from_json(NetworkConfig(hidden=(256, 300)).to_json()), 24, (128, 64)),
    ],
)
def test_the_encoder_has_the_widths_that_were_asked_for(config, symbols, widths):
    layout = FeatureLayout.assemble([Span("a", "value", "ordinal", 0, symbols, 4, step=(1.0,), shift=(0.0,))])
    vae = VAE(layout, config)
    trunk = [] if vae.encoder.trunk is None else [m for m in vae.encoder.trunk if isinstance(m, torch.nn.Linear)]
    outputs = 2 * config.latent_dim
    assert vae.encoder.input.bias.shape == ((*widths, outputs)[0],)
    assert [layer.out_features for layer in trunk] == [*widths[1:]]
    if widths:
        assert (vae.encoder.head.in_features, vae.encoder.head.out_features) == (widths[-1], outputs)
    assert [m.out_features for m in vae.decoder.trunk if isinstance(m, torch.nn.Linear)] == [*config.hidden[::-1]]
    assert vae.config.encoder_hidden == widths
    assert from_bytes(to_bytes(vae)).config == vae.config


def test_the_json_of_equal_widths_is_that_of_models_before_encoders_had_their_own():
    assert "encoder_hidden" not in NetworkConfig(hidden=(64, 32), encoder_hidden=(64, 32)).to_json()
    assert NetworkConfig().to_json()["encoder_hidden"] is None
