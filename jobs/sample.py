"""`parvae sample`: rows that a model makes up."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_overwrite, add_workers, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("source", metavar="MODEL|ARCHIVE", help="folder of a model, or of an archive with latents")
    parser.add_argument("--rows", required=True, type=positive, metavar="N", help="rows to make up")
    parser.add_argument("--out", required=True, metavar="DATA", help="folder to write Parquet files to")
    parser.add_argument(
        "--prior",
        choices=("normal", "aggregate"),
        help="what latents are drawn from: the model's prior, or a density fitted to the archive's latents, "
        "which comes closer to the data (default: aggregate for an archive, normal for a model)",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COL=VALUE",
        help="only rows with this value; also !=, <, <=, >, >= ('age>=30'); repeat for more",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random draws (default: 0)")
    parser.add_argument("--mean", action="store_true", help="means and modes of p(x|z) instead of draws from it")
    parser.add_argument("--grid", metavar="FILE.png", help="write the first images as a picture (needs Pillow)")
    add_workers(parser, "one a CPU, or one a GPU with --gpu; a single file is made without Ray")
    add_overwrite(parser, "samples")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Samples; returns the figures."""
    from pipeline.locate import locate

    source, out = locate(options.source, "MODEL|ARCHIVE"), locate(options.out, "--out")
    grid = None if options.grid is None else locate(options.grid, "--grid")

    from pipeline.sample import sample
    from pipeline.sample_files import SampleOptions

    asked = SampleOptions(options.rows, options.prior, tuple(options.where), options.seed, options.mean)
    figures = sample(source, out, asked, grid, options.workers, options.gpu, options.overwrite)
    return {"out": str(out), **({} if grid is None else {"grid": str(grid)}), **figures}


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("sample"))
