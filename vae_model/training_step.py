"""One step of training: loss, gradients, clipping, Adam.

A network for tables is so small that a GPU would wait for the launches of its kernels most of the time. There a step
is recorded once as a CUDA graph and replayed: one launch a step. What changes from step to step, β and the learning
rate, lies in tensors that the graph reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from vae_model.elbo import LossTerms, Objective, autocast
from vae_model.network import VAE

_EAGER_STEPS = 3
"""Steps of one shape before it is recorded: libraries choose their kernels and set up their memory in them."""

_Key = tuple[tuple[int, ...], Objective]


class TrainingStep:
    """Takes one optimization step a call, and leaves the weights alone where a gradient is not finite.

    Args:
        vae: The network that is trained.
        learning_rate: Adam's learning rate, until a call says otherwise.
        clip_norm: Largest norm of the gradient; longer ones are scaled down to it.
        generator: Source of all noise, on the network's device.
        model: What computes `vae`'s loss terms from rows, such as `vae` under DDP (whose steps are not recorded).
        prepare: What turns the rows of a call into bins_BD, on the network's device; None: they are bins_BD.
        record: Whether steps on a GPU are recorded.

    Attributes:
        optimizer: The optimizer.
        overflow: Whether a gradient was not finite so far, shape (), bool, on the device.
        overflow_S: Which spans had a likelihood that was not finite so far, bool, on the device.
        reconstruction: Sum of the batches' mean reconstruction terms since `restart`, nats, float64, on the device.
        kl_Z: The same sum of the KL by latent.
    """

    def __init__(
        self,
        vae: VAE,
        learning_rate: float,
        clip_norm: float,
        generator: torch.Generator,
        model: nn.Module | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        record: bool = True,
    ) -> None:
        self._vae, self._model, self._clip_norm = vae, vae if model is None else model, clip_norm
        self._generator, self._prepare = generator, prepare
        self._device = next(vae.parameters()).device
        cuda = self._device.type == "cuda"
        self._records = record and cuda and self._model is vae
        rate = torch.tensor(learning_rate, device=self._device) if cuda else learning_rate
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=rate, fused=True, capturable=cuda)
        self._beta = torch.ones((), device=self._device)
        self.overflow = torch.zeros((), dtype=torch.bool, device=self._device)
        self.overflow_S = torch.zeros(len(vae.layout.spans), dtype=torch.bool, device=self._device)
        sums = torch.zeros(1 + vae.config.latent_dim, dtype=torch.float64, device=self._device)
        self.reconstruction, self.kl_Z = sums[:1], sums[1:]
        self._seen: dict[_Key, int] = {}
        self._recorded: dict[_Key, _Recording] = {}

    def __call__(self, rows: Tensor, objective: Objective, learning_rate: float) -> LossTerms:
        """Takes one step.

        Args:
            rows: The batch, on the network's device.
            objective: What to optimize.
            learning_rate: Adam's learning rate.

        Returns:
            The loss terms of the batch. On a GPU the next call overwrites them.
        """
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate
        self._beta.fill_(objective.beta)
        if not self._records:
            return self._take(rows, objective)
        key = (tuple(rows.shape), replace(objective, beta=1.0))
        if key not in self._recorded:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= _EAGER_STEPS:
                return self._aside(rows, objective)
            self._recorded[key] = _Recording(lambda fixed: self._take(fixed, key[1]), rows, self._generator)
        return self._recorded[key].replay(rows)

    def restart(self) -> None:
        """Begins new sums."""
        self.reconstruction.zero_()
        self.kl_Z.zero_()

    def _take(self, rows: Tensor, objective: Objective) -> LossTerms:
        self.optimizer.zero_grad(set_to_none=True)
        bins_BD = rows if self._prepare is None else self._prepare(rows)
        with autocast(self._device):
            terms: LossTerms = self._model(bins_BD, objective, self._generator)
        loss = self._beta * terms.kl_counted - terms.reconstruction
        torch.autograd.backward(loss / self._vae.layout.n_symbols)
        norm = torch.nn.utils.clip_grad_norm_(self._vae.parameters(), self._clip_norm)
        overflow = ~torch.isfinite(norm.detach())
        self.optimizer.found_inf = overflow.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        terms = replace(terms, loss=loss).detach()
        self.overflow |= overflow
        self.overflow_S |= ~torch.isfinite(terms.log_prob_S)
        self.reconstruction += terms.reconstruction
        self.kl_Z += terms.kl_Z
        return terms

    def _aside(self, rows: Tensor, objective: Objective) -> LossTerms:
        """A step on another stream, as one must be taken before the first is recorded."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            terms = self._take(rows, objective)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return terms


class _Recording:
    """A step as a CUDA graph.

    Args:
        take: The step; it must wait for nothing.
        rows: Rows of the shape that it is to take.
        generator: Source of the step's noise.
    """

    def __init__(self, take: Callable[[Tensor], LossTerms], rows: Tensor, generator: torch.Generator) -> None:
        self._rows = rows.clone()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._terms = take(self._rows)

    def replay(self, rows: Tensor) -> LossTerms:
        """Takes the step on other rows."""
        self._rows.copy_(rows, non_blocking=True)
        self._graph.replay()
        return self._terms
