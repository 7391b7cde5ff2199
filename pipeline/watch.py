"""Notices a Ray that dies under the driver, before Ray's own code ends the process without a word."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import threading
import time
from types import TracebackType
from typing import Any

LOG = logging.getLogger(__name__)
Address = tuple[str, int]
PATIENCE_NODE_S = 0.5
"""A node's Ray process that refuses connections for so long is gone. Ray ends the driver without a word once the head
has noticed too: two seconds later where nodes are looked after closely, ten and more elsewhere."""
PATIENCE_HEAD_S = 45.0
"""A head that does not answer for so long is gone; a head that restarts is back sooner. Ray waits for 60 seconds."""
_SIGNAL = signal.SIGUSR2
"""Not SIGINT, which processes in the background of a shell ignore."""
_OWN_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
"""What keeps this process from connecting to anybody says nothing of the other side."""
_LOOK_S = 0.25
_GRACE_S = 4.0
"""How long the main thread may take to hear of it before the process is ended from here."""


class Watch:
    """Knocks at the head and at the driver's own node as long as a job runs; interrupts the main thread if one is gone.

    Args:
        name: What the cluster is called in messages.
        head: Where the head's control service (GCS) listens.
        node: Where the Ray process of the driver's node (raylet) listens.
    """

    def __init__(self, name: str, head: Address, node: Address) -> None:
        self._name = name
        self._targets = {
            "its head does not answer any more": (head, PATIENCE_HEAD_S),
            "the Ray process of the driver's node is gone": (node, PATIENCE_NODE_S),
        }
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")
        self._before: Any = None
        self.lost = ""

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(_SIGNAL, _interrupt)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with self._lock:
                self._stop.set()
        finally:  # the signal may come while the lock is waited for
            self._stop.set()
            if self._before is not None:
                signal.signal(_SIGNAL, self._before)

    def gone(self) -> bool:
        """Whether one of them refuses a connection right now."""
        return bool(self.lost) or any(_refuses(address) for address, _ in self._targets.values())

    def _look(self) -> None:
        answered = dict.fromkeys(self._targets, time.monotonic())
        while not self._stop.wait(_LOOK_S):
            for what, (address, patience) in self._targets.items():
                if not _refuses(address):
                    answered[what] = time.monotonic()
                elif time.monotonic() - answered[what] > patience:
                    self._tell(what)
                    return

    def _tell(self, what: str) -> None:
        with self._lock:  # once the watch has ended nobody handles the signal
            if self._stop.is_set():
                return
            self.lost = f"{self._name} was lost: {what}; what is finished stays, run the same command to continue"
            signal.pthread_kill(int(threading.main_thread().ident or 0), _SIGNAL)
        if not self._stop.wait(_GRACE_S):
            LOG.error("%s", self.lost)
            os._exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _refuses(address: Address) -> bool:
    """Whether nobody listens there. A slow answer is an answer: a busy machine is not a dead one."""
    try:
        with contextlib.closing(socket.create_connection(address, timeout=5)):
            return False
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno not in _OWN_TROUBLE
