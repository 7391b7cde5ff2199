"""Processor seconds of a command and of every process below it, by process.

usage: python -m benchmarks.cpu_seconds COMMAND …

Processes are looked at twenty times a second; one that lives for less may be missed.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.usage import Spent
from jobs.inspect import format_table

LOOKS_A_SECOND = 20
SHOWN = 15


def watched(command: list[str]) -> dict[tuple[int, str], float]:
    """Runs a command; gives the processor seconds of each process, by its number and what it is called."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    spent = Spent()
    while child.poll() is None:
        spent.look(child.pid)
        time.sleep(1 / LOOKS_A_SECOND)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")
    return {(pid, spent.names.get(pid, "")): seconds for pid, seconds in spent.seconds.items()}


def main() -> int:
    """Measures, and prints the table."""
    if len(sys.argv) < 2:
        raise SystemExit(str(__doc__))
    started = time.monotonic()
    found = watched(sys.argv[1:])
    largest = sorted(found.items(), key=lambda item: -item[1])[:SHOWN]
    print(format_table([{"process": name[:100], "CPU s": round(spent, 2)} for (_, name), spent in largest]))
    print(f"{sum(found.values()):.1f} s of CPU in {len(found)} processes, {time.monotonic() - started:.1f} s of time")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
