"""Rows that a model makes up: latents from a prior, values from p(x|z), in chunks that depend on seed and number alone.

A condition on columns is met by importance resampling (Rubin 1988): latents are drawn from the prior, weighted with
the probability of the condition given each, drawn again by their weights, and only then are the other columns drawn.
Columns are independent given z, so this has the model's own conditional distribution as its limit. Comparisons
(`age>=30`) weigh a latent by whether the value drawn with it satisfies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.bundle import Bundle
from pipeline.columns import State
from pipeline.conditions import Conditions
from pipeline.errors import ConfigError
from pipeline.latent_prior import LatentPrior, Latents
from pipeline.machine import one_thread
from pipeline.rows import RowTransform

if TYPE_CHECKING:
    import torch

Bins = npt.NDArray[np.int64]
_DRAWN_ROWS = 8192
PILOT_DRAWS = 1 << 15
"""Latents that tell how much a condition keeps of the prior."""
MOST_DRAWS = 128
"""Latents that are drawn for a row, at most."""
WANTED, LEAST = 2.0, 0.05
"""Effective sample size that a row should have, and must have."""
_CHUNK_ROWS, _CHUNK_SYMBOLS = 4096, 1 << 18
_CHUNK_DRAWS, _LEAST_RESAMPLED = 1 << 17, 256
_LATENTS, _VALUES, _PILOT = 0, 1, 2


@dataclass(frozen=True)
class Pilot:
    """What a condition keeps of the prior.

    Attributes:
        draws: Latents that are drawn for each row.
        probability: The mean weight: the model's probability of the condition (a density under Gaussians).
        effective: Effective sample size a row, (Σw)²/Σw² over the rows.
    """

    draws: int
    probability: float
    effective: float


class RowGenerator:
    """Makes rows up, chunk by chunk: chunk number n is the same whatever was drawn before.

    Args:
        bundle: The model.
        prior: Where latents come from.
        seed: Seed of all draws.
        mean: Whether values are the mean (the mode, if categorical) of p(x|z), not drawn from it.
        conditions: What rows must satisfy.
        draws: Latents drawn for each row if there are conditions.
    """

    def __init__(
        self,
        bundle: Bundle,
        prior: LatentPrior,
        seed: int,
        mean: bool = False,
        conditions: Conditions | None = None,
        draws: int = 1,
    ) -> None:
        self._bundle, self._prior, self._seed, self._mean = bundle, prior, seed, mean
        self._conditions, self._draws = conditions or Conditions((), ()), draws
        fitting = min(chunk_rows(bundle.rows), max(_LEAST_RESAMPLED, _CHUNK_DRAWS // draws))
        self.schema, self.chunk_rows = modelled_schema(bundle.rows), 1 << (fitting.bit_length() - 1)
        self.effective = 0.0
        """Effective sample size of the rows that `batches` gave so far."""

    def batches(self, rows: range) -> Iterator[pa.RecordBatch]:
        """Rows by their numbers, one batch a chunk."""
        for number in range(rows.start // self.chunk_rows, -(-rows.stop // self.chunk_rows)):
            batch, effective = self.chunk(number)
            begun = number * self.chunk_rows
            low, high = max(rows.start, begun), min(rows.stop, begun + self.chunk_rows)
            self.effective += effective * (high - low) / self.chunk_rows
            yield batch.slice(low - begun, high - low)

    def chunk(self, number: int) -> tuple[pa.RecordBatch, float]:
        """The rows of one chunk, and how many independent latents they are worth."""
        conditions, generator = self._conditions, self._numpy(_LATENTS, number)
        with one_thread():
            if conditions:
                latents, kept, effective = self._resampled(number, generator)
            else:
                latents, kept, effective = self._prior.draw(self.chunk_rows, generator), None, float(self.chunk_rows)
            bins = self._values(latents, number)
        if kept is not None:
            for comparison in conditions.comparisons:
                bins[:, comparison.own] = kept[:, comparison.own]
        for equality in conditions.equalities:
            bins[:, equality.own] = equality.symbols
        arrays = to_arrays(self._bundle.rows, bins)
        for equality in conditions.equalities:
            if equality.column.kind in ("numeric", "temporal"):  # not the middle of its bin
                arrays[equality.column.name] = pa.repeat(equality.value, len(bins))
        return pa.RecordBatch.from_arrays([arrays[name] for name in self.schema.names], schema=self.schema), effective

    def pilot(self) -> Pilot:
        """How many latents a row needs under the conditions.

        Raises:
            ConfigError: If even the most would be too few.
        """
        _, weights, _ = self._weighted(PILOT_DRAWS, self._numpy(_PILOT, 0), self._torch(_PILOT, 0))
        share = effective_size(weights) / PILOT_DRAWS
        draws = int(np.clip(np.ceil(WANTED / max(share, 1e-12)), 1, MOST_DRAWS))
        if share * draws < LEAST:
            raise ConfigError(
                f"--where {self._conditions.text}: hardly a row of this model is so (an effective sample size of "
                f"{share * PILOT_DRAWS:.1f} in {PILOT_DRAWS:,} draws); ask for something less rare"
            )
        return Pilot(draws, float(weights.mean()), share * draws)

    def _resampled(self, number: int, generator: np.random.Generator) -> tuple[Latents, Bins | None, float]:
        """Latents of one chunk that meet the conditions, the rows drawn with them, the effective sample size."""
        count = self._draws * self.chunk_rows
        latents, weights, kept = self._weighted(count, generator, self._torch(_PILOT, number + 1))
        total = weights.sum()
        if not total > 0:
            raise ConfigError(f"--where {self._conditions.text}: none of {count:,} draws is so; ask for less")
        places = (np.arange(self.chunk_rows) + generator.random()) / self.chunk_rows  # systematic resampling
        chosen = np.minimum(np.searchsorted(np.cumsum(weights) / total, places), len(weights) - 1)
        chosen = generator.permutation(chosen)
        return latents[chosen], None if kept is None else kept[chosen], effective_size(weights)

    def _weighted(
        self, count: int, generator: np.random.Generator, noise: torch.Generator
    ) -> tuple[Latents, npt.NDArray[np.float64], Bins | None]:
        """Draws latents; those with a weight above 0, all weights' relative sizes, and rows drawn with them."""
        import torch

        found: list[tuple[Latents, npt.NDArray[np.float64], Bins | None]] = []
        vae, conditions = self._bundle.vae, self._conditions
        for start in range(0, count, _DRAWN_ROWS):
            latents = self._prior.draw(min(_DRAWN_ROWS, count - start), generator)
            z_BZ = torch.from_numpy(latents).to(self._bundle.device)
            log_weights, kept = np.zeros(len(latents)), None
            if conditions.equalities:
                bins_BD = torch.zeros((len(latents), vae.layout.n_symbols), dtype=torch.int64, device=z_BZ.device)
                for equality in conditions.equalities:
                    bins_BD[:, equality.own] = torch.tensor(equality.symbols, device=z_BZ.device)
                spans = [number for equality in conditions.equalities for number in equality.spans]
                with torch.inference_mode():
                    log_weights = vae.log_prob(bins_BD, z_BZ)[:, spans].double().sum(1).cpu().numpy()
            if conditions.comparisons:
                with torch.inference_mode():
                    kept = vae.sample(z_BZ, noise).cpu().numpy()
                kept = without_exact(self._bundle.rows, kept)
                mask = np.logical_and.reduce([condition.holds(kept) for condition in conditions.comparisons])
                log_weights = np.where(mask, log_weights, -np.inf)
            found.append((latents, log_weights, kept))
        log_weights = np.concatenate([part for _, part, _ in found])
        rows = None if found[0][2] is None else np.concatenate([part for _, _, part in found if part is not None])
        return np.concatenate([part for part, _, _ in found]), np.exp(log_weights), rows

    def _values(self, latents: Latents, number: int) -> Bins:
        if self._mean:
            return self._bundle.to_bins(latents)
        return to_drawn_bins(self._bundle, latents, self._torch(_VALUES, number))

    def _numpy(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, purpose, number])

    def _torch(self, purpose: int, number: int) -> torch.Generator:
        import torch

        words = np.random.SeedSequence([self._seed, purpose, number, 1]).generate_state(1, np.uint64)
        return torch.Generator(device=self._bundle.device).manual_seed(int(words[0] >> 1))


