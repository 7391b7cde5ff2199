"""What changed between two runs of `benchmarks.throughput`.

usage: python -m benchmarks.compare OLD/throughput.json NEW/throughput.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jobs.inspect import format_table


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new rate of every contestant over the old one; ratios of a run side by side."""
    before = {(line["dataset"], line["contestant"]): line for line in old}
    lines: list[dict[str, Any]] = []
    for line in new:
        earlier = before.get((line["dataset"], line["contestant"]))
        key = "ratio" if "ratio" in line else "rows/s"
        if earlier is not None and key in earlier:
            names = {"dataset": line["dataset"], "contestant": line["contestant"]}
            lines.append({**names, "old": earlier[key], "new": line[key], "new / old": line[key] / earlier[key]})
    return lines


def main() -> int:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    options = parser.parse_args()
    print(format_table(compare(json.loads(options.old.read_text()), json.loads(options.new.read_text()))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
