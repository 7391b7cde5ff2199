"""Does a job find out before any work whether the cluster has what it needs, and does it notice that it dies?"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import autoscaler
from pipeline.autoscaler import View, read_v1, read_v2
from pipeline.errors import ConfigError, ResourceError
from pipeline.machine import usable_cpus
from pipeline.preflight import READ_CPUS, WORKER_MEMORY, WORTH_A_WORKER, Cluster, Node
from pipeline.watch import Watch, _refuses
from tests.servers.cluster import ROOT, RayCluster, ray_cluster, wait_until

GIB = 1 << 30


def here(*nodes: Node) -> Cluster:
    return Cluster(nodes, local=True)


@given(
    nodes=st.lists(st.tuples(st.sampled_from([0, 0.5, 1, 2, 4, 7.5, 64]), st.integers(1, 40)), min_size=1, max_size=5),
    workers=st.integers(1, 20),
    local=st.booleans(),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_does_one_node_keep_cpus_for_reading_wherever_workers_are_placed(
    nodes: list[tuple[float, int]], workers: int, local: bool, order: Any
) -> None:
    cluster = Cluster([Node(cpus, 0.0, memory * GIB) for cpus, memory in nodes], local)
    share = cluster.cpus_per_worker(workers)
    assert 0.01 <= share <= 1
    if share == 0.01:
        return  # no room: `workers_for` has refused it
    free = [[cpus, memory * GIB] for cpus, memory in nodes]
    for _ in range(workers):
        open_nodes = [n for n in free if n[0] >= share - 1e-9 and (local or n[1] >= WORKER_MEMORY)]
        assert open_nodes, "a worker finds no place"
        chosen = order.choice(open_nodes)
        chosen[0] -= share
        chosen[1] -= WORKER_MEMORY
    assert max(n[0] for n in free) >= READ_CPUS - 1e-6


def test_are_workers_counted_by_what_there_is() -> None:
    assert here(Node(4.0)).workers_for(None, False) == 4
    assert here(Node(4.0, 0.0, 2.5 * GIB)).workers_for(None, False) == 2
    assert here(Node(0.0), Node(2.0), Node(2.0, 1.0)).workers_for(None, False) == 4
    assert here(Node(8.0, 2.0)).workers_for(None, True) == 2
    assert here(Node(8.0, 2.0)).workers_for(1, True) == 1
    assert Cluster([Node(2.0)], local=False).memory_per_worker() == WORKER_MEMORY


@pytest.mark.parametrize(
    ("most", "threads"), [(None, 4), ("1", 1), ("3", 3), ("9", 4), ("0", 1), ("", 4), ("2,1", 4), ("many", 4)]
)
def test_do_threads_fill_a_local_machine_up_to_openmp_s_limit(
    monkeypatch: pytest.MonkeyPatch, most: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if most is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", most)
    assert here(Node(8.0)).threads_per_worker(2) == threads
    assert Cluster([Node(8.0)], local=False).threads_per_worker(2) == 1


def test_are_no_more_workers_started_than_there_is_work_for() -> None:
    sizes = (0, 1, WORTH_A_WORKER, WORTH_A_WORKER + 1)
    assert [here(Node(4.0)).workers_for(None, False, size) for size in sizes] == [1, 1, 1, 2]
    assert here(Node(4.0)).workers_for(None, False, 100 * WORTH_A_WORKER) == 4
    assert here(Node(4.0)).workers_for(3, False, 1) == 3
    far = Cluster([Node(4.0)] * 9, local=False)
    assert far.workers_for(None, False, WORTH_A_WORKER + 1) == 2
    assert far.workers_for(None, False, 100 * WORTH_A_WORKER) == far.workers_for(None, False) == 36


@pytest.mark.parametrize(
    ("wanted", "gpu", "said"),
    [
        (3, False, r"--workers 3 needs 3 CPUs, the cluster has 2; lower --workers or add nodes"),
        (None, True, r"--gpu with 1 workers needs 1 GPUs, the cluster has 0; leave out --gpu"),
        (2, True, r"--gpu with 2 workers needs 2 GPUs"),
    ],
)
def test_is_what_is_missing_named(wanted: int | None, gpu: bool, said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        here(Node(2.0)).workers_for(wanted, gpu)


def test_is_a_node_too_small_for_its_workers_named(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [Node(8.0, 0.0, 3.5 * GIB)]
    with pytest.raises(ResourceError, match=r"8 workers need 1 GiB of memory each, the nodes have room for 3"):
        Cluster(nodes, local=False).workers_for(8, False)
    with caplog.at_level(logging.WARNING):
        assert here(*nodes).workers_for(8, False) == 8
    assert "room for 3" in caplog.text


def test_does_the_autoscalers_word_end_the_waiting() -> None:
    give_up = autoscaler._give_up
    assert give_up(View(True, starting=1), 30, 0, 1200) == ""
    assert give_up(View(True), 30, 30, 1200) == ""
    assert "could ever give" in give_up(View(True, never=True), 1, 1, 1200)
    assert "no autoscaler" in give_up(View(False), 6, 6, 1200)
    assert give_up(View(False), 1, 1, 1200) == ""
    assert "started no node" in give_up(View(True, failures=("gpu: no capacity",)), 70, 70, 1200)
    assert "no capacity" in give_up(View(True, failures=("gpu: no capacity",)), 70, 70, 1200)
    assert "waited 1201 s" in give_up(View(True, starting=1), 1201, 0, 1200)


def test_is_an_autoscaler_of_the_first_kind_understood() -> None:
    still = {"autoscaler_report": {"active_nodes": {"node_eb07": 1}, "pending_nodes": [], "pending_launches": {}}}
    assert read_v1(still) == View(False)
    assert read_v1({}).grows, "one that has not spoken yet may do anything"
    growing = {
        "autoscaler_report": {
            "active_nodes": {"head": 1},
            "pending_nodes": [["10.0.0.2", "cpu", "setting-up"]],
            "pending_launches": {"cpu": 2},
            "failed_nodes": [["10.0.0.9", "gpu"]],
            "node_availability_summary": {
                "node_availabilities": {
                    "gpu": {"unavailable_node_information": {"category": "NoCapacity", "description": "none left"}},
                    "cpu": {"unavailable_node_information": None},
                }
            },
        }
    }
    assert read_v1(growing) == View(True, False, 3, ("gpu at 10.0.0.9 failed", "gpu: NoCapacity: none left"))


def test_is_an_autoscaler_of_the_second_kind_understood() -> None:
    from ray.core.generated.autoscaler_pb2 import AutoscalingState

    state = AutoscalingState()
    assert read_v2(state, "abc") == View(True)
    state.infeasible_gang_resource_requests.add(details="other:PACK|PENDING")
    assert not read_v2(state, "abc").never, "another job's demand"
    state.infeasible_gang_resource_requests.add(details="abc:PACK|PENDING")
    state.pending_instance_requests.add(ray_node_type_name="cpu", count=2)
    state.pending_instances.add(ray_node_type_name="cpu")
    state.failed_instance_requests.add(ray_node_type_name="gpu", reason="no capacity")
    state.failed_instance_requests.add(ray_node_type_name="gpu", reason="no capacity")
    assert read_v2(state, "abc") == View(True, True, 3, ("gpu: no capacity",))


def test_is_a_limit_that_is_no_number_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoscaler.WAIT_VARIABLE, "soon")
    with pytest.raises(ConfigError, match="PARVAE_CLUSTER_WAIT_S=soon"):
        autoscaler._limit()
    monkeypatch.setenv(autoscaler.WAIT_VARIABLE, "5")
    assert autoscaler._limit() == 5


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/box/inner", {"box/cpu.max": "150000 100000", "box/inner/cpu.max": "max 100000"}, 1),
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "5000 100000"}, 1),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "100000", "cpu/box/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, None),
        ("", {}, None),
    ],
)
def test_are_quotas_of_control_groups_respected(
    groups: str, files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert usable_cpus(str(tmp_path)) == (expected or len(os.sched_getaffinity(0)))


def test_is_the_affinity_of_the_process_respected() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from pipeline.machine import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://127.0.0.1:10001", "use parvae submit"),
        ("127.0.0.1:1", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1"),
        ("127.0.0.1:no", "no Ray cluster answers"),
    ],
)
def test_is_an_address_without_a_cluster_refused_at_once(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipeline.cluster import connected

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # a Ray that runs already would be used
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError, match=said), connected():
        raise AssertionError("connected to nothing")


class Listener:
    """A port where connections are accepted until it is closed."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()

    def close(self) -> None:
        self._socket.close()


