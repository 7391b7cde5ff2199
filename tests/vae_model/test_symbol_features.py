"""Does the way from bins to standardized positions come back, for any grid?"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_model.features import OrdinalGrid, SymbolFeatures, unwarp, warp
from vae_model.layout import FeatureLayout, Span


@settings(max_examples=200, deadline=None)
@given(u=st.floats(-1e15, 1e15), knee=st.one_of(st.floats(1e-3, 1e3), st.just(float("inf"))))
def test_unwarp_is_the_inverse_of_warp(u, knee):
    value = torch.tensor([u], dtype=torch.float64)
    y = warp(value, knee)
    torch.testing.assert_close(unwarp(y, knee), value, rtol=1e-9, atol=1e-12)
    if abs(u) <= knee:
        assert float(y) == u
    else:
        assert abs(float(y)) < abs(u)


def test_warp_is_increasing_and_smooth_at_the_knee():
    u = torch.linspace(-50, 50, 10_001, dtype=torch.float64)
    y = warp(u, 2.0)
    assert (y.diff() > 0).all()
    slope = y.diff() / u.diff()
    assert float((slope.diff().abs()).max()) < 0.01
    assert float(warp(torch.tensor(2e12), 2.0)) < 60


@settings(max_examples=100, deadline=None)
@given(
    bins=st.integers(1, 10**9),
    log_step=st.floats(-9, 3),
    shift=st.floats(-100, 100),
    knee=st.one_of(st.none(), st.floats(0.5, 10)),
    data=st.data(),
)
def test_the_nearest_bin_of_a_bin_center_is_the_bin(bins, log_step, shift, knee, data):
    grid = OrdinalGrid([Span("c", "value", "ordinal", 0, 1, bins, (10**log_step,), (shift,), knee)])
    chosen = torch.tensor([[data.draw(st.integers(0, bins - 1))]])
    y = grid.positions(chosen, torch.float64)
    assert abs(int(grid.nearest(y)) - int(chosen)) <= 1e-7 * bins


@settings(max_examples=60, deadline=None)
@given(data=st.data(), bent=st.booleans())
def test_is_what_is_looked_up_what_the_formulas_say(data, bent):
    spans = []
    for number in range(data.draw(st.integers(1, 4))):
        width, bins = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 300))
        step, shift = 10 ** data.draw(st.floats(-4, 1)), data.draw(st.sampled_from([-3.0, 0.0, 0.7]))
        knee = data.draw(st.sampled_from([None, 0.5, 2.0])) if bent else None
        spans.append(Span(f"c{number}", "value", "ordinal", 0, width, bins, (step,), (shift,), knee))
    layout = FeatureLayout.assemble(spans)
    grid = OrdinalGrid(layout.spans)
    last = torch.tensor([span.bins - 1 for span in layout.spans for _ in range(span.width)])
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    inner = (torch.rand(5, len(last), generator=rng) * (last + 1)).long()
    bins = torch.cat([torch.full_like(last, -1)[None], torch.zeros_like(last)[None], last[None], inner])
    assert grid._tables
    looked_up = [grid.positions(bins), *grid.cells(bins)]
    grid._tables = False
    for found, expected in zip(looked_up, [grid.positions(bins), *grid.cells(bins)], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_are_bins_without_number_not_tabulated():
    grid = OrdinalGrid([Span("c", "value", "ordinal", 0, 1, 2**40, (1e-9,), (0.0,))])
    assert not grid._tables
    assert float(grid.positions(torch.tensor([[2**39]]))) == pytest.approx(2**39 * 1e-9)


def test_do_elements_that_lie_alike_share_their_entries():
    grid = OrdinalGrid([Span("i", "value", "ordinal", 0, 784, 256, (0.01,), (-1.0,))])
    assert len(grid.get_buffer("position_T")) == 257
    wide = OrdinalGrid([Span("v", "value", "ordinal", 0, 3, 4, (0.1, 0.2, 0.1), (0.0,))])
    assert len(wide.get_buffer("position_T")) == 10


def test_nearest_is_valid_for_any_number():
    grid = OrdinalGrid([Span("c", "value", "ordinal", 0, 1, 2**62, (1e-3,), (0.0,), 3.0)])
    wild = torch.tensor([[float("nan")], [float("inf")], [-float("inf")], [1e38], [-1e38]])
    bins = grid.nearest(wild)
    assert int(bins.min()) >= 0
    assert int(bins.max()) == 2**62 - 1


def test_features_are_standardized_positions_and_zero_where_absent(mixed_layout):
    features = SymbolFeatures(mixed_layout)
    bins = torch.zeros(2, mixed_layout.n_symbols, dtype=torch.int64)
    bins[1] = -1
    x_BO = features(bins)
    assert x_BO.dtype == torch.float32
    assert (x_BO[1] == 0).all()
    price = -3.0 * (1 + torch.log(torch.tensor(5.0 / 3.0)))
    torch.testing.assert_close(x_BO[0, :3], torch.tensor([price, -1.0, -1.0]))


def test_each_categorical_symbol_has_its_own_rows_and_one_for_absence(mixed_layout):
    features = SymbolFeatures(mixed_layout)
    seen: set[int] = set()
    for symbol in range(-1, 40):
        bins = torch.full((1, mixed_layout.n_symbols), symbol)
        for column, row in enumerate(features.rows(bins)[0].tolist()):
            sizes = [3, 2, 4, 4, 4, 4, 40, 1]
            if symbol < sizes[column]:
                assert row not in seen
                seen.add(row)
    assert seen == set(range(features.table_rows))


def test_casting_a_module_leaves_its_grid_in_float64():
    layout = FeatureLayout.assemble([Span("c", "value", "ordinal", 0, 1, 10**9, (1e-8,), (-5.0,), None)])
    features = SymbolFeatures(layout)
    before = features(torch.tensor([[123_456_789]]))
    features.float()
    assert features.grid.step_N.dtype == torch.float64
    assert float(features(torch.tensor([[123_456_789]]))) == float(before) == pytest.approx(-3.76543211)


def test_are_features_the_same_however_rows_lie_in_memory():
    spans = [
        Span("a", "value", "ordinal", 0, 2, 9, (0.5,), (-1.0,)),
        Span("a", "state", "categorical", 2, 1, 3),
        Span("b", "value", "ordinal", 0, 1, 2**40, (1e-9,), (0.0,)),
        Span("c", "value", "ordinal", 0, 1, 5, (0.1,), (0.3,), 0.2),
        Span("d", "value", "categorical", 0, 2, 4),
    ]
    layout = FeatureLayout.assemble(spans)
    rows = torch.stack([torch.arange(7) % (span.bins + 1) - 1 for span in layout.spans for _ in range(span.width)], 1)
    across = rows.t().contiguous().t()
    for grids in (layout, FeatureLayout.assemble([*spans[:2], *spans[3:]])):
        features = SymbolFeatures(grids)
        kept = torch.tensor([symbol for symbol in range(rows.shape[1]) if grids is layout or symbol != 3])
        seen, turned = rows[:, kept], across.t()[kept].t()
        assert seen.stride() != turned.stride()
        assert torch.equal(features(turned), features(seen))
        assert torch.equal(features.rows(turned), features.rows(seen))
        for found, expected in zip(
            features.grid.cells(features.ordinal(turned)), features.grid.cells(features.ordinal(seen)), strict=True
        ):
            assert torch.equal(found, expected)
