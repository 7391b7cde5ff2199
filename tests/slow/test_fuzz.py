"""Are a thousand damaged archives, read in a process with little memory, decoded exactly or refused?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = 1000


def test_are_a_thousand_damaged_archives_decoded_exactly_or_refused(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "benchmarks.fuzz", f"--mutations={MUTATIONS}", "--seed=2", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["failures"] == []
    assert result["mutations"] == MUTATIONS
    assert {row["outcome"] for row in result["outcomes"]} >= {"refused", "decoded exactly"}
