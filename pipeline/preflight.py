"""What a cluster has, and whether a job fits into it: CPUs, GPUs and memory, checked before any work starts."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.autoscaler import wait_for
from pipeline.errors import ResourceError
from pipeline.turns import OVERLAP

LOG = logging.getLogger(__name__)
READ_CPUS = 0.5
"""CPUs of one node that every job leaves for reading; without them Ray Data waits for ever and says nothing."""
WORTH_A_WORKER = 1 << 20
"""Bytes of Parquet that one more worker is worth its start for, some three seconds of a CPU."""
WORKER_MEMORY = 1 << 30
"""Bytes of memory that each worker reserves: twice what encoding and decoding were measured to take."""


@dataclass(frozen=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus: Its CPUs.
        gpus: Its GPUs.
        memory: Bytes that Ray lends to workers.
    """

    cpus: float
    gpus: float = 0.0
    memory: float = float("inf")


class Cluster:
    """What a cluster has.

    Args:
        nodes: Its machines.
        local: Whether it was started for this process alone.
    """

    def __init__(self, nodes: Sequence[Node], local: bool) -> None:
        self.nodes, self.local = tuple(nodes), local

    @classmethod
    def connected(cls, local: bool) -> Cluster:
        """The cluster that this process is connected to."""
        return cls(live_nodes(), local)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def workers_for(self, wanted: int | None, gpu: bool, size: int | None = None) -> int:
        """How many workers a job gets: as many as wanted, else one a GPU or one a CPU.

        No more are started than there is work for. A cluster that can grow is asked to, and waited for.

        Args:
            wanted: Workers that the user asked for.
            gpu: Whether each needs a GPU.
            size: Bytes of the Parquet files that are worked on, if that is known.

        Raises:
            ResourceError: If the cluster lacks the CPUs, GPUs or memory, and does not grow to have them.
        """
        workers = wanted or max(1, min(self._most(gpu), self._worth(size)))
        lack = self._lack(workers, gpu)
        if lack and not self.local:
            wait_for([{"GPU": 1.0} if gpu else {"CPU": 1.0}] * workers, lack, lambda: self._grown(workers, gpu))
        elif lack:
            raise ResourceError(lack)
        self._check_memory(workers)
        return workers

    @staticmethod
    def overlap_for(size: int) -> int:
        """Units that a worker has under way at once: one of work that is soon done, else as many as pay.

        Args:
            size: Bytes of the Parquet files that are worked on.
        """
        return OVERLAP if size > WORTH_A_WORKER else 1

    def cpus_per_worker(self, workers: int) -> float:
        """CPUs that each worker reserves so that `READ_CPUS` stay free on one node, wherever Ray places them."""
        read, memory = round(100 * READ_CPUS), self.memory_per_worker()
        for share in range(100, 0, -1):
            room = sum(_room(max(0, round(100 * node.cpus) - read), share, node.memory, memory) for node in self.nodes)
            if room >= workers:
                return share / 100
        return 0.01

    def memory_per_worker(self) -> int:
        """Bytes that each worker reserves, 0 on a local cluster, which is all the job's own."""
        return 0 if self.local else WORKER_MEMORY

    def threads_per_worker(self, workers: int) -> int:
        """Compute threads of a worker: the CPUs of a local cluster shared out, one on others.

        As everywhere with OpenMP, `OMP_NUM_THREADS` says how many there are at most.
        """
        most = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(self.cpus) // workers if self.local else 1
        return max(1, min(threads, int(most)) if most.isdecimal() else threads)

    def _worth(self, size: int | None) -> int:
        """Workers that work of a size is worth starting."""
        return sys.maxsize if size is None else -(-size // WORTH_A_WORKER)

    def _most(self, gpu: bool) -> int:
        """Workers that fit, one a GPU or one a CPU."""
        if gpu:
            return sum(min(int(node.gpus), _fitting(node)) for node in self.nodes)
        return min(int(self.cpus), sum(_fitting(node) for node in self.nodes if node.cpus))

    def _lack(self, workers: int, gpu: bool) -> str:
        """What is missing for so many workers, and what to do; "" if nothing is."""
        name, have = ("GPU", self.gpus) if gpu else ("CPU", self.cpus)
        if have >= workers and self.cpus > READ_CPUS:
            return ""
        if have >= workers:
            return f"the cluster has {self.cpus:g} CPUs for reading; add a node with CPUs"
        ways = "leave out --gpu, lower --workers, or add GPU nodes" if gpu else "lower --workers or add nodes"
        flags = f"--gpu with {workers} workers" if gpu else f"--workers {workers}"
        return f"{flags} needs {workers} {name}s, the cluster has {have:g}; {ways}"

    def _grown(self, workers: int, gpu: bool) -> bool:
        self.nodes = live_nodes()
        return not self._lack(workers, gpu)

    def _check_memory(self, workers: int) -> None:
        fitting = sum(_fitting(node) for node in self.nodes)
        if workers <= fitting:
            return
        largest = max((node.memory for node in self.nodes), default=0.0)
        text = (
            f"{workers} workers need {WORKER_MEMORY / 2**30:g} GiB of memory each, the nodes have room for {fitting} "
            f"(the largest has {largest / 2**30:.1f} GiB for workers); lower --workers, or use larger nodes"
        )
        if not self.local:
            raise ResourceError(text)
        LOG.warning("%s", text)


def live_nodes() -> tuple[Node, ...]:
    """The nodes of the connected cluster that are up."""
    found = []
    for node in ray.nodes():
        have: dict[str, Any] = node["Resources"] if node["Alive"] else {}
        if have:
            found.append(Node(have.get("CPU", 0.0), have.get("GPU", 0.0), have.get("memory", 0.0)))
    return tuple(found)


def _fitting(node: Node) -> int:
    """Workers whose memory a node has room for."""
    return 1 << 30 if node.memory == float("inf") else int(node.memory // WORKER_MEMORY)


def _room(cpus: int, share: int, memory: float, each: int) -> int:
    """Workers that fit into a node, by hundredths of CPUs and by memory."""
    return cpus // share if not each or memory == float("inf") else min(cpus // share, int(memory // each))
