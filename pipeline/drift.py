"""Drift: new files that a model codes clearly worse than those that its archive had before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.bundle import Bundle
from pipeline.part_table import PartTable
from pipeline.plan import PartRecord

WORSE = 1.25
"""A file costs clearly more when its rows need more than so many times the archive's bits, …"""
_LEAST_BYTES = 2048
"""… and when that comes to more bytes than the headers of a small part."""
SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Drift:
    """A file that costs clearly more than the others.

    Attributes:
        path: The file.
        bits_per_row: What a row of it costs.
        expected: What a row of the archive cost before.
    """

    path: str
    bits_per_row: float
    expected: float


def find_drift(before: PartTable, records: Iterable[PartRecord]) -> tuple[Drift, ...]:
    """Compares what new files cost with what the archive's others did.

    Args:
        before: The parts that were there before.
        records: The new parts.

    Returns:
        The files that cost clearly more, the costliest first.
    """
    expected = before.bits_per_row()
    if expected is None:
        return ()
    sums: dict[str, tuple[float, int]] = {}
    for record in records:
        if record.bits_per_row is not None and math.isfinite(record.bits_per_row):
            bits, rows = sums.get(record.path, (0.0, 0))
            sums[record.path] = bits + record.bits_per_row * record.rows, rows + record.rows
    found = [
        Drift(path, bits / rows, expected)
        for path, (bits, rows) in sums.items()
        if rows and bits - WORSE * max(expected, 0.0) * rows > 8 * _LEAST_BYTES
    ]
    return tuple(sorted(found, key=lambda drift: -drift.bits_per_row))


def sample_bits(bundle: Bundle, bins_bd: npt.NDArray[np.int64]) -> float:
    """−ELBO in bits a row of the first rows of a batch: what an archive that keeps latents alone goes by."""
    import torch

    from vae_model.elbo import Objective

    bins_BD = torch.from_numpy(bins_bd[:SAMPLE_ROWS]).to(bundle.device)
    objective = Objective(noise=bundle.vae.deployed_noise)
    with torch.inference_mode():
        generator = torch.Generator(device=bundle.device).manual_seed(0)
        terms = bundle.vae(bins_BD, objective, generator)
    return float(terms.kl - terms.reconstruction) / math.log(2)
