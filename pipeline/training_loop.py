"""The loop that every training worker runs: epochs, two phases, validation, checkpoints.

Phase 1 draws z from the Gaussian posterior. Phase 2 ("rounding") fixes the latent grid and trains on the noise
that rounding to it makes. A phase ends after its epochs or when the validation ELBO, its KL weighted with β, has
stopped rising; the best weights of the last phase are the model. A run too short for two phases takes the grid
without training on its noise.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.checkpoints import LoopState, load_checkpoint, save_checkpoint
from pipeline.config import Optimization
from pipeline.packed import PackedRows
from pipeline.totals import Totals
from pipeline.training_data import EpochPlan, Packed, Shard, ShardRows
from vae_model.config import NetworkConfig
from vae_model.elbo import Objective, autocast, warm_up
from vae_model.layout import FeatureLayout
from vae_model.network import VAE
from vae_model.training_step import TrainingStep
from vae_model.weights import from_bytes, to_bytes

ACTIVE_KL = 0.01
"""Mean KL in nats above which a latent counts as active."""
_VALIDATION_ROWS, _GPU_VALIDATION_ROWS = 4096, 16_384
_GPU_STEPS = 50
"""Steps that a GPU takes before it is asked whether all was finite: asking waits until it has taken them."""


@dataclass(frozen=True)
class LoopSettings:
    """What the driver decides for all workers.

    Attributes:
        layout: `FeatureLayout.to_json()`.
        network: `NetworkConfig.to_json()`.
        optimization: The training options.
        seed: Seed of weights, shuffles and noise.
        epochs: Epochs of both phases together.
        plan: How an epoch looks to a worker.
        validate_on_training: Whether there are no held-out rows.
        threads: Compute threads a worker.
    """

    layout: dict[str, Any]
    network: dict[str, Any]
    optimization: Optimization
    seed: int
    epochs: int
    plan: EpochPlan
    validate_on_training: bool
    threads: int


class Host(Protocol):
    """What a training run stands on: a worker of Ray Train, or this process alone.

    Attributes:
        rank: Number of this worker.
        world: How many workers there are.
        device: Device that the network runs on.
        shard: Where this worker's packed rows come from.
    """

    rank: int
    world: int
    device: torch.device
    shard: Shard

    def checkpoint(self) -> AbstractContextManager[str | None]:
        """The folder of the checkpoint to go on from; None: there is none."""
        ...

    def wrap(self, vae: VAE) -> nn.Module:
        """The network as all workers train it together."""
        ...

    def report(self, metrics: dict[str, Any], folder: str | None) -> None:
        """Takes an epoch's metrics and, from rank 0, the folder of its checkpoint."""
        ...

    def tell(self, message: dict[str, Any]) -> None:
        """Takes an epoch's figures, for people."""
        ...

    def fail(self, reason: str) -> None:
        """Training stops for good: raising would make Ray Train start over."""
        ...


