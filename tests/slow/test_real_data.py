"""Do the real datasets survive the tour as the README gives it?"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Command

pytestmark = pytest.mark.slow

DATASETS = {
    "mnist": (["label", "split"], "columns: {image: {kind: vector, shape: [28, 28]}}"),
    "adult": (["income"], ""),
    "nycflights13": (["arr_delay"], ""),
    "beijing_multisite": (["PM2.5"], ""),
    "connect4": (["target"], ""),
    "embed_resnet18_cifar10": (["label", "task"], ""),
}


MOST_ROWS, MOST_BYTES = 20_000, 8 << 20
"""What is taken of a dataset, from its first row on; `docs/results.md` has the whole ones."""


@pytest.mark.parametrize("name", DATASETS)
def test_does_a_real_dataset_come_back(name: str, shared_data: Path, tmp_path: Path, parvae: Command) -> None:
    table = pq.read_table(shared_data / f"{name}.parquet")
    source = tmp_path / f"{name}.parquet"
    pq.write_table(table.slice(0, min(MOST_ROWS, MOST_BYTES * table.num_rows // table.nbytes)), source)
    labels, config = DATASETS[name]
    (tmp_path / "config.yaml").write_text(config)
    model, archive, back = (tmp_path / part for part in ("model", "archive", "decoded"))
    passthrough = [word for label in labels for word in ("--passthrough", label)]
    trained = parvae(
        "train", source, "--model", model, "--config", tmp_path / "config.yaml", *passthrough, "--epochs", 2,
        "--set", "training.batch_size=256", "--effort", "fast",
    )  # fmt: skip
    parvae("encode", source, "--model", model, "--out", archive)
    parvae("decode", archive, "--out", back)
    figures = parvae("evaluate", source, archive)
    original, decoded = pq.ParquetFile(source), pq.ParquetFile(back / source.name)
    assert decoded.schema_arrow.equals(original.schema_arrow, check_metadata=True)
    assert decoded.metadata.num_rows == original.metadata.num_rows == figures["rows"] == trained["rows"]
    for label in labels:
        assert decoded.read([label]).equals(original.read([label])), label
        assert figures["columns"][label]["mismatch_rate"] == 0
    assert figures["minus_elbo_bits_per_row"] == pytest.approx(trained["minus_elbo_bits_per_row"], rel=0.05)
    assert figures["active_units"] >= 1
    assert figures["violations"] == 0
