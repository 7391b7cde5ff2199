"""Does a job on a cluster that stands at zero start the node it needs, by the very command of the guide?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Location
from tests.servers.cluster import ROOT, RayCluster, figures, kill_tree, wait_until
from tests.small import tiny_bundle

pytestmark = pytest.mark.slow

FILE = "deploy/local/autoscaling.yaml"
TOKEN = "a-token-of-this-test-alone-0123456789"


def command() -> list[str]:
    """The guide's command that starts the head."""
    guide = (ROOT / "docs" / "cluster.md").read_text()
    (line,) = re.findall(rf"^RAY_\S+=.*--autoscaling-config={re.escape(FILE)}.*$", guide, re.MULTILINE)
    return shlex.split(line)


class GrowingCluster(RayCluster):
    """A head that starts nodes as a copy of the shipped file says, on a port of its own."""

    def _start(self, number: int, role: Sequence[str]) -> None:
        copy = Path(self._folder, "autoscaling.yaml")
        text = (ROOT / FILE).read_text()
        assert "gcs_address: 127.0.0.1:6399" in text
        copy.write_text(text.replace("127.0.0.1:6399", self.address))
        super()._start(number, [*role, f"--autoscaling-config={copy}"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[GrowingCluster]:
    variables = dict(word.split("=", 1) for word in command() if re.match(r"RAY_\w+=", word))
    assert variables["RAY_AUTH_MODE"] == "token"
    cluster = GrowingCluster(0, variables | {"RAY_AUTH_TOKEN": TOKEN})
    try:
        wait_until(cluster._answers, what="for the head")
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`parvae encode` of a small dataset with a model that was not trained, without --workers."""
    folder = tmp_path_factory.mktemp("growing")
    table = pa.table({"x": np.random.default_rng(0).normal(size=2000), "id": np.arange(2000)})
    (folder / "data").mkdir()
    pq.write_table(table, folder / "data" / "1.parquet", row_group_size=500)
    tiny_bundle(table).save(Location(str(folder / "model")))
    return [
        *("jobs.encode", str(folder / "data"), "--model", str(folder / "model"), "--keep", "latents"),
        *("--out", str(folder / "archive")),
    ]


def test_is_more_than_the_cluster_can_become_refused_and_another_token(
    cluster: GrowingCluster, words: list[str]
) -> None:
    drivers = [
        cluster.start(*words, "--workers", 9),
        cluster.start(*words, variables={"RAY_AUTH_TOKEN": "another-token"}),
    ]
    try:
        greedy, stranger = (driver.communicate(timeout=200)[1] for driver in drivers)
    finally:
        for driver in drivers:
            kill_tree(driver.pid)
    assert [driver.returncode for driver in drivers] == [2, 2], greedy + stranger
    assert "needs 9 CPUs, the cluster has 0" in greedy
    assert "no node types that could ever give so much" in greedy
    assert "RAY_AUTH_TOKEN" in stranger
    assert TOKEN not in stranger
    assert not Path(words[-1]).exists()


def test_does_a_job_that_needs_a_cpu_bring_up_a_node_and_finish(cluster: GrowingCluster, words: list[str]) -> None:
    assert len(cluster.processes("raylet/raylet")) == 1
    done = cluster.run(*words, "--workers", 1)
    assert figures(done)["rows"] == 2000
    assert "needs 1 CPUs, the cluster has 0; asking its autoscaler for nodes" in done.stderr
    assert len(cluster.processes("raylet/raylet")) == 2
