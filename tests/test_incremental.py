"""Does an archive grow, and does it say what changed, went missing, cannot be read, or no longer fits the model?"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.archive import Archive
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.ledger import Ledger
from pipeline.storage import Location
from tests.conftest import Command
from tests.small import save_model, train_here
from vae_model.config import NetworkConfig

ROWS = 3000


def table(seed: int, shift: float = 0.0) -> pa.Table:
    """Two columns of which one almost tells the other; with a shift, no longer."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=ROWS)
    y = 3 * x + 0.01 * rng.normal(size=ROWS) + shift * rng.normal(size=ROWS)
    return pa.table({"x": x.astype(np.float32), "y": y, "row": pa.array(np.arange(ROWS) + 10_000 * seed)})


def write(folder: Path, name: str, content: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(content, folder / name, row_group_size=1000)
    return folder / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A dataset of two files and a model of it."""
    folder = tmp_path_factory.mktemp("grow")
    for seed in (1, 2):
        write(folder / "data", f"m{seed}.parquet", table(seed))
    config = TrainConfig(
        passthrough=("row",), effort="fast", network=NetworkConfig(latent_dim=2), training=Optimization(epochs=4)
    )
    dataset = open_dataset(Location(str(folder / "data")))
    save_model(dataset, train_here(dataset, config), Location(str(folder / "model")))
    return folder


class Place:
    """A copy of the dataset, and the archive that is made of it."""

    def __init__(self, trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(trained / "data", folder / "data")
        self.data, self.model, self.out = folder / "data", trained / "model", folder / "archive"
        self._capsys = capsys

    def encode(
        self, *more: str, keep: str = "corrections", status: int | tuple[int, ...] = 0
    ) -> tuple[dict[str, Any], str]:
        """Runs `encode`; returns its figures and what it logged."""
        self._capsys.readouterr()
        argv = ["encode", str(self.data), "--model", str(self.model), "--out", str(self.out), "--keep", keep]
        found = main([*argv, *more])
        captured = self._capsys.readouterr()
        assert found in (status if isinstance(status, tuple) else (status,)), captured.err
        return dict(json.loads(captured.out.splitlines()[-1])) if found in (0, 3) else {}, captured.err

    @property
    def archive(self) -> Archive:
        return Archive.open(Location(str(self.out)))

    def rows(self) -> list[int]:
        """The key of every row, as it is decoded."""
        return list(self.archive.read(columns=["row"])["row"].to_pylist())


@pytest.fixture
def place(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(trained, tmp_path, capsys)


def keys(*seeds: int) -> list[int]:
    return [key for seed in seeds for key in range(10_000 * seed, 10_000 * seed + ROWS)]


@pytest.mark.parametrize("keep", ["both", "corrections"])
def test_are_new_files_added_without_touching_the_old_parts(place: Place, keep: str, parvae: Command) -> None:
    place.encode(keep=keep)
    stamps = {path: path.stat().st_mtime_ns for path in (place.out / "parts").iterdir()}
    write(place.data, "a-first.parquet", table(3))
    write(place.data, "m3.parquet", table(4))
    figures, _ = place.encode(keep=keep)
    assert figures["added"] == {"rows": 2 * ROWS, "files": 2, "parts": 2}
    assert (figures["rows"], figures["files"], figures["drift"], figures["files_gone"]) == (4 * ROWS, 4, [], [])
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert place.rows() == keys(1, 2, 3, 4)
    sizes = place.archive.manifest["bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert figures["bytes"]["total"] == sum(path.stat().st_size for path in place.out.rglob("*") if path.is_file())
    assert parvae("evaluate", place.data, place.out)["violations"] == 0
    assert parvae("verify", place.out)["rows"] == 4 * ROWS
    back = place.out.parent / "back"
    parvae("decode", place.out, "--out", back)
    assert {path.name for path in back.iterdir()} == {path.name for path in place.data.iterdir()}


def test_is_an_archive_with_nothing_to_add_left_as_it_is(place: Place) -> None:
    place.encode()
    before = {path: path.stat().st_mtime_ns for path in place.out.rglob("*") if "parts" in path.parts}
    shutil.copy(place.data / "m1.parquet", place.data / "copy")
    os.replace(place.data / "copy", place.data / "m1.parquet")  # the same file, copied again
    figures, _ = place.encode()
    assert figures["added"] == {"rows": 0, "files": 0, "parts": 0}
    assert figures["rows"] == 2 * ROWS
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_is_a_file_that_changed_refused_and_encoded_anew_on_request(place: Place) -> None:
    place.encode()
    write(place.data, "m2.parquet", table(5))
    _, said = place.encode(status=2)
    assert "'m2.parquet' has changed since it was encoded" in said
    assert "--overwrite" in said
    assert place.rows() == keys(1, 2)
    place.encode("--overwrite")
    assert place.rows() == keys(1, 5)


def test_is_a_file_that_is_gone_reported_and_kept(place: Place) -> None:
    place.encode()
    (place.data / "m1.parquet").unlink()
    write(place.data, "m9.parquet", table(9))
    figures, said = place.encode()
    assert figures["files_gone"] == ["m1.parquet"]
    assert "no longer in DATA (m1.parquet" in said
    assert place.rows() == keys(1, 2, 9)


def test_is_another_promise_for_the_same_archive_refused(place: Place) -> None:
    place.encode()
    _, said = place.encode("--error", "0.1r", status=2)
    assert "with another promise" in said
    _, said = place.encode("--error", "none", keep="latents", status=2)
    assert "with another promise" in said


@pytest.mark.parametrize("keep", ["corrections", "latents"])
def test_is_drift_named(place: Place, keep: str) -> None:
    place.encode(keep=keep)
    write(place.data, "new.parquet", table(3))
    write(place.data, "odd.parquet", table(4, shift=30.0))
    figures, said = place.encode(keep=keep)
    assert [drift["path"] for drift in figures["drift"]] == ["odd.parquet"]
    assert figures["drift"][0]["bits_per_row"] > 1.25 * figures["drift"][0]["expected"]
    assert "odd.parquet costs" in said
    assert "train a new one" in said


def damage_footer(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_page(path: Path) -> None:
    data, chunk = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(2).column(1)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)


def change_schema(path: Path) -> None:
    pq.write_table(pq.read_table(path).rename_columns(["x", "z", "row"]), path)


@pytest.mark.parametrize("damage", [damage_footer, damage_page, change_schema])
def test_are_bad_files_left_out_listed_and_taken_up_once_mended(place: Place, damage: Any, parvae: Command) -> None:
    bad = write(place.data, "a-bad.parquet", table(3))
    whole = bad.read_bytes()
    damage(bad)
    _, said = place.encode(status=(1, 2) if damage is damage_page else 2)  # 1 where another file was finished first
    assert "a-bad.parquet" in said
    figures, said = place.encode("--on-error", "quarantine", "--overwrite", status=3)
    assert [entry["path"] for entry in figures["quarantined"]] == ["a-bad.parquet"]
    assert figures["quarantined"][0]["reason"]
    assert "a-bad.parquet is left out" in said
    assert place.archive.manifest["quarantined"] == figures["quarantined"]
    assert place.rows() == keys(1, 2)
    if damage is not damage_page:
        assert parvae("evaluate", place.data, place.out)["violations"] == 0
    bad.write_bytes(whole)
    figures, _ = place.encode()
    assert figures["added"]["files"] == 1
    assert place.rows() == keys(1, 2, 3)
    assert "quarantined" not in place.archive.manifest


def test_is_a_file_left_out_that_fails_while_coders_are_chosen(place: Place) -> None:
    damage_page(write(place.data, "a-bad.parquet", table(3)))
    figures, _ = place.encode("--on-error", "quarantine", "--error", "0.05r", status=3)
    assert [entry["path"] for entry in figures["quarantined"]] == ["a-bad.parquet"]
    assert place.rows() == keys(1, 2)


def test_is_a_dataset_without_one_good_file_refused(place: Place) -> None:
    for path in place.data.iterdir():
        damage_footer(path)
    _, said = place.encode("--on-error", "quarantine", status=2)
    assert "not a readable Parquet file" in said
    assert not place.out.exists()


def test_does_a_killed_addition_continue_and_is_the_archive_whole_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.encode()
    for seed in (3, 4):
        write(place.data, f"m{seed}.parquet", table(seed))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.archive_run.write_manifest", die)
        place.encode(status=130)
    assert len(Ledger(Location(str(place.out))).entries()) == 2
    assert place.rows() == keys(1, 2)
    write(place.data, "m0.parquet", table(5))  # comes before the others, which get other numbers
    figures, _ = place.encode()
    assert figures["added"]["files"] == 3
    assert place.rows() == keys(1, 2, 5, 3, 4)
    assert {path.name for path in place.out.iterdir()} == {
        *("_manifest.json", "_model", "_parts.parquet", "_plan.json", "parts")
    }
    assert len(list((place.out / "parts").iterdir())) == 5
