"""One run at a time writes to an output folder.

The lock is a small file `_lock/000001.json` that says who holds it, created in one step (`Location.create_bytes`)
and written again every few seconds with a count that grows. Whoever finds a lock that nobody holds any more creates
the next number, of which again only one run can be the first; the highest number holds the lock, so a run that was
taken for dead and wakes up finds that it has lost it (the number is a fencing token: M. Kleppmann, "How to do
distributed locking", 2016). On the same machine a dead process is known at once, otherwise a count that stands
still for `STALE` seconds gives it away; no two clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.errors import JobError, OutputError, ParvaeError
from pipeline.storage import Location

LOG = logging.getLogger(__name__)
LOCK_FOLDER = "_lock"
BEAT = 3.0
"""Seconds between two signs of life."""
STALE = 30.0
"""Seconds after which a lock without a sign of life counts as abandoned."""
STEP_BACK = 0.5
"""Seconds that a run which finds itself second is given to remove its lock before the first one believes in it."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or held it.

    Attributes:
        host: Name of its machine.
        machine: What tells apart machines, their restarts and containers: processes with the same can see each other.
        pid: Its number there.
        started: When it started there, in the kernel's count; 0 if that is not known.
        token: Random, so that no two are equal.
        beat: Grows with every sign of life.
    """

    host: str
    machine: str
    pid: int
    started: int
    token: str
    beat: int = 0

    @classmethod
    def this(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}"

    def to_bytes(self) -> bytes:
        """The content of its lock."""
        return json.dumps(asdict(self)).encode()

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None if that cannot be told from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) != self.started


class OutputLock:
    """Holds the lock of an output folder.

    Args:
        folder: The output folder.
        what: The argument that names it, for messages: "--out".
    """

    def __init__(self, folder: Location, what: str) -> None:
        self._folder, self._what = folder, what
        self._me, self.generation = Holder.this(), 0
        self._lost, self._stop = "", threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")

    def __enter__(self) -> OutputLock:
        """Takes the lock.

        Raises:
            OutputError: If another run holds it.
        """
        for _ in range(3):
            found = {number: self._token(number) for number in _locks(self._folder)}
            last = max(found, default=0)
            if last:
                self._wait_for(last)
            self.generation = last + 1
            mine = self._place(self.generation)
            if not mine.create_bytes(self._me.to_bytes()) or not self._is_mine():
                continue
            if self._is_alone(found):
                for number in found:
                    self._place(number).remove()
                self._thread.start()
                return self
            mine.remove()
            time.sleep(random.uniform(0.0, 0.2))  # another may have stepped back, too
        raise OutputError(f"{self._what} {self._folder} is being written by another run; wait for it, or stop it")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(ParvaeError, OSError):  # what ended the run matters more
            if self._is_mine():
                self._place(self.generation).remove()
            if self._folder.is_local:
                os.rmdir(self._folder.join(LOCK_FOLDER).path)

    def check(self) -> None:
        """Ends a run that has lost the lock.

        Raises:
            JobError: Naming who took it.
        """
        if self._lost:
            raise JobError(f"{self._what} {self._folder}: {self._lost} has taken over; leave it to that run")

    def _is_mine(self) -> bool:
        """Whether the lock says so: a store that takes two first writers keeps what the last one wrote."""
        found = self._read(self.generation)
        return found is not None and found.token == self._me.token

    def _holds(self) -> bool:
        """Whether no later run has the lock; one that steps back seems to have it for a moment."""
        return max(_locks(self._folder), default=0) == self.generation and self._is_mine()

    def _is_alone(self, found: Mapping[int, str]) -> bool:
        """Whether no run took a lock that this one did not find before it made its own.

        A listing may miss one: the file that it is about to show was just removed, and the one that took its place
        was not there yet. Of two runs that such a listing leads to different numbers, the later one sees the other's.
        A number that was found may be another run's by now: whoever finds no lock begins with 1 again.
        """
        locks = set(_locks(self._folder))
        if locks - set(found) != {self.generation}:
            return False
        return all(self._token(number) in (found[number], "") for number in locks & set(found))

    def _token(self, generation: int) -> str:
        """Whose lock it is; "" if it is gone, or damaged."""
        found = self._read(generation)
        return "" if found is None else found.token

    def _place(self, generation: int) -> Location:
        return self._folder.join(LOCK_FOLDER, f"{generation:06d}.json")

    def _wait_for(self, generation: int) -> None:
        """Returns when nobody holds a lock any more.

        Raises:
            OutputError: If somebody does.
        """
        first = self._read(generation)
        if first is None or first.is_gone():
            return
        if first.is_gone() is None:
            LOG.info("%s %s is locked by %s: waiting for a sign of life", self._what, self._folder, first.name)
            deadline = time.monotonic() + STALE
            while time.monotonic() < deadline:
                time.sleep(min(BEAT, STALE / 5))
                now = self._read(generation)
                if now is None or now != first:
                    break
            else:
                LOG.info("%s gave no sign of life for %.0f s: taking over", first.name, STALE)
                return
            if now is None:
                return
        raise OutputError(
            f"{self._what} {self._folder} is being written by another run ({first.name}); wait for it, or stop it"
        )

    def _read(self, generation: int) -> Holder | None:
        """Who wrote a lock; None if it is gone, or damaged and not just being written."""
        for pause in (0.05, 0.2, 0.0):
            try:
                data: dict[str, Any] = self._place(generation).read_json()
                return Holder(**data)
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                time.sleep(pause)
        return None

    def _beat(self) -> None:
        """Gives signs of life until the end, or until the lock is lost."""
        while not self._stop.wait(BEAT):
            try:
                if not self._holds() and (self._stop.wait(STEP_BACK) or not self._holds()):
                    found = _locks(self._folder)
                    other = self._read(max(found)) if found else None
                    self._lost = "another run" if other is None else f"another run ({other.name})"
                    return
                self._me = replace(self._me, beat=self._me.beat + 1)
                self._place(self.generation).write_bytes(self._me.to_bytes())
            except (ParvaeError, OSError) as error:
                LOG.debug("no sign of life: %s", error)


@contextlib.contextmanager
def locked(folder: Location, what: str) -> Iterator[OutputLock]:
    """Holds the lock of an output folder; a folder that was not there before and stays empty is gone afterwards.

    Args:
        folder: The output folder.
        what: The argument that names it, for messages: "--out".

    Raises:
        OutputError: If another run holds it.
    """
    there = folder.exists()
    try:
        with OutputLock(folder, what) as lock:
            yield lock
    finally:
        if not there and folder.is_local:  # never with what another run has put there by now
            folder.remove_empty_folders()
            with contextlib.suppress(OSError):
                os.rmdir(folder.path)


def is_lock(path: str) -> bool:
    """Whether a file of an output folder is a lock."""
    return path.startswith(f"{LOCK_FOLDER}/")


def is_vacant(folder: Location) -> bool:
    """Whether an output folder holds nothing, locks aside."""
    return not folder.is_file() and all(is_lock(stat.path) for stat in folder.files())


def _locks(folder: Location) -> list[int]:
    """The numbers of the locks in a folder."""
    names = [stat.path for stat in folder.join(LOCK_FOLDER).files()]
    return [int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()]


def _machine() -> str:
    """What processes that can see each other share; "" if that cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the machine did; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def clear(folder: Location) -> None:
    """Removes everything in an output folder but its lock."""
    for stat in folder.files():
        if not is_lock(stat.path):
            folder.join(stat.path).remove()
    folder.remove_empty_folders()
