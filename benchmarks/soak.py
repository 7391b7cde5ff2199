"""Every fault, again and again: how often is each survived?

usage: python -m benchmarks.soak [--rounds N] [--out FILE.json] [--table]

A round runs all of `tests/slow/test_faults.py` once, on a fresh cluster and a fresh object store; outcome and seconds
of every test are added to FILE.json (soak.json) as soon as the round ends. Started again, it goes on where it
stopped. `--table` only prints the table of `docs/reliability.md` from FILE.json. The exit status is 1 if any run of
any test did not pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests" / "slow" / "test_faults.py"


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        test: The test that repeats it.
        what: What goes wrong.
        when: At which moment.
        recovery: How the job gets over it.
    """

    test: str
    what: str
    when: str
    recovery: str


FAULTS = (
    Fault(
        "test_does_training_survive_a_killed_worker",
        "the training worker's process is killed",
        "after the first checkpoint",
        "Ray Train starts another one, which goes on from the last checkpoint",
    ),
    Fault(
        "test_does_an_encode_survive_a_killed_node",
        "a node is killed: the raylet and all of its workers",
        "in encode, with units finished and units at work on both nodes",
        "Ray Data gives the node's units to the other one; their parts get the same names",
    ),
    Fault(
        "test_does_a_killed_encode_continue",
        "the driver is killed",
        "in encode, with units in the ledger",
        "the same command takes over the lock, keeps the parts in the ledger and does the others",
    ),
    Fault(
        "test_does_a_killed_decode_continue",
        "the driver is killed",
        "in decode, with files in the ledger",
        "the same command takes over the lock, keeps the files in the ledger and does the others",
    ),
    Fault(
        "test_does_a_node_that_joins_in_the_middle_disturb_nothing_and_help_the_next",
        "a node joins",
        "in encode on one node",
        "the running job stays on the workers it began with; the next job has workers on the new node",
    ),
    Fault(
        "test_is_a_store_survived_that_is_too_busy_for_a_third_of_the_requests",
        "the store answers a third of the requests with 503, 30 times",
        "in encode, then in decode, with units in the ledger",
        "every request is sent again after a growing, random pause",
    ),
    Fault(
        "test_is_a_full_disk_named_and_the_run_finished_once_there_is_room",
        "the output's disk is full",
        "in encode, then in decode",
        "exit status 1, the message names the file; with room the same command keeps what is finished",
    ),
    Fault(
        "test_is_a_full_temporary_folder_named_and_the_run_finished_once_there_is_room",
        "the temporary folder, where parts for a store are written first, is full",
        "in encode",
        "exit status 1, the message names the file; with room the same command keeps what is finished",
    ),
)


def main() -> int:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("soak.json"), metavar="FILE.json")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    rounds = json.loads(options.out.read_text()) if options.out.exists() else []
    while len(rounds) < options.rounds and not options.table:
        begun = time.monotonic()
        rounds.append(run_round(TESTS))
        options.out.write_text(json.dumps(rounds, indent=1))
        bad = [name for name, run in rounds[-1]["tests"].items() if run["outcome"] != "passed"]
        told = f"not passed: {', '.join(bad)}" if bad else "all passed"
        print(f"round {len(rounds)} of {options.rounds}, {time.monotonic() - begun:.0f} s: {told}", file=sys.stderr)
    print(table_of(rounds))
    return 0 if all(passed_of(rounds, fault) == len(rounds) for fault in FAULTS) else 1


def run_round(tests: Path) -> dict[str, Any]:
    """Runs the tests of a file once; gives when, on which commit, and each test's outcome, seconds and last words."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), f"--junitxml={report}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report:\n{done.stdout}{done.stderr}")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found = {case.attrib["name"]: outcome_of(case) for case in cases}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {"at": time.strftime("%Y-%m-%d %H:%M"), "commit": commit.stdout.strip(), "tests": found}


def outcome_of(case: ElementTree.Element) -> dict[str, Any]:
    """One test of a report."""
    result: dict[str, Any] = {"outcome": "passed", "seconds": float(case.attrib["time"])}
    for name, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (node := case.find(name)) is not None:
            result |= {"outcome": outcome, "told": (node.text or node.attrib.get("message", ""))[-4000:]}
    return result


def runs_of(round_: dict[str, Any], fault: Fault) -> list[dict[str, Any]]:
    """The runs of a fault's test in a round, one a parameter."""
    return [run for name, run in round_["tests"].items() if name.partition("[")[0] == fault.test]


def passed_of(rounds: list[dict[str, Any]], fault: Fault) -> int:
    """In how many rounds a fault was survived."""
    every = [runs_of(round_, fault) for round_ in rounds]
    return sum(bool(runs) and all(run["outcome"] == "passed" for run in runs) for runs in every)


def table_of(rounds: list[dict[str, Any]]) -> str:
    """The table, as Markdown. Rows lost and doubled are what a test that passed has counted."""
    lines = ["| what | when | how it recovers | rows lost | rows doubled | test | passed | seconds |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for fault in FAULTS:
        seconds = [run["seconds"] for round_ in rounds for run in runs_of(round_, fault)]
        time_taken = f"{min(seconds):.0f} … {max(seconds):.0f}" if seconds else ""
        passed = f"{passed_of(rounds, fault)} of {len(rounds)}" if rounds else ""
        row = (fault.what, fault.when, fault.recovery, "0", "0", f"`{fault.test}`", passed, time_taken)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