class TrainingRun:
    """One worker's part of a training run.

    Args:
        settings: What the driver decided.
        host: What the run stands on.
    """

    def __init__(self, settings: LoopSettings, host: Host) -> None:
        self.settings, self.options, self.host = settings, settings.optimization, host
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.rank, self.world, self.device = host.rank, host.world, host.device
        layout = FeatureLayout.from_json(settings.layout)
        self._packing, self._cuda = PackedRows(layout), self.device.type == "cuda"
        self._unpack = self._packing.unpacker(self.device) if self._cuda else None
        self.vae = VAE(layout, NetworkConfig.from_json(settings.network)).to(self.device)
        self.best_weights = b""
        self.state = LoopState()
        self.model = host.wrap(self.vae)
        self._noise = torch.Generator(device=self.device)
        self.step = TrainingStep(
            self.vae, self.options.learning_rate, self.options.clip_norm, self._noise, self.model, self._unpack
        )
        with host.checkpoint() as folder:
            if folder is not None:
                self.best_weights, self.state = load_checkpoint(folder, self.vae, self.step.optimizer)
        self.rows = ShardRows(host.shard, settings.plan, settings.validate_on_training)
        self._checkpoint_time = time.monotonic()

    @property
    def phases(self) -> int:
        """How many phases there are."""
        return 2 if self._rounds and self.settings.epochs >= 2 else 1

    @property
    def _rounds(self) -> bool:
        return self.options.rounding and not self.vae.config.autoencoder

    def phase_epochs(self, phase: int) -> int:
        """Epochs that a phase may take."""
        last = max(1, round(self.settings.epochs * self.options.rounding_share)) if self.phases == 2 else 0
        return last if phase == 2 else max(1, self.settings.epochs - last)

    def run(self) -> None:
        """Trains until both phases are over, or the loss is not finite."""
        if self.state.done:  # the driver was killed after the last epoch: give it the checkpoint again
            self._report()
        while not self.state.done:
            started = time.monotonic()
            totals = self._train_epoch()
            if totals is None:
                return
            validation = self._validate()
            if not all(map(math.isfinite, validation.per_row())):
                self._fail("the validation loss is not finite", "after the last step")
                return
            self._record(totals, validation, time.monotonic() - started)
            self._advance(validation)
            self._report()

    def _objective(self, step: int) -> Objective:
        if self.vae.config.autoencoder:
            return Objective(beta=0.0, noise="none", corruption=self.options.corruption)
        if self.state.phase == 2:
            return Objective(self.options.beta, 0.0, self.options.mc_samples, "uniform", self.options.corruption)
        warm_steps = int(self.options.kl_warm_up * self.phase_epochs(1) * self.settings.plan.steps)
        beta = self.options.beta * warm_up(step, warm_steps)
        return Objective(beta, self.options.free_bits, self.options.mc_samples, "gaussian", self.options.corruption)

    def _learning_rate(self, progress: float) -> float:
        """Cosine from the peak to 1 % over the phases; phase 2 starts at 30 % of the peak."""
        if self.phases == 1:
            high, low = 1.0, 0.01
        else:
            high, low = (1.0, 0.3) if self.state.phase == 1 else (0.3, 0.01)
        ramp = min(1.0, 0.05 + progress * 50) if self.state.phase == 1 else 1.0
        return self.options.learning_rate * ramp * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _seed(self, purpose: int, epoch: int) -> int:
        words = np.random.SeedSequence([self.settings.seed, epoch, self.rank, purpose])
        return int(words.generate_state(1, np.uint64)[0] >> 1)

    def _train_epoch(self) -> Totals | None:
        self.model.train()
        self._noise.manual_seed(self._seed(0, self.state.epoch))
        self.step.restart()
        steps, epochs = self.settings.plan.steps, self.phase_epochs(self.state.phase)
        asks = _GPU_STEPS if self._cuda else 1
        for step, packed in enumerate(self.rows.epoch(self.state.epoch), 1):
            position = self.state.phase_epoch * steps + step - 1
            rate = self._learning_rate(position / (epochs * steps))
            self.step(self._tensor(packed), self._objective(position), rate)
            if (step % asks == 0 or step == steps) and bool(self.step.overflow):
                self._stop_non_finite(step)
                return None
        totals, batch = self._empty(), self.settings.plan.local_batch
        totals.rows += steps * batch
        totals.reconstruction += batch * self.step.reconstruction
        totals.kl_Z += batch * self.step.kl_Z
        return self._reduced(totals)

    @torch.no_grad()
    def _validate(self, spread: bool = False) -> Totals:
        """Sums over the held-out rows; those of the posterior's deviations only if `spread`."""
        self.model.eval()
        totals = self._empty()
        generator = torch.Generator(device=self.device).manual_seed(self._seed(1, 0))
        objective = Objective(noise="gaussian" if self.state.phase == 1 else "uniform")
        if self.vae.config.autoencoder:
            objective = Objective(beta=0.0, noise="none")
        rows = _GPU_VALIDATION_ROWS if self._cuda else _VALIDATION_ROWS
        for start in range(0, len(self.rows.validation), rows):
            packed = self._tensor(self.rows.validation[start : start + rows])
            bins_BD = packed if self._unpack is None else self._unpack(packed)
            with autocast(self.device):
                terms = self.vae(bins_BD, objective, generator)
                sigma_BZ = self.vae.encode(bins_BD).sigma_BZ if spread else None
            totals.add(terms, len(bins_BD), sigma_BZ)
        return self._reduced(totals)

    def _advance(self, validation: Totals) -> None:
        """Keeps the best weights; at the end of a phase goes back to them, and fixes the latent grid."""
        state = self.state
        reconstruction, kl = validation.per_row()
        score = self.options.beta * kl - reconstruction
        if score < state.best - 1e-4 * abs(score):
            state.best, state.stale = score, 0
            self.best_weights = to_bytes(self.vae)
        else:
            state.stale += 1
        state.epoch += 1
        state.phase_epoch += 1
        if state.phase_epoch < self.phase_epochs(state.phase) and state.stale < self.options.patience:
            return
        self.vae.load_state_dict(from_bytes(self.best_weights).state_dict())
        if state.phase == 1 and self._rounds:
            best = self._validate(spread=True)
            self.vae.set_latent_grid((best.sigma_Z / best.rows).float(), (best.kl_Z / best.rows).float())
        if state.phase == self.phases:
            state.done = True
            if state.phase == 1 and self._rounds:
                state.phase = 2
                state.history[-1].update(phase=2, **self._figures(self._validate()))
            self.best_weights = to_bytes(self.vae)
        else:
            self.state = LoopState(state.epoch, state.phase + 1, history=state.history)

    def _record(self, training: Totals, validation: Totals, seconds: float) -> None:
        reconstruction, kl = training.per_row()
        entry = {
            "epoch": self.state.epoch,
            "phase": self.state.phase,
            **self._figures(validation),
            "train_minus_elbo_bits": (kl - reconstruction) / math.log(2),
            "rows_per_second": float(training.rows) / max(seconds, 1e-9),
        }
        self.state.history.append(entry)
        if self.rank == 0:
            self.host.tell({"epochs": self.settings.epochs, "rows": int(training.rows), **entry})

    def _figures(self, validation: Totals) -> dict[str, Any]:
        reconstruction, kl = validation.per_row()
        return {
            "minus_elbo_bits": (kl - reconstruction) / math.log(2),
            "minus_reconstruction_bits": -reconstruction / math.log(2),
            "kl_bits": kl / math.log(2),
            "active_units": int((validation.kl_Z / validation.rows > ACTIVE_KL).sum()),
        }

    def _report(self) -> None:
        """Gives the host the epoch's metrics, with a checkpoint when one is due (rank 0's clock decides)."""
        elapsed = time.monotonic() - self._checkpoint_time
        due = torch.tensor([float(self.state.done or elapsed >= self.options.checkpoint_seconds)])
        if self.world > 1:
            due = due.to(self.device)
            torch.distributed.broadcast(due, 0)
        if not bool(due):
            return
        self._checkpoint_time = time.monotonic()
        metrics = {"epoch": self.state.epoch, "minus_elbo": self.state.history[-1]["minus_elbo_bits"]}
        if self.rank != 0:
            self.host.report(metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(folder, self.vae, self.best_weights, self.step.optimizer, self.state)
            self.host.report(metrics, folder)

    def _stop_non_finite(self, step: int) -> None:
        """Names the columns whose likelihood is not finite, on whichever worker they are."""
        bad_S = self.step.overflow_S.double()
        if self.world > 1:
            torch.distributed.all_reduce(bad_S)
        spans = self.vae.layout.spans
        names = sorted({span.column for span, bad in zip(spans, bad_S.tolist(), strict=True) if bad})
        where = f"in column {', '.join(map(repr, names[:5]))}" if names else "in the gradient"
        self._fail(f"the loss is not finite {where}", f"step {step - 1}")

    def _fail(self, what: str, step: str) -> None:
        """Says why training stops for good."""
        message = (
            f"{what} at epoch {self.state.epoch}, {step}, phase {self.state.phase}; lower training.learning_rate, "
            "or pass the column through"
        )
        if self.rank == 0:
            self.host.fail(message)

    def _tensor(self, packed: Packed) -> Tensor:
        """Rows on the device: packed on a GPU, which unpacks them itself, bins_BD on a CPU."""
        if self._cuda:
            return torch.from_numpy(packed).pin_memory().to(self.device, non_blocking=True)
        return torch.from_numpy(self._packing.unpack(packed))

    def _empty(self) -> Totals:
        return Totals.empty(self.vae.config.latent_dim, self.device)

    def _reduced(self, totals: Totals) -> Totals:
        if self.world > 1:
            totals.reduce()
        return totals
