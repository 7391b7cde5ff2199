"""Does the benchmark of workers count what it says?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.usage import processor_seconds
from benchmarks.workers import FIGURES, predicted, rates, table_of
from jobs.inspect import format_table


def test_are_rates_those_between_the_marks() -> None:
    marks = [(2, 10.0, {"worker": 5.0, "all": 7.0}), (3, 11.0, {"worker": 6.0, "all": 8.0})]
    marks.append((6, 14.0, {"worker": 9.0, "all": 15.0}))
    found = rates(marks, rows_a_file=1000)
    assert found == {"rows/s": 1000.0, "worker µs/row": 1000.0, "all µs/row": 2000.0}


def test_is_the_time_of_children_counted() -> None:
    words = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        own, whole = processor_seconds(child.pid), processor_seconds(os.getpid())
        child.kill()
    assert own["all"] >= 0.3
    assert own["worker"] == 0
    assert whole["all"] >= own["all"] + 0.1


def test_are_ratios_taken_round_by_round() -> None:
    one, two, four = (dict.fromkeys(FIGURES, value) for value in (1.0, 2.0, 4.0))
    lines = table_of({("encode", 1): [one, two, four], ("encode", 2): [four, four, four]}, cpus=2)
    assert [line["workers"] for line in lines] == [1, 2, "2 / 1"]
    assert [line["rows/s"] for line in lines] == pytest.approx([2.0, 4.0, 2.0])
    assert "2 / 1" in format_table(lines)


def test_is_the_prediction_bound_by_workers_or_by_cpus() -> None:
    one = {"rows/s": 9.0, "worker µs/row": 10.0, "all µs/row": 12.0}
    assert predicted(one, 1, cpus=4) == 100_000
    assert predicted(one, 2, cpus=4) == 200_000
    assert predicted(one, 2, cpus=2) == pytest.approx(166_666.7)
