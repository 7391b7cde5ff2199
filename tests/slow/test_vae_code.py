"""Does coding by the VAE alone cost what its ELBO says?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.codec.entropy import Decoder, Encoder
from vae_model.elbo import Objective
from vae_model.exact import ExactDecoder
from vae_model.exact_logistic import discretized_logistic_weights
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE, NetworkConfig

pytestmark = pytest.mark.slow
EPOCHS, BATCH, LATENTS = 120, 64, 12


def trained(bins: torch.Tensor) -> VAE:
    """A VAE of digits: noise of the posterior first, rounding noise in the last part."""
    torch.manual_seed(0)
    span = Span("pixels", "value", "ordinal", 0, 64, 17, (0.166,), (-0.81,))
    vae = VAE(FeatureLayout((span,)), NetworkConfig(latent_dim=LATENTS, hidden=(128, 128), conv_channels=()))
    steps = EPOCHS * len(bins) // BATCH
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        if step == steps * 3 // 4:
            with torch.no_grad():
                posterior = vae.encode(bins)
                sigma = (0.5 * posterior.logvar_BZ).exp().mean(0)
                kl = 0.5 * (posterior.mu_BZ**2 + posterior.logvar_BZ.exp() - 1 - posterior.logvar_BZ).mean(0)
                vae.set_latent_grid(sigma, kl)
        noise = "uniform" if step >= steps * 3 // 4 else "gaussian"
        terms = vae(bins[torch.randint(0, len(bins), (BATCH,))], Objective(noise=noise))
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        schedule.step()
    return vae.eval()


def latent_weights(column: np.ndarray) -> tuple[np.ndarray, int]:
    """Frequencies of one latent's indices, and the bytes that their table takes."""
    counts = np.bincount(column - column.min()).astype(np.float64) + 1
    return np.broadcast_to(counts, (len(column), len(counts))), 2 * len(counts)


def test_latents_and_corrections_of_digits_cost_their_elbo():
    images = load_digits().images.reshape(-1, 64).astype(np.int64)
    bins = torch.from_numpy(images)
    vae = trained(bins)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        elbo = float(vae.elbo_samples(bins, 8, generator).mean()) / math.log(2)
        latents = vae.round_latents(vae.encode(bins).mu_BZ)
    step = vae.latent_step_Z.numpy()
    indices = np.rint(latents.numpy() / step).astype(np.int64)

    encoder, tables = Encoder(), 0
    for column in indices.T[::-1]:
        weights, size = latent_weights(column)
        encoder.push(column - column.min(), weights)
        tables += size
    decoder = ExactDecoder.from_vae(vae, sample_k_BZ=torch.from_numpy(indices))
    said = decoder.parameters(torch.from_numpy(indices), beyond=8)[0]
    weights = discretized_logistic_weights(said.location_BN, said.scale_BN, 17, said.span.first_level)
    pixels = Encoder()
    pixels.push(images.ravel(), weights.reshape(-1, 17).numpy())
    found = Decoder(pixels.to_bytes()).pull(weights.reshape(-1, 17).numpy())
    np.testing.assert_array_equal(found.reshape(images.shape), images)

    coded = 8 * (len(encoder.to_bytes()) + len(pixels.to_bytes()) + tables) / len(images)
    print(f"-ELBO {-elbo:.2f} bits/row, coded {coded:.2f}")
    assert -elbo < 150
    assert coded <= 1.05 * -elbo
