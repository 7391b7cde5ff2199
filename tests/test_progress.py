"""Is progress one line in place on a terminal, quiet without one, and complete as JSON?"""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main, run
from jobs.display import Display
from pipeline.dataset import open_dataset
from pipeline.errors import JobError
from pipeline.progress import EpochProgress, Progress
from pipeline.storage import Location
from tests.small import encode_here, tiny_bundle

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {"stage", "units_done", "units", "rows", "rows_per_second", "bytes_per_second", "eta_seconds"}
LOG = logging.getLogger("pipeline.test")


def told(job: Callable[[], None], display: Display) -> None:
    """Runs a job with its log records on a display."""
    logger = logging.getLogger("parvae"), LOG
    for one in logger:
        one.addHandler(display)
        one.setLevel(logging.INFO)
    try:
        job()
    finally:
        for one in logger:
            one.removeHandler(display)
        display.close()


def text_of(job: Callable[[], None], as_json: bool = False, seconds: float | None = None) -> str:
    """What a display writes where there is no terminal."""
    stream = io.StringIO()
    told(job, Display(stream, as_json, seconds))
    return stream.getvalue()


def terminal_of(job: Callable[[], None], columns: int = 100, seconds: float = 0.01) -> str:
    """What a display writes to a pseudo-terminal."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65_536):
                chunks.append(chunk)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        told(job, Display(stream, seconds=seconds))
    reader.join()
    os.close(ours)
    return b"".join(chunks).decode()


def screen(written: str) -> list[str]:
    """The lines that stand on a terminal after all of it was written."""
    lines, column = [""], 0
    for piece in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            lines.append("")
            column = 0
        else:
            lines[-1] = lines[-1][:column] + piece + lines[-1][column + len(piece) :]
            column += len(piece)
    return [line for line in lines if line]


def four_units() -> None:
    progress = Progress("encode", 4, row_bytes=1000)
    for number in range(4):
        time.sleep(0.05)
        if number == 2:
            LOG.warning("unit 2 is odd")
        progress.advance(1_000_000, size=5 if number else 0)


def test_is_progress_quiet_without_a_terminal() -> None:
    lines = text_of(four_units).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" unit 2 is odd")
    assert re.search(r"\d\d encode: 4 units in 0\.\d s, 4,000,000 rows, [\d,]+ rows/s, [\d,.]+ MB/s$", lines[1])


def test_does_a_long_stage_show_life_without_a_terminal() -> None:
    lines = text_of(four_units, seconds=0.02).splitlines()
    waiting = [line for line in lines if " of 4 units" in line]
    assert len(waiting) >= 3
    assert "encode: 0 of 4 units, 0 rows, 0 rows/s" in waiting[0]
    assert re.search(r"[123] of 4 units, .* left$", waiting[-1])


def test_is_a_terminal_drawn_in_place() -> None:
    written = terminal_of(four_units)
    assert written.count("of 4 units") >= 4
    lines = screen(written)
    assert len(lines) == 2, lines
    assert lines[0].endswith("unit 2 is odd")
    assert "encode: 4 units in" in lines[1]


def test_do_log_lines_and_progress_never_share_a_line() -> None:
    def job() -> None:
        threads = [threading.Thread(target=lambda: [LOG.info("said") for _ in range(50)]) for _ in range(4)]
        progress = Progress("decode", 200)
        for thread in threads:
            thread.start()
        for _ in range(200):
            time.sleep(0.0005)
            progress.advance(1)
        for thread in threads:
            thread.join()

    lines = screen(terminal_of(job, seconds=0.001))
    assert len(lines) == 201
    assert sum(bool(re.fullmatch(r"\d\d:\d\d:\d\d said", line)) for line in lines) == 200
    assert sum("decode: 200 units" in line for line in lines) == 1


def test_does_a_narrow_terminal_not_wrap_what_is_redrawn() -> None:
    written = terminal_of(four_units, columns=30)
    drawn = re.findall(r"\r\x1b\[K([^\r\n\x1b]+)", written)
    assert drawn
    assert max(len(text) for text in drawn if "of 4" in text) == 29


def test_does_a_dumb_terminal_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in terminal_of(four_units)


def test_is_json_told_at_a_fixed_pace_with_every_field() -> None:
    lines = [json.loads(line) for line in text_of(four_units, as_json=True, seconds=0.02).splitlines()]
    assert all(line["time"] > 1e9 and line["level"] and line["message"] for line in lines)
    progress = [line for line in lines if "stage" in line]
    assert all(line.keys() == {"time", "level", "message"} | FIELDS for line in progress)
    assert len(progress) >= 5
    first, last = progress[0], progress[-1]
    assert (first["units_done"], first["rows"], first["eta_seconds"]) == (0, 0, None)
    assert (last["stage"], last["units_done"], last["units"]) == ("encode", 4, 4)
    assert (last["rows"], last["eta_seconds"]) == (4_000_000, 0)
    assert last["bytes_per_second"] / last["rows_per_second"] == pytest.approx((1e9 + 15) / 4e6, rel=0.01)
    assert [line["units_done"] for line in progress] == sorted(line["units_done"] for line in progress)
    assert [line["level"] for line in lines if "stage" not in line] == ["WARNING"]


@pytest.mark.parametrize("as_json", [False, True])
def test_does_a_failed_stage_say_how_far_it_came(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def job(_: Namespace) -> dict[str, Any]:
        Progress("encode", 9).advance(10)
        raise JobError("the disk is full")

    assert run(job, Namespace(command="encode", log_json=as_json)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "the disk is full" in lines[-1]
    assert "encode: 1 of 9 units, 10 rows" in lines[-2]
    assert not [thread for thread in threading.enumerate() if thread.name == "display"]


def test_does_a_stage_without_units_say_nothing() -> None:
    assert text_of(lambda: Progress("encode", 0) and None, as_json=True) == ""


def test_does_the_time_left_follow_the_units() -> None:
    progress = Progress("train", 4)
    time.sleep(0.02)
    progress.advance(10)
    state = progress.state()
    assert state["eta_seconds"] == pytest.approx(3 * 10 / state["rows_per_second"], abs=0.1)
    progress.end()
    assert "train: 1 unit in" in progress.line()
    before = progress.state()
    time.sleep(0.01)
    assert progress.state() == before


class Gone(io.StringIO):
    """A terminal that somebody closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_does_training_count_epochs_wherever_it_begins_and_stops() -> None:
    heard: list[dict[str, Any]] = []

    def job() -> None:
        progress = EpochProgress(heard.append)
        progress.end()
        for epoch in (3, 4):
            progress({"epoch": epoch, "epochs": 10, "rows": 500})
        progress.end()

    lines = [json.loads(line) for line in text_of(job, as_json=True).splitlines()]
    assert [entry["epoch"] for entry in heard] == [3, 4]
    assert {(line["stage"], line["units"]) for line in lines} == {("train", 7)}
    assert (lines[-1]["units_done"], lines[-1]["rows"], lines[-1]["eta_seconds"]) == (2, 1000, 0)


