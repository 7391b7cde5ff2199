"""Rows of symbols as few bytes: what travels to training workers, and on to a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vae_model.layout import FeatureLayout

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PackedRows:
    """Symbols of a row packed into as few bytes as their numbers of bins allow.

    Symbols are stored plus one (0 = absent) in unsigned integers of 1, 2, 4 or 8 bytes, grouped by width,
    little-endian.

    Args:
        layout: The layout whose rows are packed.
    """

    def __init__(self, layout: FeatureLayout) -> None:
        with_state = {span.column for span in layout.spans if span.role == "state"}
        sizes = np.zeros(layout.n_symbols, np.int64)
        self._offset = np.zeros(layout.n_symbols, np.int64)
        for span in layout.spans:
            may_be_absent = span.column in with_state or span.ends
            sizes[span.start : span.stop] = _bytes_for(span.bins - 1 + may_be_absent)
            self._offset[span.start : span.stop] = may_be_absent
        order = np.argsort(-sizes, kind="stable")
        self._groups = [(f"<u{size}", order[sizes[order] == size]) for size in (8, 4, 2, 1) if (sizes == size).any()]
        self._places = [_run_of(columns) for _, columns in self._groups]
        self._shifted = bool(self._offset.any())
        self.row_bytes = int(sizes.sum())
        self._n_symbols = layout.n_symbols

    def pack(self, bins_bd: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Packs symbols into an array of shape (rows, row_bytes)."""
        shifted = bins_bd + self._offset
        parts = [
            np.ascontiguousarray(shifted[:, columns]).astype(dtype).view(np.uint8) for dtype, columns in self._groups
        ]
        if not parts:
            return np.zeros((len(bins_bd), 0), np.uint8)
        return np.concatenate(parts, axis=1)

    def unpack(self, packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Turns packed rows of shape (rows, row_bytes) back into `bins_BD`."""
        bins_bd = np.empty((len(packed), self._n_symbols), np.int64)
        start = 0
        for (dtype, columns), place in zip(self._groups, self._places, strict=True):
            stop = start + len(columns) * np.dtype(dtype).itemsize
            bins_bd[:, place] = np.ascontiguousarray(packed[:, start:stop]).view(dtype)
            start = stop
        if self._shifted:
            bins_bd -= self._offset
        return bins_bd

    def unpacker(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`unpack` on a GPU: from packed rows, uint8, to bins_BD; it waits for nothing (a CPU takes twice as long)."""
        import torch

        signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        sizes = [np.dtype(dtype).itemsize for dtype, _ in self._groups]
        places = np.argsort(np.concatenate([np.zeros(0, np.int64), *(columns for _, columns in self._groups)]))
        order_D, offset_D = torch.from_numpy(places).to(device), torch.from_numpy(self._offset).to(device)

        def unpack(packed: Tensor) -> Tensor:
            parts, start = [], 0
            for size, (_, columns) in zip(sizes, self._groups, strict=True):
                stop = start + size * len(columns)
                wide = packed[:, start:stop].contiguous().view(signed[size]).to(torch.int64)
                parts.append(wide & (1 << 8 * size) - 1 if size in (2, 4) else wide)
                start = stop
            return torch.cat(parts, dim=1).index_select(1, order_D) - offset_D

        return unpack


def _run_of(columns: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Columns as a slice, where they stand side by side."""
    first, last = int(columns[0]), int(columns[-1])
    return slice(first, last + 1) if np.array_equal(columns, np.arange(first, last + 1)) else columns


def _bytes_for(largest: int) -> int:
    return next(size for size in (1, 2, 4, 8) if largest < 1 << (8 * size))
