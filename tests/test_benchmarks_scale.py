"""Do the benchmarks of many files and many parts make what they say, and notice what they are there to notice?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks import requests
from benchmarks.many_files import check_archive, check_decoded, main, summary
from benchmarks.million_parts import ROW_GROUPS, describe, opened
from benchmarks.sensor_files import DEVICES, SCHEMA, file_rows, write_files
from benchmarks.usage import memory_of
from benchmarks.watched import flatness, kill_all
from pipeline.dataset import open_dataset
from pipeline.storage import Location
from tests.small import encode_here, tiny_bundle

FILES, ROWS = 3, 9_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sensors") / "data"
    list(write_files(folder, FILES, ROWS, seed=1))
    return folder


def test_do_files_hold_the_rows_that_were_asked_for(data: Path) -> None:
    assert sum(file_rows(1000, 20_000_000, 0)) == 20_000_000
    assert len(set(file_rows(1000, 20_000_000, 0))) > 900
    assert sum(file_rows(7, 3, 0)) == 3
    tables = [pq.read_table(path) for path in sorted(data.rglob("*.parquet"))]
    assert [table.num_rows for table in tables] == file_rows(FILES, ROWS, 1)
    assert all(table.schema.equals(SCHEMA) for table in tables)
    table = pa.concat_tables(tables).unify_dictionaries()
    time_us = table["time"].cast(pa.int64()).to_numpy()
    assert (time_us[1:] > time_us[:-1]).all(), "a time came twice"
    assert pc.count_distinct(table["device"].cast(pa.string())).as_py() == DEVICES
    assert 0 < table["humidity"].null_count < ROWS / 50
    assert 0 < pc.sum(table["alarm"]).as_py() < ROWS


def test_are_files_written_once_and_always_the_same(data: Path, tmp_path: Path) -> None:
    paths = list(write_files(tmp_path, FILES, ROWS, seed=1))
    for path in paths:
        assert path.read_bytes() == (data / path.relative_to(tmp_path)).read_bytes()
    paths[1].unlink()
    kept = paths[0].stat().st_mtime_ns
    list(write_files(tmp_path, FILES, ROWS, seed=1))
    assert (paths[0].stat().st_mtime_ns, paths[1].exists()) == (kept, True)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture(scope="module")
def encoded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the files."""
    folder = tmp_path_factory.mktemp("archive") / "archive"
    dataset = open_dataset(Location(str(data)))
    table = pq.read_table(next(iter(sorted(data.rglob("*.parquet")))))
    encode_here(dataset, tiny_bundle(table), Location(str(folder)), "corrections")
    return folder


@pytest.fixture
def archive(encoded: Path, tmp_path: Path) -> Path:
    """A copy of the archive to spoil."""
    shutil.copytree(encoded, tmp_path / "archive")
    return tmp_path / "archive"


def test_is_a_good_archive_good(data: Path, archive: Path) -> None:
    found = check_archive(data, archive)
    assert found["good"]
    assert (found["rows"], found["parts"], found["left over"]) == (ROWS, FILES, [])


def test_are_orphan_and_missing_parts_noticed(data: Path, archive: Path) -> None:
    part = next(iter(sorted((archive / "parts").iterdir())))
    shutil.copy(part, archive / "parts" / "000099-0123456789ab.parquet")
    found = check_archive(data, archive)
    assert (found["good"], found["orphan parts"]) == (False, ["000099-0123456789ab.parquet"])
    part.unlink()
    assert check_archive(data, archive)["parts missing"] == 1


def test_are_files_that_an_archive_lacks_noticed(data: Path, archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    first, second, _ = sorted(copy.rglob("*.parquet"))
    pq.write_table(pq.read_table(first).slice(1), first)
    assert check_archive(copy, archive)["files of other rows"] == 1
    second.rename(second.with_name("new.parquet"))
    found = check_archive(copy, archive)
    assert (found["good"], found["files of other rows"], found["files without source"]) == (False, 2, 1)


def swapped(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, table.num_rows)])


def doubled(table: pa.Table) -> pa.Table:
    return table.take([0, 0, *range(2, table.num_rows)])


