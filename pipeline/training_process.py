"""This process as the host of a training run: one worker, no Ray Train.

A worker group of Ray Train is half a dozen processes; where there is one worker on the machine of the driver, the
driver itself does as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipeline.dataset import WorkUnit
from pipeline.errors import TrainingError
from pipeline.readahead import read_ahead
from pipeline.storage import Location
from pipeline.training_data import PackUnits, Shard
from pipeline.training_loop import LoopSettings, TrainingRun
from vae_model.network import VAE
from vae_model.weights import to_bytes

LATEST_FILE = "latest.json"
_NAME = re.compile(r"checkpoint-\d{6,}")


class ProcessHost:
    """See `pipeline.training_loop.Host`.

    Args:
        device: Where the network runs.
        shard: Where packed rows come from.
        tell: Takes the figures of every epoch.
        checkpoints: Where the last checkpoint is kept; None: nowhere.
    """

    def __init__(
        self,
        device: torch.device,
        shard: Shard,
        tell: Callable[[dict[str, Any]], None],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.rank, self.world, self.device, self.shard, self.tell = 0, 1, device, shard, tell
        self._checkpoints = checkpoints

    def checkpoint(self) -> contextlib.AbstractContextManager[str | None]:
        """The folder of the last checkpoint; None: there is none."""
        return contextlib.nullcontext(None) if self._checkpoints is None else self._checkpoints.latest()

    def wrap(self, vae: VAE) -> nn.Module:
        """The network as it is."""
        return vae

    def report(self, metrics: dict[str, Any], folder: str | None) -> None:
        """Keeps the checkpoint."""
        if self._checkpoints is not None and folder is not None:
            self._checkpoints.keep(folder, metrics["epoch"])

    def fail(self, reason: str) -> None:
        """Ends the run.

        Raises:
            TrainingError: Always.
        """
        raise TrainingError(reason)


class Checkpoints:
    """The last checkpoint of a run, in a folder that outlives the process.

    Every checkpoint has a folder of its own; `latest.json`, written last, says which one counts.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def keep(self, folder: str, epoch: int) -> None:
        """Takes the files of a local folder as the checkpoint after `epoch` epochs, and drops the one before."""
        name, before = f"checkpoint-{epoch:06d}", self._name()
        for file in sorted(os.listdir(folder)):
            with open(os.path.join(folder, file), "rb") as stream:
                self._folder.join(name, file).write_bytes(stream.read())
        self._folder.join(LATEST_FILE).write_json({"checkpoint": name})
        if before not in (None, name):
            self._folder.join(str(before)).remove()

    @contextlib.contextmanager
    def latest(self) -> Iterator[str | None]:
        """A local copy of the last checkpoint; None: there is none."""
        name = self._name()
        if name is None:
            yield None
            return
        kept = self._folder.join(name)
        with tempfile.TemporaryDirectory() as folder:
            for stat in kept.files():
                with open(os.path.join(folder, stat.path), "wb") as stream:
                    stream.write(kept.join(stat.path).read_bytes())
            yield folder

    def _name(self) -> str | None:
        try:
            name = self._folder.join(LATEST_FILE).read_json()["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) and _NAME.fullmatch(name) else None


@dataclass(frozen=True)
class UnitRows:
    """Work units that this process packs: a `pipeline.training_data.Shard`.

    Attributes:
        units: The units.
        packing: What packs them.
    """

    units: Sequence[WorkUnit]
    packing: PackUnits

    def tables(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        """The tables that `packing` makes of the units, in an order that `rng` draws, read ahead."""
        order = [json.dumps(self.units[number].to_json()) for number in rng.permutation(len(self.units))]
        return read_ahead(self.packing(pa.table({"item": order})), depth=1)


def train_here(settings: LoopSettings, host: ProcessHost) -> tuple[bytes, list[dict[str, Any]]]:
    """Trains in this process; leaves torch's threads and random state as they were.

    Returns:
        The weights and the history.

    Raises:
        TrainingError: The loss stopped being finite.
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[host.device] if host.device.type == "cuda" else []):
            run = TrainingRun(settings, host)
            run.run()
    finally:
        torch.set_num_threads(threads)
    return to_bytes(run.vae), run.state.history
