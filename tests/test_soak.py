"""Does the soak run what it says, count what it ran, and go on where it stopped?"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks import soak

TESTS = """
import pytest

@pytest.mark.parametrize("place", ["a", "b"])
def test_one(place):
    pass

def test_two():
    assert False, "two fails"

@pytest.fixture
def broken():
    raise OSError("no room")

def test_three(broken):
    pass
"""


def test_has_every_fault_test_its_row_in_the_documentation() -> None:
    module = ast.parse(soak.TESTS.read_text())
    tests = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert [fault.test for fault in soak.FAULTS] == tests
    page = (soak.ROOT / "docs" / "reliability.md").read_text()
    for fault in soak.FAULTS:
        assert f"| {fault.what} | {fault.when} | {fault.recovery} | 0 | 0 | `{fault.test}` |" in page


def test_are_rounds_counted_and_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests, out = tmp_path / "test_something.py", tmp_path / "soak.json"
    tests.write_text(TESTS)
    faults = tuple(soak.Fault(f"test_{name}", name, "now", "somehow") for name in ("one", "two", "three", "gone"))
    monkeypatch.setattr(soak, "TESTS", tests)
    monkeypatch.setattr(soak, "FAULTS", faults)
    monkeypatch.setattr("sys.argv", ["soak", "--rounds", "1", "--out", str(out)])
    assert soak.main() == 1
    rounds = json.loads(out.read_text())
    assert {name: run["outcome"] for name, run in rounds[0]["tests"].items()} == {
        "test_one[a]": "passed",
        "test_one[b]": "passed",
        "test_two": "failed",
        "test_three": "failed",
    }
    assert "two fails" in rounds[0]["tests"]["test_two"]["told"]
    assert [soak.passed_of(rounds, fault) for fault in faults] == [1, 0, 0, 0]
    tests.write_text("raise RuntimeError('must not run again')")
    assert soak.main() == 1
    assert "| `test_one` | 1 of 1 |" in capsys.readouterr().out
