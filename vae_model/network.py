"""VAE: the whole model, from symbols to loss terms and back to symbols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_model.config import NetworkConfig
from vae_model.decoder import Decoder, SpanGroup
from vae_model.elbo import (
    ROUNDING_KL,
    LossTerms,
    Noise,
    Objective,
    Posterior,
    draw_uniform,
    full_precision,
    kl_standard_normal,
    kl_uniform,
    latent_step,
    log_normal,
    loss_terms,
    reparameterize,
    swap_symbols,
)
from vae_model.encoder import Encoder
from vae_model.layout import ABSENT, END, FeatureLayout
from vae_model.likelihood import Likelihood, Parameters

__all__ = ["VAE", "NetworkConfig", "Novel"]
LEAST_LOG_PROB = -1e9
"""No value outside of a grid counts as less probable, in nats: what it is added to stays exact enough."""


class Novel(NamedTuple):
    """Values that lie outside of the range that the model was fitted to.

    Attributes:
        beyond_BD: How far each symbol's value lies outside of its grid, in standardized units (float64): above 0
            beyond the last bin, below 0 before the first, 0 inside. Bins there are the first or the last.
        log_prob: The log-probability that such a value has at most, in nats.
    """

    beyond_BD: Tensor
    log_prob: float


class VAE(nn.Module):
    """A VAE over rows of integer symbols with a diagonal Gaussian posterior (Kingma & Welling 2014).

    Rows are independent. Bins must be -1 (absent) … bins-1 of their span; nothing here checks that.

    Args:
        layout: Which symbol belongs to which column.
        config: Shape of the network.

    Raises:
        ValueError: If the layout has no symbols.
    """

    latent_step_Z: Tensor
    latent_active_Z: Tensor
    span_order_S: Tensor
    symbol_order_D: Tensor

    def __init__(self, layout: FeatureLayout, config: NetworkConfig) -> None:
        super().__init__()
        if layout.n_symbols == 0:
            raise ValueError("a layout without symbols leaves a network nothing to model")
        self.layout = layout
        self.config = replace(config, encoder_hidden=config.encoder_widths(layout.n_symbols))
        self.encoder = Encoder(layout, self.config)
        self.decoder = Decoder(layout, self.config)
        self.register_buffer("latent_step_Z", torch.zeros(config.latent_dim))
        self.register_buffer("latent_active_Z", torch.ones(config.latent_dim, dtype=torch.bool))
        spans = torch.tensor([number for group in self._groups() for number in group.members])
        symbols = torch.cat([group.columns.index_N for group in self._groups()])
        self.register_buffer("span_order_S", torch.argsort(spans), persistent=False)
        self.register_buffer("symbol_order_D", torch.argsort(symbols), persistent=False)

    def _groups(self) -> list[SpanGroup]:
        return [group for group in self.decoder.groups if isinstance(group, SpanGroup)]

    def encode(self, bins_BD: Tensor) -> Posterior:
        """q(z|x) of each row: mu_BZ and logvar_BZ."""
        posterior: Posterior = self.encoder(bins_BD)
        return posterior

    def encode_mean(self, bins_BD: Tensor) -> Tensor:
        """The mean mu_BZ of q(z|x) of each row, without the work for its variance."""
        mu_BZ: Tensor = self.encoder.mean(bins_BD)
        return mu_BZ

    @property
    def deployed_noise(self) -> Noise:
        """The noise of a latent as it is stored: that of rounding where there is a grid, else q(z|x)'s."""
        if self.config.autoencoder:
            return "none"
        return "uniform" if bool((self.latent_step_Z > 0).any()) else "gaussian"

    def set_latent_grid(self, mean_sigma_Z: Tensor, kl_Z: Tensor, active_threshold: float = ROUNDING_KL) -> None:
        """Fixes the grid that latents are rounded to, and which latents are kept.

        Args:
            mean_sigma_Z: Mean posterior deviation of each latent over the data.
            kl_Z: Mean KL of each latent over the data, nats.
            active_threshold: Latents with a KL of no more than this are stored as 0: they say less than a
                constant costs once it is rounded.
        """
        step_Z = latent_step(mean_sigma_Z.to(self.latent_step_Z)).clamp(min=1e-6)
        self.latent_step_Z.copy_(step_Z)
        self.latent_active_Z.copy_(kl_Z.to(self.latent_step_Z.device) > active_threshold)

    def round_latents(self, mu_BZ: Tensor) -> Tensor:
        """round(mu/step)·step; 0 where inactive, unchanged where the step is 0."""
        step_Z, active_Z = self.latent_step_Z, self.latent_active_Z.to(mu_BZ)  # factors: `where` would not vectorize
        on_grid_Z = (step_Z > 0).to(mu_BZ)
        grid_Z = step_Z + (1 - on_grid_Z)
        rounded_BZ = (mu_BZ / grid_Z).round_().mul_(grid_Z * on_grid_Z * active_Z)
        return rounded_BZ.addcmul_(mu_BZ, (1 - on_grid_Z) * active_Z).add_(0.0)  # no negative zeros

    def _decode_groups(self, z_BZ: Tensor) -> list[Parameters]:
        parameters: list[Parameters] = self.decoder(z_BZ.masked_fill(~self.latent_active_Z, 0.0))
        return parameters

    def decode(self, z_BZ: Tensor) -> list[Parameters]:
        """The parameters of p(x|z), one entry a span, in the layout's order; see `likelihood`."""
        by_span: dict[int, Parameters] = {}
        for group, parameters in zip(self._groups(), self._decode_groups(z_BZ), strict=True):
            first = 0
            for number, span in zip(group.members, group.spans, strict=True):
                by_span[number] = parameters.take(first, first + span.width, span.bins)
                first += span.width
        return [by_span[number] for number in range(len(by_span))]

    def log_prob(self, bins_BD: Tensor, z_BZ: Tensor, novel: Novel | None = None) -> Tensor:
        """The log-probability of rows given z by span, logp_BS in nats; z_MBZ gives logp_MBS.

        Args:
            bins_BD: The rows.
            z_BZ: Latents.
            novel: Which values lie outside of the grids, if any do.
        """
        parts = []
        parameters_by_group = self._decode_groups(z_BZ)
        with full_precision(z_BZ):
            for group, parameters in zip(self._groups(), parameters_by_group, strict=True):
                bins_BN = group.columns(bins_BD)
                if novel is None or group.spans[0].kind == "categorical":
                    logp_BN = group.likelihood.log_prob(parameters, bins_BN)
                else:
                    beyond_BN = group.columns(novel.beyond_BD)
                    logp_BN = group.likelihood.log_prob(parameters, bins_BN, beyond_BN)
                    least_BN = logp_BN.clamp(LEAST_LOG_PROB, novel.log_prob)
                    logp_BN = torch.where(beyond_BN != 0, least_BN, logp_BN)
                parts.append(group.by_span(logp_BN))
            return torch.cat(parts, dim=-1).index_select(-1, self.span_order_S)

    def _bins(self, z_BZ: Tensor, pick: Callable[[Likelihood[Any], Parameters], Tensor]) -> Tensor:
        pairs = zip(self._groups(), self._decode_groups(z_BZ), strict=True)
        parts = [pick(group.likelihood, parameters) for group, parameters in pairs]
        bins_BD = torch.cat(parts, dim=-1).index_select(-1, self.symbol_order_D)
        for span in self.layout.spans:
            if span.ends:
                own = bins_BD[..., span.start : span.stop]
                ends_before = (own == END).cumsum(-1).roll(1, -1)
                ends_before[..., 0] = 0
                own.masked_fill_(ends_before > 0, ABSENT)
        return bins_BD

    @torch.no_grad()
    def reconstruct(self, z_BZ: Tensor) -> Tensor:
        """The bins bins_BD (int64, always valid) of the means of p(x|z), of its modes where categorical.

        Symbols after the end of a sequence are absent.
        """
        return self._bins(z_BZ, lambda likelihood, parameters: likelihood.estimate(parameters))

    @torch.no_grad()
    def sample(self, z_BZ: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Bins bins_BD (int64, always valid) drawn from p(x|z); symbols after the end of a sequence are absent."""
        return self._bins(z_BZ, lambda likelihood, parameters: likelihood.sample(parameters, generator))

    def forward(self, bins_BD: Tensor, objective: Objective, generator: torch.Generator | None = None) -> LossTerms:
        """The loss terms of one batch.

        Args:
            bins_BD: The rows.
            objective: Noise, samples, β, free bits and corruption.
            generator: Source of the noise; torch's global one if None.

        Raises:
            ValueError: If uniform noise is asked for while a latent has no grid.
        """
        seen_BD = bins_BD if not objective.corruption else swap_symbols(bins_BD, objective.corruption, generator)
        z_MBZ, kl_BZ = self._draw(self.encode(seen_BD), objective, generator)
        return loss_terms(self.log_prob(bins_BD, z_MBZ), kl_BZ, objective)

    def draw(
        self, bins_BD: Tensor, objective: Objective, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latents z_MBZ of rows under the objective's noise, and KL(q(z|x) ‖ p(z)) by latent, kl_BZ in nats."""
        return self._draw(self.encode(bins_BD), objective, generator)

    def _draw(
        self, posterior: Posterior, objective: Objective, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Samples z_MBZ and the KL kl_BZ that goes with them; inactive latents cost nothing."""
        mu_BZ, logvar_BZ = posterior
        step_Z = self.latent_step_Z
        if self.config.autoencoder or objective.noise == "none":
            rounded_BZ = mu_BZ + (self.round_latents(mu_BZ) - mu_BZ).detach()
            z_MBZ = rounded_BZ.unsqueeze(0)
            grid_Z = torch.where(step_Z > 0, step_Z, torch.ones_like(step_Z))
            gaussian_BZ = kl_standard_normal(mu_BZ, logvar_BZ)
            kl_BZ = torch.where(step_Z > 0, kl_uniform(rounded_BZ, grid_Z), gaussian_BZ)
        elif objective.noise == "uniform":
            recorded = step_Z.is_cuda and torch.cuda.is_current_stream_capturing()
            if not recorded and bool((self.latent_active_Z & (step_Z <= 0)).any()):
                raise ValueError("uniform noise needs a latent grid; call set_latent_grid first")
            uniform_MBZ = draw_uniform((objective.mc_samples, *mu_BZ.shape), mu_BZ, generator)
            z_MBZ = mu_BZ + (uniform_MBZ - 0.5) * step_Z
            kl_BZ = kl_uniform(mu_BZ, step_Z)
        else:
            z_MBZ = reparameterize(mu_BZ, logvar_BZ, objective.mc_samples, generator)
            kl_BZ = kl_standard_normal(mu_BZ, logvar_BZ)
        if self.config.autoencoder:
            kl_BZ = kl_BZ * 0.0
        return z_MBZ, kl_BZ.masked_fill(~self.latent_active_Z, 0.0)

    @torch.no_grad()
    def elbo_samples(self, bins_BD: Tensor, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Log-weights log_weights_MB in nats: log p(x|z) + log p(z) - log q(z|x) of M draws from q(z|x).

        Their mean estimates the ELBO; `importance_weighted_bound` makes a tighter bound of them.
        """
        mu_BZ, logvar_BZ = self.encode(bins_BD)
        zero = torch.zeros_like(mu_BZ)
        weights = []
        for _ in range(n_samples):
            z_BZ = reparameterize(mu_BZ, logvar_BZ, 1, generator)[0]
            ratio_BZ = log_normal(z_BZ, zero, zero) - log_normal(z_BZ, mu_BZ, logvar_BZ)
            prior_B = ratio_BZ.masked_fill(~self.latent_active_Z, 0.0).sum(-1)
            weights.append(self.log_prob(bins_BD, z_BZ).sum(-1) + prior_B)
        return torch.stack(weights)
