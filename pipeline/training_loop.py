"""The loop that every training worker runs: epochs, two phases, validation, checkpoints.

Phase 1 draws z from the Gaussian posterior. Phase 2 ("rounding") fixes the latent grid and trains on the noise
that rounding to it makes. A phase ends after its epochs or when the validation ELBO has stopped rising; the
best weights of the last phase are the model. Everything that a rerun needs is in the checkpoint, as
safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor

from pipeline.config import Optimization
from pipeline.rows import PackedRows
from pipeline.training_data import EpochPlan, Packed, ShardRows
from vae_model.config import NetworkConfig
from vae_model.elbo import LossTerms, Objective, autocast, warm_up
from vae_model.layout import FeatureLayout
from vae_model.network import VAE
from vae_model.weights import from_bytes, optimizer_from_tensors, optimizer_to_tensors, to_bytes

WEIGHTS, BEST, OPTIMIZER, STATE = (
    "weights.safetensors",
    "best.safetensors",
    "optimizer.safetensors",
    "state.json",
)
_VALIDATION_ROWS = 4096


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
        board: Actor handle that progress goes to, or None.
    """

    layout: dict[str, Any]
    network: dict[str, Any]
    optimization: Optimization
    seed: int
    epochs: int
    plan: EpochPlan
    validate_on_training: bool
    threads: int
    board: Any


@dataclass
class LoopState:
    """Where training stands; the JSON half of a checkpoint."""

    epoch: int = 0
    phase: int = 1
    phase_epoch: int = 0
    best: float = math.inf
    stale: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Totals:
    """Sums over the batches of an epoch, to be reduced over workers: nats and rows."""

    sums: Tensor
    rows: float = 0.0

    def add(self, terms: LossTerms, rows: int) -> None:
        """Adds one batch of `rows` rows."""
        parts = [terms.reconstruction[None], terms.kl[None], terms.loss[None], terms.kl_Z, terms.log_prob_S]
        self.sums += rows * torch.cat([part.detach().double() for part in parts])
        self.rows += rows


