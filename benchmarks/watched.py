"""A real command in a process of its own, its memory sampled, killed with all that it started or run to its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.usage import Spent, memory_of

POLL_SECONDS, SAMPLE_SECONDS = 0.2, 1.0
MOST_SAMPLES = 2000
"""Samples that are kept of one run: beyond, every second one is dropped."""


class Watched:
    """One run of a command.

    Args:
        module: The module that it runs (`python -m`).
        arguments: Its arguments.
        finished: Folder whose Parquet files are the finished units, or None.
        unique: Whether the unique memory of all processes is sampled, which slows them down.
    """

    def __init__(
        self, module: str, arguments: Sequence[object], finished: Path | None = None, unique: bool = True
    ) -> None:
        self._unique, self._spent = unique, Spent()
        self._words = [sys.executable, "-m", module, *map(str, arguments)]
        self._finished = finished
        self._samples: list[dict[str, float]] = []

    def to_the_end(self) -> dict[str, Any]:
        """Runs the command to its end.

        Returns:
            Seconds, units finished by this run, samples of memory, processor seconds of all processes, and the
            module's own figures.

        Raises:
            SystemExit: If it fails.
        """
        found = self._run(None, 0.0)
        if found["status"]:
            raise SystemExit(f"{' '.join(self._words)} failed with status {found['status']}")
        return found

    def to_the_kill(self, units: float, seconds: float) -> dict[str, Any]:
        """Runs the command until so many more units are finished, and so many seconds more, then kills it.

        Returns:
            Seconds, units finished by this run, samples of memory, and the exit status: -9, if it was killed.
        """
        return self._run(units, seconds)

    def _run(self, units: float | None, seconds: float) -> dict[str, Any]:
        before, started = self._count(), time.monotonic()
        with tempfile.TemporaryFile("w+") as stdout, _ray_folder() as environment:
            process = subprocess.Popen(self._words, stdout=stdout, start_new_session=True, env=environment)
            watcher = threading.Thread(target=self._watch, args=(process, started, before), daemon=True)
            watcher.start()
            try:
                while process.poll() is None:
                    if units is not None and self._count() - before >= units:
                        time.sleep(seconds)
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                killed = kill_all(process.pid)
            process.wait()
            watcher.join()
            stdout.seek(0)
            lines = stdout.read().splitlines()
        return {
            "seconds": time.monotonic() - started,
            "status": process.returncode,
            "units": self._count() - before,
            "others killed": killed,
            "samples": self._samples,
            "processor seconds": sum(self._spent.seconds.values()),
            "figures": json.loads(lines[-1]) if process.returncode == 0 else None,
        }

    def _count(self) -> int:
        """Units that are finished, of this run and of those before."""
        if self._finished is None:
            return 0
        return sum(not path.name.startswith((".", "_")) for path in self._finished.rglob("*.parquet"))

    def _watch(self, process: subprocess.Popen[bytes], started: float, before: int) -> None:
        """Samples memory until the process is over; a thread, for a sample may take long."""
        while process.returncode is None:
            seconds = time.monotonic() - started
            sample = {"seconds": seconds, "units": self._count() - before, **memory_of(process.pid, self._unique)}
            self._spent.look(process.pid)
            if process.returncode is None:
                self._samples.append(sample)
            if len(self._samples) > MOST_SAMPLES:
                del self._samples[1::2]
            time.sleep(SAMPLE_SECONDS)


def kill_all(leader: int) -> int:
    """SIGKILLs a session's leader and every process that it started; returns how many others there were."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(leader).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for one in family:
        with contextlib.suppress(psutil.Error):
            one.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    if alive:
        raise SystemExit(f"processes {[one.pid for one in alive]} survived SIGKILL")
    return len(family)


@contextlib.contextmanager
def _ray_folder() -> Iterator[dict[str, str]]:
    """An environment in which Ray keeps its files in a folder of this run: a killed one leaves them behind."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray's sockets lie in it
    try:
        yield {**os.environ, "RAY_TMPDIR": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def flatness(run: dict[str, Any]) -> dict[str, float]:
    """Peaks of a run, and how memory grew from the first finished unit on: the last quarter against the second."""
    samples = run["samples"]
    busy = [sample for sample in samples if sample["worker MB"] and sample["units"]]
    quarter = len(busy) // 4
    table: dict[str, float] = {}
    for name in ("worker MB", "driver MB", "all MB"):
        table[name] = max((sample[name] for sample in samples), default=0.0)
        middle, last = busy[quarter : 2 * quarter], busy[len(busy) - quarter :]
        grown = _mean(last, name) / _mean(middle, name) if quarter >= 5 else float("nan")
        table[f"{name.split()[0]} growth"] = grown
    return table


def _mean(samples: list[dict[str, float]], name: str) -> float:
    return sum(sample[name] for sample in samples) / len(samples)
