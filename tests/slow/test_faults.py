"""Is every row there once, whatever dies on the way? On a real cluster of two raylets, against a real object store."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.archive import Archive
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.servers.cluster import RayCluster, figures, kill_tree, ray_cluster, wait_until
from tests.servers.disk import small_disk
from tests.servers.store import Store
from tests.slow import disturbed
from tests.slow.disturbed import FILES, check_archive, check_decoded, finished_units, local
from tests.small import save_model, train_here
from vae_model.config import NetworkConfig

pytestmark = pytest.mark.slow

ROWS = FILES * disturbed.ROWS
EPOCHS = 6
TRAIN = ["--passthrough", "row", "--epochs", EPOCHS, "--latent", 2, "--effort", "fast"]
TRAIN += ["--set", "training.checkpoint_seconds=0", "--set", "network.hidden=[16]"]


PLENTY = 64 << 20
"""Bytes of a disk on which there is room."""


@dataclass(frozen=True)
class Calm:
    """What comes of it when nothing happens.

    Attributes:
        data, model: The dataset and the model.
        bits: What the model costs.
        decoded: All rows, as the archive decodes.
    """

    data: Location
    model: Location
    bits: float
    decoded: pa.Table

    def check(self, archive: Location) -> None:
        """An archive is whole, and decodes as this one does."""
        check_archive(archive, ROWS)
        assert Archive.open(archive).read().equals(self.decoded)


@pytest.fixture(scope="module")
def running_cluster(store: Store) -> Iterator[RayCluster]:
    with ray_cluster(2) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: RayCluster) -> RayCluster:
    """Two nodes, whatever the test before left."""
    if running_cluster.size < 2:
        running_cluster.start_node()
    running_cluster.wait_for_nodes()
    return running_cluster


@pytest.fixture(scope="module")
def calm(running_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Calm:
    work = tmp_path_factory.mktemp("calm")
    data, model, archive = (local(work / name) for name in ("data", "model", "archive"))
    disturbed.write_source(data)
    dataset = open_dataset(data)
    network, training = NetworkConfig(latent_dim=2, hidden=(16,)), Optimization(epochs=EPOCHS)
    bundle = train_here(dataset, TrainConfig(passthrough=("row",), effort="fast", network=network, training=training))
    save_model(dataset, bundle, model)
    figures(running_cluster.run("jobs.encode", data, "--model", model, "--out", archive))
    decoded = Archive.open(archive).read()
    disturbed.check_values(disturbed.read_folder(data), decoded)
    check_archive(archive, ROWS)
    return Calm(data, model, bundle.training["history"][-1]["minus_elbo_bits"], decoded)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Location:
    """A folder on the disk, and one on the object store."""
    return local(tmp_path) if request.param == "local" else store.place(tmp_path.name)


def when_some_are_finished(driver: subprocess.Popen[str], output: Location) -> int:
    """Waits until a running driver has units in its ledger; gives how many."""

    def some() -> int:
        assert driver.poll() is None, driver.communicate()
        return finished_units(output)

    found = int(wait_until(some, what=f"for finished units in {output}"))
    assert found < FILES, "the fault would come too late"
    return found


def when_the_newest_node_works(cluster: RayCluster, driver: subprocess.Popen[str]) -> None:
    """Waits until a running driver has a worker on the node that joined last."""

    def works() -> bool:
        assert driver.poll() is None, driver.communicate()
        return bool(cluster.processes("UnitActor", cluster.newest))

    wait_until(works, what=f"for a worker on node {cluster.newest}")


def ended(driver: subprocess.Popen[str], seconds: float = 240) -> dict[str, Any]:
    """The figures of a driver that comes to a good end."""
    try:
        out, err = driver.communicate(timeout=seconds)
    finally:
        kill_tree(driver.pid)
    return figures(subprocess.CompletedProcess(driver.args, driver.returncode, out, err))


def kill_driver(driver: subprocess.Popen[str]) -> None:
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()


def test_does_training_survive_a_killed_worker(cluster: RayCluster, calm: Calm, tmp_path: Path) -> None:
    model, archive = tmp_path / "model", local(tmp_path / "archive")
    driver = cluster.start("jobs.train", calm.data, "--model", model, *TRAIN)
    wait_until(lambda: list(model.glob("_train/checkpoint*")) or driver.poll() is not None, what="for a checkpoint")
    workers = cluster.processes("RayTrainWorker")
    for worker in workers:
        worker.kill()
    trained = ended(driver)
    assert workers
    assert trained["epochs"] == EPOCHS
    assert trained["minus_elbo_bits_per_row"] == pytest.approx(calm.bits, rel=0.02)
    assert not (model / "_train").exists()
    figures(cluster.run("jobs.encode", calm.data, "--model", model, "--out", archive))
    calm.check(archive)


def test_does_an_encode_survive_a_killed_node(cluster: RayCluster, calm: Calm, tmp_path: Path) -> None:
    archive = local(tmp_path / "archive")
    driver = cluster.start("jobs.encode", calm.data, "--model", calm.model, "--out", archive)
    when_the_newest_node_works(cluster, driver)
    when_some_are_finished(driver, archive)
    cluster.kill_node(cluster.newest)
    assert ended(driver)["rows"] == ROWS
    calm.check(archive)


def test_does_a_killed_encode_continue(cluster: RayCluster, calm: Calm, place: Location) -> None:
    archive = place.join("archive")
    argv = ["jobs.encode", calm.data, "--model", calm.model, "--out", archive]
    driver = cluster.start(*argv)
    finished = when_some_are_finished(driver, archive)
    kill_driver(driver)
    assert not archive.join("_manifest.json").exists()
    second = cluster.run(*argv)
    assert FILES > figures(second)["parts_resumed"] >= finished
    assert "continuing" in second.stderr
    calm.check(archive)


def test_does_a_killed_decode_continue(cluster: RayCluster, calm: Calm, archive: Location, place: Location) -> None:
    back = place.join("back")
    driver = cluster.start("jobs.decode", archive, "--out", back)
    finished = when_some_are_finished(driver, back)
    kill_driver(driver)
    second = cluster.run("jobs.decode", archive, "--out", back)
    assert figures(second)["rows"] == ROWS
    assert FILES > figures(second)["resumed"] >= finished
    assert "continuing" in second.stderr
    check_decoded(back, calm.decoded)


@pytest.fixture(scope="module")
def archive(running_cluster: RayCluster, calm: Calm) -> Location:
    """The archive of the undisturbed run."""
    return calm.data.parent.join("archive")


def test_does_a_node_that_joins_in_the_middle_disturb_nothing_and_help_the_next(
    cluster: RayCluster, calm: Calm, tmp_path: Path
) -> None:
    first, second = (local(tmp_path / name) for name in ("first", "second"))
    cluster.kill_node(cluster.newest)
    driver = cluster.start("jobs.encode", calm.data, "--model", calm.model, "--out", first)
    when_some_are_finished(driver, first)
    cluster.add_node()
    assert ended(driver)["rows"] == ROWS
    calm.check(first)
    driver = cluster.start("jobs.encode", calm.data, "--model", calm.model, "--out", second)
    when_the_newest_node_works(cluster, driver)
    assert ended(driver)["rows"] == ROWS
    calm.check(second)


def test_is_a_store_survived_that_is_too_busy_for_a_third_of_the_requests(
    cluster: RayCluster, calm: Calm, store: Store, tmp_path: Path
) -> None:
    archive, back = (store.place(tmp_path.name).join(name) for name in ("archive", "back"))
    for argv, place in (
        (["jobs.encode", calm.data, "--model", calm.model, "--out", archive], archive),
        (["jobs.decode", archive, "--out", back], back),
    ):
        driver = cluster.start(*argv)
        when_some_are_finished(driver, place)
        with store.proxy.failing(1 / 3) as refused:
            wait_until(lambda refused=refused, driver=driver: refused.total() >= 30 or driver.poll() is not None)
        assert refused.total() >= 30
        assert ended(driver)["rows"] == ROWS
    calm.check(archive)
    check_decoded(back, calm.decoded)


def test_is_a_full_disk_named_and_the_run_finished_once_there_is_room(calm: Calm, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 600 << 10) as disk, ray_cluster(1, cpus=2, inside=disk.inside) as cluster:
        encode = ["jobs.encode", calm.data, "--model", calm.model, "--out", disk.folder / "archive"]
        full = cluster.run(*encode)
        check_refusal(full, str(disk.folder))
        outside = local(disk.outside)
        assert not outside.join("archive/_manifest.json").exists()
        assert 0 < finished_units(outside.join("archive")) < FILES
        disk.resize(PLENTY)
        second = figures(cluster.run(*encode))
        assert second["parts_resumed"] > 0
        calm.check(outside.join("archive"))
        decode = ["jobs.decode", disk.folder / "archive", "--out", disk.folder / "back"]
        disk.resize(disk.used + (300 << 10))
        check_refusal(cluster.run(*decode), str(disk.folder))
        disk.resize(PLENTY)
        assert figures(cluster.run(*decode))["rows"] == ROWS
        check_decoded(outside.join("back"), calm.decoded)


def test_is_a_full_temporary_folder_named_and_the_run_finished_once_there_is_room(
    calm: Calm, store: Store, tmp_path: Path
) -> None:
    archive = store.place(tmp_path.name).join("archive")
    with small_disk(tmp_path / "disk", 4 << 10) as disk:
        variables = {"TMPDIR": str(disk.folder), "RAY_TMPDIR": "/tmp"}
        argv = ["jobs.encode", calm.data, "--model", calm.model, "--out", archive]
        check_refusal(disk.run(*argv, variables=variables), str(disk.folder))
        assert not archive.join("_manifest.json").exists()
        disk.resize(PLENTY)
        figures(disk.run(*argv, variables=variables))
        assert list(disk.outside.glob("parvae-*")) == []
    calm.check(archive)


def check_refusal(done: subprocess.CompletedProcess[str], place: str) -> None:
    """A run that met a full disk says so, and where, in a line, and nothing of Python."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert place in done.stderr
    assert "Traceback" not in done.stderr
