"""Asking a Ray cluster to grow, and waiting for it: with the autoscaler's word for what it can never start.

The demand is a placement group that is never used: it is the job's own, so that a killed driver leaves no
standing request for machines behind.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline.errors import ConfigError, ResourceError

LOG = logging.getLogger(__name__)
WAIT_VARIABLE = "PARVAE_CLUSTER_WAIT_S"
WAIT_S = 1200.0
"""How long nodes may take to come up, unless the environment says otherwise."""
_GRACE_S = 60.0
"""How long an autoscaler may leave a demand without starting anything."""
_TELL_S = 15.0


@dataclass(frozen=True)
class View:
    """What the autoscaler says.

    Attributes:
        grows: Whether there is one that starts nodes.
        never: Whether it can never start what is demanded.
        starting: Nodes that it is starting.
        failures: What it failed to start, and why.
    """

    grows: bool
    never: bool = False
    starting: int = 0
    failures: tuple[str, ...] = ()


def wait_for(bundles: Sequence[Mapping[str, float]], lack: str, enough: Callable[[], bool]) -> None:
    """Asks the cluster to grow and waits until it has.

    Args:
        bundles: What each worker needs.
        lack: What is missing, as a message.
        enough: Whether the cluster has it now.

    Raises:
        ResourceError: If the cluster does not grow, cannot grow so far, or takes too long.
    """
    limit = _limit()
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    started = told = moved = time.monotonic()
    try:
        while not enough():
            now, view = time.monotonic(), look(group.id.hex())
            moved = now if view.starting else moved
            reason = _give_up(view, now - started, now - moved, limit)
            if reason:
                raise ResourceError(f"{lack} ({reason})")
            if now - told > _TELL_S or told == started:
                told = now
                LOG.info("%s; %s", lack.partition(";")[0], _waiting(view, now - started, limit))
            time.sleep(1.0)
    finally:
        remove_placement_group(group)


def look(group: str) -> View:
    """The autoscaler's view of a placement group's demand."""
    from ray.experimental.internal_kv import _internal_kv_get

    state = _state_v2()
    if state is not None and state.autoscaler_state_version:
        return read_v2(state, group)
    return read_v1(json.loads(_internal_kv_get("__autoscaling_status") or "{}"))


def read_v1(status: dict[str, Any]) -> View:
    """The view of an autoscaler of the first kind, from what it writes into Ray's key-value store.

    A cluster without node types to start has one too: it calls every node after its id. An autoscaler that has
    not spoken yet may do anything.
    """
    report = status.get("autoscaler_report") or {}
    nodes = report.get("active_nodes") or {}
    failures = [f"{node[1]} at {node[0]} failed" for node in report.get("failed_nodes") or []]
    availability = (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    for kind, record in availability.items():
        details = (record or {}).get("unavailable_node_information") or {}
        if details:
            failures.append(f"{kind}: {details.get('category')}: {details.get('description')}")
    starting = len(report.get("pending_nodes") or []) + sum((report.get("pending_launches") or {}).values())
    return View(not nodes or any(not name.startswith("node_") for name in nodes), False, starting, tuple(failures))


def read_v2(state: Any, group: str) -> View:
    """The view of an autoscaler of the second kind, from its report to the head (a protobuf message)."""
    never = any(group in request.details for request in state.infeasible_gang_resource_requests)
    starting = len(state.pending_instances) + sum(request.count for request in state.pending_instance_requests)
    failures = dict.fromkeys(f"{item.ray_node_type_name}: {item.reason}" for item in state.failed_instance_requests)
    return View(True, never, starting, tuple(failures))


def _state_v2() -> Any:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    reply = GetClusterStatusReply()
    try:
        reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=10))
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        LOG.debug("no word from the autoscaler: %s", error)
        return None
    return reply.autoscaling_state


def _give_up(view: View, waited: float, idle: float, limit: float) -> str:
    """Why waiting is of no use; "" while it is."""
    failed = f"; {view.failures[-1]}" if view.failures else ""
    if view.never:
        return f"its autoscaler has no node types that could ever give so much{failed}"
    if not view.grows and waited > min(_TELL_S, limit) / 3:
        return "it has no autoscaler that starts nodes"
    if idle > min(_GRACE_S, limit):
        return f"its autoscaler has started no node for {idle:.0f} s{failed}"
    if waited > limit:
        return f"waited {waited:.0f} s for nodes, as {WAIT_VARIABLE} allows; run the same command again{failed}"
    return ""


def _waiting(view: View, waited: float, limit: float) -> str:
    state = f"{view.starting} nodes are starting" if view.starting else "asking its autoscaler for nodes"
    return f"{state} ({waited:.0f} s of at most {limit:.0f} s)"


def _limit() -> float:
    text = os.environ.get(WAIT_VARIABLE) or str(WAIT_S)
    try:
        return max(0.0, float(text))
    except ValueError:
        raise ConfigError(f"{WAIT_VARIABLE}={text} is no number of seconds") from None
