"""A worker of Ray Train as the host of a training run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
from torch import nn

from pipeline.training_data import Shard
from pipeline.training_loop import TrainingRun
from vae_model.network import VAE


@dataclass(frozen=True)
class RayRows:
    """A worker's part of a Ray dataset: a `pipeline.training_data.Shard`.

    Attributes:
        iterator: What Ray Train gives the worker.
    """

    iterator: Any

    def tables(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        """The tables in Ray Data's order."""
        del rng
        yield from self.iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


class RayHost:
    """See `pipeline.training_loop.Host`.

    Args:
        board: Handle of the actor that progress goes to.
    """

    def __init__(self, board: Any) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.shard: Shard = RayRows(ray.train.get_dataset_shard("rows"))
        self._board = board

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[str | None]:
        """The folder of the last checkpoint; None: there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield folder

    def wrap(self, vae: VAE) -> nn.Module:
        """The network under DDP if there are several workers."""
        if self.world == 1:
            return vae
        model: nn.Module = ray.train.torch.prepare_model(
            vae, move_to_device=False, parallel_strategy_kwargs={"find_unused_parameters": True}
        )
        return model

    def report(self, metrics: dict[str, Any], folder: str | None) -> None:
        """Waits for all workers; takes the checkpoint."""
        checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)

    def tell(self, message: dict[str, Any]) -> None:
        """Passes figures on to the driver."""
        self._board.tell.remote(message)

    def fail(self, reason: str) -> None:
        """Tells the driver why training stops."""
        ray.get(self._board.fail.remote(reason))


def train_worker(settings: dict[str, Any]) -> None:
    """What Ray Train calls on every worker: `loop` is a `LoopSettings`, `board` an actor's handle."""
    TrainingRun(settings["loop"], RayHost(settings["board"])).run()
