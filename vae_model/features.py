"""From integer symbols to what the network sees: standardized positions, cells, and back.

Bins are positioned in float64 (an integer column may have 10^15 bins) and handed on in the network's dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_model.layout import FeatureLayout, Span

FAR = 1e30
"""Distance that stands for an infinite one: any logistic is saturated there, and it is still a float32."""
_LARGEST = float(2**63 - 1024)
_MOST_ENTRIES = 2**20
_TABLES = ("position_T", "y_T", "below_T", "above_T", "width_T")


def warp(u: Tensor, knee: Tensor | float) -> Tensor:
    """Bends large standardized values to a logarithm: u within ±knee, sign(u)·knee·(1+log(|u|/knee)) beyond.

    Args:
        u: Standardized values, any shape.
        knee: Where the bend begins, broadcastable to `u`; infinity leaves `u` as it is.

    Returns:
        y, of `u`'s shape: strictly increasing in `u`, continuous with its first derivative.
    """
    magnitude = u.abs()
    bent = knee * (1 + torch.log((magnitude / knee).clamp(min=1)))
    return torch.where(magnitude <= knee, u, torch.copysign(bent, u))


def unwarp(y: Tensor, knee: Tensor | float) -> Tensor:
    """The inverse of `warp`, for any real `y` (beyond exp(700) knees it stays there)."""
    magnitude = y.abs()
    straight = knee * torch.exp((magnitude / knee - 1).clamp(max=700))
    return torch.where(magnitude <= knee, y, torch.copysign(straight, y))


def symbol_by_symbol(value_BD: Tensor) -> bool:
    """Whether rows lie in memory so that one symbol of all of them comes after the other."""
    return value_BD.dim() == 2 and value_BD.stride(0) == 1 < value_BD.stride(1)


class Columns(nn.Module):
    """Picks some symbols out of a row; a view where they stand side by side.

    Args:
        indices: The symbols, as indices into D.
    """

    index_N: Tensor

    def __init__(self, indices: Sequence[int]) -> None:
        super().__init__()
        self.count = len(indices)
        run = range(indices[0], indices[0] + len(indices)) if indices else range(0)
        self._run = slice(run.start, run.stop) if list(indices) == list(run) else None
        self.register_buffer("index_N", torch.tensor(indices, dtype=torch.int64), persistent=False)

    def forward(self, value_BD: Tensor) -> Tensor:
        """The picked columns, value_BN."""
        if self._run is not None:
            return value_BD[..., self._run]
        if symbol_by_symbol(value_BD):
            return value_BD.t().index_select(0, self.index_N).t()
        if value_BD.is_floating_point():
            return value_BD.index_select(-1, self.index_N)
        return value_BD.gather(-1, self.index_N.expand(*value_BD.shape[:-1], -1))  # for int64, quicker on a CPU


class Cells(NamedTuple):
    """Where bins lie on the standardized, warped axis.

    Attributes:
        y_BN: Centre of the bin.
        below_BN: Lower edge minus `y_BN`; -FAR for bin 0, which takes the whole tail.
        above_BN: Upper edge minus `y_BN`; +FAR for the last bin.
        width_BN: Upper edge minus lower edge, exact to the last digits; FAR for bin 0 and the last bin.
    """

    y_BN: Tensor
    below_BN: Tensor
    above_BN: Tensor
    width_BN: Tensor


class Axis(NamedTuple):
    """Where bins lie, by formula; the fields broadcast against them.

    Attributes:
        step: Width of a bin, standardized, float64.
        shift: Position of bin 0, standardized, float64.
        knee: Where the bend to a logarithm begins, float64.
        last: Number of the last bin.
        linear: Whether nothing is bent.
    """

    step: Tensor
    shift: Tensor
    knee: Tensor
    last: Tensor
    linear: bool

    def warp(self, u: Tensor) -> Tensor:
        """`warp` at the knees, if there are any."""
        return u if self.linear else warp(u, self.knee)

    def positions(self, bins: Tensor, dtype: torch.dtype) -> Tensor:
        """See `OrdinalGrid.positions`."""
        u = bins.to(torch.float64) * self.step + self.shift
        return self.warp(u).masked_fill_(bins < 0, 0.0).to(dtype)

    def cells(self, bins: Tensor, dtype: torch.dtype, beyond: Tensor | None) -> Cells:
        """See `OrdinalGrid.cells`."""
        u = bins.to(torch.float64) * self.step + self.shift
        if beyond is not None:
            u = u + beyond
        half = self.step / 2
        y = self.warp(u).to(dtype)
        lower, upper = self.warp(u - half), self.warp(u + half)
        if self.linear:
            width = self.step.to(dtype).expand_as(y).clone()
        else:
            inner = u.abs() - half
            bent = self.knee * torch.log1p(self.step / torch.maximum(inner, self.knee))
            width = torch.where(inner >= self.knee, bent, upper - lower).to(dtype)
        below, above = (lower - y).to(dtype), (upper - y).to(dtype)
        first, last = bins <= 0, bins >= self.last
        if beyond is not None:  # on a grid of one bin, the first is the last
            first, last = first & (beyond <= 0), last & (beyond >= 0)
        below.masked_fill_(first, -FAR)
        above.masked_fill_(last, FAR)
        width.masked_fill_(first | last, FAR)
        return Cells(y, below, above, width)


class OrdinalGrid(nn.Module):
    """The bins of N ordinal symbols and their positions y = warp(bin·step + shift).

    The buffers keep their types whatever dtype the module is cast to, and are not saved: the layout has them. Where
    the symbols' bins are few, what is asked for in float32 is looked up; symbols that lie alike share their entries.

    Args:
        spans: The ordinal spans whose symbols stand side by side.
    """

    step_N: Tensor
    shift_N: Tensor
    knee_N: Tensor
    last_N: Tensor
    entry_N: Tensor

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__()
        step: list[float] = []
        shift: list[float] = []
        knee: list[float] = []
        last: list[int] = []
        for span in spans:
            step += span.step if len(span.step) == span.width else span.step * span.width
            shift += span.shift if len(span.shift) == span.width else span.shift * span.width
            knee += [float("inf") if span.knee is None else span.knee] * span.width
            last += [span.bins - 1] * span.width
        self.count = len(step)
        self._linear = all(span.knee is None for span in spans)
        for name, values in (("step_N", step), ("shift_N", shift), ("knee_N", knee)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), persistent=False)
        self.register_buffer("last_N", torch.tensor(last, dtype=torch.int64), persistent=False)
        self._tabulate(list(zip(step, shift, knee, last, strict=True)))

    def _tabulate(self, symbols: list[tuple[float, float, float, int]]) -> None:
        """Makes the tables, one entry a bin and one before them for absent symbols, unless they would be large."""
        kinds = dict.fromkeys(symbols)
        sizes = [last + 2 for _, _, _, last in kinds]
        self._tables = 0 < sum(sizes) <= _MOST_ENTRIES
        if not self._tables:
            return
        ends = dict(zip(kinds, itertools.accumulate(sizes), strict=True))
        entries = [ends[symbol] - symbol[3] - 1 for symbol in symbols]  # of bin 0
        self.register_buffer("entry_N", torch.tensor(entries), persistent=False)
        counts = torch.tensor(sizes)
        columns = (torch.tensor(part, dtype=torch.float64) for part in list(zip(*kinds, strict=True))[:3])
        step, shift, knee = (column.repeat_interleave(counts) for column in columns)
        axis = Axis(step, shift, knee, (counts - 2).repeat_interleave(counts), self._linear)
        bins = torch.cat([torch.arange(-1, size - 1) for size in sizes])
        tables = (axis.positions(bins, torch.float32), *axis.cells(bins, torch.float32, None))
        for name, table in zip(_TABLES, tables, strict=True):
            self.register_buffer(name, table, persistent=False)

    def _look_up(self, bins_BN: Tensor, *names: str) -> Iterator[Tensor]:
        entries, turned = bins_BN + self.entry_N, symbol_by_symbol(bins_BN)
        if turned:
            entries = entries.t()
        flat = entries.flatten()  # `index_select` is the quickest of four ways to look up
        found = (self.get_buffer(name).index_select(0, flat).view(entries.shape) for name in names)
        return (values.t() for values in found) if turned else found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> OrdinalGrid:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @property
    def _axis(self) -> Axis:
        return Axis(self.step_N, self.shift_N, self.knee_N, self.last_N, self._linear)

    def positions(self, bins_BN: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """y_BN in `dtype`, 0 where the symbol is absent."""
        if self._tables and dtype == torch.float32:
            return next(self._look_up(bins_BN, _TABLES[0]))
        return self._axis.positions(bins_BN, dtype)

    def cells(self, bins_BN: Tensor, dtype: torch.dtype = torch.float32, beyond_BN: Tensor | None = None) -> Cells:
        """The cells of bins, in `dtype`; those of absent symbols are finite and mean nothing.

        Args:
            bins_BN: The bins.
            dtype: Floating-point type of the result.
            beyond_BN: How far values lie outside of the grid, in standardized units: above 0 beyond the last bin,
                below 0 before the first, 0 inside. The cell of such a value is the whole tail from there on.
        """
        if self._tables and dtype == torch.float32 and beyond_BN is None:
            return Cells(*self._look_up(bins_BN, *_TABLES[1:]))
        return self._axis.cells(bins_BN, dtype, beyond_BN)

    def narrowest(self) -> Tensor:
        """The smallest width that a bin of each symbol has after warping, float64, shape N."""
        ends = torch.stack([torch.zeros_like(self.last_N), self.last_N])
        far_N = (ends * self.step_N + self.shift_N).abs().amax(0)
        inner_N = far_N - self.step_N / 2
        bent_N = self.knee_N * torch.log1p(self.step_N / torch.maximum(inner_N, self.knee_N))
        return torch.where(inner_N >= self.knee_N, bent_N, self.step_N)

    def nearest(self, y_BN: Tensor) -> Tensor:
        """The bin whose cell holds `y_BN`: int64, always one of 0 … bins-1 (NaN goes to bin 0)."""
        y_BN = y_BN.to(torch.float64)
        u_BN = y_BN if self._linear else unwarp(y_BN, self.knee_N)
        position_BN = torch.nan_to_num(torch.round((u_BN - self.shift_N) / self.step_N))
        bins_BN = position_BN.clamp(0.0, _LARGEST).to(torch.int64)
        return torch.minimum(bins_BN, self.last_N)


class SymbolFeatures(nn.Module):
    """What the encoder sees of a row: positions of its ordinal symbols, table rows of its categorical ones.

    Args:
        layout: The layout of a row. O symbols are ordinal, C categorical; both keep their order.
    """

    first_C: Tensor

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__()
        ordinal = [span for span in layout.spans if span.kind == "ordinal"]
        categorical = [span for span in layout.spans if span.kind == "categorical"]
        self.grid = OrdinalGrid(ordinal)
        self.ordinal = Columns(symbols(ordinal))
        self.categorical = Columns(symbols(categorical))
        first: list[int] = []  # row of bin 0; that of an absent symbol comes before it
        rows = 0
        for span in categorical:
            for _ in range(span.width):
                first.append(rows + 1)
                rows += span.bins + 1
        self.table_rows = rows
        self.register_buffer("first_C", torch.tensor(first, dtype=torch.int64), persistent=False)

    def forward(self, bins_BD: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x_BO: the standardized, warped positions of ordinal symbols, 0 where absent."""
        return self.grid.positions(self.ordinal(bins_BD), dtype)

    def rows(self, bins_BD: Tensor) -> Tensor:
        """row_BC: the row of each categorical symbol in one table of all; absent symbols have their own."""
        row_BC: Tensor = self.categorical(bins_BD) + self.first_C
        return row_BC


def symbols(spans: Sequence[Span]) -> list[int]:
    """The indices of the symbols of spans, span after span."""
    return [index for span in spans for index in range(span.start, span.stop)]
