"""Fits a row coder to a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.codec.digits import Digits
from pipeline.codec.lanes import Lanes
from pipeline.codec.rowcoder import RowCoder
from pipeline.codec.symbols import SymbolRule, network_shape, prepare
from pipeline.codec.weights import Network

Bins = npt.NDArray[np.int64]
_DEPENDENCE = 0.01
"""Share of the order-0 code that the previous row must save before it becomes a context."""
_COARSE = 64
_MOST_PASSES = 40
_FEWEST_STEPS = 20


@dataclass(frozen=True)
class Symbol:
    """What fitting is told about one symbol.

    Attributes:
        symbol: Its index in `bins_BD`.
        bins: Its number of bins.
        ordinal: Whether neighbouring bins are alike.
        gate: The state symbol that must be 0 for this one to be there, or -1.
        coded: Whether the row coder is to code it.
        state: Whether it is a state symbol; `bins` then counts one more, which says "told apart".
    """

    symbol: int
    bins: int
    ordinal: bool
    gate: int = -1
    coded: bool = True
    state: bool = False


@dataclass(frozen=True)
class Effort:
    """How much is spent on a row coder.

    Attributes:
        hidden: Hidden units.
        steps: Optimization steps.
        knots: Knots of ordinal tables.
        direct: Largest alphabet that is coded as one digit.
        neighbours: Neighbours of an element; None: all there are.
    """

    hidden: int
    steps: int
    knots: int = 12
    direct: int = 128
    neighbours: int | None = None


BALANCED = Effort(hidden=64, steps=2000)
SMALL = Effort(hidden=96, steps=6000)
Report = Callable[[int, float], None]


def fit_row_coder(
    runs: Sequence[Bins],
    latents: Sequence[Bins] | None,
    symbols: Sequence[Symbol],
    rows: int,
    effort: Effort,
    seed: int = 0,
    report: Report | None = None,
) -> RowCoder:
    """Fits a row coder.

    Args:
        runs: `bins_BD` of contiguous runs of rows, -1 = absent.
        latents: Latents of the same rows in steps of their grid, or None.
        symbols: What is to be coded, and what is known beforehand.
        rows: Rows that the archive will have.
        effort: Size and training.
        seed: Seed of every random draw.
        report: Called with the step and the bits a row.
    """
    import torch

    from vae_model.context import CoderTraining, ContextCoder, train_coder

    lanes = _sample_lanes(runs)
    bins = np.concatenate(runs)
    previous = depends_on_previous(runs, symbols)
    rules = tuple(_rule(symbol, bins, lanes, previous, effort) for symbol in sorted(symbols, key=lambda s: s.coded))
    count = 0 if latents is None else latents[0].shape[1]
    shape = network_shape(rules, previous, count, effort.hidden, effort.knots)
    draft = RowCoder(rules, previous, count, None)  # type: ignore[arg-type]
    prepared = _prepare_runs(rules, runs)
    digits, level = prepared
    before = np.concatenate([_previous(len(run)) for run in runs])
    offset = np.repeat(np.cumsum([0, *(len(run) for run in runs[:-1])]), [len(run) for run in runs])
    before = np.where(before < 0, -1, before + offset)
    joined = None if latents is None else np.concatenate(latents)
    counts = [
        torch.from_numpy(np.bincount(digits[digits[:, d] >= 0, d], minlength=size))
        for d, size in enumerate(shape.digits)
    ]
    coder = ContextCoder(shape, counts, seed)

    def draw(generator: torch.Generator, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        picked = torch.randint(0, len(digits), (batch,), generator=generator).numpy()
        contexts = draft._contexts(digits, level, before[picked], picked, joined)
        return torch.from_numpy(contexts), torch.from_numpy(digits[picked].astype(np.int64))

    batch = int(min(512, max(64, 2 ** round(np.log2(max(1, len(digits) / 100))))))
    steps = steps_for(effort, len(digits), batch, _MOST_PASSES)
    train_coder(coder, draw, CoderTraining(steps, batch, rows, seed=seed), report)
    return RowCoder(rules, previous, count, Network.trained(coder))


def steps_for(effort: Effort, items: int, batch: int, passes: int) -> int:
    """Steps of training: the effort's, but no more than so many passes over the sample."""
    return max(_FEWEST_STEPS, min(effort.steps, passes * items // batch))


def depends_on_previous(runs: Sequence[Bins], symbols: Sequence[Symbol]) -> bool:
    """Whether the previous row says enough about a row.

    Column by column, the mutual information of a value's coarse level and the one before it, less what shuffled
    values of so small a sample would show.
    """
    rng = np.random.default_rng(0)
    saved = total = 0.0
    for symbol in symbols:
        pairs = [(run[1:, symbol.symbol], run[:-1, symbol.symbol]) for run in runs if len(run) > 1]
        if not pairs:
            return False
        now, before = (np.concatenate(part) for part in zip(*pairs, strict=True))
        cuts = _cuts(now)
        now, before = np.searchsorted(cuts, now, "right"), np.searchsorted(cuts, before, "right")
        mutual, entropy = _mutual_information(now, before)
        saved += mutual - _mutual_information(now, rng.permutation(before))[0]
        total += entropy
    return saved > _DEPENDENCE * max(total, 1e-9)


def _cuts(values: Bins) -> Bins:
    """Where coarse levels of about equal mass begin; absent values have the lowest one."""
    there = np.sort(values[values >= 0])
    if not len(there):
        return there
    return np.unique(there[np.linspace(0, len(there) - 1, _COARSE - 1).astype(np.int64)])


def _mutual_information(now: Bins, before: Bins) -> tuple[float, float]:
    """Mutual information of two columns of levels, and the entropy of the first, in bits."""
    first, second = _entropy(now), _entropy(before)
    return first + second - _entropy(now * (_COARSE + 1) + before), first


def _previous(rows: int) -> Bins:
    return np.arange(-1, rows - 1)


def _sample_lanes(runs: Sequence[Bins]) -> list[Lanes]:
    return [Lanes(len(run), max(1, len(run))) for run in runs]


def _prepare_runs(rules: Sequence[SymbolRule], runs: Sequence[Bins]) -> tuple[npt.NDArray[np.int16], Bins]:
    parts = [prepare(rules, run, lanes) for run, lanes in zip(runs, _sample_lanes(runs), strict=True)]
    return np.concatenate([part.digits for part in parts]), np.concatenate([part.levels for part in parts])


def _rule(symbol: Symbol, bins: Bins, lanes: Sequence[Lanes], previous: bool, effort: Effort) -> SymbolRule:
    values = bins[:, symbol.symbol]
    there = values[values >= 0]
    plain = Digits.fit(there, symbol.bins, symbol.ordinal, direct=effort.direct)
    rule = SymbolRule(
        symbol.symbol, symbol.bins, plain, False, symbol.ordinal, symbol.coded, symbol.gate, state=symbol.state
    )
    if not (previous and symbol.coded and symbol.ordinal and symbol.bins > effort.direct and len(there)):
        return rule
    first = int(np.median(there))
    change = np.diff(there) + symbol.bins - 1
    steps = Digits.fit(change, 2 * symbol.bins - 1, True, direct=effort.direct)
    if _cost(steps, change) < _cost(plain, there[1:]):
        return SymbolRule(symbol.symbol, symbol.bins, steps, True, True, True, symbol.gate, first)
    return rule


def _cost(digits: Digits, values: Bins) -> float:
    """Order-0 bits a value, raw bits included."""
    if not len(values):
        return 0.0
    parts, _, widths = digits.split(values)
    bits = 0.0 if widths is None else float(widths.mean())
    first = parts[:, 0]
    bits += _entropy(first)
    if parts.shape[1] > 1:
        bits += _entropy(first * 65536 + parts[:, 1]) - _entropy(first)
    return bits


def _entropy(values: Bins) -> float:
    counts = np.unique(values, return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())
