"""Arguments that several commands share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number from 1 up.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return value


def add_workers(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--workers` and `--gpu`."""
    parser.add_argument("--workers", type=positive, metavar="N", help=f"Ray workers (default: {default})")
    parser.add_argument("--gpu", action="store_true", help="run the network on GPUs, one a worker")


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} that is there already")
