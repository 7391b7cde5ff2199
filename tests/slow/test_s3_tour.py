"""Does the whole tour run on an object store, from submitted jobs on a cluster of two nodes?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.storage import Location
from tests.servers.cluster import RayCluster, figures, ray_cluster
from tests.servers.store import Store
from tests.slow.disturbed import check_archive, check_decoded, check_values, leftovers, read_folder, write_source

pytestmark = pytest.mark.slow

FILES, ROWS = 12, 1000
TRAIN = ["--passthrough", "row", "--epochs", 2, "--latent", 2, "--effort", "fast"]


@pytest.fixture(scope="module")
def cluster(store: Store) -> Iterator[RayCluster]:
    with ray_cluster(2) as running:
        yield running


@pytest.fixture(scope="module")
def folder(store: Store) -> Location:
    place = store.place("submitted tour/année=2024 [1]")
    write_source(place.join("data"), FILES, ROWS)
    return place


def test_does_the_whole_tour_run_from_submitted_jobs_on_the_store(cluster: RayCluster, folder: Location) -> None:
    data, model, archive, back = (folder.join(name) for name in ("data", "model", "archive", "back"))
    trained = figures(cluster.submit("jobs.train", data, "--model", model, *TRAIN, "--workers", 2))
    assert (trained["rows"], trained["epochs"]) == (FILES * ROWS, 2)
    encoded = figures(cluster.submit("jobs.encode", data, "--model", model, "--out", archive, "--workers", 2))
    assert (encoded["rows"], encoded["files"]) == (FILES * ROWS, FILES)
    decoded = figures(cluster.submit("jobs.decode", archive, "--out", back))
    assert decoded["rows"] == FILES * ROWS
    evaluated = figures(cluster.submit("jobs.evaluate", data, archive))
    assert evaluated["violations"] == 0
    assert evaluated["bytes_out"] == sum(stat.size for stat in archive.files())
    check_archive(archive, FILES * ROWS)
    check_values(read_folder(data), read_folder(back))
    check_decoded(back, read_folder(back))
    assert [stat.path for stat in back.files()] == [stat.path for stat in data.files()]
    assert leftovers([stat.path for stat in model.files()]) == []
    figures(cluster.run("jobs.verify", archive))
    for place in (data, model, archive):
        figures(cluster.run("jobs.inspect", place))
    again = cluster.run("jobs.encode", data, "--model", model, "--out", model.join("inside"))
    assert again.returncode == 2
    assert "overlaps" in again.stderr


def test_does_a_submitted_job_refuse_relative_paths_and_fail(cluster: RayCluster) -> None:
    refused = cluster.submit("jobs.encode", "data", "--model", "/nowhere", "--out", "/nowhere/else")
    assert refused.returncode != 0
    assert "absolute path" in refused.stdout + refused.stderr
