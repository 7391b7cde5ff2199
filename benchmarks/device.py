"""The network, the row coder and the exact decoder on one device, as shares of what the device reaches at all.

usage: python -m benchmarks.device [--device cuda|cpu] [--batch ROWS] [--seconds S] [--out FILE.json]

First the limits: a large matrix product in each type of number, and a copy. Then every stage on random rows of a table
of sensors (24 numbers, 8 categories) and of images (28 × 28), in batches. The floating-point operations of a stage are
counted by torch, its bytes are those that its operators read and write; `% of limit` is whichever of the two is nearer
to the device's own: the more of it, the less there is to gain (more than 100 % of what memory gives comes out of a
cache). Training is also profiled: `% in kernels` is the device's busy time over the whole.

Needs torch alone (`pipeline` is not imported). On a CPU it runs too, and `% in kernels` counts operators.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vae_model.coder_shape import CoderShape
from vae_model.config import NetworkConfig
from vae_model.context import ContextCoder
from vae_model.elbo import Objective
from vae_model.exact import ExactDecoder
from vae_model.integer import IntegerCoder
from vae_model.layout import FeatureLayout, Span
from vae_model.network import VAE
from vae_model.training_step import TrainingStep

LATENTS, BINS, CATEGORIES, PIXELS = 16, 100, 40, 28
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Device:
    """A device, and what it reaches.

    Args:
        name: Torch's name of it.
        seconds: How long a measurement takes.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.device, self._seconds = torch.device(name), seconds
        size = 4096 if self.device.type == "cuda" else 1024
        self.flops: dict[str, float] = {}
        for key, dtype in DTYPES.items():
            left, right = (torch.ones(size, size, device=self.device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(left)
            self.flops[key] = 2 * size**3 / self.time(lambda a=left, b=right, c=out: torch.mm(a, b, out=c))
        source = torch.ones(size * size * 4, device=self.device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * source.nbytes / self.time(lambda: target.copy_(source))

    def time(self, run: Callable[[], object]) -> float:
        """Seconds of one call, the median of three rounds after a warm-up."""
        run()
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        calls = max(1, int(self._seconds / 3 / max(1e-6, time.perf_counter() - started)))
        rounds = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            rounds.append((time.perf_counter() - started) / calls)
        return sorted(rounds)[1]

    def wait(self) -> None:
        """Returns when all is done that was begun."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(
        self, stage: str, dtype: str, rows: int, run: Callable[[], object], cost: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """Rate of a stage, and its share of the limits; `cost`, if it is known: see `work`."""
        seconds, (flops, moved) = self.time(run), cost or work(run)
        shares = flops / seconds / self.flops[dtype], moved / seconds / self.bandwidth
        return {
            "stage": stage,
            "rows/s": rows / seconds,
            "GFLOP/s": flops / seconds / 1e9,
            "GB/s": moved / seconds / 1e9,
            "% of limit": 100 * max(shares),
            "bound by": dtype if shares[0] > shares[1] else "memory",
        }

    def training(
        self, stage: str, dtype: str, rows: int, run: Callable[[], object], cost: tuple[int, int]
    ) -> dict[str, Any]:
        """`measure`, and the share of the time in kernels."""
        for _ in range(8):  # past the steps that are not recorded yet
            run()
        return {**self.measure(stage, dtype, rows, run, cost), "% in kernels": 100 * self.in_kernels(run)}

    def in_kernels(self, run: Callable[[], object], calls: int = 20) -> float:
        """Share of the time in which the device (on a CPU: an operator) is at work."""
        run()
        self.wait()
        cuda = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
            started = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            whole = time.perf_counter() - started
        events = profiled.key_averages()
        busy = sum(event.self_device_time_total if cuda else event.self_cpu_time_total for event in events)
        return float(busy / 1e6 / whole)


class _Traffic(TorchDispatchMode):
    """Sums the bytes that operators read and write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        return out


def _added_product(total: Sequence[int], left: Sequence[int], right: Sequence[int], **_: object) -> int:
    """Operations of a product that is added in place, from shapes: the counter knows it out of place alone."""
    return 2 * left[0] * left[1] * right[1]


def work(run: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations and bytes of a call."""
    traffic = _Traffic()
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added_product}) as counter, traffic:
        run()
    return int(counter.get_total_flops()), traffic.bytes


def layouts() -> dict[str, FeatureLayout]:
    """A table of sensors, and images."""
    step, shift = (4.0 / BINS,), (-2.0,)
    numbers = [Span(f"n{i}", "value", "ordinal", 0, 1, BINS, step, shift) for i in range(24)]
    words = [Span(f"c{i}", "value", "categorical", 0, 1, CATEGORIES) for i in range(8)]
    pixels = Span("i", "value", "ordinal", 0, PIXELS**2, 256, (4.0 / 256,), shift, shape=(PIXELS, PIXELS))
    return {"sensors": FeatureLayout.assemble([*numbers, *words]), "images": FeatureLayout.assemble([pixels])}


def draw(layout: FeatureLayout, rows: int, device: torch.device) -> Tensor:
    """Random rows bins_BD."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(span.bins, (rows, span.width), generator=generator) for span in layout.spans]
    return torch.cat(parts, 1).to(device)


def stages(device: Device, name: str, layout: FeatureLayout, rows: int) -> Iterator[dict[str, Any]]:
    """Every stage of a layout."""
    bins_BD = draw(layout, rows, device.device)
    vae = VAE(layout, NetworkConfig(latent_dim=LATENTS)).to(device.device)
    half = "bfloat16" if device.device.type == "cuda" else "float32"
    noise = torch.Generator(device.device)
    steps = {kind: TrainingStep(vae, 1e-4, 1.0, noise, record=not kind) for kind in ("eager", "")}
    cost = work(lambda: steps["eager"](bins_BD, Objective(), 1e-4))
    for kind, step in steps.items():
        if device.device.type == "cuda" or not kind:
            stage = " ".join(filter(None, (f"{name}: train", kind)))
            yield device.training(stage, half, rows, partial(step, bins_BD, Objective(), 1e-4), cost)
    vae.eval().requires_grad_(False)
    with torch.no_grad():
        yield device.measure(f"{name}: encode", "float32", rows, lambda: vae.round_latents(vae.encode(bins_BD).mu_BZ))
    vae.set_latent_grid(torch.full((LATENTS,), 0.3), torch.ones(LATENTS))
    k_BZ = torch.randint(-8, 9, (rows, LATENTS)).to(device.device)
    with torch.no_grad():
        exact = ExactDecoder.from_vae(vae.cpu()).to(device.device)
        yield device.measure(f"{name}: exact decoder", "float64", rows, lambda: exact.parameters(k_BZ))


def row_coder(device: Device, rows: int) -> dict[str, Any]:
    """The row coder on the sensors' table, as a decoder runs it: digit by digit."""
    sizes = [span.bins for span in layouts()["sensors"].spans]
    shape = CoderShape(
        tuple(sizes), (True,) * len(sizes), tuple(sizes), (True,) * len(sizes), (-1,) * len(sizes), hidden=64
    )
    trained = ContextCoder(shape, [torch.ones(size) for size in sizes])
    coder = IntegerCoder(shape, trained.integers(), device=str(device.device))
    rows_BD = draw(layouts()["sensors"], rows, device.device)

    def run() -> None:
        hidden_BH = coder.start(rows_BD)
        for digit in range(len(sizes)):
            coder.weights(hidden_BH, digit, None)
            coder.absorb(hidden_BH, digit, rows_BD[:, digit])

    with torch.no_grad():
        return device.measure("sensors: row coder", "float32", rows, run)


def main(argv: list[str] | None = None) -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4096, metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each measurement")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    options = parser.parse_args(argv)
    device = Device(options.device, options.seconds)
    limits = {f"{key} GFLOP/s": rate / 1e9 for key, rate in device.flops.items()}
    found = {"device": _name(device.device), "limits": {**limits, "copy GB/s": device.bandwidth / 1e9}}
    lines = [line for name, layout in layouts().items() for line in stages(device, name, layout, options.batch)]
    lines.append(row_coder(device, options.batch))
    if options.out:
        options.out.write_text(json.dumps({**found, "stages": lines}, indent=1))
    print(json.dumps(found, indent=1))
    heads = [*dict.fromkeys(head for line in lines for head in line)]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for line in lines:
        print(f"| {' | '.join(_text(line.get(head, '–')) for head in heads)} |")
    return 0


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def _text(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