def test_is_the_main_thread_interrupted_when_the_cluster_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    monkeypatch.setattr("pipeline.watch.PATIENCE_NODE_S", 0.0)
    head, node = Listener(), Listener()
    assert threading.current_thread() is threading.main_thread()
    watch = Watch("Ray at here", head.address, node.address)
    with watch:
        assert not watch.gone()
        node.close()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
    signal.signal(signal.SIGINT, ignored)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    head.close()
    assert "Ray at here was lost" in watch.lost
    assert "run the same command to continue" in watch.lost
    assert watch.gone()
    assert _refuses(head.address)


def test_is_a_process_without_free_files_no_lost_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    head = Listener()
    head.close()
    assert _refuses(head.address)
    monkeypatch.setattr(socket, "create_connection", exhausted)
    assert not _refuses(head.address)


def test_is_a_ray_that_shuts_down_slowly_no_lost_one(monkeypatch: pytest.MonkeyPatch, ray_session: None) -> None:
    import ray

    from pipeline import cluster

    head, node = Listener(), Listener()
    monkeypatch.setattr("pipeline.watch.PATIENCE_NODE_S", 0.0)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "_connect", lambda address, cpus: None)
    monkeypatch.setattr(cluster, "_watch", lambda address: Watch("the local Ray", head.address, node.address))
    monkeypatch.setattr("pipeline.leftovers.workers_below", list)  # the session's own workers go on
    ended: list[str] = []

    def shut_down() -> None:
        node.close()  # the raylet is gone, the rest takes its time
        time.sleep(3)
        ended.append("whole")

    monkeypatch.setattr(ray, "shutdown", shut_down)
    with cluster.connected():
        pass
    head.close()
    assert ended == ["whole"]


