"""Processor seconds of a command and of every process below it, by process.

usage: python -m benchmarks.cpu_seconds COMMAND …

Processes are looked at twenty times a second; one that lives for less may be missed.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

from benchmarks.usage import family
from jobs.inspect import format_table

LOOKS_A_SECOND = 20
SHOWN = 15


def watched(command: list[str]) -> dict[tuple[int, str], float]:
    """Runs a command; gives the processor seconds of each process, by its number and what it is called."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found, names = dict[int, float](), dict[int, str]()
    while child.poll() is None:
        for process in family(child.pid):
            try:
                times = process.cpu_times()
                found[process.pid] = times.user + times.system
                names[process.pid] = " ".join(process.cmdline()) or names.get(process.pid, "")
            except psutil.Error:
                continue
        time.sleep(1 / LOOKS_A_SECOND)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {child.returncode}")
    return {(pid, names.get(pid, "")): spent for pid, spent in found.items()}


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
