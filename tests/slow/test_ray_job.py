"""Does a job submitted to a cluster do its work and say how it ended?"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.demo import write_digits
from pipeline.storage import Location

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A Ray head node with its job server; gives the environment to reach it."""
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port, dashboard, agent = free_port(), free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment.update(RAY_AUTH_MODE="disabled", RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{dashboard}")
    command = [RAY, "start", "--head", f"--port={port}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--num-cpus=2",
        "--object-store-memory=300000000",
    ]
    command += [f"--temp-dir={temporary}", "--disable-usage-stats", "--block"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_server(environment["RAY_API_SERVER_ADDRESS"])
        yield environment
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def wait_for_server(address: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5):
            return
        time.sleep(0.5)
    raise TimeoutError(f"no job server at {address}")


def submit(environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", ".", "--", sys.executable, "-m", *entrypoint]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_does_a_submitted_tour_run_on_the_cluster(head: dict[str, str], tmp_path: Path) -> None:
    data, model, archive, back = (str(tmp_path / name) for name in ("data", "model", "archive", "back"))
    write_digits(Location(data))
    trained = submit(
        head, "jobs.train", data, "--model", model, "--passthrough", "label", "--epochs", "2", "--effort", "fast"
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    encoded = submit(head, "jobs.encode", data, "--model", model, "--out", archive)
    assert encoded.returncode == 0, encoded.stdout + encoded.stderr
    line = next(line for line in encoded.stdout.splitlines() if line.startswith('{"command": "encode"'))
    assert json.loads(line)["rows"] == 1797
    decoded = submit(head, "jobs.decode", archive, "--out", back)
    assert decoded.returncode == 0, decoded.stdout + decoded.stderr
    assert (Path(back) / "digits.parquet").exists()


def test_does_a_submitted_job_refuse_relative_paths_and_fail(head: dict[str, str]) -> None:
    refused = submit(head, "jobs.encode", "data", "--model", "/nowhere", "--out", "/nowhere/else")
    assert refused.returncode != 0
    assert "absolute path" in refused.stdout + refused.stderr
