"""Latents as a torch dataset that streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

if TYPE_CHECKING:
    from pipeline.features import Features


class LatentDataset(IterableDataset[Any]):
    """Rows in the archive's order; the workers of a `DataLoader` take turns at its parts.

    Args:
        features: What is streamed.
        label: A column that comes beside the features, or None.
    """

    def __init__(self, features: Features, label: str | None) -> None:
        self._features, self._label = features, label
        _ = features.whitening  # one pass, before there are workers

    def __len__(self) -> int:
        return self._features.rows

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for values, rows in self._features.parts(range(first, self._features.part_count, step)):
            tensor = torch.from_numpy(values.copy())
            if self._label is None:
                yield from tensor
                continue
            labels = rows.column(self._label).to_pandas().to_numpy()
            yield from zip(tensor, torch.from_numpy(labels.copy()), strict=True)
