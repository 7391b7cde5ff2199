"""The latents that an archive keeps: a sample of them to fit a distribution to, or those of single rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.errors import ArchiveError, ConfigError
from pipeline.generate import to_drawn_bins
from pipeline.parts import PartReader, Wanted
from pipeline.plan import PartRecord

Latents = npt.NDArray[np.float32]
MOST_ROWS = 1 << 16
"""Rows of a sample, at most."""
_MOST_READ = 1 << 22
_LATENTS_ALONE = Wanted((), latents=True, cell=False)


def check_latents(archive: Archive) -> None:
    """Refuses an archive that has no latents, and so no network either.

    Raises:
        ArchiveError: Saying what to do.
    """
    if not archive.plan.latents:
        raise ArchiveError(
            f"{archive.location} keeps no latents and no network; give the model's folder, or encode with --keep both"
        )


def sample_latents(archive: Archive, seed: int, most: int = MOST_ROWS) -> Latents:
    """Latents of rows drawn evenly from an archive; of a huge one, from parts drawn from it.

    Args:
        archive: An archive that keeps latents.
        seed: Seed of the draw.
        most: Rows, at most.

    Returns:
        Latents, shape (rows, Z), in a random order.

    Raises:
        ArchiveError: If a part is damaged.
    """
    generator = np.random.default_rng([seed, 2])
    found: list[Latents] = []
    rows = 0
    for number in generator.permutation(len(archive.parts)).tolist():
        for block in _read(archive, archive.parts[number]):
            found.append(block)
            rows += len(block)
        if rows >= _MOST_READ:
            break
    latents = np.concatenate(found) if found else np.zeros((0, 1), np.float32)
    return latents[generator.permutation(len(latents))[:most]]


def row_latents(archive: Archive, row: int, what: str) -> Latents:
    """The latents of one row, shape (1, Z).

    Raises:
        ConfigError: If there is no such row.
        ArchiveError: If its part is damaged.
    """
    if not 0 <= row < archive.rows:
        raise ConfigError(f"{what} {row}: the archive {archive.location} has the rows 0 to {archive.rows - 1}")
    part = int(np.searchsorted(archive.parts.row_ends, row, "right"))
    begun = int(archive.parts.row_ends[part - 1]) if part else 0
    with PartReader(archive.part_location(archive.parts[part]), archive.parts[part], archive.form, False) as reader:
        for number, size in enumerate(reader.block_rows):
            if row < begun + size:
                latents = reader.block(number, _LATENTS_ALONE).latents
                assert latents is not None
                return latents[row - begun : row - begun + 1]
            begun += size
    raise ArchiveError(f"{archive.location}: row {row} is in no block of its part; restore it")


def with_posterior_noise(bundle: Bundle, latents: Latents, seed: int) -> Latents:
    """Draws from q(z|x) where latents are its means: a model that was trained without rounding keeps those.

    The deviation is that which the encoder gives to a row drawn from p(x|z), for the rows themselves are not at hand.

    Args:
        bundle: The model.
        latents: Means, shape (rows, Z).
        seed: Seed of the noise.
    """
    import torch

    generator = np.random.default_rng([seed, 3])
    noise = torch.Generator(device=bundle.device).manual_seed(seed)
    _, logvar = bundle.to_posterior(to_drawn_bins(bundle, latents, noise))
    drawn = latents + np.exp(0.5 * logvar) * generator.standard_normal(latents.shape, np.float32)
    return np.asarray(drawn, np.float32)


def _read(archive: Archive, record: PartRecord) -> list[Latents]:
    with PartReader(archive.part_location(record), record, archive.form, whole=False) as part:
        blocks = [block.latents for block in part.blocks(_LATENTS_ALONE)]
    return [latents for latents in blocks if latents is not None]
