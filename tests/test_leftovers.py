"""Are workers that outlive a local Ray ended, and nothing else?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.leftovers import end, workers_below

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        process.kill()
        process.communicate()


def begin(processes: list[subprocess.Popen[bytes]], title: str, program: str) -> subprocess.Popen[bytes]:
    words = [title, "-c", program]
    process = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_is_a_worker_that_stays_killed_and_no_other_process(processes: list[subprocess.Popen[bytes]]) -> None:
    worker, other = (begin(processes, title, STUBBORN) for title in ("ray::MapWorker(x)", "python"))
    found = workers_below()
    assert worker.pid in [process.pid for process in found]
    assert other.pid not in [process.pid for process in found]
    assert end([process for process in found if process.pid == worker.pid], 0.1) == 1
    assert worker.wait(10) == -signal.SIGKILL
    assert other.poll() is None


def test_is_a_worker_waited_for_that_ends_by_itself(processes: list[subprocess.Popen[bytes]]) -> None:
    begin(processes, "ray::IDLE", "import time; print('up', flush=True); time.sleep(0.5)")
    found = [process for process in workers_below() if process.pid == processes[0].pid]
    started = time.monotonic()
    assert end(found, 60) == 0  # a process that has ended and that nobody has waited for counts as ended
    assert time.monotonic() - started < 30
    assert processes[0].wait(10) == 0


def test_is_nothing_done_where_there_are_no_workers() -> None:
    assert end([]) == 0
    assert os.getpid() not in [process.pid for process in workers_below()]
