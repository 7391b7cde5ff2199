"""`parvae verify`: check every checksum of an archive."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of an archive")
    add_workers(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Verifies; returns the figures."""
    from pipeline.locate import locate
    from pipeline.verify import verify

    archive = locate(options.archive, "ARCHIVE")
    return {"archive": str(archive), **verify(archive, options.workers, options.gpu)}


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("verify"))
