"""A small disk that fills up: a tmpfs in a mount namespace of its own, seen from outside through /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.cluster import ROOT, kill_tree


class SmallDisk:
    """The disk, at `folder` for the commands that it runs, at `outside` for everybody else.

    Args:
        folder: An empty folder that it is mounted on.
        size: Bytes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        script = " ".join(mount) + " && echo ready && exec cat"
        self._keeper = subprocess.Popen(
            ["unshare", "-rUm", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            reason = f"no disk can be made small here, full disks are not tested: {self._keeper.communicate()[1]}"
            warnings.warn(pytest.PytestWarning(reason), stacklevel=2)
            pytest.skip(reason)

    @property
    def outside(self) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{self.folder}")

    @property
    def inside(self) -> list[str]:
        """What runs the command behind it where the disk is."""
        return ["nsenter", f"--target={self._keeper.pid}", "--user", "--mount", "--preserve-credentials", "--"]

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        disk = os.statvfs(self.outside)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def resize(self, size: int) -> None:
        """Makes room, or takes it."""
        self._enter(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)

    def run(self, *entrypoint: object, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `python -m ENTRYPOINT` with a local Ray where the disk is."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **(variables or {})}
        for _ in range(5):
            done = self._enter([sys.executable, "-m", *map(str, entrypoint)], env=environment)
            if "a local Ray did not start" not in done.stderr:  # as on a machine that is too busy
                break
        return done

    def stop(self) -> None:
        kill_tree(self._keeper.pid)
        self._keeper.communicate()

    def _enter(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.inside, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            **{"check": False, **options},
        )


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """A disk for the length of a block; the test is skipped, with a warning, where none can be made."""
    folder.mkdir()
    disk = SmallDisk(folder, size)
    try:
        yield disk
    finally:
        disk.stop()
