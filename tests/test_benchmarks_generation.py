"""Does the benchmark of made-up rows measure what it says, once?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import generation


def test_is_every_figure_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=800)
    kind = pa.array(np.where(x > 1, "rare", "common")).dictionary_encode()
    pq.write_table(pa.table({"x": x, "noise": rng.normal(size=800), "kind": kind, "drop": x}), tmp_path / "d.parquet")
    words = ["generation", str(tmp_path / "d.parquet"), "--label", "kind", "--drop", "drop", "--no-catboost"]
    settings = ["network.latent_dim=2", "network.hidden=[8]", "training.epochs=2"]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "1"])
    generation.main()
    found = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert set(found) == {f"0 {source}" for source in generation.SOURCES}
    assert found["0 real"]["hgb F1"] > 0.95
    assert found["0 real"]["hgb macro F1"] > found["0 normal"]["hgb macro F1"]
    assert set(found["0 aggregate"]["distances"]) == {"x", "noise", "kind"}
    assert found["0 real"]["columns"] < 0.15
    table = (tmp_path / "out.md").read_text()
    assert table.startswith("| rows | seeds | hgb F1 | hgb macro F1 | columns | pairs |\n| --- |")
    assert "| real | 1 | " in table
    monkeypatch.setattr(generation, "fit_table", lambda *_, **__: pytest.fail("everything is there"))
    generation.main()
    assert table.strip() in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--set", "training.beta=0.5"])
    with pytest.raises(SystemExit, match="choose another file"):
        generation.main()
