"""Does a training run in the driver's process go on from where it was stopped?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import training_data
from pipeline.bundle import schema_to_text
from pipeline.config import Optimization
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import TrainingError
from pipeline.storage import Location
from pipeline.training_data import EpochPlan, PackUnits
from pipeline.training_loop import LoopSettings
from pipeline.training_process import LATEST_FILE, Checkpoints, ProcessHost, UnitRows, train_here
from tests.small import TINY, fit

EPOCHS = 4


def write(folder: Path, **files: str) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


def latest(checkpoints: Checkpoints) -> dict[str, str] | None:
    with checkpoints.latest() as folder:
        return None if folder is None else {path.name: path.read_text() for path in Path(folder).iterdir()}


def test_is_the_last_checkpoint_given_back(folder: Location, tmp_path: Path) -> None:
    checkpoints = Checkpoints(folder)
    assert latest(checkpoints) is None
    checkpoints.keep(write(tmp_path / "one", a="1", b="2"), 1)
    assert latest(Checkpoints(folder)) == {"a": "1", "b": "2"}
    checkpoints.keep(write(tmp_path / "two", a="3"), 2)
    assert latest(checkpoints) == {"a": "3"}
    assert [stat.path for stat in folder.files()] == ["checkpoint-000002/a", LATEST_FILE]
    checkpoints.keep(write(tmp_path / "two", a="3"), 2)  # a run that goes on after its last epoch
    assert latest(checkpoints) == {"a": "3"}


def test_is_a_checkpoint_that_was_not_written_to_the_end_none(
    folder: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.keep(write(tmp_path / "one", a="1", b="2"), 1)
    real = Location.write_bytes

    def die(self: Location, data: bytes) -> None:
        if self.name == "b":
            raise KeyboardInterrupt
        real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_bytes", die)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.keep(write(tmp_path / "two", a="3", b="4"), 2)
    assert latest(checkpoints) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"checkpoint": 3}', '{"checkpoint": "../checkpoint-000001"}'])
def test_is_a_damaged_record_no_checkpoint(tmp_path: Path, text: str) -> None:
    folder = Location(str(tmp_path / "kept"))
    Checkpoints(folder).keep(write(tmp_path / "one", a="1"), 1)
    folder.join(LATEST_FILE).write_bytes(text.encode())
    assert latest(Checkpoints(folder)) is None


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    (tmp_path / "data").mkdir()
    table = pa.table({"x": x, "y": 2 * x + rng.normal(0, 0.1, 3000), "c": np.where(x > 0, "high", "low")})
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=1000)
    return open_dataset(Location(str(tmp_path / "data")))


def run(
    dataset: Dataset,
    checkpoints: Checkpoints | None = None,
    stop_after: int = EPOCHS,
    rate: float = 1e-3,
    cached: bool = True,
) -> tuple[bytes, list[dict[str, Any]]]:
    """Trains; Ctrl-C comes while epoch `stop_after` is reported."""
    rows = fit(pq.read_table(f"{dataset.root}/a.parquet"))
    packing = PackUnits(dataset.root, rows.to_json(), schema_to_text(dataset.schema), dataset.block_rows, 0, 0.1)
    options = Optimization(epochs=EPOCHS, checkpoint_seconds=0, learning_rate=rate)
    plan = EpochPlan(20, 128, cached, seed=0)
    loop = LoopSettings(rows.layout().to_json(), TINY.to_json(), options, 0, EPOCHS, plan, False, 1)

    def tell(entry: dict[str, Any]) -> None:
        if entry["epoch"] == stop_after:
            raise KeyboardInterrupt

    host = ProcessHost(torch.device("cpu"), UnitRows(dataset.units(1), packing), tell, checkpoints)
    return train_here(loop, host)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_does_a_run_that_was_stopped_come_to_the_same_model(
    dataset: Dataset, tmp_path: Path, stop_after: int, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "POOL_BYTES", 1000)
    calm, history = run(dataset, cached=cached)
    checkpoints = Checkpoints(Location(str(tmp_path / "kept")))
    with contextlib.suppress(KeyboardInterrupt):
        run(dataset, checkpoints, stop_after, cached=cached)
    kept = latest_state(checkpoints)
    assert kept == stop_after
    weights, again = run(dataset, checkpoints, cached=cached)
    assert weights == calm
    assert [entry["minus_elbo_bits"] for entry in again] == [entry["minus_elbo_bits"] for entry in history]
    assert run(dataset, checkpoints, cached=cached)[0] == calm  # nothing is left to do


def test_does_every_epoch_take_the_units_in_another_order(dataset: Dataset) -> None:
    rows = fit(pq.read_table(f"{dataset.root}/a.parquet"))
    packing = PackUnits(dataset.root, rows.to_json(), schema_to_text(dataset.schema), 100, 0, 0.1)
    shard = UnitRows(dataset.units(1), packing)
    orders = [[table["unit"][0].as_py() for table in shard.tables(np.random.default_rng(seed))] for seed in range(8)]
    assert len({tuple(order) for order in orders}) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}
    assert set(orders[0]) == {unit.index for unit in dataset.units(1)}


def latest_state(checkpoints: Checkpoints) -> int:
    from pipeline.checkpoints import read_state

    with checkpoints.latest() as folder:
        return 0 if folder is None else read_state(folder).epoch


def test_is_a_loss_that_is_not_finite_an_error(dataset: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"not finite.*lower training\.learning_rate"):
        run(dataset, rate=1e30)


def test_is_the_process_left_as_it_was(dataset: Dataset) -> None:
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    run(dataset)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
