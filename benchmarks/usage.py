"""What a command and the processes that it started use, seen from outside: memory and processor time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

PEAKS = ("worker MB", "driver MB", "all MB")


def memory_of(driver: int, unique: bool = True) -> dict[str, float]:
    """Memory of a command's processes now, in MB.

    Args:
        driver: The command's process.
        unique: Whether unique memory is told, too: all pages of all processes are walked through, which stops them.

    Returns:
        The largest resident set of one Ray worker, that of the driver, and the unique memory of all if it is wanted.
    """
    found = dict.fromkeys(PEAKS if unique else PEAKS[:2], 0.0)
    for one in family(driver):
        with contextlib.suppress(psutil.Error):
            memory = one.memory_full_info() if unique else one.memory_info()
            if unique:
                found["all MB"] += memory.uss / 1e6
            if one.pid == driver:
                found["driver MB"] = memory.rss / 1e6
            if _computes(" ".join(one.cmdline())):
                found["worker MB"] = max(found["worker MB"], memory.rss / 1e6)
    return found


def processor_seconds(driver: int) -> dict[str, float]:
    """Processor time of a command so far: of its Ray workers that compute, and of all processes that there are."""
    spent = Spent()
    spent.look(driver)
    workers = sum(seconds for pid, seconds in spent.seconds.items() if _computes(spent.names.get(pid, "")))
    return {"worker": workers, "all": sum(spent.seconds.values())}


class Spent:
    """Processor seconds of every process that a command ever had, as they were when it was last looked at.

    Attributes:
        seconds: Processor seconds by number of the process.
        names: What it is called.
    """

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self.names: dict[int, str] = {}

    def look(self, driver: int) -> None:
        """Looks at a command's process and at all below it."""
        for one in family(driver):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                self.seconds[one.pid] = times.user + times.system
                self.names[one.pid] = " ".join(one.cmdline()) or self.names.get(one.pid, "")


def family(driver: int) -> Iterator[psutil.Process]:
    """A process and all below it."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(driver)
        yield root
        yield from root.children(recursive=True)


def _computes(name: str) -> bool:
    """Whether a process of that name is a Ray worker that maps units."""
    return "MapBatches" in name
