"""Does the benchmark of a device measure every stage?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import device_training
from benchmarks.device import main, work


def test_is_every_stage_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "device.json"
    assert main(["--device", "cpu", "--batch", "4", "--seconds", "0.001", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    stages = ["train", "encode", "exact decoder"]
    names = [f"{name}: {stage}" for name in ("sensors", "images") for stage in stages] + ["sensors: row coder"]
    assert [line["stage"] for line in found["stages"]] == names
    assert all(line["rows/s"] > 0 and line["GFLOP/s"] > 0 and line["% of limit"] > 0 for line in found["stages"])
    assert all(0 < line["% in kernels"] <= 100 for line in found["stages"] if line["stage"].endswith("train"))
    assert min(found["limits"].values()) > 0
    assert "| images: exact decoder | " in capsys.readouterr().out


def test_is_the_work_of_a_product_counted() -> None:
    left, right = torch.ones(8, 16), torch.ones(16, 4)
    assert work(lambda: (left @ right).T) == (2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4))
    total = torch.zeros(8, 4)
    assert work(lambda: total.addmm_(left, right))[0] == 2 * 8 * 16 * 4


def test_is_training_measured_with_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "training.json"
    words = ["--device", "cpu", "--rows", "400", "--batch", "50", "--out", str(out)]
    assert device_training.main(words) == 0
    found = json.loads(out.read_text())
    assert [line["network"] for line in found] == ["sensors", "images"]
    assert all(line["rows/s"] > 0 and 0 < line["% in kernels"] <= 100 for line in found)
    assert "images" in capsys.readouterr().out
