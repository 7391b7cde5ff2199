"""`parvae evaluate`: compare an archive with its dataset."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_overwrite, add_workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="the dataset that was encoded")
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of its archive")
    parser.add_argument("--report", metavar="FILE", help="write an HTML page about the archive: one file, no network")
    parser.add_argument(
        "--label",
        metavar="COL",
        help="column that colours the report's map of the latents (default: a passthrough column with few values)",
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure general tools for the report on a sample of at most 4 MiB, up to half a minute (default: yes)",
    )
    add_workers(parser)
    add_overwrite(parser, "a report")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates; returns the figures."""
    from pipeline.errors import ConfigError
    from pipeline.evaluate import evaluate
    from pipeline.locate import locate

    data, archive = locate(options.data, "DATA"), locate(options.archive, "ARCHIVE")
    report = None
    if options.report is not None:
        from pipeline.report.options import ReportOptions

        out = locate(options.report, "--report")
        report = ReportOptions(out, options.label, options.peers, options.overwrite)
    elif options.label is not None:
        raise ConfigError("--label is of use with --report FILE only")
    return evaluate(data, archive, options.workers, options.gpu, report=report)


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("evaluate"))
