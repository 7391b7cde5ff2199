"""Does `parvae score` find what is strange, name the column, and treat what the model never saw as strange?"""

from __future__ import annotations

import base64
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestNeighbors

from jobs.cli import main
from pipeline.anomaly import Scorer, Scores
from pipeline.bundle import Bundle
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.ledger import Ledger
from pipeline.local import fit_table
from pipeline.neighbours import SampleEncoder
from pipeline.score import SCORED_FOLDER, Request, _checked, score
from pipeline.score_files import FileScorer, ScoreOptions
from pipeline.storage import Location
from pipeline.thresholds import WHOLE_FILES, Labels, best_f1, quantile, read_labels
from tests.conftest import Command
from tests.small import as_stored, encode_here, one_batch
from vae_model.config import NetworkConfig

ROWS = 1200
FIELDS = {
    "id": pa.int64(),
    "a": pa.float64(),
    "b": pa.float64(),
    "c": pa.float64(),
    "word": pa.string(),
    "count": pa.int32(),
    "flag": pa.bool_(),
    "vector": pa.list_(pa.float32(), 2),
    "constant": pa.int16(),
    "label": pa.bool_(),
}
PASSTHROUGH = ("id", "label")


def normal_rows(rows: int, seed: int) -> pa.Table:
    """Three columns that say nearly the same, and others without a surprise."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(-1, 1, rows)
    values: dict[str, Any] = {
        "id": np.arange(rows),
        **{name: base * sign + rng.normal(0, 0.03, rows) for name, sign in (("a", 1), ("b", -1), ("c", 2))},
        "word": np.where(base > 0, "up", "down"),
        "count": rng.poisson(20, rows),
        "flag": base > 0.3,
        "vector": list(rng.normal(0, 1, (rows, 2)).astype(np.float32)),
        "constant": np.full(rows, 7),
        "label": np.zeros(rows, bool),
    }
    return as_stored(pa.table({name: pa.array(values[name], kind) for name, kind in FIELDS.items()}))


def changed(table: pa.Table, row: int, **values: Any) -> pa.Table:
    """A table with other values in one row."""
    for name, value in values.items():
        column = table[name].to_pylist()
        column[row] = value
        table = table.set_column(table.schema.names.index(name), name, pa.array(column, FIELDS[name]))
    return table


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = TrainConfig(
        passthrough=PASSTHROUGH,
        network=NetworkConfig(latent_dim=3, hidden=(32,)),
        training=Optimization(epochs=20, batch_size=64, learning_rate=5e-3),
    )
    return fit_table(normal_rows(ROWS, 0), config, threads=1)


@pytest.fixture(scope="module")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score") / "model"
    bundle.save(Location(str(folder)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files and one without rows; rows 5 and 40 of the first are strange."""
    folder = tmp_path_factory.mktemp("score") / "data"
    (folder / "year=1").mkdir(parents=True)
    first = changed(normal_rows(150, 1), 5, b=0.9, a=0.9, c=1.8, label=True)
    first = changed(first, 40, word="sideways", count=200, label=True)
    pq.write_table(first, folder / "year=1" / "x.parquet", row_group_size=64)
    pq.write_table(normal_rows(70, 2), folder / "y.parquet")
    pq.write_table(normal_rows(70, 2).slice(0, 0), folder / "z.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(
    ray_session: None, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Scores by one worker, and the figures; rows above the quantile 0.99 are flagged."""
    out = tmp_path_factory.mktemp("score") / "whole"
    options = ScoreOptions(quantile=0.99)
    return out, score(Location(str(data)), Location(str(model)), Location(str(out)), options, workers=1)


def scored_here(model: Path, data: Path, out: Path, **options: Any) -> Request:
    """Scores every file in this process, by what workers do."""
    request = checked(model, data, **options)
    dataset, wanted = request.dataset, request.options
    reference, units = request.reference, dataset.units(WHOLE_FILES)
    if wanted.neighbours and reference is None:
        encoder = SampleEncoder(request.bundle.files(), dataset.root, wanted.seed, 1.0, dataset.block_rows, "cpu")
        found = [base64.b64decode(encoder(unit.to_json())["latents"]) for unit in units]
        reference = np.frombuffer(b"".join(found), np.float32).reshape(-1, request.bundle.latent_dim)
    share = float(request.reference is None)
    where, files = Location(str(out)), request.bundle.files()
    worker = FileScorer(files, dataset.root, where, wanted, request.keys, reference, share, dataset.block_rows, "cpu")
    for unit in units:
        worker({**unit.to_json(), "stage": "score"})
    return request


def checked(model: Path, data: Path, **options: Any) -> Request:
    return _checked(Location(str(data)), Location(str(model)), Location("memory://nowhere/s"), ScoreOptions(**options))


def scored(bundle: Bundle, table: pa.Table, samples: int = 16, seed: int = 0) -> Scores:
    return Scorer(bundle, samples, seed)(one_batch(table), 0, 0)


def read(out: Path, name: str = "year=1/x.parquet") -> pa.Table:
    return pq.ParquetFile(out / name).read()


def test_is_a_planted_anomaly_found_and_its_column_named(whole: tuple[Path, dict[str, Any]]) -> None:
    out, figures = whole
    table = read(out)
    assert (figures["rows"], figures["files"], figures["anomalies"]) == (220, 3, 2)
    assert np.flatnonzero(table["is_anomaly"]).tolist() == [5, 40]
    strangest = table["strangest"].to_pylist()
    assert (strangest[5], strangest[40]) == ("b", "count")
    assert table["id"].to_pylist() == list(range(150))
    assert min(table["anomaly_score"][row].as_py() for row in (5, 40)) > figures["threshold"]
    contributions = [name for name in table.column_names if name.startswith("contribution.")]
    assert contributions == [f"contribution.{name}" for name in FIELDS if name not in PASSTHROUGH]
    by_column = np.array([table[name].to_numpy()[5] for name in contributions])
    assert contributions[by_column.argmax()] == "contribution.b"
    assert pq.read_metadata(out / "z.parquet").num_rows == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"year=1/x.parquet", "y.parquet", "z.parquet", "_scores.json"}


def test_do_the_parts_of_a_score_add_up(bundle: Bundle) -> None:
    scores = scored(bundle, normal_rows(100, 3))
    np.testing.assert_allclose(scores.anomaly_score, -scores.log_prob)
    np.testing.assert_allclose(scores.log_prob, -scores.surprise.sum(1))
    np.testing.assert_allclose(scores.minus_elbo, scores.kl - scores.log_prob)
    bits = float(scores.minus_elbo.mean()) / math.log(2)
    trained = bundle.training["history"][-1]["minus_elbo_bits"]
    assert abs(bits - trained) < 0.1 * abs(trained)
    # on average a column is as surprising as the model expects; a normal row's sum is near none
    assert np.abs(scores.contributions.mean(0)).max() < 1.0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("word", "sideways"),
        ("word", ""),
        ("word", None),
        ("count", None),
        ("flag", None),
        ("vector", None),
        ("vector", [0.0, float("nan")]),
        ("vector", [1e30, 0.0]),
        ("a", None),
        ("a", float("nan")),
        ("a", float("inf")),
        ("a", -float("inf")),
        ("a", 1e308),
        ("a", 3.0),
        ("count", 1000),
        ("count", -(2**31)),
        ("constant", 8),
        ("constant", 6),
        ("constant", None),
    ],
)
def test_does_what_the_model_never_saw_make_every_row_stranger(bundle: Bundle, column: str, value: Any) -> None:
    table = normal_rows(60, 4)
    before = scored(bundle, table)
    values = pa.array([value] * len(table), FIELDS[column])
    after = scored(bundle, table.set_column(table.schema.names.index(column), column, values))
    number = [name for name in FIELDS if name not in PASSTHROUGH].index(column)
    assert (after.anomaly_score > before.anomaly_score).all()
    assert (after.contributions[:, number] > before.contributions[:, number]).all()
    # 1 of (n + 1): what the model has not seen in n rows has no more; draws of what it expects leave some noise
    assert (after.contributions[:, number] > math.log(ROWS) - 5).all()
    assert (after.contributions.argmax(1) == number).mean() > 0.9
    assert np.isfinite(after.anomaly_score).all()


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian", "gaussian_learned"])
@pytest.mark.parametrize("sign", [1, -1])
def test_is_a_value_the_stranger_the_farther_it_is_outside(likelihood: Any, sign: int) -> None:
    table = normal_rows(200, 5)
    config = TrainConfig(
        passthrough=PASSTHROUGH,
        network=NetworkConfig(latent_dim=2, hidden=(8,), likelihood=likelihood),
        training=Optimization(epochs=2),
    )
    fitted = fit_table(table, config, threads=1)
    for column, kind in (("a", float), ("count", int), ("constant", int)):
        ends = [table[column].to_numpy().max(), table[column].to_numpy().min()]
        edge = kind(ends[0] if sign > 0 else ends[1])
        steps = [0, 1, 5, 30, 200, 3000] + [1e6, 1e20, 1e300, math.inf] * (kind is float)
        rows = changed(table.take([7] * len(steps)), 0)
        values = pa.array([kind(edge + sign * step) if step else edge for step in steps], FIELDS[column])
        rows = rows.set_column(rows.schema.names.index(column), column, values)
        # the same noise for every row: one chunk each
        found = [scored(fitted, rows.slice(number, 1)).anomaly_score[0] for number in range(len(steps))]
        assert (np.diff(found) >= 0).all(), (column, found)
        assert found[1] > found[0]
        assert found[5] > found[2] or column == "constant"


def test_do_seen_nulls_cost_what_they_are_worth(bundle: Bundle) -> None:
    """A null that training saw often is no stranger than a value, though it has no value to pay for."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=800)
    table = pa.table({"x": pa.array(base, mask=rng.random(800) < 0.3), "y": base + rng.normal(0, 0.1, 800)})
    config = TrainConfig(network=NetworkConfig(latent_dim=2, hidden=(16,)), training=Optimization(epochs=15))
    scores = scored(fit_table(table, config, threads=1), table)
    null = np.asarray(table["x"].is_null())
    difference = scores.anomaly_score[null].mean() - scores.anomaly_score[~null].mean()
    assert -1.0 < difference < 4.0


def test_do_the_same_seed_and_any_workers_give_the_same_bytes(
    whole: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path, parvae: Command
) -> None:
    parvae("score", data, "--model", model, "--threshold-quantile", 0.99, "--out", tmp_path / "two", "--workers", 2)
    for name in ("year=1/x.parquet", "y.parquet", "z.parquet"):
        assert (whole[0] / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    scored_here(model, data, tmp_path / "other", seed=1)
    assert not read(tmp_path / "other")["anomaly_score"].equals(read(whole[0])["anomaly_score"])


def test_does_a_file_score_the_same_without_the_others(
    whole: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(read(data, "y.parquet"), tmp_path / "data" / "y.parquet", row_group_size=9)
    scored_here(model, tmp_path / "data", tmp_path / "alone", contributions=False)
    alone, beside = read(tmp_path / "alone", "y.parquet"), read(whole[0], "y.parquet")
    assert alone["anomaly_score"].equals(beside["anomaly_score"])
    assert alone.column_names == ["id", "label", "reconstruction_probability", "minus_elbo", "anomaly_score"]


def test_does_a_killed_score_continue(
    whole: tuple[Path, dict[str, Any]], model: Path, data: Path, tmp_path: Path, parvae: Command
) -> None:
    given, again = ("score", data, "--model", model, "--threshold-quantile", 0.99), tmp_path / "again"
    shutil.copytree(whole[0], again)
    (again / "_scores.json").unlink()
    run = json.loads((whole[0] / "_scores.json").read_text())["run"]
    ledger = Ledger(Location(str(again)))
    ledger.begin(run)
    for path in list(again.rglob("*.parquet")):
        name, table = path.relative_to(again).as_posix(), pq.ParquetFile(path).read()
        waiting = again / SCORED_FOLDER / name
        waiting.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.drop_columns(["is_anomaly"]), waiting)
        entry = {"path": name, "rows": len(table), "anomalies": sum(table["is_anomaly"].to_pylist())}
        ledger.add({**entry, "stage": "score", "bytes": waiting.stat().st_size})
        ledger.add({**entry, "stage": "flag", "bytes": path.stat().st_size})
    ledger.flush()
    (again / SCORED_FOLDER / "y.parquet").unlink()
    (again / "year=1" / "x.parquet").write_bytes(b"half-written")
    (again / "year=1" / ".tmp-x").write_bytes(b"half-written")
    kept = (again / "y.parquet").stat().st_mtime_ns
    figures = parvae(*given, "--out", again)
    assert (figures["resumed"], figures["anomalies"]) == (4, 2)  # 2 of 3 scored, 2 of 3 flagged
    assert (again / "y.parquet").stat().st_mtime_ns == kept
    assert read(again).equals(read(whole[0]))
    names = {path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file()}
    assert names == {"year=1/x.parquet", "y.parquet", "z.parquet", "_scores.json"}


def test_is_finished_output_kept(
    whole: tuple[Path, dict[str, Any]],
    model: Path,
    data: Path,
    tmp_path: Path,
    parvae: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "s"
    shutil.copytree(whole[0], out)
    given = ["score", str(data / "y.parquet"), "--model", str(model), "--out"]
    assert main([*given, str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "z.parquet").exists()
    assert parvae(*given, out, "--overwrite")["rows"] == 70
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"y.parquet", "_scores.json"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert main([*given, str(tmp_path / "other"), "--overwrite"]) == 2
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"
    assert "choose an empty folder" in capsys.readouterr().err


def test_is_a_threshold_found_by_labels_and_used_again(
    model: Path, data: Path, tmp_path: Path, parvae: Command
) -> None:
    figures = parvae("score", data, "--model", model, "--out", tmp_path / "l", "--threshold-label", "label")
    assert (figures["anomalies"], figures["auroc"], figures["average_precision"], figures["f1"]) == (2, 1, 1, 1)
    assert figures["anomaly_label"] is True
    flags = read(tmp_path / "l")["is_anomaly"]
    assert np.flatnonzero(flags).tolist() == [5, 40]
    wanted = {"threshold": figures["threshold"], "keys": ("word", "id")}
    scored_here(model, data, tmp_path / "t", **wanted)
    table = read(tmp_path / "t")
    assert table["is_anomaly"].equals(flags)
    assert table.column_names[:2] == ["word", "id"]
    assert "label" not in table.column_names


def test_are_neighbours_those_of_the_reference(model: Path, data: Path, tmp_path: Path, bundle: Bundle) -> None:
    archive = tmp_path / "archive"
    encode_here(open_dataset(Location(str(data))), bundle, Location(str(archive)), "latents")
    scored_here(model, data, tmp_path / "a", neighbours=2, reference=Location(str(archive)))
    scored_here(model, data, tmp_path / "own", neighbours=2)
    tables = [read(data, name) for name in ("year=1/x.parquet", "y.parquet")]
    latents = [bundle.to_latents(bundle.rows.from_batch(one_batch(table))[0]) for table in tables]
    tree = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(np.concatenate(latents).astype(float))
    expected = tree.kneighbors(latents[0].astype(float))[0]
    np.testing.assert_allclose(read(tmp_path / "a")["neighbour_distance"].to_numpy(), expected[:, 1], atol=1e-6)
    # a row of the sample is not its own neighbour
    np.testing.assert_allclose(read(tmp_path / "own")["neighbour_distance"].to_numpy(), expected[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "none"}, "names the column 'none'"),
        ({"keys": ("none",)}, "--keys names the column 'none'"),
        ({"keys": ("word", "word")}, "two columns of the output would be called 'word'"),
        ({"label": "word", "quantile": 0.5}, "give one of them"),
        ({"quantile": 1.0}, "expected a number above 0 and below 1"),
        ({"threshold": float("nan")}, "expected a finite number"),
        ({"seed": -1}, "--seed -1"),
        ({"reference": Location("/nowhere")}, "with --neighbours K only"),
        ({"neighbours": 220}, "needs more than 220 reference rows, there are 220"),
    ],
)
def test_are_bad_options_refused(model: Path, data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(model, data, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, True, False], "has rows without a label in column 'label'"),
        ([False, False, False], "has only the class False"),
        ([], "has no rows"),
    ],
)
def test_are_bad_labels_refused(model: Path, tmp_path: Path, values: list[Any], message: str) -> None:
    table = normal_rows(3, 0).slice(0, len(values))
    table = table.set_column(table.schema.names.index("label"), "label", pa.array(values, pa.bool_()))
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match=message):
        read_labels(open_dataset(Location(str(tmp_path))), "label", "--threshold-label")


