"""Is the deployed row coder the same, bit for bit, whatever evaluates it?"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vae_model.coder_shape import CoderShape
from vae_model.context import CoderTraining, ContextCoder, Tables, train_coder
from vae_model.integer import IntegerCoder, exponential_table, fingerprint

SHAPE = CoderShape((40, 3), (True, False), (5, 70, 9), (False, True, False), (-1, -1, 1), hidden=24, knots=6)
ROWS = 4096


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Weights as extreme as they may be."""
    counts = [torch.ones(size) for size in SHAPE.digits]
    generator = torch.Generator().manual_seed(3)
    coder = ContextCoder(SHAPE, counts)
    with torch.no_grad():
        for weight in coder.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 4)
    return coder.integers()


@pytest.fixture(scope="module")
def items() -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts and digits of random items, some of them absent."""
    generator = torch.Generator().manual_seed(4)

    def draw(sizes: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([torch.randint(-1, size, (ROWS,), generator=generator) for size in sizes], 1)

    return draw(SHAPE.contexts), draw(SHAPE.digits)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluate(coder: IntegerCoder, items: tuple[torch.Tensor, torch.Tensor], batch: int) -> list[torch.Tensor]:
    contexts, digits = items
    parts: list[list[torch.Tensor]] = [[] for _ in SHAPE.digits]
    for start in range(0, len(contexts), batch):
        rows = slice(start, start + batch)
        hidden = coder.start(contexts[rows].to(coder.device))
        values = digits[rows].to(coder.device)
        for number, given in enumerate(SHAPE.given):
            chosen = values[:, given].clamp(min=0) if given >= 0 else None
            parts[number].append(coder.weights(hidden, number, chosen).cpu())
            coder.absorb(hidden, number, values[:, number])
    return [torch.cat(part) for part in parts]


def by_numpy(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.matmul(left.numpy().astype(np.float64), right.numpy().astype(np.float64))).to(left.dtype)


@pytest.mark.parametrize("batch", [1, 7, 1000, 4096])
def test_the_batch_makes_no_difference(weights, items, batch):
    items = (items[0][:999], items[1][:999]) if batch == 1 else items
    once = evaluate(IntegerCoder(SHAPE, weights), items, ROWS)
    assert all(
        torch.equal(a, b) for a, b in zip(once, evaluate(IntegerCoder(SHAPE, weights), items, batch), strict=True)
    )


@pytest.mark.parametrize("count", [1, 2])
def test_the_number_of_threads_makes_no_difference(weights, items, count, threads):
    once = evaluate(IntegerCoder(SHAPE, weights, matmul=by_numpy), items, 512)
    torch.set_num_threads(count)
    assert all(
        torch.equal(a, b) for a, b in zip(once, evaluate(IntegerCoder(SHAPE, weights), items, 4096), strict=True)
    )


def test_the_order_of_the_hidden_units_makes_no_difference(weights, items):
    order = torch.randperm(SHAPE.hidden, generator=torch.Generator().manual_seed(0))

    def shuffled(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left[:, order] @ right[order]

    once = evaluate(IntegerCoder(SHAPE, weights), items, ROWS)
    other = evaluate(IntegerCoder(SHAPE, weights, matmul=shuffled), items, ROWS)
    assert all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_device_makes_no_difference(weights, items):
    once = evaluate(IntegerCoder(SHAPE, weights), items, ROWS)
    other = evaluate(IntegerCoder(SHAPE, weights, device="cuda"), items, 777)
    assert all(torch.equal(a, b) for a, b in zip(once, other, strict=True))


def test_weights_are_whole_numbers_of_at_least_one(weights, items):
    for part in evaluate(IntegerCoder(SHAPE, weights), items, ROWS):
        assert part.dtype == torch.float64
        assert torch.equal(part, part.floor())
        assert part.min() >= 1
        assert part.sum(1).max() < 2**53


def test_the_table_of_exp_is_correctly_rounded():
    table = exponential_table()
    assert table[0] == 2**32
    with decimal.localcontext() as context:
        context.prec = 80
        for k in (1, 64, 500, 1024):
            exact = (decimal.Decimal(-k) / 64).exp() * 2**32
            assert abs(decimal.Decimal(int(table[k])) - exact) <= decimal.Decimal("0.5")


def test_a_changed_weight_changes_the_fingerprint(weights):
    before = fingerprint(SHAPE, weights)
    for name in weights:
        changed = {**weights, name: weights[name].clone()}
        changed[name].view(-1)[-1] += 1
        assert fingerprint(SHAPE, changed) != before
    assert fingerprint(SHAPE, {name: weight.clone() for name, weight in weights.items()}) == before


def test_weights_that_could_leave_the_exact_range_are_refused(weights):
    broken = {**weights, "output_DHR": weights["output_DHR"].clone()}
    broken["output_DHR"][0, 0, 0] = 128
    with pytest.raises(ValueError, match="exact"):
        IntegerCoder(SHAPE, broken)


@pytest.mark.parametrize("change", ["missing", "shape", "float"])
def test_weights_of_another_shape_are_refused(weights, change):
    broken = dict(weights)
    if change == "missing":
        del broken["bias_DH"]
    elif change == "shape":
        broken["bias_DH"] = broken["bias_DH"][:, 1:]
    else:
        broken["bias_DH"] = broken["bias_DH"].float()
    with pytest.raises(ValueError, match="bias_DH"):
        IntegerCoder(SHAPE, broken)


def test_interpolated_tables_pass_through_their_knots():
    tables = Tables((101,), (True,), 11)
    knots = torch.arange(tables.knots, dtype=torch.float32)[:, None] ** 2
    entries = tables.expand(knots)[:, 0] / 16
    assert torch.equal(entries[:101:10], knots[:11, 0])
    assert torch.all(entries[:100].diff() >= 0)
    assert entries[101] == knots[11, 0]


def test_training_finds_what_a_row_says_and_pays_for_its_weights():
    """x1 repeats x0 nine times in ten, x0 is the context: 1 + about 0.7 bits, and no more weights than that needs."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 8, (5000,), generator=generator)
    same = torch.rand(5000, generator=generator) < 0.9
    second = torch.where(same, first, torch.randint(0, 8, (5000,), generator=generator))
    contexts, digits = torch.randint(0, 2, (5000, 1), generator=generator), torch.stack([first, second], 1)
    shape = CoderShape((2,), (False,), (8, 8), (False, False), (-1, -1), hidden=16)
    coder = ContextCoder(shape, [torch.bincount(column, minlength=8) for column in digits.T])

    def draw(generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(0, 5000, (batch,), generator=generator)
        return contexts[rows], digits[rows]

    train_coder(coder, draw, CoderTraining(600, 256, 5000))
    bits = coder.bits(contexts, digits, rounding=True).mean(0).detach().tolist()
    noise = 0.1 * 7 / 8
    entropy = -(1 - noise) * math.log2(1 - noise) - noise * math.log2(noise / 7)
    assert bits[0] == pytest.approx(3, abs=0.02)
    assert bits[1] == pytest.approx(entropy, abs=0.08)
    weights = coder.integers()
    assert float(weights["context_KH"].float().abs().mean()) < 0.5  # the context says nothing
    assert float(coder.weight_bits().detach()) < 0.2 * 5000

    integer = IntegerCoder(shape, weights)
    hidden = integer.start(contexts)
    for number in range(2):
        part = integer.weights(hidden, number, None)
        chosen = part.gather(1, digits[:, number : number + 1])[:, 0]
        assert float(torch.log2(part.sum(1) / chosen).mean()) == pytest.approx(bits[number], abs=2e-3)
        integer.absorb(hidden, number, digits[:, number])


def test_training_twice_gives_the_same_weights():
    shape = CoderShape((), (), (4,), (False,), (-1,), hidden=4)

    def draw(generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(batch, 0, dtype=torch.long), torch.randint(0, 4, (batch, 1), generator=generator)

    found = []
    for _ in range(2):
        coder = ContextCoder(shape, [torch.ones(4)], seed=5)
        train_coder(coder, draw, CoderTraining(30, 64, 1000, seed=5))
        found.append(fingerprint(shape, coder.integers()))
    assert found[0] == found[1]
