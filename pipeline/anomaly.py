"""Anomaly scores of rows under a model: how improbable they are, and which columns make them so.

For M draws z from q(z|x) the *surprise* of a column is -E_q[log p(column|z)] in nats; minus their sum is the
reconstruction probability of An & Cho (2015, "Variational autoencoder based anomaly detection using reconstruction
probability"), with the KL it is -ELBO.

Values that the model has never seen have no probability of their own. n rows were trained on; by the exchangeability of
rows the next one holds something new with a probability of about 1/(n+1):

* a number outside of the fitted range has the probability of the whole tail that begins at it, and at most 1/(n+1); the
  farther outside, the less (an infinity counts as the farthest number);
* a category, null or NaN where fitting saw none costs log(n+1) nats;
* a value that is not there (null, NaN, a category outside of the vocabulary) is counted with the surprise that the
  model expects of that column, so that saying nothing never makes a row less strange;
* where fitting saw no such state, the encoder sees the model's own guess of the value instead (a few rounds of encoding
  and decoding; Rezende, Mohamed & Wierstra 2014, section F), so that the other columns are judged as usual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.bundle import Bundle
from pipeline.columns.base import State
from pipeline.columns.beyond import distance_beyond, states_seen

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]
_IMPUTATIONS = 3
_CHUNK_ROWS, _CHUNK_SYMBOLS = 1024, 1 << 18


@dataclass(frozen=True)
class Scores:
    """Scores of B rows, in nats.

    Attributes:
        log_prob: E_q[log p(x|z)], the reconstruction probability, shape (B,).
        kl: KL(q(z|x) ‖ p(z)), shape (B,).
        surprise: -E_q[log p(column|z)], shape (B, C).
        expected: The surprise that the model expects of each column given z (its entropy), shape (B, C); 0 if it was
            not asked for and no value is absent.
        latents: Latents as an archive keeps them: posterior means on the latent grid, shape (B, Z).
    """

    log_prob: Floats
    kl: Floats
    surprise: Floats
    expected: Floats
    latents: npt.NDArray[np.float32]

    @property
    def minus_elbo(self) -> Floats:
        """KL(q(z|x) ‖ p(z)) - E_q[log p(x|z)], an upper bound of -log p(x), shape (B,)."""
        return self.kl - self.log_prob

    @property
    def anomaly_score(self) -> Floats:
        """What a threshold applies to: minus the reconstruction probability. The higher, the stranger."""
        return -self.log_prob

    @property
    def contributions(self) -> Floats:
        """How much more surprising each column is than the model expects of it, shape (B, C)."""
        return self.surprise - self.expected


@dataclass(frozen=True)
class Observed:
    """Rows as the model takes them.

    Attributes:
        bins: Symbols, shape (B, D).
        beyond: How far outside of the grids values lie, shape (B, D); None if none does.
        absent: Whether a column's value is not there, shape (B, C).
        unseen: Whether a column is in a state that fitting did not see, shape (B, C).
    """

    bins: npt.NDArray[np.int64]
    beyond: Floats | None
    absent: npt.NDArray[np.bool_]
    unseen: npt.NDArray[np.bool_]


class Scorer:
    """Scores rows in chunks of `chunk_rows`, each with noise of its own.

    Args:
        bundle: The model.
        samples: M, the draws of z a row.
        seed: Seed of the draws.
        expected: Whether the surprise that the model expects is wanted, for contributions.
    """

    def __init__(self, bundle: Bundle, samples: int, seed: int, expected: bool = True) -> None:
        self._bundle, self._samples, self._seed, self._expected = bundle, samples, seed, expected
        self.columns = [column.name for column in bundle.rows.modelled]
        spans = bundle.rows.layout().spans
        self.chunk_rows = max(16, min(_CHUNK_ROWS, _CHUNK_SYMBOLS // bundle.rows.layout().n_symbols))
        number = {name: index for index, name in enumerate(self.columns)}
        self._owner = np.array([number[span.column] for span in spans])
        self._first = np.flatnonzero(np.diff(self._owner, prepend=-1))
        self._widths = np.array([span.width for span in spans])
        self._value = np.array([span.role == "value" for span in spans])
        self._rarity = math.log1p(max(1, int(bundle.training.get("rows", 1))))

    def __call__(self, batch: pa.RecordBatch, stream: int, chunk: int) -> Scores:
        """Scores one chunk.

        Args:
            batch: At most `chunk_rows` rows with at least the modelled columns.
            stream: Which stream of rows the chunk belongs to, a number from 0 up: noise differs between streams.
            chunk: Number of the chunk in it.
        """
        import torch

        from vae_model.elbo import Objective
        from vae_model.network import Novel

        observed, device, vae = observe(self._bundle, batch), self._bundle.device, self._bundle.vae
        words = np.random.SeedSequence([self._seed, stream, chunk]).generate_state(2, np.uint64)
        noise, other = (torch.Generator(device=device).manual_seed(int(word >> 1)) for word in words)
        bins_BD = torch.from_numpy(observed.bins).to(device)
        novel = None
        if observed.beyond is not None:
            novel = Novel(torch.from_numpy(observed.beyond).to(device), -self._rarity)
        objective = Objective(noise=vae.deployed_noise, mc_samples=self._samples)
        with torch.inference_mode():
            seen_BD = self._imputed(bins_BD, observed.unseen)
            z_MBZ, kl_BZ = vae.draw(seen_BD, objective, noise)
            latents_BZ = vae.round_latents(vae.encode(bins_BD).mu_BZ)  # as an archive has them
            found, typical = torch.zeros(2, len(bins_BD), len(self._owner), dtype=torch.float64, device=device)
            for z_BZ in z_MBZ:
                found -= vae.log_prob(bins_BD, z_BZ, novel).double()
                if self._expected or observed.absent.any():
                    typical -= vae.log_prob(vae.sample(z_BZ, other), z_BZ).double()
        found, typical = (value.cpu().numpy() / len(z_MBZ) for value in (found, typical))
        surprise, expected = self._by_column(found, typical, observed)
        kl = kl_BZ.double().sum(-1).cpu().numpy()
        return Scores(-surprise.sum(1), kl, surprise, expected, latents_BZ.float().cpu().numpy())

    def _imputed(self, bins_BD: Tensor, unseen: npt.NDArray[np.bool_]) -> Tensor:
        """What the encoder sees: values in states that training never had are the model's own guess."""
        import torch

        if not unseen.any():
            return bins_BD
        vae = self._bundle.vae
        unseen_BD = torch.from_numpy(unseen[:, self._owner].repeat(self._widths, axis=1)).to(bins_BD.device)
        is_value_D = torch.from_numpy(self._value.repeat(self._widths)).to(bins_BD.device)
        seen_BD = bins_BD
        for _ in range(_IMPUTATIONS):
            guess_BD = vae.reconstruct(vae.encode(seen_BD).mu_BZ) * is_value_D  # state 0: there is a value
            seen_BD = torch.where(unseen_BD, guess_BD, bins_BD)
        return seen_BD

    def _by_column(self, found_BS: Floats, typical_BS: Floats, observed: Observed) -> tuple[Floats, Floats]:
        """Sums surprises by span to those by column; puts in what the model cannot say."""
        missing = observed.absent[:, self._owner] & self._value
        found_BS = np.where(missing, typical_BS, found_BS)
        surprise, expected = (np.add.reduceat(part, self._first, axis=1) for part in (found_BS, typical_BS))
        return surprise + self._rarity * observed.unseen, expected


