"""Are the integer weights of a discretized logistic a distribution that can be coded, near the real one?"""

from __future__ import annotations

import pytest
import torch

from vae_model.exact_logistic import discretized_logistic_weights

GOLDEN = [
    [1073695118, 1, 1],
    [10778, 10746, 1],
    [593543, 49978334, 593543],
    [117361120, 21816491, 555082930],
    [601566707, 1993210, 442061720],
]
"""Weights of bins 0, 5 and 16 of 17: a decoder that gives others cannot read older archives."""


def grid_of_parameters(bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    ends = torch.tensor([-16 * 8 * bins, -16 * bins, 16 * (bins - 1) + 16 * 8 * bins])
    location = torch.cat([torch.arange(0, 16 * (bins - 1) + 1, max(1, bins // 4)), ends])
    location, scale = torch.meshgrid(location, torch.arange(64), indexing="ij")
    return location.contiguous(), scale.contiguous()


@pytest.mark.parametrize("bins", [1, 2, 17, 256])
@pytest.mark.parametrize("first_level", [-24, -8, 24])
def test_is_every_weight_whole_at_least_1_and_their_sum_fixed(bins, first_level):
    weights = discretized_logistic_weights(*grid_of_parameters(bins), bins, first_level)
    assert weights.dtype == torch.float64
    assert torch.equal(weights, weights.floor())
    assert weights.min() >= 1
    assert (weights.sum(-1) == 2**30 + bins).all()


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_are_weights_near_the_probabilities_and_edges_take_the_tails(bins):
    location, scale = grid_of_parameters(bins)
    weights = discretized_logistic_weights(location, scale, bins)
    width = torch.exp((scale.double() - 24) / 8)
    edges = torch.arange(bins - 1) + 0.5
    below = torch.sigmoid((edges - location.double().unsqueeze(-1) / 16) / width.unsqueeze(-1))
    ends = torch.zeros_like(below[..., :1])
    expected = torch.diff(below, prepend=ends, append=ends + 1)
    torch.testing.assert_close(weights / 2**30, expected, rtol=0.04, atol=1e-4)


def test_are_weights_symmetric_and_the_same_for_any_batch():
    location, scale = grid_of_parameters(17)
    inside = location[:, :1].ge(0).squeeze(1) & location[:, :1].le(256).squeeze(1)
    location, scale = location[inside], scale[inside]
    weights = discretized_logistic_weights(location, scale, 17)
    assert torch.equal(weights[3:5], discretized_logistic_weights(location[3:5], scale[3:5], 17))
    mirrored = discretized_logistic_weights(256 - location, scale, 17).flip(-1)
    assert ((weights - mirrored).abs() <= 2**30 * 2**-13).all()


def test_are_weights_those_that_were_once_computed():
    location = torch.tensor([[0, 40, 128, 256, -500]])
    scale = torch.tensor([[0, 10, 24, 40, 63]])
    weights = discretized_logistic_weights(location, scale, 17)
    assert weights[0, :, [0, 5, 16]].tolist() == GOLDEN


@pytest.mark.parametrize(
    ("location", "scale", "bins", "first_level"),
    [(0, 64, 17, -24), (0, -1, 17, -24), (10**9, 0, 17, -24), (0, 0, 257, -24), (0, 0, 0, -24), (0, 0, 17, 25)],
)
def test_are_parameters_out_of_range_refused(location, scale, bins, first_level):
    with pytest.raises(ValueError, match="not"):
        discretized_logistic_weights(torch.tensor([[location]]), torch.tensor([[scale]]), bins, first_level)


def test_are_other_types_refused():
    with pytest.raises(ValueError, match="int64"):
        discretized_logistic_weights(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), 17)
