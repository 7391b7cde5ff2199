"""Are the exact decoder's integers the same however they are computed, and near what the float decoder says?"""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from vae_model.config import NetworkConfig
from vae_model.exact import ExactDecoder
from vae_model.fixed_point import Affine, Interval, overlap
from vae_model.layout import FeatureLayout, Span
from vae_model.likelihood import GaussianParameters
from vae_model.network import VAE

SMALL = NetworkConfig(latent_dim=4, hidden=(24, 16), conv_channels=(4, 6))
CONFIGS = {
    "mixture": SMALL,
    "gaussian": dataclasses.replace(SMALL, likelihood="gaussian", decoder_scale=0.5),
    "learned": dataclasses.replace(SMALL, likelihood="gaussian_learned"),
    "flat": dataclasses.replace(SMALL, conv_channels=()),
    "linear": dataclasses.replace(SMALL, hidden=()),
}


def gridded(layout: FeatureLayout, config: NetworkConfig = SMALL) -> VAE:
    """A model whose every weight is drawn, whose latents have a grid and whose third one is switched off."""
    model = VAE(layout, config)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.set_latent_grid(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 1.0, 0.001, 1.0]))
    return model


def indices(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-8, 9, (rows, 4), generator=torch.Generator().manual_seed(seed))


def numbers(decoder: ExactDecoder, k: torch.Tensor, **options) -> torch.Tensor:
    """All locations and levels, side by side."""
    found = decoder.parameters(k, **options)
    return torch.cat([part for span in found for part in (span.location_BN, span.scale_BN)], dim=1)


