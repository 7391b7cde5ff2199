"""FeatureLayout: which symbol of a row belongs to which column, and how the network sees it.

A row is a vector of D integer *symbols* (`bins_BD`): one bin for a scalar column, one bin an element for a
vector column, one a token for a sequence, and one categorical state symbol more for a column in which nulls or
non-finite values were seen. A symbol of -1 is *absent*: the network sees a zero and the likelihood skips it.

Ordinal symbols (bins with an order) are standardized as `u = bin * step + shift` and, beyond `knee`, bent to
a logarithm (see `warp`), so that heavy tails reach the network as small numbers. Bin edges go through the
same monotone map, which keeps a discretized likelihood a partition of the real line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SpanKind = Literal["ordinal", "categorical"]

ABSENT = -1
"""The symbol for "nothing here": the value symbol of a null, a category not in the vocabulary."""
END = 0
"""The symbol for "the sequence ends before this place"."""


@dataclass(frozen=True)
class Span:
    """A run of consecutive symbols that come from one column and share one likelihood.

    Attributes:
        column: Name of the column.
        role: `"value"`, or `"state"` for the symbol that says null, NaN, ±inf or stored exactly.
        kind: `"ordinal"` (bins with an order) or `"categorical"`.
        start: Index of the first symbol in `bins_BD`.
        width: Number of symbols.
        bins: Number of bins (or categories) each symbol may take: values 0 … bins-1.
        step: Ordinal only: width of a bin in standardized units; one entry, or one a symbol.
        shift: Ordinal only: standardized position of bin 0's centre; one entry, or one a symbol.
        knee: Ordinal only: |u| beyond which the standardized value is bent to a logarithm; None = linear.
        shape: `(H, W)` or `(H, W, C)` when the symbols are an image in row-major order, else None.
        components: Ordinal only: mixture components that the discretized logistic mixture should use.
        ends: Categorical only: whether the symbols are a sequence, absent after the first that is `END`.
    """

    column: str
    role: Literal["value", "state"]
    kind: SpanKind
    start: int
    width: int
    bins: int
    step: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    knee: float | None = None
    shape: tuple[int, ...] | None = None
    components: int = 1
    ends: bool = False

    @property
    def stop(self) -> int:
        """Index one past the last symbol."""
        return self.start + self.width


@dataclass(frozen=True)
class FeatureLayout:
    """The spans of a row, in symbol order, without gaps.

    Attributes:
        spans: The spans; `spans[0].start == 0` and each starts where the one before stops.

    Raises:
        ValueError: If spans overlap, leave a gap, or contradict themselves.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        position = 0
        for span in self.spans:
            _check_span(span, position)
            position = span.stop

    @classmethod
    def assemble(cls, spans: Iterable[Span]) -> FeatureLayout:
        """Lays spans end to end, whatever `start` they came with."""
        placed: list[Span] = []
        position = 0
        for span in spans:
            placed.append(dataclasses.replace(span, start=position))
            position += span.width
        return cls(tuple(placed))

    @property
    def n_symbols(self) -> int:
        """D, the number of symbols of a row."""
        return self.spans[-1].stop if self.spans else 0

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable description; `from_json` gives an equal layout back."""
        spans = [dataclasses.asdict(span) for span in self.spans]
        for item in spans:
            if not item["ends"]:
                del item["ends"]
        return {"spans": spans}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureLayout:
        """Rebuilds a layout from `to_json`'s result."""
        spans = []
        for item in data["spans"]:
            fields = dict(item)
            fields["step"] = tuple(fields["step"])
            fields["shift"] = tuple(fields["shift"])
            fields["shape"] = None if fields["shape"] is None else tuple(fields["shape"])
            spans.append(Span(**fields))
        return cls(tuple(spans))


def _check_span(span: Span, position: int) -> None:
    where = f"span of column {span.column!r} ({span.role})"
    if span.start != position:
        raise ValueError(f"{where} starts at symbol {span.start}, expected {position}")
    if span.width < 1 or span.bins < 1:
        raise ValueError(f"{where} has width {span.width} and {span.bins} bins; both must be at least 1")
    if span.kind == "ordinal":
        for name, values in (("step", span.step), ("shift", span.shift)):
            if len(values) not in (1, span.width):
                raise ValueError(f"{where}: {name} has {len(values)} entries, expected 1 or {span.width}")
        if any(not step > 0 for step in span.step):
            raise ValueError(f"{where}: every step must be positive")
    if span.shape is not None:
        size = 1
        for extent in span.shape:
            size *= extent
        if size != span.width or len(span.shape) not in (2, 3):
            raise ValueError(f"{where}: shape {list(span.shape)} does not describe {span.width} symbols")
