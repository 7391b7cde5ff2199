"""Does `parvae submit` refuse what cannot work on a cluster, keep credentials to itself, and say how a job ended?"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, submit
from pipeline.errors import ConfigError
from pipeline.storage import Location
from tests.servers.cluster import ROOT, RayCluster, ray_cluster
from tests.small import tiny_bundle

NOWHERE = "http://127.0.0.1:1"


def refused(*words: str, status: int = 2) -> str:
    """What `parvae submit` says when it refuses; nothing may be reached."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        try:
            found = cli.main(["submit", "--address", NOWHERE, *words])
        except SystemExit as leave:
            found = int(str(leave.code))
    assert found == status, stderr.getvalue()
    return stderr.getvalue()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND is nothing"),
        (["--", "demo"], "COMMAND is 'demo'"),
        (["--", "submit", "encode"], "COMMAND is 'submit'"),
        (["--", "encode", "s3://b/data", "--model", "s3://b/m"], "--out"),
        (["--", "encode", "s3://b/data", "--model", "s3://b/m", "--out", "here"], "--out is the relative path 'here'"),
        (["--", "verify", "archive"], "ARCHIVE is the relative path 'archive'"),
        (["--", "inspect", "./data"], "PATH is the relative path './data'"),
        (["--", "train", "/data", "--model", "/m", "--tensorboard", "logs"], "--tensorboard is the relative path"),
        (["--", "train", "/data", "--model", "/m", "--config", "/no/such.yaml"], "/no/such.yaml does not exist"),
        (["--", "verify", "s3://key:secret@bucket/archive"], "would stand in the job's description"),
        (["--", "decode", "/a", "--out=s3://key:secret@bucket/x"], "would stand in the job's description"),
        (["--env", "AWS_SECRET_ACCESS_KEY", "--", "verify", "/a"], "looks like a credential"),
        (["--env", "RAY_AUTH_TOKEN", "--", "verify", "/a"], "looks like a credential"),
        (["--env", "NO_SUCH_VARIABLE", "--", "verify", "/a"], "no such variable"),
        (["--working-dir", "/", "--", "verify", "/a"], "has no package"),
        (["--", "verify", "/a"], "no job server answers at"),
    ],
)
def test_is_what_cannot_work_refused_before_anything_is_sent(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOWHERE)
    message = refused(*words)
    assert said in message
    assert "secret@" not in message.replace("s3://key:", "") or "job's description" not in message
    assert "hush" not in message


def test_is_an_address_asked_for_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in submit.ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="which cluster"):
        submit._address(None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert submit._address(None) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    assert submit._address(None) == "http://10.0.0.1:8265"
    assert submit._address(NOWHERE) == NOWHERE == os.environ["RAY_API_SERVER_ADDRESS"]


def test_does_submit_look_at_every_path_that_a_command_takes() -> None:
    """A new argument that names a path must be known here, or a relative one would be shipped."""
    for name in cli.COMMANDS:
        if name in ("submit", "demo"):
            continue
        parser = cli._parser([name])
        words = parser.format_help()
        assert name in words
        sub = next(action for action in parser._actions if action.choices)
        assert isinstance(sub.choices, dict)
        for action in sub.choices[name]._actions:
            if action.metavar in ("DATA", "MODEL", "ARCHIVE", "PATH", "DIR", "SCORES"):
                assert action.dest in {**submit.PATHS, **submit.MORE_PATHS}, (name, action.dest)


def test_are_only_the_packages_shipped_and_the_configuration_beside_them(tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text("seed: 1\n")
    with submit._shipment(None, str(config)) as folder:
        assert sorted(os.listdir(folder)) == sorted([*submit.PACKAGES, "job-config"])
        assert not list(Path(folder).rglob("__pycache__"))
        line = submit._entrypoint(["python", "-m", "jobs.train"], ["/a b", "--config", str(config)], str(config))
        shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], cwd=folder, capture_output=True, text=True)
        words = shown.stdout.splitlines()
        assert words[:4] == ["python", "-m", "jobs.train", "/a b"]
        assert Path(words[-1]).read_text() == "seed: 1\n"
        done = subprocess.run([sys.executable, "-m", "jobs.cli", "--help"], cwd=folder, capture_output=True, text=True)
        assert "submit" in done.stdout
    with submit._shipment(str(ROOT), None) as folder:
        assert Path(folder) == ROOT


def test_is_a_shell_line_one_that_a_shell_reads_back() -> None:
    words = ["s3://b/a b", "--set", "x=$(touch /tmp/no)", "--columns", "it's"]
    assert shlex.split(submit._entrypoint(["python"], words, None)) == ["python", *words]


def test_is_a_log_that_starts_over_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio
    from collections.abc import AsyncIterator

    class Client:
        """A log that breaks off, as one over a bad connection."""

        pieces: tuple[str, ...] = ('one\n{"a"', ": 1}\ntw")

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            for piece in self.pieces:
                yield piece
            if len(self.pieces) == 2:
                raise RuntimeError("connection lost")

    client, log = Client(), submit._Log()
    with pytest.raises(RuntimeError, match="lost"):
        asyncio.run(log.follow(client, "job"))  # type: ignore[arg-type]
    client.pieces = ("one\n{", '"a": 1}\n', "two\nthree")
    asyncio.run(log.follow(client, "job"))  # type: ignore[arg-type]
    assert capsys.readouterr().err == 'one\n{"a": 1}\ntwo\nthree'
    assert log.last == '{"a": 1}'


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(1, cpus=2) as cluster:
        yield cluster


def submitted(cluster: RayCluster, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.submit", "--python", sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_does_a_submitted_job_run_from_a_copy_and_end_as_its_command_does(cluster: RayCluster, tmp_path: Path) -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=3000), "id": np.arange(3000)})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "1.parquet", row_group_size=500)
    tiny_bundle(table).save(Location(str(tmp_path / "model")))
    words = ["encode", tmp_path / "data", "--model", tmp_path / "model", "--out", tmp_path / "out", "--keep", "latents"]
    done = submitted(cluster, "--", *words)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["command"] == "submit"
    assert figures["result"]["rows"] == 3000
    assert "parvae" not in done.stdout.splitlines()[:-1]
    again = submitted(cluster, "--", "verify", tmp_path / "data")
    assert again.returncode == 2, again.stderr
    assert again.stdout == ""
    assert "failed with exit status 2" in again.stderr


@pytest.mark.slow
def test_does_no_wait_return_at_once_with_the_id_of_the_job(cluster: RayCluster) -> None:
    done = submitted(cluster, "--no-wait", "--", "inspect", "/no/such/folder")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]
    assert f"ray job stop {job}" in done.stderr