def numpy_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product that numpy sums in an order of its own."""
    return torch.from_numpy(np.einsum("...ij,...jk->...ik", a.numpy(), b.contiguous().numpy()))


def reversed_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.matmul(a.flip(-1), b.flip(-2))


@pytest.mark.parametrize("name", CONFIGS)
def test_are_the_integers_those_of_any_batch_thread_count_and_order_of_sums(mixed_layout, name):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout, CONFIGS[name]))
    k = indices(4096)
    whole = numbers(decoder, k, beyond=8)
    assert torch.equal(torch.cat([numbers(decoder, row, beyond=8) for row in k[:40].split(1)]), whole[:40])
    assert torch.equal(torch.cat([numbers(decoder, rows, beyond=8) for rows in k[:210].split(7)]), whole[:210])
    torch.set_num_threads(2)
    assert torch.equal(numbers(decoder, k, beyond=8), whole)
    for multiply in (numpy_product, reversed_product):
        assert torch.equal(numbers(decoder, k[:500], beyond=8, multiply=multiply), whole[:500])


def test_are_the_integers_those_of_float64_where_float32_is_not_trusted(mixed_layout):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout))
    expected = numbers(decoder, indices(300))
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert torch.equal(numbers(decoder, indices(300)), expected)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(numbers(decoder, indices(300)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_are_the_integers_those_of_a_gpu(mixed_layout):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout))
    there = decoder.to("cuda")
    assert torch.equal(numbers(there, indices(4096).cuda()).cpu(), numbers(decoder, indices(4096)))
    assert there.fingerprint() == decoder.fingerprint()


@pytest.mark.parametrize("name", CONFIGS)
def test_does_it_speak_of_every_linear_ordinal_span_near_the_float_decoder(mixed_layout, name):
    model = gridded(mixed_layout, CONFIGS[name])
    k = indices(200)
    decoder = ExactDecoder.from_vae(model, sample_k_BZ=k)
    expected = {i for i, span in enumerate(mixed_layout.spans) if span.kind == "ordinal" and span.knee is None}
    assert [span.number for span in decoder.spans] == sorted(expected)
    with torch.no_grad():
        floats = copy.deepcopy(model).double().decode(k * model.latent_step_Z.double())
    for found in decoder.parameters(k, beyond=8):
        span = mixed_layout.spans[found.span.number]
        assert (found.span.column, found.span.width, found.span.bins) == (span.column, span.width, span.bins)
        parameters = floats[found.span.number]
        if isinstance(parameters, GaussianParameters):
            location = parameters.loc
            scale = (parameters.log_scale - np.log(np.pi / np.sqrt(3))).expand_as(location)
        else:
            heaviest = parameters.logits.argmax(-2, keepdim=True)
            location = parameters.loc.gather(-2, heaviest).squeeze(-2)
            scale = parameters.log_scale.gather(-2, heaviest).squeeze(-2)
        step, shift = torch.tensor(span.step, dtype=torch.float64), torch.tensor(span.shift, dtype=torch.float64)
        place = ((location - shift) / step).clamp(-8 * span.bins, 9 * span.bins - 1)
        away = (found.location_BN / 16 - place).abs() / (scale.exp() / step)
        assert away.quantile(0.98) < 0.3, span.column
        level = (8 * (scale - step.log()) - found.span.first_level).clamp(0, 63)
        assert (found.scale_BN - level).abs().quantile(0.98) < 1.0, span.column


def test_is_a_factored_head_exact(mixed_layout, monkeypatch):
    monkeypatch.setattr("vae_model.decoder._HEAD_LIMIT", 100)
    model = gridded(mixed_layout)
    assert isinstance(model.decoder.head, torch.nn.Sequential)
    k = indices(300)
    decoder = ExactDecoder.from_vae(model, sample_k_BZ=k)
    found = decoder.parameters(k, beyond=8)[0]
    assert found.span.column == "vector"
    assert torch.equal(numbers(decoder, k, multiply=numpy_product), numbers(decoder, k))
    again = ExactDecoder.from_tensors(decoder.to_tensors(), decoder.to_json())
    assert torch.equal(numbers(again, k), numbers(decoder, k))
    with torch.no_grad():
        floats = copy.deepcopy(model).double().decode(k * model.latent_step_Z.double())[found.span.number]
    step = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1], dtype=torch.float64)
    place = ((floats.loc.squeeze(1) + 1) / step).clamp(-400, 449)
    away = (found.location_BN / 16 - place).abs() / (floats.log_scale.squeeze(1).exp() / step)
    assert away.quantile(0.98) < 0.3


def test_are_locations_in_the_bins_of_the_grid_that_is_coded(mixed_layout):
    model = gridded(mixed_layout)
    vector = next(span for span in mixed_layout.spans if span.column == "vector")
    step = tuple(4 * value for value in vector.step)
    coarse = dataclasses.replace(vector, step=step, bins=13, shift=(-1.0,))
    decoder = ExactDecoder.from_vae(model, {"vector": coarse})
    fine = ExactDecoder.from_vae(model)
    k = indices(100)
    for one, other in zip(decoder.parameters(k, beyond=2), fine.parameters(k, beyond=2), strict=True):
        if one.span.column == "vector":
            inside = (other.location_BN > 0) & (other.location_BN < 48 * 16)
            assert ((4 * one.location_BN - other.location_BN).abs()[inside] <= 8).all()
        else:
            assert ((one.location_BN - other.location_BN).abs() <= 2).all()
    with pytest.raises(ValueError, match="another shape"):
        ExactDecoder.from_vae(model, {"vector": dataclasses.replace(coarse, width=4)})


def test_do_hostile_latents_stay_in_range(mixed_layout):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout))
    ends = torch.tensor([-(2**63), 2**63 - 1, 2**53, 0])
    k = torch.stack(torch.meshgrid(*[ends] * 4, indexing="ij"), dim=-1).flatten(0, -2)
    for beyond in (0, 8):
        for found in decoder.parameters(k, beyond=beyond):
            bins = found.span.bins
            assert found.location_BN.dtype == found.scale_BN.dtype == torch.int64
            assert found.location_BN.min() >= -16 * beyond * bins
            assert found.location_BN.max() <= 16 * (bins - 1) + 16 * beyond * bins
            assert found.scale_BN.min() >= 0
            assert found.scale_BN.max() <= 63
    assert torch.equal(numbers(decoder, k, multiply=numpy_product), numbers(decoder, k))
    off = k.clone()
    off[:, 2] = 0
    assert torch.equal(numbers(decoder, off), numbers(decoder, k)), "the third latent is switched off"
    for wrong in (k.to(torch.int32), k[:, :3], k.float()):
        with pytest.raises(ValueError, match="latent indices"):
            decoder.parameters(wrong)
    with pytest.raises(ValueError, match="beyond"):
        decoder.parameters(k, beyond=9)


@pytest.mark.parametrize("name", CONFIGS)
def test_does_it_come_back_from_its_tensors_and_does_each_weight_count(mixed_layout, name):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout, CONFIGS[name]))
    tensors, description = decoder.to_tensors(), json.loads(json.dumps(decoder.to_json()))
    again = ExactDecoder.from_tensors(tensors, description)
    assert again.fingerprint() == decoder.fingerprint()
    assert again.spans == decoder.spans
    assert torch.equal(numbers(again, indices(50)), numbers(decoder, indices(50)))
    weight = next(key for key in tensors if key.endswith(".weight"))
    tensors[weight] = tensors[weight].clone()
    tensors[weight].view(-1)[0] -= 1
    assert ExactDecoder.from_tensors(tensors, description).fingerprint() != decoder.fingerprint()


def test_is_no_latent_grid_refused(mixed_layout):
    with pytest.raises(ValueError, match="grid"):
        ExactDecoder.from_vae(VAE(mixed_layout, SMALL))


def test_are_weights_refused_whose_sums_could_be_inexact(mixed_layout):
    model = gridded(mixed_layout)
    with torch.no_grad():
        model.decoder.towers[0].first.weight[0, 0] = 1e30
    with pytest.raises(ValueError, match="not exact"):
        ExactDecoder.from_vae(model)
    with torch.no_grad():
        model.decoder.towers[0].first.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        ExactDecoder.from_vae(model)
    wide = torch.full((1, 4), 2.0**40, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert Affine(wide, zero, 0, 1, Interval.around(-(2**9), 2**9)).dtype == torch.float64
    with pytest.raises(ValueError, match="not exact"):
        Affine(wide, zero, 0, 1, Interval.around(-(2**10), 2**10))
    assert Affine(wide / 2**40, zero, 0, 1, Interval.around(-(2**20), 2**20)).dtype == torch.float32


def test_are_damaged_tensors_and_descriptions_refused(mixed_layout):
    decoder = ExactDecoder.from_vae(gridded(mixed_layout))
    tensors, description = decoder.to_tensors(), decoder.to_json()
    for name, tensor in tensors.items():
        large = torch.full_like(tensor, 2**62, dtype=torch.int64)
        longer = torch.cat([tensor, tensor])
        for damaged in (None, tensor.float(), large, longer, tensor.flatten()[:0], tensor[None]):
            changed = {key: value for key, value in tensors.items() if key != name}
            if damaged is not None:
                changed[name] = damaged
            if name in ("below", "soft") and damaged is longer:
                continue
            with pytest.raises(ValueError, match="exact"):
                ExactDecoder.from_tensors(changed, description)
    for name in description["numbers"]:
        for value in (None, "1", 1.5, True, -(10**30), 10**30):
            changed = {**description, "numbers": {**description["numbers"], name: value}}
            with pytest.raises(ValueError, match="exact"):
                ExactDecoder.from_tensors(tensors, changed)
    span = description["spans"][0][0]
    for wrong in ({**span, "bins": 10**30}, {**span, "width": "1"}, {**span, "width": span["width"] + 1}, {}, 7, "x"):
        for spans in ([[wrong]], wrong, [wrong]):
            with pytest.raises(ValueError, match="exact"):
                ExactDecoder.from_tensors(tensors, {**description, "spans": spans})
    for changed in ({**description, "version": 2}, {**description, "numbers": 3}, {"version": 1}):
        with pytest.raises(ValueError, match="exact"):
            ExactDecoder.from_tensors(tensors, changed)


@pytest.mark.parametrize("sides", [(1, 1), (1, 3), (4, 5), (7, 7)])
def test_does_the_overlap_make_a_transposed_convolution(sides):
    layer = torch.nn.ConvTranspose2d(3, 2, kernel_size=4, stride=2, padding=1, bias=False).double()
    x = torch.randn(5, 3, *sides, dtype=torch.float64)
    taps = layer.weight.detach().permute(1, 2, 3, 0).flatten(0, 2)
    parts = torch.matmul(taps, x.flatten(2)).view(5, 2, 4, 4, *sides)
    torch.testing.assert_close(overlap(parts), layer(x).detach())


def test_are_wide_vectors_and_many_bins_exact():
    layout = FeatureLayout.assemble([Span("v", "value", "ordinal", 0, 3, 2**40, (1e-11,), (-5.0,), None, None, 1)])
    decoder = ExactDecoder.from_vae(gridded(layout))
    [found] = decoder.parameters(indices(100))
    assert 0 <= found.location_BN.min() <= found.location_BN.max() <= 16 * (2**40 - 1)
    assert torch.equal(numbers(decoder, indices(100), multiply=reversed_product), numbers(decoder, indices(100)))
