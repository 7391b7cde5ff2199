"""Does `parvae classify` tell what latents are worth, on one split for all, and refuse what is no label?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from jobs.cli import main
from pipeline.archive import Archive
from pipeline.classifiers import score
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.features import load
from pipeline.labelled import Draw, LabelledRows
from pipeline.labels import check_label
from pipeline.storage import Location
from tests.conftest import Command
from tests.small import encode_here, train_here
from vae_model.config import NetworkConfig

ROWS = 1500
PASSED = ("label", "text", "nulls", "price", "one", "part", "key")


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2))
    label = (np.hypot(*x.T) > 1.2).astype(np.int64) + (x[:, 0] > 0)
    columns = {
        "x": x[:, 0],
        "y": x[:, 1],
        "z": x.sum(1) + rng.normal(0, 0.1, ROWS),
        "c": pa.array(np.where(x[:, 0] > 0, "right", "left")).dictionary_encode(),
        "when": pa.array(rng.integers(0, 10**9, ROWS), pa.timestamp("s")),
        "v": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=ROWS * 3).astype(np.float32)), 3),
        "n": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.1),
        "label": label.astype(np.int8),
        "text": pa.array(np.where(label > 0, "yes", "no")).dictionary_encode(),
        "nulls": pa.array(label, mask=rng.random(ROWS) < 0.01),
        "price": rng.normal(size=ROWS),
        "one": np.ones(ROWS, np.int32),
        "part": np.where(np.arange(ROWS) % 4 == 0, "test", "train"),
        "key": np.arange(ROWS),
    }
    return pa.table(columns)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    work = tmp_path_factory.mktemp("classify")
    (work / "data").mkdir()
    for number in range(3):
        pq.write_table(table().slice(number * 500, 500), work / "data" / f"{number}.parquet")
    config = TrainConfig(
        passthrough=PASSED, network=NetworkConfig(latent_dim=3, hidden=(32,)), training=Optimization(epochs=20)
    )
    dataset = open_dataset(Location(str(work / "data")))
    encode_here(dataset, train_here(dataset, config), Location(str(work / "archive")), "both")
    return work / "archive"


def rows_of(archive: Path, draw: Draw) -> LabelledRows:
    opened = Archive.open(Location(str(archive)))
    return LabelledRows(opened, load(str(archive)), check_label(opened, "label", False), draw)


def test_are_all_features_scored_by_both_classifiers(parvae: Command, archive: Path) -> None:
    figures = parvae("classify", archive, "--label", "label", "--seeds", 2)
    assert figures["classes"] == {str(n): int(np.sum(table()["label"].to_numpy() == n)) for n in range(3)}
    scores = {(row["features"], row["classifier"]): row for row in figures["scores"]}
    assert set(scores) == {(f, c) for f in ("latents", "pca", "raw") for c in ("logistic", "boosting")}
    assert scores["latents", "logistic"]["width"] == scores["pca", "logistic"]["width"] == 3
    assert scores["raw", "boosting"]["accuracy"] > 0.9
    assert scores["raw", "boosting"]["auroc"] > 0.95
    assert scores["raw", "logistic"]["accuracy"] < scores["raw", "boosting"]["accuracy"]
    assert all(not row["streamed"] and 0 <= row["accuracy_sd"] < 0.1 for row in figures["scores"])


def test_is_the_split_the_same_for_all_features(archive: Path) -> None:
    rows = rows_of(archive, Draw(None, 0.2, 7))
    latents, raw = rows.of("latents").collect(), rows.of("raw").collect()
    assert np.array_equal(latents.y_train, raw.y_train)
    assert np.array_equal(latents.y_test, raw.y_test)
    assert 0.15 < len(raw.y_test) / ROWS < 0.25
    other = rows_of(archive, Draw(None, 0.2, 8)).of("latents").collect()
    assert not np.array_equal(other.x_test[:10], latents.x_test[:10])


def test_is_an_official_split_kept(archive: Path) -> None:
    split = rows_of(archive, Draw(("part", "test"), 0.2, 0)).of("latents").collect()
    labels = table()["label"].to_numpy()
    assert np.array_equal(split.y_test, labels[::4])
    assert np.array_equal(split.x_test, load(str(archive)).to_numpy()[::4])


def test_is_what_outgrows_memory_streamed_to_like_scores(parvae: Command, archive: Path) -> None:
    from pipeline.classify import ClassifyOptions, classify

    small = classify(Location(str(archive)), ClassifyOptions("label", seeds=1, memory=1000))
    large = classify(Location(str(archive)), ClassifyOptions("label", seeds=1))
    for one, other in zip(small["scores"], large["scores"], strict=True):
        assert one["streamed"]
        assert not other["streamed"]
        assert abs(one["accuracy"] - other["accuracy"]) < 0.08, (one, other)


def test_are_scores_those_of_their_definitions() -> None:
    truth = np.array([0, 0, 1, 1, 2])
    probabilities = np.eye(4)[[0, 1, 1, 1, 0]] * 0.9 + 0.025
    found = score(truth, probabilities, 10)
    assert found["accuracy"] == 3 / 5
    f1 = [2 * 1 / (2 * 1 + 1 + 1), 2 * 2 / (2 * 2 + 1), 0.0]
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    areas = [roc_auc_score(truth == n, probabilities[:, n]) for n in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert score(np.zeros(3, int), np.eye(2)[[0, 0, 1]], 1)["auroc"] is None
    two = score(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), 1)
    assert two["auroc"] == 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "c"], "--passthrough c, or give --allow-modelled-label"),
        (["--label", "nope"], "names 'nope'"),
        (["--label", "nulls"], "is null in"),
        (["--label", "price"], "is continuous (double"),
        (["--label", "one"], "= 1; two classes are needed"),
        (["--label", "key"], "more than 1,000 different values"),
        (["--label", "label", "--split", "part"], "expected COL=VALUE"),
        (["--label", "label", "--split", "part=none"], "no row is a test row"),
        (["--label", "label", "--test-fraction", "1.5"], "--test-fraction 1.5"),
        (["--label", "label", "--test-fraction", "0.9999"], "rows for 3 latents"),
    ],
)
def test_are_mistakes_named(archive: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["classify", str(archive), *words]) == 2
    assert message in capsys.readouterr().err


def test_may_a_modelled_label_be_asked_for_and_is_it_left_out_of_the_columns(parvae: Command, archive: Path) -> None:
    words = ["--label", "c", "--allow-modelled-label", "--seeds", 1, "--features", "raw", "--classifier", "logistic"]
    figures = parvae("classify", archive, *words)
    with_c = parvae("classify", archive, "--label", "text", *words[3:])
    assert figures["scores"][0]["width"] == with_c["scores"][0]["width"] - 2
