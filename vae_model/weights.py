"""Weights in and out: safetensors bytes that carry their layout and config as JSON; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vae_model.description import KEY, Description, to_text
from vae_model.network import VAE


def to_bytes(model: VAE) -> bytes:
    """The model as one safetensors file: tensors, and version, layout and config in its metadata.

    Equal models give equal bytes (all is under one metadata key, for safetensors shuffles its keys).
    """
    return bytes(safetensors.torch.save(_tensors(model), {KEY: to_text(model.layout, model.config)}))


def from_bytes(data: bytes) -> VAE:
    """Rebuilds a model, on the CPU, from `to_bytes`'s result.

    Raises:
        ValueError: If the bytes are damaged, are something else, or come from a newer version.
    """
    described = Description.from_bytes(data)
    try:
        tensors = safetensors.torch.load(data)
    except (ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"the VAE weights are damaged or foreign: {error}") from error
    with torch.random.fork_rng(devices=[]):
        model = VAE(described.layout, described.config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the VAE weights do not fit their own description: {error}") from error
    return model


def fingerprint(model: VAE) -> str:
    """SHA-256, in hex, of layout, config and every tensor's name, dtype, shape and bytes, names sorted."""
    digest = hashlib.sha256(to_text(model.layout, model.config).encode())
    for name, tensor in sorted(_tensors(model).items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_to_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state (Adam's moments and steps) as tensors named `parameter//quantity`.

    Args:
        optimizer: Any optimizer that keeps only tensors for each parameter.
        model: The module whose parameters it optimizes.

    Returns:
        CPU tensors, ready for `safetensors.torch.save`; empty before the first step.

    Raises:
        ValueError: If the optimizer keeps something else than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for quantity, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise ValueError(f"optimizer state {quantity!r} of {name} is a {type(value).__name__}, not a tensor")
            tensors[f"{name}//{quantity}"] = value.detach().cpu().contiguous()
    return tensors


def optimizer_from_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `optimizer_to_tensors` gave into a fresh optimizer; learning rates stay as they are.

    Raises:
        ValueError: If a tensor names a parameter that the optimizer does not have.
    """
    named = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    order = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, quantity = key.rpartition("//")
        if name not in order:
            raise ValueError(f"optimizer state for parameter {name!r}, which this optimizer does not have")
        if quantity != "step" and tensor.shape != named[name].shape:
            raise ValueError(f"optimizer state {key!r} has shape {list(tensor.shape)}, its parameter another")
        state.setdefault(order.index(name), {})[quantity] = tensor
    whole: dict[str, Any] = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _tensors(model: VAE) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
