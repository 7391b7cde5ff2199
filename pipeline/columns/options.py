"""What a user may say about one column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.columns.bound import ErrorBound
from pipeline.columns.tokens import Tokens


@dataclass(frozen=True)
class ColumnOptions:
    """Options of one column; the defaults leave everything to inference.

    Attributes:
        kind: `numeric`, `categorical`, `boolean`, `temporal`, `vector`, `sequence` or `passthrough`; None = inferred.
        shape: `(H, W)` or `(H, W, C)` if a vector column is an image in row-major order.
        max_categories: Most categories (of a sequence: tokens) that a vocabulary holds; rarer values are stored
            exactly.
        scaling: How numbers are standardized for the network: by median and quartiles with heavy tails bent
            to a logarithm (`robust`), or by mean and standard deviation (`standard`).
        error: The column's error bound; None = the one of the dataset.
        tokens: Of a sequence: what a text is split into; None = characters.
        max_length: Of a sequence: most tokens that the model sees, longer texts are stored exactly; None = as many as
            the longest text has.
    """

    kind: str | None = None
    shape: tuple[int, ...] | None = None
    max_categories: int = 4096
    scaling: Literal["robust", "standard"] = "robust"
    error: ErrorBound | None = None
    tokens: Tokens | None = None
    max_length: int | None = None