def test_does_a_closed_terminal_not_stop_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    done = []

    def job() -> None:
        four_units()
        done.append(1)

    told(job, Display(Gone(), seconds=0.001))
    assert done


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A finished archive of one small file."""
    table = pa.table({"x": np.linspace(0, 1, 300), "label": range(300)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet", row_group_size=100)
    bundle = tiny_bundle(table)
    encode_here(open_dataset(Location(str(tmp_path / "data"))), bundle, Location(str(tmp_path / "archive")), "both")
    return tmp_path / "archive"


def test_does_a_whole_command_tell_its_progress(
    archive: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(archive), "--log-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = [line for line in lines if line.get("stage") == "verify"][-1]
    assert (last["units_done"], last["rows"]) == (last["units"], 300)
    assert last["bytes_per_second"] > 0
    assert main(["verify", str(archive)]) == 0
    assert capsys.readouterr().err.count("verify: 1 unit in") == 1


def test_does_a_command_in_a_terminal_leave_whole_lines(tmp_path: Path) -> None:
    """Stdout and stderr on the same terminal: the JSON object of the end stands on a line of its own."""
    script = tmp_path / "job.py"
    script.write_text(
        "import time\nfrom argparse import Namespace\nfrom jobs.cli import run\n"
        "from pipeline.progress import Progress\n"
        "def job(_):\n"
        "    progress = Progress('encode', 3)\n"
        "    for _ in range(2):\n        time.sleep(0.6)\n        progress.advance(10)\n"
        "    return {'rows': 20}\n"
        "raise SystemExit(run(job, Namespace(command='encode', log_json=False)))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        try:
            while chunk := os.read(ours, 65_536):
                written += chunk
        except OSError:
            pass
    os.close(ours)
    assert process.returncode == 0
    first, last = screen(written.decode())
    assert "encode: 2 of 3 units, 20 rows" in first
    assert json.loads(last) == {"command": "encode", "rows": 20}
    assert written.count(b"\x1b[K") >= 3
