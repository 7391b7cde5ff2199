"""Latents turned and scaled: directions of largest variance first, of unit variance if asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError

Doubles = npt.NDArray[np.float64]
_SMALLEST = 1e-12
"""Directions with less than this share of the largest variance are 0: they are noise of the arithmetic."""


@dataclass(frozen=True)
class Whitening:
    """PCA whitening (Kessy, Lewin & Strimmer 2018) of latents.

    Attributes:
        mean_z: Mean of every latent, shape (Z,).
        turn_zz: What multiplies centred rows from the right, shape (Z, Z); columns by falling variance.
        back_zz: Its (pseudo-)inverse, shape (Z, Z).
    """

    mean_z: Doubles
    turn_zz: Doubles
    back_zz: Doubles

    @classmethod
    def fit(cls, blocks: Iterable[npt.NDArray[np.floating]], width: int, scale: bool = True) -> Whitening:
        """Fits mean and covariance in one pass (Chan, Golub & LeVeque 1983: merged, centred sums).

        Args:
            blocks: Arrays of shape (rows, Z).
            width: Z.
            scale: Whether directions are scaled to unit variance; otherwise they are only turned.

        Raises:
            ConfigError: If there are fewer rows than latents.
        """
        rows, mean, square = 0, np.zeros(width), np.zeros((width, width))
        for block in blocks:
            if not len(block):
                continue
            values = np.asarray(block, np.float64)
            own_mean = values.mean(0)
            centred, shift = values - own_mean, own_mean - mean
            square += centred.T @ centred + np.outer(shift, shift) * (rows * len(values) / (rows + len(values)))
            rows += len(values)
            mean = mean + shift * (len(values) / rows)
        if rows <= width:
            raise ConfigError(f"{rows} rows are too few to whiten {width} latents: more rows than latents are needed")
        return cls.of(mean, square / (rows - 1), scale)

    @classmethod
    def of(cls, mean: Doubles, covariance: Doubles, scale: bool = True) -> Whitening:
        """The whitening of a mean and a covariance."""
        variance, directions = np.linalg.eigh(covariance)
        variance, directions = variance[::-1], directions[:, ::-1]
        signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(len(mean))])
        directions = directions * signs  # the largest entry of a direction is positive: the same on every machine
        kept = variance > _SMALLEST * max(float(variance[0]), np.finfo(float).tiny)
        deviation = np.sqrt(np.where(kept, variance, 1.0)) if scale else np.ones(len(mean))
        turn = np.where(kept, directions / deviation, 0.0)
        return cls(mean, turn, np.where(kept, directions * deviation, 0.0).T)

    def transform(self, latents: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Turns latents of shape (rows, Z)."""
        turned: npt.NDArray[np.float32] = self.transform_double(latents).astype(np.float32)
        return turned

    def transform_double(self, latents: npt.NDArray[np.floating]) -> Doubles:
        """As `transform`, in float64."""
        turned: Doubles = (np.asarray(latents, np.float64) - self.mean_z) @ self.turn_zz
        return turned

    def inverse(self, features: npt.NDArray[np.floating]) -> Doubles:
        """Latents from features of shape (rows, at most Z)."""
        values = np.asarray(features, np.float64)
        latents: Doubles = values @ self.back_zz[: values.shape[1]] + self.mean_z
        return latents
