"""Workers of a local Ray that do not end with it.

Now and then a worker of Ray 2.60 stays in the last moments of its exit for ever, its interpreter gone and its memory
kept (https://github.com/ray-project/ray/issues/66231 is one such case); with the raylet gone nobody ends it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil

PATIENCE_S = 3.0
"""How long workers may take to end by themselves."""
_TITLE = "ray::"
_LOOK_S = 0.05


def workers_below() -> list[psutil.Process]:
    """The Ray workers among the descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(_TITLE):
                found.append(process)
    return found


def end(workers: Iterable[psutil.Process], patience: float = PATIENCE_S) -> int:
    """Kills the workers that have not ended after `patience` seconds; returns how many that were."""
    waited_for, deadline = [worker for worker in workers if _lives(worker)], time.monotonic() + patience
    while waited_for and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        waited_for = [worker for worker in waited_for if _lives(worker)]
    for worker in waited_for:
        with contextlib.suppress(psutil.Error):
            worker.kill()
    return len(waited_for)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
