"""`parvae inspect`: explain a dataset, a model or an archive."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("path", metavar="PATH", help="folder of a dataset, a model or an archive")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prints a table; returns the figures."""
    from pipeline.inspect import inspect
    from pipeline.locate import locate

    report = inspect(locate(options.path, "PATH"))
    for title, rows in report.tables:
        print(title)
        print(format_table(rows))
        print()
    return report.figures


def format_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a text table; numbers stand to the right."""
    if not rows:
        return "(nothing)"
    heads = list(rows[0])
    cells = [[_text(row[head]) for head in heads] for row in rows]
    widths = [max(len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    right = [all(isinstance(row[head], (int, float)) for row in rows) for head in heads]
    lines = [_line(heads, widths, right), "  ".join("-" * width for width in widths)]
    return "\n".join([*lines, *(_line(row, widths, right) for row in cells)])


def _line(cells: list[str], widths: list[int], right: list[bool]) -> str:
    parts = zip(cells, widths, right, strict=True)
    return "  ".join(cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in parts).rstrip()


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value)


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("inspect"))
