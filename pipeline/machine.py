"""What this process may use of its machine."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt(3)`: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_KEPT_BYTES = 32 << 20


def usable_cpus(root: str = "/") -> int:
    """CPUs that this process may use: those of its affinity, within the quota of its control groups (cgroups).

    Args:
        root: Where `proc` and `sys` are.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(root):
        cpus = min(cpus, max(1, int(quota)))
    return cpus


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, if it is loaded: coding takes many small steps, for which threads wait for each other."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_threads(count: int, load: bool = False) -> None:
    """Gives torch so many compute threads in the thread that calls; OpenMP keeps their number by thread.

    Args:
        count: The threads.
        load: Whether torch is loaded if it is not. It takes seconds, which a worker without a network can spare.
    """
    if load:
        import torch  # noqa: F401
    module = sys.modules.get("torch")
    if module is not None:
        module.get_num_threads()  # a thread that never asked takes the process's number at its first operator
        module.set_num_threads(count)


def trim_memory() -> None:
    """Gives memory that Arrow and the C library (glibc: `malloc_trim(3)`) keep for later back to the system."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_memory() -> None:
    """Has the C library (glibc: `mallopt(3)`) keep up to 32 MiB of what is freed, and not map each large piece anew.

    What a layer makes of some thousand rows takes the place of what another made; without it, every page comes anew
    from the system. `trim_memory` gives back what was kept.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(parameter, _KEPT_BYTES)


def _quotas(root: str) -> list[float]:
    """CPU quotas of the control groups that this process is in, from its own up to the topmost."""
    groups = os.path.join(root, "sys/fs/cgroup")
    found = []
    for line in _words(os.path.join(root, "proc/self/cgroup"), "\n"):
        path = line.split(":", 2)[-1].strip("/")
        while True:
            limit = _words(os.path.join(groups, path, "cpu.max"))
            if not limit:
                folder = os.path.join(groups, "cpu", path)
                limit = _words(f"{folder}/cpu.cfs_quota_us") + _words(f"{folder}/cpu.cfs_period_us")
            if len(limit) == 2 and limit[0] not in ("max", "-1"):
                found.append(int(limit[0]) / int(limit[1]))
            if not path:
                break
            path = os.path.dirname(path)
    return found


def _words(path: str, separator: str | None = None) -> list[str]:
    try:
        with open(path) as stream:
            return stream.read().strip().split(separator)
    except OSError:
        return []
