"""Does a job submitted to a cluster do its work and say how it ended?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.demo import write_digits
from pipeline.storage import Location
from tests.servers.cluster import RayCluster, figures, ray_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def head() -> Iterator[RayCluster]:
    """A Ray head node with its job server."""
    with ray_cluster(1, cpus=2) as cluster:
        yield cluster


def test_does_a_submitted_tour_run_on_the_cluster(head: RayCluster, tmp_path: Path) -> None:
    data, model, archive, back = (tmp_path / name for name in ("data", "model", "archive", "back"))
    write_digits(Location(str(data)))
    train = ["jobs.train", data, "--model", model, "--passthrough", "label", "--epochs", 2, "--effort", "fast"]
    figures(head.submit(*train))
    assert figures(head.submit("jobs.encode", data, "--model", model, "--out", archive))["rows"] == 1797
    figures(head.submit("jobs.decode", archive, "--out", back))
    assert (back / "digits.parquet").exists()


def test_does_a_submitted_job_refuse_relative_paths_and_fail(head: RayCluster) -> None:
    refused = head.submit("jobs.encode", "data", "--model", "/nowhere", "--out", "/nowhere/else")
    assert refused.returncode != 0
    assert "absolute path" in refused.stdout + refused.stderr
