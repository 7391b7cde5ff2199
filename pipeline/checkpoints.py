"""What a training run keeps to continue: safetensors and JSON, nothing pickled."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vae_model.network import VAE
from vae_model.weights import from_bytes, optimizer_from_tensors, optimizer_to_tensors, to_bytes

WEIGHTS, BEST, OPTIMIZER, STATE = "weights.safetensors", "best.safetensors", "optimizer.safetensors", "state.json"


@dataclass
class LoopState:
    """Where training stands.

    Attributes:
        epoch: Epochs done.
        phase: 1 (Gaussian noise) or 2 (rounding noise).
        phase_epoch: Epochs done in this phase.
        best: The phase's best validation -ELBO, in nats a row.
        stale: Epochs since it was reached.
        done: Whether training is over.
        history: One entry of figures an epoch.
    """

    epoch: int = 0
    phase: int = 1
    phase_epoch: int = 0
    best: float = math.inf
    stale: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(folder: str, vae: VAE, best: bytes, optimizer: torch.optim.Optimizer, state: LoopState) -> None:
    """Writes weights, the best weights so far, the optimizer and the state into a local folder."""
    for name, data in ((WEIGHTS, to_bytes(vae)), (BEST, best)):
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)
    save_file(optimizer_to_tensors(optimizer, vae), os.path.join(folder, OPTIMIZER))
    with open(os.path.join(folder, STATE), "w") as text:
        json.dump({**asdict(state), "best": repr(state.best)}, text)


def load_checkpoint(folder: str, vae: VAE, optimizer: torch.optim.Optimizer) -> tuple[bytes, LoopState]:
    """Puts a checkpoint into a network and its optimizer.

    Returns:
        The best weights so far, and the state.
    """
    with open(os.path.join(folder, WEIGHTS), "rb") as stream:
        vae.load_state_dict(from_bytes(stream.read()).state_dict())
    with open(os.path.join(folder, BEST), "rb") as stream:
        best = stream.read()
    optimizer_from_tensors(optimizer, vae, load_file(os.path.join(folder, OPTIMIZER)))
    return best, read_state(folder)


def read_state(folder: str) -> LoopState:
    """The state of a checkpoint."""
    with open(os.path.join(folder, STATE)) as text:
        data = json.load(text)
    return LoopState(**{**data, "best": float(data["best"])})