def observe(bundle: Bundle, batch: pa.RecordBatch) -> Observed:
    """Turns rows into what `Scorer` needs of them: symbols, and whatever symbols cannot say.

    Args:
        bundle: The model.
        batch: Rows with at least the modelled columns.
    """
    columns = bundle.rows.modelled
    bins, beyond = [], []
    absent, unseen = np.zeros((2, batch.num_rows, len(columns)), np.bool_)
    for number, column in enumerate(columns):
        values = batch.column(batch.schema.get_field_index(column.name))
        symbols, far = column.from_values(values), distance_beyond(column, values)
        own, width = symbols.bins, symbols.bins.shape[1]
        states = np.zeros(len(values), np.uint8) if symbols.states is None else symbols.states
        if far is not None:
            wide = np.zeros((len(values), width))
            wide[:, width - far.shape[1] :] = far
            infinite = (states != State.VALUE) & far.any(1)
            last = column.spans()[-1].bins - 1
            own[infinite] = 0
            own[infinite, -1] = np.where(far[infinite, -1] > 0, last, 0)
            states = np.where(infinite, State.VALUE, states)
            far = wide
        bins.append(own)
        beyond.append(np.zeros((len(values), width)) if far is None else far)
        absent[:, number] = states != State.VALUE
        unseen[:, number] = ~np.isin(states, states_seen(column))
    joined = np.concatenate(beyond, axis=1)
    return Observed(np.concatenate(bins, axis=1), joined if joined.any() else None, absent, unseen)
