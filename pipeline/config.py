"""What can be configured, as frozen dataclasses, and how YAML becomes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
import yaml

from pipeline.bounds import Bound, check_promises
from pipeline.columns import ColumnOptions, ErrorBound
from pipeline.errors import ConfigError
from vae_model.config import NetworkConfig

Whole = Annotated[int, pydantic.Strict()]
"""A whole number; YAML's `true` is none."""
_STRICT = pydantic.ConfigDict(extra="forbid")
DEFAULT_BOUND = Bound(0.01, relative=True)


@dataclass(frozen=True)
class Optimization:
    """How the network is trained.

    Attributes:
        epochs: Passes over the training rows; None: about 3,000 steps, at least 5 and at most 200 passes.
        batch_size: Rows of a step over all workers; None: a power of two near 1 % of the rows, 32 to 1024.
        learning_rate: Adam's peak learning rate.
        clip_norm: Largest norm of the gradient of (loss / symbols of a row).
        beta: Weight of the KL term once warmed up.
        kl_warm_up: Share of the first phase's steps over which β rises from 0.
        free_bits: KL a latent may cost for nothing, in nats.
        mc_samples: M, the latent samples a row and step.
        corruption: Share of the values that the encoder sees swapped with other rows' while training: better
            features, at a worse ELBO.
        rounding: Whether latents are rounded to a grid, with its noise in the last phase.
        rounding_share: Share of the epochs that the last phase takes.
        validation_fraction: Share of the rows held out, 65,536 rows at most.
        patience: Epochs without a better validation ELBO after which a phase ends.
        checkpoint_seconds: Seconds between checkpoints, at most.
        cache_mib: Packed rows that a worker may keep in memory; larger shards are streamed every epoch.
    """

    __pydantic_config__ = _STRICT

    epochs: Whole | None = None
    batch_size: Whole | None = None
    learning_rate: float = 2e-3
    clip_norm: float = 1.0
    beta: float = 1.0
    kl_warm_up: float = 0.2
    free_bits: float = 0.0
    mc_samples: Whole = 1
    corruption: float = 0.0
    rounding: bool = True
    rounding_share: float = 0.25
    validation_fraction: float = 0.1
    patience: Whole = 15
    checkpoint_seconds: float = 30.0
    cache_mib: Whole = 64

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm", "beta", "free_bits", "checkpoint_seconds"):
            value = getattr(self, name)
            _require(math.isfinite(value), f"training.{name}", value, "a finite number")
        positive = ("learning_rate", "clip_norm", "mc_samples", "patience", "cache_mib")
        for name in positive:
            _require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "more than 0")
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"training.{name}", value, "at least 1")
        for name in ("beta", "free_bits", "checkpoint_seconds"):
            _require(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "0 or more")
        for name in ("corruption", "kl_warm_up", "rounding_share", "validation_fraction"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name}", value, "between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything `parvae train` may be told.

    Attributes:
        passthrough: Columns that are copied, not modelled: labels, keys.
        columns: Options of single columns.
        defaults: Options of the columns that `columns` does not name.
        network: The network.
        training: Its training.
        error: The error bound of the columns without one of their own; none: nothing is promised, latents alone
            are kept.
        effort: Time spent on what codes each column smallest: "fast", "balanced" or "small".
        seed: Seed of every random draw.
    """

    __pydantic_config__ = _STRICT

    passthrough: tuple[str, ...] = ()
    columns: Mapping[str, ColumnOptions] = field(default_factory=dict)
    defaults: ColumnOptions = field(default_factory=ColumnOptions)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: Optimization = field(default_factory=Optimization)
    error: ErrorBound = DEFAULT_BOUND
    effort: Literal["fast", "balanced", "small"] = "balanced"
    seed: Whole = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 or more, and less than 2^63")
        scale = self.network.decoder_scale
        _require(math.isfinite(scale), "network.decoder_scale", scale, "a finite number")
        check_promises(self.error, self.columns, self.defaults)

    @property
    def bound(self) -> Bound:
        """The bound of the columns without one of their own: `defaults.error`, else `error`."""
        return self.error if self.defaults.error is None else self.defaults.error

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON."""
        return dict(pydantic.TypeAdapter(TrainConfig).dump_python(self, mode="json"))


def load_config(text: str, where: str, settings: Mapping[str, Any], passthrough: Sequence[str] = ()) -> TrainConfig:
    """Reads a configuration.

    Args:
        text: YAML, possibly empty.
        where: The file's name, for messages.
        settings: Values that override the file's, by dotted key (`network.latent_dim`).
        passthrough: Columns to pass through beside those that the file names.

    Raises:
        ConfigError: Naming the key, its value and what was expected.
    """
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must hold keys and values, e.g. `training: {{epochs: 5}}`")
    for key, value in settings.items():
        _assign(data, key, value)
    if passthrough:
        data["passthrough"] = [*_list_of(data, "passthrough", where), *passthrough]
    try:
        return pydantic.TypeAdapter(TrainConfig).validate_python(data)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


def parse_setting(text: str) -> tuple[str, Any]:
    """Splits `KEY=VALUE`; the value is read as YAML.

    Raises:
        ConfigError: If there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected KEY=VALUE, e.g. --set training.learning_rate=0.001")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {_one_line(error)}") from error


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        below = data.setdefault(parent, {})
        if below is None:
            below = data[parent] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {key}: {parent!r} is a value, not a group of keys")
        data = below
    data[last] = value


def _list_of(data: dict[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise ConfigError(f"{where}: {key} = {value!r}: expected a list")
    return value


def _explain(error: pydantic.ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = ", ".join(_known_keys(path[:-1]))
        return f"{where}: there is no key {key!r}; keys at that place: {known}"
    if first["type"] == "value_error":
        return f"{where}: {key}: {first['ctx']['error']}"
    return f"{where}: {key} = {first['input']!r}: {first['msg']}"


def _known_keys(path: list[str]) -> list[str]:
    groups: dict[str, Any] = {"network": NetworkConfig, "training": Optimization}
    groups |= dict.fromkeys(("columns", "defaults"), ColumnOptions)
    owner = groups.get(path[0], TrainConfig) if path else TrainConfig
    return [item.name for item in dataclasses.fields(owner)]


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key} = {value!r}: expected {expected}")
