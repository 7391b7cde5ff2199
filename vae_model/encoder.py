"""The encoder: symbols → posterior. Wide tables and large vocabularies stay cheap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_model.config import NetworkConfig
from vae_model.elbo import Posterior, full_precision
from vae_model.features import Columns, SymbolFeatures
from vae_model.images import ImageEncoder
from vae_model.layers import Activation, add_product, hidden_layers, in_place
from vae_model.layout import FeatureLayout, Span

_TABLE_LIMIT = 4_000_000
_FIRST_LOGVAR = -2.0
_LOGVAR_BOUNDS = (-20.0, 6.0)


def goes_through_tower(span: Span, config: NetworkConfig) -> bool:
    """Whether a span is an image that convolutions look at."""
    return span.shape is not None and span.kind == "ordinal" and bool(config.conv_channels and config.hidden)


def ordinal_places(layout: FeatureLayout) -> list[tuple[Span, range]]:
    """The ordinal spans, each with the places of its symbols among the O ordinal ones."""
    placed: list[tuple[Span, range]] = []
    position = 0
    for span in layout.spans:
        if span.kind == "ordinal":
            placed.append((span, range(position, position + span.width)))
            position += span.width
    return placed


class TableSum(nn.Module):
    """One row a categorical symbol, summed: a linear layer over one-hot symbols that never makes them.

    Tables above 4 million numbers are factored through fewer columns. Absent symbols have rows of their own,
    zero at first.

    Args:
        features: Says which row each symbol takes.
        outputs: Width of the sum.
    """

    def __init__(self, features: SymbolFeatures, outputs: int) -> None:
        super().__init__()
        rows = features.table_rows
        rank = min(outputs, max(16, _TABLE_LIMIT // rows))
        scale = features.categorical.count**-0.5
        table = torch.randn(rows, rank) * scale
        table[features.first_C - 1] = 0.0
        self.table = nn.Parameter(table)
        self.widen = nn.Identity() if rank == outputs else nn.Linear(rank, outputs, bias=False)

    def forward(self, row_BC: Tensor) -> Tensor:
        """The sum by row of the batch, shape (B, outputs)."""
        total: Tensor = self.widen(F.embedding_bag(row_BC, self.table, mode="sum"))
        return total


class InputLayer(nn.Module):
    """An affine map from symbols to `outputs` numbers, image spans excepted where a tower sees them.

    Args:
        layout: The layout of a row.
        features: Features of that layout.
        config: Says which spans go through a tower.
        outputs: Number of outputs.
    """

    def __init__(self, layout: FeatureLayout, features: SymbolFeatures, config: NetworkConfig, outputs: int) -> None:
        super().__init__()
        placed = ordinal_places(layout)
        flat = [place for span, places in placed if not goes_through_tower(span, config) for place in places]
        self.columns = Columns(flat)
        self.linear = nn.Linear(len(flat), outputs, bias=False) if flat else None
        self.tables = TableSum(features, outputs) if features.categorical.count else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_BO: Tensor, row_BC: Tensor) -> Tensor:
        """The outputs, shape (B, outputs)."""
        x_BO = self.columns(x_BO)
        if self.tables is None:
            if self.linear is None:
                return self.bias.expand(len(x_BO), -1)
            return F.linear(x_BO, self.linear.weight, self.bias)
        tables: Tensor = self.tables(row_BC)
        if self.linear is None:
            return tables + self.bias
        if in_place(x_BO):
            return add_product(tables.add_(self.bias), x_BO, self.linear.weight)
        return F.linear(x_BO, self.linear.weight, self.bias) + tables


class Encoder(nn.Module):
    """q(z|x): hidden layers over all symbols, and a straight linear path from ordinal features to the mean.

    The log-variance is softly bounded to [-20, 6].

    Args:
        layout: The layout of a row.
        config: Widths and image stages.
    """

    def __init__(self, layout: FeatureLayout, config: NetworkConfig) -> None:
        super().__init__()
        self.features = SymbolFeatures(layout)
        latents = config.latent_dim
        images = [item for item in ordinal_places(layout) if goes_through_tower(item[0], config)]
        widths = config.encoder_widths(layout.n_symbols)
        first = widths[0] if widths else 2 * latents
        self.input = InputLayer(layout, self.features, config, first)
        self.image_columns = nn.ModuleList(Columns(places) for _, places in images)
        self.towers = nn.ModuleList(
            ImageEncoder(span.shape, config.conv_channels, first) for span, _ in images if span.shape
        )
        self.trunk: nn.Sequential | None = None
        self.skip: nn.Linear | None = None
        if widths:
            self.trunk = nn.Sequential(nn.LayerNorm(first), Activation(), *hidden_layers(first, widths[1:]))
            self.head = nn.Linear(widths[-1], 2 * latents)
            if self.features.ordinal.count:
                self.skip = nn.Linear(self.features.ordinal.count, latents, bias=False)

    def forward(self, bins_BD: Tensor) -> Posterior:
        """The posterior of each row, in the weights' own precision."""
        x_BO, hidden = self._hidden(bins_BD)
        with full_precision(x_BO):
            raw = hidden.to(x_BO.dtype)
            if self.trunk is not None:
                raw = self.head(raw)
            mu_BZ, raw_logvar_BZ = raw.chunk(2, dim=-1)
            return Posterior(self._skipped(mu_BZ, x_BO), _bounded(raw_logvar_BZ + _FIRST_LOGVAR))

    def mean(self, bins_BD: Tensor) -> Tensor:
        """The mean mu_BZ of the posterior alone: `forward`'s but for the order of sums."""
        x_BO, hidden = self._hidden(bins_BD)
        with full_precision(x_BO):
            raw = hidden.to(x_BO.dtype)
            if self.trunk is not None:
                half = self.head.out_features // 2
                return self._skipped(F.linear(raw, self.head.weight[:half], self.head.bias[:half]), x_BO)
            return raw.chunk(2, dim=-1)[0]

    def _skipped(self, mu_BZ: Tensor, x_BO: Tensor) -> Tensor:
        return mu_BZ if self.skip is None else add_product(mu_BZ, x_BO, self.skip.weight)

    def _hidden(self, bins_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Features x_BO, and what the head sees of them and of the categorical symbols."""
        x_BO = self.features(bins_BD, self.input.bias.dtype)
        hidden = self.input(x_BO, self.features.rows(bins_BD))
        for columns, tower in zip(self.image_columns, self.towers, strict=True):
            hidden = hidden + tower(columns(x_BO))
        if self.trunk is not None:
            hidden = self.trunk(hidden)
        return x_BO, hidden


def _bounded(logvar_BZ: Tensor) -> Tensor:
    lowest, highest = _LOGVAR_BOUNDS
    below = highest - F.softplus(highest - logvar_BZ)
    return lowest + F.softplus(below - lowest)
