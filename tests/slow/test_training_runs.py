"""Is training the same whatever happens to its workers?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Command

pytestmark = pytest.mark.slow


def write_correlated(folder: Path, rows: int) -> Path:
    """Eight columns that depend on two hidden numbers."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(rows, 2))
    mixed = np.tanh(hidden @ rng.normal(size=(2, 8))) + 0.05 * rng.normal(size=(rows, 8))
    folder.mkdir()
    table = pa.table({f"c{i}": mixed[:, i] for i in range(8)})
    pq.write_table(table, folder / "rows.parquet", row_group_size=5000)
    return folder


def bits(figures: dict[str, Any]) -> float:
    return float(figures["minus_elbo_bits_per_row"])


def test_do_two_workers_learn_what_one_learns(shared_data: Path, tmp_path: Path, parvae: Command) -> None:
    source = tmp_path / "shuttle.parquet"
    pq.write_table(pq.read_table(shared_data / "shuttle.parquet").slice(0, 30_000), source)
    argv = ["train", source, "--passthrough", "target", "--latent", 4, "--epochs", 6, "--error", "none"]
    argv += ["--set", "training.batch_size=512"]
    one = parvae(*argv, "--model", tmp_path / "one", "--workers", 1)
    two = parvae(*argv, "--model", tmp_path / "two", "--workers", 2)
    assert bits(two) == pytest.approx(bits(one), rel=0.02)


def test_does_the_same_seed_give_the_same_model(tmp_path: Path, parvae: Command) -> None:
    data = write_correlated(tmp_path / "data", 3000)
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        parvae(
            "train", data, "--model", tmp_path / name, "--epochs", 3, "--seed", seed, "--latent", 2, "--error", "none"
        )
    weights = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


def test_does_training_continue_after_a_killed_driver(tmp_path: Path) -> None:
    data, model = write_correlated(tmp_path / "data", 8000), tmp_path / "model"
    argv = [sys.executable, "-m", "jobs.train", data, "--model", model, "--epochs", 12, "--latent", 2]
    argv += ["--error", "none", "--set", "training.checkpoint_seconds=0", "--set", "training.batch_size=256"]
    words = [str(word) for word in argv]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    first = subprocess.Popen(words, start_new_session=True, env=environment)
    wait_until(lambda: len(list((model / "_train").glob("latest.json"))) > 0)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (model / "bundle.json").exists()
    encode = [sys.executable, "-m", "jobs.encode", str(data), "--model", str(model), "--out", str(tmp_path / "x")]
    refused = subprocess.run(encode, capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert "has not finished" in refused.stderr
    other = subprocess.run([*words, "--seed", "3"], capture_output=True, text=True, env=environment)
    assert other.returncode == 2
    assert "--overwrite" in other.stderr
    second = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert second.returncode == 0, second.stderr
    assert "continuing the unfinished run" in second.stderr
    assert "epoch 1 of 12" not in second.stderr
    figures = json.loads(second.stdout.splitlines()[-1])
    assert figures["epochs"] >= 2
    assert not (model / "_train").exists()


def test_does_a_run_that_died_after_its_last_epoch_finish(
    tmp_path: Path, parvae: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.cli import main
    from pipeline.bundle import Bundle

    data, model = write_correlated(tmp_path / "data", 3000), tmp_path / "model"
    argv = ["train", str(data), "--model", str(model), "--epochs", "3", "--latent", "2", "--error", "none"]

    def die(self: Bundle, folder: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "save", die)
        assert main(argv) == 130
    assert not (model / "bundle.json").exists()
    figures = parvae(*argv)
    assert figures["epochs"] == 3
    calm = parvae(*argv[:3], tmp_path / "calm", *argv[4:])
    assert bits(figures) == bits(calm)
    assert (model / "weights.safetensors").read_bytes() == (tmp_path / "calm" / "weights.safetensors").read_bytes()


def test_is_a_loss_that_is_not_finite_named(
    tmp_path: Path, parvae: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli import main

    data = write_correlated(tmp_path / "data", 3000)
    argv = [
        "train",
        str(data),
        "--model",
        str(tmp_path / "m"),
        "--epochs",
        "3",
        "--set",
        "training.learning_rate=1e30",
    ]
    assert main(argv) == 1
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "m" / "bundle.json").exists()


def test_are_tensorboard_events_written_on_request(tmp_path: Path, parvae: Command) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = write_correlated(tmp_path / "data", 2000)
    parvae("train", data, "--model", tmp_path / "m", "--epochs", 3, "--error", "none", "--tensorboard", tmp_path / "tb")
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert len(events.Scalars("minus_elbo_bits")) == 3


def wait_until(holds: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
