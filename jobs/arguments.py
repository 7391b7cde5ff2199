"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.bounds import Bound


def positive(text: str) -> int:
    """A whole number from 1 up.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    return whole(text, 1)


def whole(text: str, least: int) -> int:
    """A whole number from `least` up.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} up")
    return value


def error_bound(text: str) -> Bound:
    """An error bound: `0.01r`, `0`, `0.5`, `none`.

    Raises:
        argparse.ArgumentTypeError: If it is anything else.
    """
    from pipeline.columns import Bound

    try:
        return Bound.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_error(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--error`."""
    parser.add_argument(
        "--error",
        type=error_bound,
        metavar="BOUND",
        help="largest error of a decoded value: 0.01r (times the column's range), 0 (bit for bit), 0.5 (in the "
        f"column's unit), none (nothing is promised) (default: {default})",
    )


def add_effort(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--effort`."""
    parser.add_argument(
        "--effort",
        choices=("fast", "balanced", "small"),
        help="time spent on what codes each column smallest: general tools only, small networks too, or larger "
        f"ones (default: {default})",
    )


def add_workers(
    parser: argparse.ArgumentParser,
    default: str = "one a CPU, or one a GPU with --gpu, and no more than one a MiB of Parquet",
) -> None:
    """Adds `--workers` and `--gpu`."""
    parser.add_argument("--workers", type=positive, metavar="N", help=f"Ray workers (default: {default})")
    parser.add_argument("--gpu", action="store_true", help="run the network on GPUs, one a worker")


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} that is there already")
