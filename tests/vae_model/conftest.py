from __future__ import annotations

import pytest
import torch

from vae_model.layout import FeatureLayout, Span


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def mixed_layout() -> FeatureLayout:
    """Every kind of span, so interleaved that groups differ from the order of the row."""
    return FeatureLayout.assemble(
        [
            Span("color", "value", "categorical", 0, 1, 3),
            Span("price", "value", "ordinal", 0, 1, 1000, (0.01,), (-5.0,), 3.0, None, 3),
            Span("price", "state", "categorical", 0, 1, 2),
            Span("board", "value", "categorical", 0, 4, 4),
            Span("vector", "value", "ordinal", 0, 5, 50, (0.1, 0.2, 0.1, 0.3, 0.1), (-1.0,), None, None, 1),
            Span("city", "value", "categorical", 0, 1, 40),
            Span("image", "value", "ordinal", 0, 35, 16, (0.2,), (-1.5,), None, (7, 5), 2),
            Span("constant", "value", "ordinal", 0, 1, 1, (1.0,), (0.0,), None, None, 1),
            Span("age", "value", "ordinal", 0, 1, 90, (0.05,), (-2.0,), 4.0, None, 1),
            Span("photo", "value", "ordinal", 0, 18, 256, (0.02,), (-2.5,), None, (2, 3, 3), 1),
            Span("only", "value", "categorical", 0, 1, 1),
        ]
    )


@pytest.fixture
def draw_rows():
    """Draws bins of a layout, some of them absent."""

    def draw(layout: FeatureLayout, rows: int, seed: int = 0, absent: float = 0.1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        parts = [torch.randint(0, span.bins, (rows, span.width), generator=generator) for span in layout.spans]
        bins = torch.cat(parts, dim=1)
        return bins.masked_fill(torch.rand(bins.shape, generator=generator) < absent, -1)

    return draw
