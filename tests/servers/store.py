"""An object store for tests: OpenStack Swift's S3 API behind a proxy that fails on request.

The proxy's port is bound, and named in the environment with made-up credentials, before any test runs: processes
that start before the store does know it too, and no test ever reaches another store.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from pipeline.storage import Location
from tests.servers.proxy import FaultProxy, bound_socket

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "parvae"


@dataclass(frozen=True)
class Store:
    """The running store.

    Attributes:
        endpoint: Its URL, the proxy's.
        proxy: What makes it fail.
    """

    endpoint: str
    proxy: FaultProxy

    def place(self, name: str) -> Location:
        """A folder in the bucket."""
        return Location(f"s3://{BUCKET}/{name}")


def announce_store() -> socket.socket:
    """Names a store that is not there yet in the environment; returns the socket that it will answer on."""
    bound = bound_socket()
    atexit.register(bound.close)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{bound.getsockname()[1]}",
        AWS_ACCESS_KEY_ID="test:tester",
        AWS_SECRET_ACCESS_KEY="made-up-secret",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    )
    return bound


@contextlib.contextmanager
def running_store(bound: socket.socket, folder: Path) -> Iterator[Store]:
    """Starts Swift and the proxy, and makes the bucket; skips the test, with a warning, where Swift does not start."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.servers.swift", str(folder)]
    log = folder.with_suffix(".log")
    with open(log, "wb") as errors:
        server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        assert server.stdout is not None
        port = server.stdout.readline()
        if not port:
            reason = f"Swift did not start, nothing is tested on an object store: {log.read_text()[-2000:]}"
            warnings.warn(pytest.PytestWarning(reason), stacklevel=2)
            pytest.skip(reason)
        proxy = FaultProxy(bound, int(port))
        proxy.start()
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield Store(os.environ["AWS_ENDPOINT_URL"], proxy)
        proxy.stop()
    finally:
        server.kill()
        server.communicate()
