"""The seam between a codec and the networks that code some of its columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.codec.sections import Key, Sections
from pipeline.rows import RowTransform

MODEL = "model"
"""The method of a column that a network codes."""
UNKNOWN = -2
"""A symbol that is not decoded yet."""

Latents = npt.NDArray[np.float32]
Bins = npt.NDArray[np.int64]


class ModelCoder(Protocol):
    """What codes the columns whose method is "model".

    `bins_BD` has the symbols of all modelled columns, in the order of the coding transform. A value symbol is -1
    exactly where the row's state is not `VALUE`: where its column's state symbol is not 0, or, in a column
    without one, where its state is told apart. Keys of sections have a role of `sections.FIRST_MODEL_ROLE` or above.
    """

    def encode(self, bins_BD: Bins, latents_BZ: Latents | None) -> dict[Key, bytes]:
        """Codes the symbols of its columns."""

    def decode(
        self,
        sections: Sections,
        bins_BD: Bins,
        latents_BZ: Latents | None,
        columns: Collection[str],
    ) -> None:
        """Fills the symbols of its columns, of at least those asked for.

        Args:
            sections: The sections of the cell.
            bins_BD: Columns in `needs(columns)` that are coded otherwise are filled. Of the others the value
                symbols of rows that are told apart to have no ordinary value are -1, all else is `UNKNOWN`.
            latents_BZ: The latents that the archive keeps.
            columns: Names of columns that it codes.

        Raises:
            ValueError: If a section is damaged (or LookupError, OverflowError).
        """

    def needs(self, columns: Collection[str]) -> set[str]:
        """All columns from which `columns` (which it codes) are decoded, coded by it or not."""

    def to_bytes(self) -> bytes:
        """The bytes of `coder.safetensors`."""


LoadModel = Callable[[bytes, RowTransform, Mapping[str, str]], ModelCoder]
"""Rebuilds a model coder from its bytes, the coding transform, and what codes each column.

Raises ValueError (or LookupError, TypeError, ArithmeticError) where they do not fit."""
