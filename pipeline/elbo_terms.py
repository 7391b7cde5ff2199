"""The terms of the ELBO of rows, as sums and row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.bundle import Bundle


@dataclass(frozen=True)
class RowTerms:
    """What the VAE says of B rows, in nats.

    Attributes:
        surprise: -E_q[log p(column|z)], shape (B, C).
        kl: KL(q(z|x) ‖ p(z)), shape (B,).
        means: Posterior means, shape (B, Z).
        latents: Means on the latent grid, as an archive keeps them, shape (B, Z).
    """

    surprise: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    means: npt.NDArray[np.float32]
    latents: npt.NDArray[np.float32]


class ElboTerms:
    """The terms of the ELBO of the rows of a part.

    Args:
        bundle: The model.
        seed: Seed of the latent noise.
        unit: Index of the work unit.
    """

    def __init__(self, bundle: Bundle, seed: int, unit: int) -> None:
        import torch

        self._bundle = bundle
        self._noise = torch.Generator(device=bundle.device).manual_seed(seed * 1_000_003 + unit)
        owners = [span.column for span in bundle.rows.layout().spans]
        self._first = [number for number, name in enumerate(owners) if number == 0 or owners[number - 1] != name]

    def __call__(self, batch: pa.RecordBatch, by_row: bool) -> tuple[npt.NDArray[np.float64], RowTerms | None]:
        """Sums over rows of reconstruction, KL, and KL by latent, in nats; what each row adds, if wanted."""
        import torch

        from vae_model.elbo import Objective

        bundle, vae = self._bundle, self._bundle.vae
        bins_bd, _ = bundle.rows.from_batch(batch)
        objective = Objective(noise=vae.deployed_noise)
        sums, found = np.zeros(2 + bundle.latent_dim), []
        with torch.inference_mode():
            for rows in bundle.network_slices(len(bins_bd)):
                chunk_BD = torch.from_numpy(bins_bd[rows]).to(bundle.device)
                z_MBZ, kl_BZ = vae.draw(chunk_BD, objective, self._noise)
                log_prob_BS = vae.log_prob(chunk_BD, z_MBZ).mean(0)
                kl_Z = kl_BZ.double().sum(0)
                parts = torch.cat([log_prob_BS.double().sum()[None], kl_Z.sum()[None], kl_Z])
                sums += parts.cpu().numpy()
                if by_row:
                    mu_BZ = vae.encode_mean(chunk_BD)
                    kept = (
                        log_prob_BS.double(),
                        kl_BZ.double().sum(1),
                        mu_BZ.float(),
                        vae.round_latents(mu_BZ).float(),
                    )
                    found.append([part.cpu().numpy() for part in kept])
        if not found:
            return sums, None
        log_prob_bs, kl_b, means_bz, latents_bz = (np.concatenate(part) for part in zip(*found, strict=True))
        surprise_bc = -np.add.reduceat(log_prob_bs, self._first, axis=1)
        return sums, RowTerms(surprise_bc, kl_b, means_bz, latents_bz)
