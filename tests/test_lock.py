"""Does one run at a time write to a folder?"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from pipeline import lock as module
from pipeline.errors import JobError, OutputError
from pipeline.lock import LOCK_FOLDER, Holder, OutputLock, locked
from pipeline.storage import Location

HOLD = """
import sys, time
from pipeline.lock import OutputLock
from pipeline.storage import Location
with OutputLock(Location(sys.argv[1]), "--out"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "STALE", 0.6)


def elsewhere(beat: int = 0) -> Holder:
    """A process on another machine."""
    return dataclasses.replace(Holder.this(), machine="another", host="far", pid=17, token="far", beat=beat)


def put(folder: Location, number: int, holder: Holder) -> None:
    folder.join(LOCK_FOLDER, f"{number:06d}.json").write_bytes(holder.to_bytes())


def test_is_a_second_run_refused_and_a_later_one_let_in(folder: Location) -> None:
    with OutputLock(folder, "--out") as first:
        first.check()
        with (
            pytest.raises(OutputError, match=rf"--out .* by another run \(process {os.getpid()} on "),
            OutputLock(folder, "--out"),
        ):
            pass
        first.check()
    with OutputLock(folder, "--out"):
        pass
    assert folder.is_empty()


def test_is_the_lock_of_a_killed_process_taken_over_at_once(tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "out"))
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=f"process {process.pid} on"), OutputLock(folder, "--out"):
        pass
    process.kill()
    process.wait()
    with OutputLock(folder, "--out") as lock:
        assert lock.generation == 2
    assert folder.is_empty()
    process.stdout.close()


def test_is_a_lock_that_stands_still_taken_over(folder: Location, quick: None) -> None:
    put(folder, 7, elsewhere())
    begun = time.monotonic()
    with OutputLock(folder, "--out") as lock:
        assert time.monotonic() - begun >= 0.6
        assert lock.generation == 8
        assert len(folder.files()) == 1


def test_is_a_lock_that_gives_signs_of_life_respected(folder: Location, quick: None) -> None:
    put(folder, 1, elsewhere())
    stop = threading.Event()

    def live() -> None:
        beat = 0
        while not stop.wait(0.05):
            beat += 1
            put(folder, 1, elsewhere(beat))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(OutputError, match="process 17 on far"), OutputLock(folder, "--out"):
            pass
    finally:
        stop.set()
        thread.join()


def test_does_a_run_that_was_taken_for_dead_notice(folder: Location, quick: None) -> None:
    with OutputLock(folder, "--out") as lock:
        put(folder, lock.generation + 1, elsewhere())
        with pytest.raises(JobError, match=r"another run \(process 17 on far\) has taken over"):
            check_for(lock, 30)
    assert [stat.path for stat in folder.files()] == [f"{LOCK_FOLDER}/000002.json"]


def test_is_a_run_that_steps_back_no_later_one(folder: Location, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_BACK", 0.01)
    whole = module._locks
    listings: list[Location] = []

    def every_other_time(where: Location) -> list[int]:
        listings.append(where)
        return [*whole(where), 99] if len(listings) % 2 else whole(where)

    with OutputLock(folder, "--out") as lock:
        monkeypatch.setattr(module, "_locks", every_other_time)
        deadline = time.monotonic() + 60
        while len(listings) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        lock.check()
    assert len(listings) >= 8


def test_does_one_of_many_win(folder: Location) -> None:
    put(folder, 1, dataclasses.replace(Holder.this(), started=1))  # a process that is gone
    won: list[int] = []
    start, done = threading.Barrier(8, timeout=60), threading.Barrier(8, timeout=60)

    def compete() -> None:
        start.wait()
        try:
            with OutputLock(folder, "--out") as lock:
                won.append(lock.generation)
                done.wait()
        except OutputError:
            done.wait()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [2]


def test_does_a_listing_that_missed_the_lock_give_no_second_one(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, 2, Holder.this())
    missed: list[list[int]] = [[]]
    whole = module._locks
    monkeypatch.setattr(module, "_locks", lambda where: missed.pop() if missed else whole(where))
    with pytest.raises(OutputError, match="is being written by another run"), OutputLock(folder, "--out"):
        pass
    assert [stat.path for stat in folder.files()] == [f"{LOCK_FOLDER}/000002.json"]


def test_is_a_number_that_another_run_has_by_now_left_alone(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, 1, dataclasses.replace(Holder.this(), started=1))  # ends just when the second run has listed its lock
    wait = OutputLock._wait_for

    def another_is_quicker(self: OutputLock, number: int) -> None:
        if number == 1:
            monkeypatch.setattr(OutputLock, "_wait_for", wait)
            folder.join(LOCK_FOLDER, "000001.json").remove()
            wait(self, number)
            put(folder, 1, Holder.this())  # a third run, which found no lock

    monkeypatch.setattr(OutputLock, "_wait_for", another_is_quicker)
    with pytest.raises(OutputError, match="is being written by another run"), OutputLock(folder, "--out"):
        pass
    assert [stat.path for stat in folder.files()] == [f"{LOCK_FOLDER}/000001.json"]


def test_is_a_lock_left_alone_that_another_run_takes_when_this_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Location(str(tmp_path / "out"))
    with locked(folder, "--out"):
        pass
    assert not folder.exists()

    def another_begins(self: Location, look: Callable[[Location], Any]) -> Any:
        found = look(self)
        put(folder, 1, Holder.this())
        return found

    with locked(folder, "--out"):
        for name in ("is_empty", "remove_empty_folders"):  # whichever looks last
            monkeypatch.setattr(Location, name, partialmethod(another_begins, getattr(Location, name)))
    assert [stat.path for stat in folder.files()] == [f"{LOCK_FOLDER}/000001.json"]


def test_does_a_run_notice_that_the_store_took_another_first_writer_too(folder: Location, quick: None) -> None:
    with OutputLock(folder, "--out") as lock:
        put(folder, lock.generation, elsewhere())
        with pytest.raises(JobError, match=r"another run \(process 17 on far\) has taken over"):
            check_for(lock, 30)


def check_for(lock: OutputLock, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lock.check()
        time.sleep(0.02)


def test_is_a_damaged_lock_no_obstacle(folder: Location) -> None:
    folder.join(LOCK_FOLDER, "000003.json").write_bytes(b"{")
    with OutputLock(folder, "--out") as lock:
        assert lock.generation == 4


def test_is_a_lock_that_is_read_while_it_is_written_respected(folder: Location, quick: None) -> None:
    holder = Holder.this()
    place = folder.join(LOCK_FOLDER, "000003.json")
    place.write_bytes(b"")  # what a store without whole writes shows in the middle of one
    threading.Timer(0.1, lambda: place.write_bytes(holder.to_bytes())).start()
    with pytest.raises(OutputError, match="is being written by another run"), OutputLock(folder, "--out"):
        pass


def test_does_a_lock_leave_no_folder_behind(folder: Location) -> None:
    with locked(folder, "--out"):
        assert folder.exists()
    assert not folder.exists()
    with locked(folder, "--out"):
        folder.join("x").write_bytes(b"")
    assert [stat.path for stat in folder.files()] == ["x"]
