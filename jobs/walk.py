"""`parvae walk`: the way from one row to another, through the latents."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_overwrite, whole


def steps(text: str) -> int:
    """A whole number from 2 up: a walk has a beginning and an end.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    return whole(text, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of an archive with latents")
    parser.add_argument("--from", required=True, type=int, metavar="ROW", dest="first", help="number of the first row")
    parser.add_argument("--to", required=True, type=int, metavar="ROW", dest="last", help="number of the last row")
    parser.add_argument(
        "--steps", type=steps, default=10, metavar="N", help="rows to write, both ends included (default: 10)"
    )
    parser.add_argument("--out", required=True, metavar="DATA", help="folder to write a Parquet file to")
    parser.add_argument("--grid", metavar="FILE.png", help="write the images as a picture (needs Pillow)")
    add_overwrite(parser, "a walk")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Walks; returns the figures."""
    from pipeline.locate import locate

    archive, out = locate(options.archive, "ARCHIVE"), locate(options.out, "--out")
    grid = None if options.grid is None else locate(options.grid, "--grid")

    from pipeline.walk import walk

    figures = walk(archive, options.first, options.last, options.steps, out, grid, options.overwrite)
    return {"out": str(out), **({} if grid is None else {"grid": str(grid)}), **figures}


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("walk"))
