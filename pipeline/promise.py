"""What an archive promises: what it keeps, and how far decoded values may be from the original ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.bounds import Bound, resolve_bounds
from pipeline.errors import ConfigError
from pipeline.rows import RowTransform

LOG = logging.getLogger(__name__)
BOTH, CORRECTIONS, LATENTS = "both", "corrections", "latents"
KEEPS = (BOTH, CORRECTIONS, LATENTS)
FAST, BALANCED, SMALL = "fast", "balanced", "small"
EFFORTS = (FAST, BALANCED, SMALL)
NOTHING = Bound(None)


@dataclass(frozen=True)
class Errors:
    """The error bounds of a dataset.

    Attributes:
        default: The bound of the columns without one of their own; none: nothing is promised.
        columns: The bounds of columns that have one of their own.
        absolute: Column → largest absolute difference in its own unit; other columns are always exact.
    """

    default: Bound = NOTHING
    columns: Mapping[str, Bound] = field(default_factory=dict)
    absolute: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def resolve(cls, rows: RowTransform, default: Bound, columns: Mapping[str, Bound]) -> Errors:
        """Turns what a user said into absolute numbers.

        Args:
            rows: The fitted columns, on their nominal grids.
            default: The dataset's bound.
            columns: The bounds that columns were given by themselves.
        """
        absolute = resolve_bounds(rows, default, columns)
        own = {name: bound for name, bound in columns.items() if name in absolute}
        return cls(default, own, absolute)

    @property
    def guaranteed(self) -> bool:
        """Whether anything is promised."""
        return self.default.value is not None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description."""
        own = {name: str(bound) for name, bound in self.columns.items()}
        return {"default": str(self.default), "columns": own, "absolute": dict(self.absolute)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Errors:
        """Rebuilds bounds from `to_json`'s result (ValueError and others where it is damaged)."""
        own = {str(name): Bound.parse(text) for name, text in data["columns"].items()}
        absolute = {str(name): value for name, value in data["absolute"].items()}
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in absolute.values()):
            raise ValueError("an error bound is no number")
        return cls(Bound.parse(data["default"]), own, absolute)


@dataclass(frozen=True)
class Promise:
    """What an archive is to be.

    Attributes:
        keep: `"both"` latents and corrections, `"corrections"`, or `"latents"`.
        errors: The bounds that decoding meets; nothing with `"latents"`.
    """

    keep: str
    errors: Errors

    @property
    def latents(self) -> bool:
        """Whether latents are stored."""
        return self.keep != CORRECTIONS

    @property
    def guaranteed(self) -> bool:
        """Whether corrections are stored."""
        return self.keep != LATENTS


def decide(rows: RowTransform, trained: Errors, keep: str | None, error: Bound | None) -> Promise:
    """What `encode` promises.

    Args:
        rows: The model's columns.
        trained: The bounds that the model was trained for.
        keep: What is to be kept; None: both, or latents where nothing is promised.
        error: The bound of the columns without one of their own; None: that of the model.

    Raises:
        ConfigError: If corrections are asked for without a bound.
    """
    if keep is not None and keep not in KEEPS:
        raise ConfigError(f"--keep {keep!r}: expected {', '.join(KEEPS)}")
    if keep == LATENTS and error is not None and error.value is not None:
        raise ConfigError(f"--keep latents promises nothing: leave out --error {error}, or keep both or corrections")
    default = trained.default if error is None else error
    if keep == LATENTS or (keep is None and default.value is None):
        return Promise(LATENTS, Errors())
    if default.value is None:
        where = "--error none" if error is not None else "the model was trained with --error none"
        raise ConfigError(f"--keep {keep} needs an error bound, but {where}; give --error, or keep latents alone")
    if error is None or error == trained.default:
        return Promise(keep or BOTH, trained)
    own = {name: bound for name, bound in trained.columns.items() if bound.value is not None}
    for name, bound in own.items():
        LOG.warning("column %r keeps its own bound %s (--error %s is for the others)", name, bound, default)
    return Promise(keep or BOTH, Errors.resolve(rows, default, own))