def modelled_schema(rows: RowTransform) -> pa.Schema:
    """The schema of rows that are made up: the dataset's, without the columns that are passed through."""
    copied = set(rows.passthrough)
    return pa.schema([field for field in rows.schema if field.name not in copied], rows.schema.metadata)


def chunk_rows(rows: RowTransform) -> int:
    """Rows of a chunk, at most: a power of two, fewer where a row has many symbols."""
    fitting = max(16, min(_CHUNK_ROWS, _CHUNK_SYMBOLS // rows.layout().n_symbols))
    return 1 << (fitting.bit_length() - 1)


def to_drawn_bins(bundle: Bundle, latents: Latents, noise: torch.Generator) -> Bins:
    """Symbols drawn from p(x|z), shape (rows, D)."""
    import torch

    drawn = np.empty((len(latents), bundle.vae.layout.n_symbols), np.int64)
    with torch.inference_mode():
        for rows in bundle.network_slices(len(latents)):
            z_BZ = torch.from_numpy(latents[rows]).to(bundle.device)
            drawn[rows] = bundle.vae.sample(z_BZ, noise).cpu().numpy()
    return drawn


def to_arrays(rows: RowTransform, bins_bd: Bins) -> dict[str, pa.Array]:
    """Symbols that nobody ever saw, as values: nulls, NaN and infinities where the state symbols say so.

    Args:
        rows: The columns.
        bins_bd: Symbols of rows, shape (rows, D).

    Returns:
        One array a modelled column.
    """
    bins_bd = without_exact(rows, bins_bd)
    return rows.to_arrays(bins_bd, rows.join_exceptions(bins_bd, {}))


def without_exact(rows: RowTransform, bins_bd: Bins) -> Bins:
    """The symbols with an ordinary value wherever they say "stored exactly": there is nothing stored."""
    found, position = bins_bd.copy(), 0
    for column in rows.modelled:
        spans = column.spans()
        if spans[0].role == "state":
            states = column.states_of(found[:, position : position + sum(span.width for span in spans)])
            if states is not None:
                found[states == State.EXACT, position] = 0
        position += sum(span.width for span in spans)
    return found


def effective_size(weights: npt.NDArray[np.float64]) -> float:
    """(Σw)² / Σw² (Kish 1965); 0 if all weights are 0."""
    largest = float(weights.max(initial=0.0))
    if not largest > 0:
        return 0.0
    scaled = weights / largest
    return float(scaled.sum() ** 2 / np.square(scaled).sum())