@pytest.mark.parametrize(
    ("values", "anomaly"),
    [
        (pa.array([0, 0, 1, 1, 1]), 1),
        (pa.array([-1.0, 1.0, 1.0]), 1.0),
        (pa.array(["ok", "ok", "bad"]), "bad"),
        (pa.array(["ok", "ok", "bad"]).dictionary_encode(), "bad"),
        (pa.array([1, 2, 3]), "more than two classes"),
        (pa.array([1.0, 2.0, float("nan")]), "rows without a label"),
        (pa.array([[1], [2]]), "labels are booleans, numbers or texts"),
    ],
)
def test_which_class_is_the_anomalous_one(tmp_path: Path, values: pa.Array, anomaly: Any) -> None:
    pq.write_table(pa.table({"l": values}), tmp_path / "x.parquet")
    dataset = open_dataset(Location(str(tmp_path)))
    if isinstance(anomaly, str) and " " in anomaly:
        with pytest.raises(DatasetError, match=anomaly):
            read_labels(dataset, "l", "--threshold-label")
        return
    labels = read_labels(dataset, "l", "--threshold-label")
    assert labels.anomaly == anomaly
    assert labels.anomalous.tolist() == [value == anomaly for value in values.to_pylist()]


@pytest.mark.parametrize("q", [0.001, 0.1, 0.5, 0.99, 0.9999])
def test_is_the_quantile_exact(q: float) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=5000), rng.normal(size=500) * 1e200, np.zeros(700), [-0.0, 1e-310]])
    pieces = np.array_split(rng.permutation(values), 7)
    found = quantile(lambda: pieces, len(values), q)
    assert found == np.quantile(values, q, method="inverted_cdf")
    assert (values > found).mean() <= 1 - q


def test_has_the_threshold_the_highest_f1() -> None:
    rng = np.random.default_rng(0)
    anomalous = rng.random(400) < 0.2
    scores = np.round(rng.normal(size=400) + 1.5 * anomalous, 1)  # with ties
    verdict = best_f1(scores, Labels(anomalous, True))
    every = [f1_score(anomalous, scores > t) for t in np.append(np.unique(scores), scores.min() - 1)]
    assert verdict.figures["f1"] == pytest.approx(max(every))
    assert f1_score(anomalous, scores > verdict.threshold) == pytest.approx(max(every))
    one = best_f1(np.array([1.0, np.nextafter(1.0, 2)]), Labels(np.array([False, True]), True))
    assert one.threshold == 1.0  # nothing lies between two neighbouring floats
    every_row = best_f1(np.array([1.0, 2.0]), Labels(np.array([True, True]) & [True, False], True))
    assert every_row.threshold < 1.0