POISON = """
import json, os, signal, sys, time
from pipeline.cluster import connected
from pipeline.units import run_units
from pipeline.errors import ParvaeError

class Work:
    def __call__(self, item):
        if item["deadly"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "begun" in item:
            open(item["begun"], "w").close()
            time.sleep(600)
        return item

items, overlap = json.loads(sys.argv[1]), int(sys.argv[2])
try:
    with connected() as cluster:
        workers = cluster.workers_for(1, False)
        for result in run_units(items, Work, {}, cluster, workers, overlap=overlap):
            print("done", flush=True)
except ParvaeError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("units") / "units.py"
    path.write_text(textwrap.dedent(POISON))
    return str(path)


def driver(cluster: RayCluster, script: str, items: str, overlap: int) -> subprocess.Popen[str]:
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, items, str(overlap)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
def test_does_a_unit_that_kills_its_worker_every_time_end_the_job(script: str) -> None:
    """As an actor's unit, and as a task."""
    with ray_cluster(1, cpus=2) as cluster:
        for overlap in (2, 1):
            process = driver(cluster, script, '[{"deadly": true, "path": "large.parquet"}]', overlap)
            _, stderr = process.communicate(timeout=200)
            assert process.returncode == 1, stderr
            assert "JobError workers died on the same work unit 4 times" in stderr
            assert "large.parquet" in stderr
            assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("title", ["raylet/raylet", "gcs/gcs_server"])
def test_does_a_cluster_that_dies_under_the_driver_end_with_a_line(script: str, title: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with ray_cluster(1, cpus=2) as cluster:
        process = driver(cluster, script, json.dumps([{"deadly": False, "begun": str(begun)}]), 2)
        wait_until(lambda: begun.exists() or process.poll() is not None, what="for a unit to begin")
        assert process.poll() is None
        (victim,) = cluster.processes(title)
        os.kill(victim.pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 1, (stdout, stderr)
    assert "was lost" in stderr
    assert "run the same command to continue" in stderr
    assert "Traceback" not in stderr
