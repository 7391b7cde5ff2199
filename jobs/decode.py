"""`parvae decode`: decode an archive back to the dataset."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from jobs.arguments import add_overwrite, add_workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of an archive")
    parser.add_argument("--out", required=True, metavar="DATA", help="folder to write the Parquet files to")
    parser.add_argument("--columns", action="append", metavar="COL", help="decode this column only; repeat for more")
    add_workers(parser)
    add_overwrite(parser, "an unfinished decode of something else")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Decodes; returns the figures."""
    from pipeline.decode import decode
    from pipeline.locate import locate

    archive, out = locate(options.archive, "ARCHIVE"), locate(options.out, "--out")
    result = decode(archive, out, options.columns, options.workers, options.gpu, options.overwrite)
    return {"out": str(out), **dataclasses.asdict(result)}


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("decode"))
