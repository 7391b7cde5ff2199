"""A Ray cluster of several raylets on this machine, each a process tree of its own that can be killed and replaced."""

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}
"""A node that is gone is noticed in seconds."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], Any], seconds: float = 240, what: str = "") -> Any:
    """Waits for something to be true, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited in vain {what}"
        time.sleep(0.05)
    return found


def kill_tree(pid: int) -> list[int]:
    """Kills a process and everything that it started, at once; gives their ids."""
    killed = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        parent.suspend()  # it shall start nothing while its children are listed
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
    return killed


class RayCluster:
    """A head with its job server, and nodes beside it.

    Args:
        cpus: CPUs that every node believes in.
        variables: More environment variables of every process.
        inside: A command that runs the one behind it where the cluster shall be, as in a namespace.
    """

    def __init__(self, cpus: int = 1, variables: dict[str, str] | None = None, inside: Sequence[str] = ()) -> None:
        self._cpus, self._folder, self._inside = cpus, tempfile.mkdtemp(prefix="ray-"), inside
        self._port, dashboard = free_port(), free_port()
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._roles: dict[int, list[str]] = {}
        self._started = 0
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.environment |= QUICK_TO_NOTICE | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.environment |= {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        self.environment |= variables or {}
        head = [f"--port={self._port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        self._start(0, ["--head", *head])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def size(self) -> int:
        """How many nodes there are."""
        return len(self._nodes)

    @property
    def newest(self) -> int:
        """The number of the node that joined last."""
        return max(self._nodes)

    def add_node(self) -> int:
        """Starts one more node, waits until the head knows it, and gives its number."""
        self.start_node()
        self.wait_for_nodes()
        return self.newest

    def start_node(self) -> None:
        """Starts one more node and does not wait for it."""
        wait_until(self._answers, what="for the head")
        self._start(self.newest + 1, [f"--address={self.address}"])

    def kill_node(self, number: int) -> None:
        """Kills the raylet of a node and all that it started, and waits until the head has noticed."""
        node = self._nodes.pop(number)
        kill_tree(node.pid)
        node.wait(60)
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Waits until the head knows those nodes, and only those, that were not killed."""
        wait_until(self._all_alive, seconds=400, what=f"for {len(self._nodes)} nodes, see {self._folder}/*.log")

    def _all_alive(self) -> bool:
        for number, node in list(self._nodes.items()):
            if node.poll() is not None:  # a raylet gives up where the machine is too busy to start its agents in 15 s
                self._start(number, self._roles[number])
        return self.alive() == len(self._nodes)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5):
            return True
        return False

    def processes(self, name: str, number: int | None = None) -> list[psutil.Process]:
        """The processes of a node, or of all, with a name in their titles (Ray titles workers by what they run)."""
        nodes = list(self._nodes.values()) if number is None else [self._nodes[number]]
        found = []
        for node in nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if name in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def alive(self) -> int:
        """How many nodes the head believes in; 0 while it does not answer."""
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/nodes?limit=100"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
            return sum(node["state"] == "ALIVE" for node in nodes)
        return 0

    def start(self, *entrypoint: object, **options: Any) -> subprocess.Popen[str]:
        """Starts a driver, `python -m ENTRYPOINT`, in a process group of its own on this cluster."""
        command = [*self._inside, sys.executable, "-m", *map(str, entrypoint)]
        environment = {**self.environment, "RAY_ADDRESS": self.address, **options.pop("variables", {})}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)

    def run(self, *entrypoint: object, seconds: float = 600, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a driver to its end."""
        driver = self.start(*entrypoint, **options)
        try:
            out, err = driver.communicate(timeout=seconds)
        finally:
            kill_tree(driver.pid)
        return subprocess.CompletedProcess(driver.args, driver.returncode, out, err)

    def submit(self, *entrypoint: object, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Submits `python -m ENTRYPOINT` with the working directory as a job and waits for its end."""
        job = [sys.executable, "-m", *map(str, entrypoint)]
        command = [RAY, "job", "submit", "--working-dir", ".", "--", *job]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds)

    def stop(self) -> None:
        for node in reversed(self._nodes.values()):
            kill_tree(node.pid)
            node.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, number: int, role: list[str]) -> None:
        """Starts a node, under a number that is new or whose process has ended."""
        self._started += 1
        assert self._started < 30, f"nodes do not start, see {self._folder}/*.log"
        self._roles[number] = role
        command = [*self._inside, RAY, "start", *role, f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={self._cpus}", "--block"]
        command += [
            "--disable-usage-stats",
            "--object-store-memory=200000000",
            f"--temp-dir={self._folder}/{self._started}",
        ]
        with open(Path(self._folder, f"{self._started}.log"), "wb") as log:
            self._nodes[number] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )


@contextlib.contextmanager
def ray_cluster(
    nodes: int, cpus: int = 1, variables: dict[str, str] | None = None, inside: Sequence[str] = ()
) -> Iterator[RayCluster]:
    """A cluster with so many nodes, the head one of them."""
    cluster = RayCluster(cpus, variables, inside)
    try:
        for _ in range(nodes - 1):
            cluster.start_node()
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.stop()


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object that a command that succeeded has printed last."""
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}"
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"command"'))
    return dict(json.loads(line))
