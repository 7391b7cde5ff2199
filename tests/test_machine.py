"""Does memory stay with a process where it shall, and does it go back where it shall?"""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from pipeline.machine import keep_memory, trim_memory

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes, library.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        pieces = [library.malloc(6 << 20) for _ in range(3)]
        for piece in pieces:
            library.memset(piece, 1, 6 << 20)
        for piece in reversed(pieces):
            library.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_memory()
faults(1)
{between}
print(faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_is_freed_memory_kept_until_it_is_trimmed() -> None:
    """Pages of 4 KiB at least: 4,608 of them fresh if 18 MiB come anew from the system."""
    kept, trimmed = faults_after(""), faults_after("trim_memory()")
    assert kept < 200
    assert trimmed > kept + 5  # once anew; few where pages are huge


def faults_after(between: str) -> int:
    script = FAULTS.replace("{between}", between)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(found.stdout)
