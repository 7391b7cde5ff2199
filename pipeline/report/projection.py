"""Latents of sampled rows as points in the plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ACTIVE_KL = 0.01
"""Mean KL in nats above which a latent counts as active."""
FEWEST_ROWS = 60
"""Fewer rows get no t-SNE."""
_PERPLEXITY = 30


def project(latents_bz: npt.NDArray[np.float32], kl_nats: Sequence[float]) -> tuple[str, npt.NDArray[np.float64]]:
    """Projects the active latents: t-SNE (van der Maaten & Hinton 2008), PCA of few rows, as they are where two.

    Args:
        latents_bz: Latents, shape (rows, Z).
        kl_nats: Mean KL of each latent.

    Returns:
        What was done, and the points, shape (rows, 2).
    """
    active = np.array(kl_nats) > ACTIVE_KL
    values = latents_bz[:, active if active.any() else slice(None)].astype(np.float64)
    if values.shape[1] == 1:
        spread = np.random.default_rng(0).uniform(-0.5, 0.5, (len(values), 1)) * (np.ptp(values) or 1.0) / 4
        return "one latent", np.hstack([values, spread])
    if values.shape[1] == 2:
        return "latents", values
    if len(values) < FEWEST_ROWS or len(np.unique(values, axis=0)) < FEWEST_ROWS:
        return "PCA", _pca(values)
    from sklearn.manifold import TSNE

    found = TSNE(2, perplexity=_PERPLEXITY, init=_start(values), learning_rate="auto", random_state=0)
    return "t-SNE", np.asarray(found.fit_transform(values), np.float64)


def _start(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where t-SNE begins: the principal components, small, as its authors advise."""
    points = _pca(values)
    return points / (points[:, 0].std() or 1.0) * 1e-4


def _pca(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from sklearn.decomposition import PCA

    if not np.ptp(values, axis=0).any():
        return np.zeros((len(values), 2))
    return np.asarray(PCA(2, random_state=0).fit_transform(values), np.float64)
