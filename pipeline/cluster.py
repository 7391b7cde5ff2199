"""The Ray cluster that a job runs on: the one at `RAY_ADDRESS`, or a local one started for the job.

Beside this module, `pipeline.units` and a few steps import ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import ray
import ray.exceptions

from pipeline import leftovers
from pipeline.errors import JobError, ResourceError
from pipeline.machine import usable_cpus
from pipeline.preflight import Cluster
from pipeline.watch import Watch

LOG = logging.getLogger(__name__)
__all__ = ["Cluster", "connected", "prepare_environment"]


@contextlib.contextmanager
def connected(num_cpus: int | None = None) -> Iterator[Cluster]:
    """Connects to the cluster for the length of a job.

    A Ray that is initialized already is used and left as it is. Otherwise `RAY_ADDRESS` is honoured; with none
    a local Ray with the CPUs of this machine starts, and stops at the end.

    A Ray that dies meanwhile ends the job with a `JobError`.

    Args:
        num_cpus: CPUs that a local Ray should believe in, None for those this process may use.

    Raises:
        ResourceError: If no cluster answers at `RAY_ADDRESS`.
        JobError: If the cluster is lost.
    """
    started = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS") or "local"
    if started:
        prepare_environment(address == "local")
        _connect(address, num_cpus or usable_cpus())
    watch = _watch(address)
    try:
        with watch:  # and not while Ray is shut down: on a busy machine its last moments look like a death
            yield Cluster.connected(address == "local")
    except KeyboardInterrupt:
        if watch.lost:
            raise JobError(watch.lost) from None
        raise
    finally:
        if started and not watch.gone():
            workers = leftovers.workers_below() if address == "local" else []
            ray.shutdown()
            leftovers.end(workers)


def _connect(address: str, num_cpus: int) -> None:
    LOG.info("starting a local Ray" if address == "local" else f"connecting to Ray at {address}")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options.update(include_dashboard=False, num_cpus=num_cpus)
    if address.startswith("ray://"):
        raise ResourceError(
            f"RAY_ADDRESS={address} is Ray Client's protocol, which Ray Data and Ray Train do not run on; give the "
            "head's HOST:PORT on one of its nodes, or use parvae submit from anywhere else"
        )
    try:
        _check_address(address)
        with warnings.catch_warnings(), _silent_stderr():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address=address, **options)
    except ray.exceptions.AuthenticationError as error:
        raise ResourceError(
            f"Ray at RAY_ADDRESS={address} refused the token: give the cluster's in RAY_AUTH_TOKEN or in a file that "
            "RAY_AUTH_TOKEN_PATH names, and set RAY_AUTH_MODE=token"
        ) from error
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; is the address right, and is the token the "
            "cluster's (RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)?"
        ) from error
    except Exception as error:  # Ray raises a bare Exception when a node does not come up in time
        what = "a local Ray did not start" if address == "local" else f"Ray at {address} did not answer"
        raise ResourceError(f"{what}: {error}; is the machine overloaded or out of memory? try again") from error


def _watch(address: str) -> Watch:
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    name = "the local Ray" if address == "local" else f"Ray at {address}"
    return Watch(name, (host, int(port)), (own["NodeManagerAddress"], own["NodeManagerPort"]))


def _check_address(address: str) -> None:
    """Knocks at `host:port`, which Ray itself would do for minutes.

    Raises:
        OSError: If nobody answers.
        ValueError: If the port is no number.
    """
    host, colon, port = address.rpartition(":")
    if colon and not address.startswith("http"):
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Sends what native code writes to stderr to nowhere: Ray's announces its log level there."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def prepare_environment(local: bool) -> None:
    """Variables that a job's processes inherit, unless they are set already.

    Args:
        local: Whether Ray is started for the job: nobody takes the only machine away, so nobody need watch for it.
    """
    if local:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Events of tasks are for Ray's dashboard; an answer to them that comes while a driver shuts down crashes it.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # a heap a thread would grow with the units that a worker has done
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