def beyond(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("pressure")
    values = [table["pressure"][0].as_py() + 100, *table["pressure"].to_pylist()[1:]]
    return table.set_column(place, table.schema.field(place), pa.array(values, pa.float32()))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda table: table.slice(1), "files of other rows"),
        (lambda table: pa.concat_tables([table, table.slice(0, 1)]), "files of other rows"),
        (swapped, "files of other rows"),
        (doubled, "files of other rows"),
        (beyond, "violations"),
    ],
)
def test_are_lost_doubled_swapped_and_wrong_rows_noticed(
    spoil: Callable[[pa.Table], pa.Table], what: str, data: Path, archive: Path, tmp_path: Path
) -> None:
    decoded = tmp_path / "decoded"
    shutil.copytree(data, decoded)
    good = check_decoded(data, decoded, archive)
    assert (good["good"], good["rows"], good["violations"]) == (True, ROWS, 0)
    path = next(iter(sorted(decoded.rglob("*.parquet"))))
    pq.write_table(spoil(pq.read_table(path)), path)
    found = check_decoded(data, decoded, archive)
    assert not found["good"]
    assert found[what]


def test_are_files_too_many_and_too_few_noticed(data: Path, archive: Path, tmp_path: Path) -> None:
    decoded = tmp_path / "decoded"
    shutil.copytree(data, decoded)
    path = next(iter(sorted(decoded.rglob("*.parquet"))))
    path.rename(path.with_name(".spool"))
    found = check_decoded(data, decoded, archive)
    assert (found["good"], len(found["files of other rows"]), len(found["left over"])) == (False, 1, 1)


def test_does_a_kill_reach_processes_that_left_the_group() -> None:
    sleep = "import time; time.sleep(99)"
    start = f"subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
    grandchild = f"import subprocess, sys; {start}; {sleep}"
    process = subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not (family := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < until:
            time.sleep(0.02)
        assert kill_all(process.pid) == 1
    finally:
        process.kill()
    assert process.wait() == -9
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
    assert kill_all(process.pid) == 0


def test_is_the_memory_of_a_process_seen() -> None:
    code = "kept = b'x' * 60_000_000; print(len(kept), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"60000000\n"
        found = memory_of(child.pid)
        assert set(memory_of(child.pid, unique=False)) == {"worker MB", "driver MB"}
        child.communicate(b"\n")
    assert found["driver MB"] > 60
    assert found["all MB"] > 60
    assert found["worker MB"] == 0


def test_is_growth_the_last_quarter_against_the_second() -> None:
    def run(grow: float) -> dict[str, Any]:
        sizes = [100.0 + grow * number for number in range(40)]
        starting = [{"units": 0, "worker MB": size, "driver MB": 10.0, "all MB": 10.0} for size in (0.0, *[5.0] * 40)]
        busy = [{"units": 1, "worker MB": size, "driver MB": 50.0, "all MB": 3 * size} for size in sizes]
        return {"samples": [*starting, *busy]}

    flat, growing = flatness(run(0)), flatness(run(1))
    assert (flat["worker MB"], flat["worker growth"], flat["driver growth"]) == (100, 1, 1)
    assert growing["all growth"] == pytest.approx((100 + 34.5) / (100 + 14.5))
    assert growing["all MB"] == 3 * 139


def test_does_a_finished_run_only_tell_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"seconds": 1.0, "units": 1, "worker MB": 9.0, "driver MB": 9.0, "all MB": 9.0}
    run = {"units": 5, "seconds": 2.0, "status": 0, "samples": [sample]}
    asked = {"files": 5, "rows": 50, "train_files": 20, "kill": 0, "keep": "both", "seed": 0}
    done = {"asked": asked, "files": {}, "train": run, "encode": run, "decode": run}
    figures = {**done, "check archive": {"good": True}, "check decoded": {"good": False}}
    (tmp_path / "steps.json").write_text(json.dumps(figures))
    arguments = ["--out", str(tmp_path), "--files", "5", "--rows", "50"]
    assert main(arguments) == 1
    assert "encode" in capsys.readouterr().out
    assert [line["step"] for line in summary(figures)] == ["train", "encode", "decode"]
    with pytest.raises(SystemExit, match="holds another run"):
        main([*arguments, "--seed", "1"])


def test_does_a_description_of_many_parts_open(tmp_path: Path) -> None:
    describe(Location(str(tmp_path)), 50)
    lines = opened(Location(str(tmp_path)))
    assert [line["parts"] for line in lines] == [50, 25, 50]
    assert all(line["seconds"] > 0 and line["peak MB"] >= line["of it libraries MB"] > 10 for line in lines)
    assert json.loads((tmp_path / "_manifest.json").read_text())["rows"] == 50 * sum(ROW_GROUPS)


def test_are_requests_split_into_those_of_files_and_those_of_runs() -> None:
    few, many = Counter({"GET": 30, "PUT": 12}), Counter({"GET": 50, "PUT": 32})
    lines = {line["method"]: (line["a file"], line["a run"]) for line in requests.table({"x": few}, {"x": many}, 10)}
    assert lines["GET"] == (1.0, 20.0)
    assert lines["PUT"] == (1.0, 2.0)
    assert lines["HEAD"] == (0.0, 0.0)
