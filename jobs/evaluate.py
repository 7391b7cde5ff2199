"""`parvae evaluate`: compare an archive with its dataset."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="the dataset that was encoded")
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of its archive")
    add_workers(parser, "one a CPU, or one a GPU with --gpu")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates; returns the figures."""
    from pipeline.evaluate import evaluate
    from pipeline.locate import locate

    data, archive = locate(options.data, "DATA"), locate(options.archive, "ARCHIVE")
    return evaluate(data, archive, options.workers, options.gpu)


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("evaluate"))
