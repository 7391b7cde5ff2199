"""Does every work unit get its answer, whether actors do it or tasks?"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cluster import connected
from pipeline.errors import DatasetError, JobError
from pipeline.units import _FEW, run_units

FEW, MANY = _FEW, _FEW + 1
"""Units of a worker that become tasks, and those that are given to an actor."""


class Work:
    """Answers with what it was made of, by which process, and as which unit of its maker."""

    def __init__(self, name: str) -> None:
        self._name, self._done = name, 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if item.get("fails") == "input":
            raise DatasetError("the 3rd row group is broken", "a.parquet")
        if item.get("fails") == "disk":
            raise OSError("no space left")
        if item.get("fails") == "bug":
            raise ZeroDivisionError("a mistake of ours")
        self._done += 1
        return {"item": item, "name": self._name, "process": os.getpid(), "done": self._done}


def answers(name: str, items: list[dict[str, Any]], workers: int = 1, overlap: int = 1) -> list[dict[str, Any]]:
    with connected() as cluster:
        return list(run_units(items, Work, {"name": name}, cluster, workers, overlap=overlap))


@pytest.mark.parametrize(("count", "workers", "overlap"), [(0, 1, 1), (FEW, 1, 1), (3, 2, 1), (MANY, 1, 1), (3, 1, 2)])
def test_is_every_unit_answered_by_the_worker_of_its_run(
    ray_session: None, count: int, workers: int, overlap: int
) -> None:
    for name in ("first", "second"):
        found = answers(name, [{"number": number} for number in range(count)], workers, overlap)
        assert sorted(answer["item"]["number"] for answer in found) == list(range(count))
        assert {answer["name"] for answer in found} <= {name}


def test_is_a_worker_made_once_in_a_process(ray_session: None) -> None:
    found = answers("once", [{"number": number} for number in range(FEW)])
    for process in {answer["process"] for answer in found}:
        done = [answer["done"] for answer in found if answer["process"] == process]
        assert sorted(done) == list(range(1, len(done) + 1))


@pytest.mark.parametrize("count", [1, MANY])
@pytest.mark.parametrize(
    ("fails", "error", "said"),
    [
        ("input", DatasetError, "3rd"),
        ("disk", JobError, "no space"),
        ("bug", JobError, r"(?s)a worker failed on .*\n.*a mistake of ours"),
    ],
)
def test_does_an_error_keep_its_type_and_its_words(
    ray_session: None, count: int, fails: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        answers("failing", [{"number": number, "fails": fails} for number in range(count)])


def test_does_the_driver_hear_of_an_error_before_its_block_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import units

    monkeypatch.setattr(units, "_is_stopped", lambda handle: False)
    content = {"worker": Work, "arguments": {"name": "one"}}
    monkeypatch.setattr(units.ray, "get", lambda handle: content)
    items = [{"number": 0}, {"number": 1, "fails": "disk"}, {"number": 2}, {"number": 3}]
    batch = pa.table({"item": [json.dumps(item) for item in items]})
    found = units._UnitActor()(batch, [None]).column("result").to_pylist()
    assert [list(json.loads(text)) for text in found] == [["result"], ["error", "arguments"], [], []]


class Slow:
    """Leaves a file when a unit begins and one when it ends; unit 0 fails while another is under way."""

    def __init__(self, folder: Path, bad_input: bool) -> None:
        self._folder, self._bad_input = folder, bad_input

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        begun = self._folder / f"{item['number']}.begun"
        begun.touch()
        if item["number"] == 0:
            for _ in range(600):
                if len(list(self._folder.glob("*.begun"))) > len(list(self._folder.glob("*.ended"))) + 1:
                    raise DatasetError("the disk or a file", "a.parquet") if self._bad_input else OSError("the disk")
                time.sleep(0.1)
        time.sleep(1.5)
        begun.with_suffix(".ended").touch()
        return item


@pytest.mark.parametrize("count", [2 * FEW, 2 * MANY])
@pytest.mark.parametrize("bad_input", [True, False])
def test_is_nothing_under_way_when_an_error_comes_and_what_ended_told(
    ray_session: None, tmp_path: Path, count: int, bad_input: bool
) -> None:
    told: set[str] = set()
    arguments = {"folder": tmp_path, "bad_input": bad_input}
    with connected() as cluster:
        results = run_units([{"number": number} for number in range(count)], Slow, arguments, cluster, 2)
        with pytest.raises(DatasetError if bad_input else JobError, match="the disk"):
            told.update(str(result["number"]) for result in results)
    found = {path.name for path in tmp_path.iterdir()}
    time.sleep(1)
    assert {path.name for path in tmp_path.iterdir()} == found
    begun, ended = ({name[:-6] for name in found if name.endswith(end)} for end in (".begun", ".ended"))
    assert begun - ended == {"0"}
    assert 0 < len(ended) < count - 1
    assert told == ended or (bad_input and not told)