class TrainingRun:
    """One worker's part of a training run.

    Args:
        settings: What the driver decided.
    """

    def __init__(self, settings: LoopSettings) -> None:
        self.settings, self.options = settings, settings.optimization
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        layout = FeatureLayout.from_json(settings.layout)
        self.packing = PackedRows(layout)
        self.vae = VAE(layout, NetworkConfig.from_json(settings.network)).to(self.device)
        self.best_weights = b""
        self.state = LoopState()
        self.optimizer = torch.optim.Adam(self.vae.parameters(), lr=self.options.learning_rate)
        self._restore()
        self.model = self.vae
        if self.world > 1:
            self.model = ray.train.torch.prepare_model(
                self.vae, move_to_device=False, parallel_strategy_kwargs={"find_unused_parameters": True}
            )
        self.rows = ShardRows(
            ray.train.get_dataset_shard("rows"), settings.plan, settings.validate_on_training
        )
        self._checkpoint_time = time.monotonic()

    @property
    def phases(self) -> int:
        """How many phases there are."""
        rounds = self.options.rounding and not self.vae.config.autoencoder
        return 2 if rounds else 1

    def phase_epochs(self, phase: int) -> int:
        """Epochs that a phase may take."""
        last = max(1, round(self.settings.epochs * self.options.rounding_share)) if self.phases == 2 else 0
        return last if phase == 2 else max(1, self.settings.epochs - last)

    def run(self) -> None:
        """Trains until both phases are over, or the loss is not finite."""
        while not self.state.done:
            started = time.monotonic()
            totals = self._train_epoch()
            if totals is None:
                return
            validation = self._validate()
            self._record(totals, validation, time.monotonic() - started)
            self._advance(validation)
            self._report()

    def _objective(self, step: int) -> Objective:
        if self.vae.config.autoencoder:
            return Objective(beta=0.0, noise="none")
        if self.state.phase == 2:
            return Objective(self.options.beta, 0.0, self.options.mc_samples, "uniform")
        warm_steps = int(self.options.kl_warm_up * self.phase_epochs(1) * self.settings.plan.steps)
        beta = self.options.beta * warm_up(step, warm_steps)
        return Objective(beta, self.options.free_bits, self.options.mc_samples, "gaussian")

    def _learning_rate(self, progress: float) -> float:
        """Cosine from the peak to 1 % over the phases; phase 2 starts at 30 % of the peak."""
        if self.phases == 1:
            high, low = 1.0, 0.01
        else:
            high, low = (1.0, 0.3) if self.state.phase == 1 else (0.3, 0.01)
        ramp = min(1.0, 0.05 + progress * 50) if self.state.phase == 1 else 1.0
        return (
            self.options.learning_rate
            * ramp
            * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress)))
        )

    def _generator(self, purpose: int, epoch: int) -> torch.Generator:
        generator = torch.Generator(device=self.device)
        words = np.random.SeedSequence([self.settings.seed, epoch, self.rank, purpose])
        return generator.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def _train_epoch(self) -> Totals | None:
        self.model.train()
        totals, generator = self._empty_totals(), self._generator(0, self.state.epoch)
        steps, epochs = self.settings.plan.steps, self.phase_epochs(self.state.phase)
        scale = 1.0 / self.vae.layout.n_symbols
        for step, packed in enumerate(self.rows.epoch(self.state.epoch)):
            position = self.state.phase_epoch * steps + step
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(position / (epochs * steps))
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device):
                terms: LossTerms = self.model(self._tensor(packed), self._objective(position), generator)
            torch.autograd.backward(terms.loss * scale)
            norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.options.clip_norm)
            if not bool(torch.isfinite(norm)):
                self._stop_non_finite(step, terms)
                return None
            self.optimizer.step()
            totals.add(terms, len(packed))
        return self._reduced(totals)

    @torch.no_grad()
    def _validate(self) -> Totals:
        self.model.eval()
        totals = self._empty_totals(extra=self.vae.config.latent_dim)
        generator = self._generator(1, 0)
        objective = Objective(noise="gaussian" if self.state.phase == 1 else "uniform")
        if self.vae.config.autoencoder:
            objective = Objective(beta=0.0, noise="none")
        width = self._empty_totals().sums.numel()
        for start in range(0, len(self.rows.validation), _VALIDATION_ROWS):
            bins_BD = self._tensor(self.rows.validation[start : start + _VALIDATION_ROWS])
            with autocast(self.device):
                terms = self.vae(bins_BD, objective, generator)
                sigma_Z = self.vae.encode(bins_BD).sigma_BZ.double().sum(0)
            part = Totals(totals.sums[:width])
            part.add(terms, len(bins_BD))
            totals.sums[width:] += sigma_Z
            totals.rows += len(bins_BD)
        return self._reduced(totals)

    def _advance(self, validation: Totals) -> None:
        """Keeps the best weights, ends a phase, fixes the latent grid between the two."""
        state = self.state
        score = float(validation.sums[1] - validation.sums[0]) / validation.rows
        if self.vae.config.autoencoder:
            score = -float(validation.sums[0]) / validation.rows
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
        if state.phase == self.phases:
            state.done = True
            return
        spans = len(self.vae.layout.spans)
        latents = self.vae.config.latent_dim
        kl_Z = validation.sums[3 : 3 + latents] / validation.rows
        sigma_Z = validation.sums[3 + latents + spans :] / validation.rows
        self.vae.set_latent_grid(sigma_Z.float(), kl_Z.float())
        self.state = LoopState(state.epoch, state.phase + 1, history=state.history)

    def _record(self, training: Totals, validation: Totals, seconds: float) -> None:
        latents, bits = self.vae.config.latent_dim, 1 / (validation.rows * math.log(2))
        kl_Z = validation.sums[3 : 3 + latents] / validation.rows
        entry = {
            "epoch": self.state.epoch,
            "phase": self.state.phase,
            "minus_elbo_bits": float(validation.sums[1] - validation.sums[0]) * bits,
            "minus_reconstruction_bits": -float(validation.sums[0]) * bits,
            "kl_bits": float(validation.sums[1]) * bits,
            "train_minus_elbo_bits": float(training.sums[1] - training.sums[0]) / training.rows / math.log(2),
            "active_units": int((kl_Z > 0.01).sum()),
            "rows_per_second": training.rows / max(seconds, 1e-9),
        }
        self.state.history.append(entry)
        if self.rank == 0 and self.settings.board is not None:
            self.settings.board.tell.remote({"epochs": self.settings.epochs, **entry})

    def _report(self) -> None:
        """Gives Ray Train the epoch's metrics, with a checkpoint when one is due (rank 0's clock decides)."""
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
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _save(self, folder: str) -> None:
        from safetensors.torch import save_file

        for name, data in ((WEIGHTS, to_bytes(self.vae)), (BEST, self.best_weights)):
            with open(os.path.join(folder, name), "wb") as stream:
                stream.write(data)
        save_file(optimizer_to_tensors(self.optimizer, self.vae), os.path.join(folder, OPTIMIZER))
        with open(os.path.join(folder, STATE), "w") as text:
            json.dump({**asdict(self.state), "best": repr(self.state.best)}, text)

    def _restore(self) -> None:
        from safetensors.torch import load_file

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            with open(os.path.join(folder, WEIGHTS), "rb") as stream:
                self.vae.load_state_dict(from_bytes(stream.read()).state_dict())
            with open(os.path.join(folder, BEST), "rb") as stream:
                self.best_weights = stream.read()
            tensors = load_file(os.path.join(folder, OPTIMIZER))
            optimizer_from_tensors(self.optimizer, self.vae, tensors)
            with open(os.path.join(folder, STATE)) as text:
                data = json.load(text)
        self.state = LoopState(**{**data, "best": float(data["best"])})

    def _stop_non_finite(self, step: int, terms: LossTerms) -> None:
        """Names the columns whose likelihood is not finite, on whichever worker they are."""
        bad_S = (~torch.isfinite(terms.log_prob_S)).double()
        if self.world > 1:
            torch.distributed.all_reduce(bad_S)
        spans = self.vae.layout.spans
        names = sorted({span.column for span, bad in zip(spans, bad_S.tolist(), strict=True) if bad})
        where = f"in column {', '.join(map(repr, names[:5]))}" if names else "in the gradient"
        message = (
            f"the loss is not finite {where} at epoch {self.state.epoch}, step {step}, phase {self.state.phase}; "
            "lower training.learning_rate, or pass the column through"
        )
        if self.rank == 0 and self.settings.board is not None:
            ray.get(self.settings.board.fail.remote(message))

    def _tensor(self, packed: Packed) -> Tensor:
        return torch.from_numpy(self.packing.unpack(packed)).to(self.device)

    def _empty_totals(self, extra: int = 0) -> Totals:
        size = 3 + self.vae.config.latent_dim + len(self.vae.layout.spans) + extra
        return Totals(torch.zeros(size, dtype=torch.float64, device=self.device))

    def _reduced(self, totals: Totals) -> Totals:
        if self.world == 1:
            return totals
        both = torch.cat([totals.sums, totals.sums.new_tensor([totals.rows])])
        torch.distributed.all_reduce(both)
        return Totals(both[:-1], float(both[-1]))


def train_worker(settings: dict[str, Any]) -> None:
    """What Ray Train calls on every worker; `settings["loop"]` is a `LoopSettings`."""
    TrainingRun(settings["loop"]).run()
