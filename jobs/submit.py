"""`parvae submit`: run a parvae command as a job of a Ray cluster, and follow it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import COMMANDS
from pipeline.errors import ConfigError, JobError, ResourceError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("jobs", "pipeline", "vae_model")
PATHS = {"data": "DATA", "model": "--model", "out": "--out", "archive": "ARCHIVE", "path": "PATH"}
"""Arguments of the commands that name something the job reads or writes, and what they are called."""
MORE_PATHS = {"tensorboard": "--tensorboard", "reference": "--reference", "report": "--report"}
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_SECRET = re.compile(r"secret|token|password|passwd|credential|access_key|private", re.IGNORECASE)
_USER_INFO = re.compile(r"^[\w+.-]+://[^/]*@")
_CONFIG_FOLDER = "job-config"
_PATIENCE_S = 60.0
"""How long the cluster may be out of reach before following a job is given up."""


class _Ended(JobError):
    """The job ended otherwise than well: its exit status is the command's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.usage = "parvae submit [options] -- COMMAND ARGUMENT …"
    parser.add_argument("job", nargs=argparse.REMAINDER, metavar="COMMAND …", help="what would follow `parvae`")
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's job server, such as http://127.0.0.1:8265 (default: that of RAY_API_SERVER_ADDRESS or "
        "RAY_ADDRESS)",
    )
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="ship this folder, without what its .gitignore names (default: only parvae's own packages)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="pass this environment variable on; everyone who may see the job sees its value, so names that look "
        "like credentials are refused; repeat for more",
    )
    parser.add_argument(
        "--pip", action="append", default=[], metavar="PACKAGE", help="install this first; repeat for more"
    )
    parser.add_argument("--python", default="python", metavar="NAME", help="Python on the cluster (default: python)")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job; print its id")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Submits and follows the job; returns its id and how it ended."""
    words = options.job[1:] if options.job[:1] == ["--"] else options.job
    config = _check(words)
    address = _address(options.address)
    variables = _variables(options.env)
    with _shipment(options.working_dir, config) as folder:
        command = [options.python, "-m", f"jobs.{words[0]}"]
        client = _client(address)
        job = _submit(client, _entrypoint(command, words[1:], config), folder, variables, options.pip)
    stop = f"ray job stop {job} --address {address}"
    print(f"job {job} at {address}; stop it with: {stop}", file=sys.stderr, flush=True)
    figures = {"job": job, "address": address}
    if options.no_wait:
        return figures
    try:
        last = _follow(client, job)
        return _ending(client, job, figures, last)
    except KeyboardInterrupt:
        raise _Ended(f"stopped following job {job}, which goes on; stop it with: {stop}", 130) from None


def _check(words: Sequence[str]) -> str | None:
    """Parses what is to be run as the cluster would, and refuses what cannot work there.

    Returns:
        The local configuration file to ship, if there is one.
    """
    allowed = [name for name in COMMANDS if name not in ("submit", "demo")]
    if not words or words[0] not in allowed:
        found = repr(words[0]) if words else "nothing"
        raise ConfigError(f"parvae submit -- COMMAND …: COMMAND is {found}, expected one of {', '.join(allowed)}")
    parser = argparse.ArgumentParser(f"parvae {words[0]}", allow_abbrev=False)
    importlib.import_module(f"jobs.{words[0]}").add_arguments(parser)
    parser.add_argument("--log-json", action="store_true")
    parsed = vars(parser.parse_args(list(words[1:])))
    for name, shown in {**PATHS, **MORE_PATHS}.items():
        text = parsed.get(name)
        if text is None:
            continue
        if "://" not in text and not os.path.isabs(text):
            raise ConfigError(
                f"{shown} is the relative path {text!r}, but a submitted job runs in a temporary copy of its working "
                "directory on the cluster; give a URI such as s3://bucket/folder, or an absolute path that every "
                "node shares"
            )
    for word in words:
        if _USER_INFO.match(word.partition("=")[2] if word.startswith("--") else word):
            raise ConfigError(
                "a URI with a user or a password in it would stand in the job's description, for everyone to read; "
                "give the nodes the credentials (docs/cluster.md)"
            )
    config: str | None = parsed.get("config")
    if config is not None and "://" not in config and not os.path.isfile(config):
        raise ConfigError(f"--config {config} does not exist")
    return config if config is not None and "://" not in config else None


def _address(given: str | None) -> str:
    """Where the job server is; what was given outweighs the environment, for Ray's client too."""
    address = given or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if not address:
        raise ConfigError(f"which cluster? give --address http://HOST:8265, or set {' or '.join(ADDRESSES)}")
    if given:
        os.environ[ADDRESSES[0]] = given
    return address


def _variables(names: Sequence[str]) -> dict[str, str]:
    for name in names:
        if _SECRET.search(name):
            raise ConfigError(
                f"--env {name} looks like a credential, and a job's variables can be read by everyone who may see the "
                "job; give it to the nodes instead (docs/cluster.md)"
            )
        if name not in os.environ:
            raise ConfigError(f"--env {name}: the environment has no such variable")
    return {name: os.environ[name] for name in names}


@contextlib.contextmanager
def _shipment(working_dir: str | None, config: str | None) -> Iterator[str]:
    """A folder with what the job needs."""
    source = Path(working_dir) if working_dir else Path(__file__).resolve().parents[1]
    if missing := [name for name in PACKAGES if not (source / name / "__init__.py").is_file()]:
        raise ConfigError(f"--working-dir {source} has no package {missing[0]!r}; name parvae's own folder")
    if working_dir and config is None:
        yield str(source)
        return
    with tempfile.TemporaryDirectory(prefix="parvae-") as folder:
        names = [path.name for path in source.iterdir()] if working_dir else PACKAGES
        hidden = shutil.ignore_patterns("__pycache__", ".git", ".venv")
        for name in names:
            if (source / name).is_dir() and name not in (".git", ".venv"):
                shutil.copytree(source / name, Path(folder, name), ignore=hidden)
            elif (source / name).is_file():
                shutil.copy(source / name, folder)
        if config is not None:
            Path(folder, _CONFIG_FOLDER).mkdir()
            shutil.copy(config, Path(folder, _CONFIG_FOLDER, "config.yaml"))
        yield folder


def _entrypoint(command: Sequence[str], words: Sequence[str], config: str | None) -> str:
    """The shell line of the job; a configuration file is named where it will lie there."""
    there = f'"$PWD"/{_CONFIG_FOLDER}/config.yaml'
    shell = [shlex.quote(word) for word in words]
    for place, word in enumerate(words):
        if config is not None and word == config and words[place - 1] == "--config":
            shell[place] = there
        elif config is not None and word == f"--config={config}":
            shell[place] = f"--config={there}"
    return " ".join([shlex.join(command), *shell])


def _client(address: str) -> JobSubmissionClient:
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise ResourceError(
            f"no job server answers at {address}: {reason[:500]}; is the address that of the dashboard (port 8265), "
            "and is the token the cluster's (RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)?"
        ) from error


def _submit(
    client: JobSubmissionClient, entrypoint: str, folder: str, variables: Mapping[str, str], pip: Sequence[str]
) -> str:
    environment: dict[str, Any] = {"working_dir": folder}
    if variables:
        environment["env_vars"] = dict(variables)
    if pip:
        environment["pip"] = list(pip)
    try:
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=environment))
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(f"the cluster did not take the job: {' '.join(str(error).split())[:500]}") from error


def _follow(client: JobSubmissionClient, job: str) -> str:
    """Copies the job's log to stderr until it ends; returns its last line. A connection that breaks is made again."""
    import aiohttp

    log = _Log()
    reached = time.monotonic()
    while True:
        with contextlib.suppress(OSError, RuntimeError, aiohttp.ClientError):
            asyncio.run(log.follow(client, job))
            reached = time.monotonic()
        with contextlib.suppress(OSError, RuntimeError):
            if client.get_job_info(job).status.is_terminal():
                return log.last
            reached = time.monotonic()
        if time.monotonic() - reached > _PATIENCE_S:
            raise JobError(f"the cluster has been out of reach for {_PATIENCE_S:.0f} s; the job may go on: {job}")
        time.sleep(1.0)


class _Log:
    """What a job has said so far: a log that is followed anew starts from its beginning."""

    def __init__(self) -> None:
        self._shown = 0
        self._line = ""
        self.last = ""

    async def follow(self, client: JobSubmissionClient, job: str) -> None:
        """Shows what is new until the log ends."""
        seen = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self._shown - seen) :]
            seen += len(text)
            if new:
                self._shown = seen
                self._show(new)

    def _show(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
        *lines, self._line = (self._line + text).split("\n")
        self.last = next((line for line in reversed([*lines, self._line]) if line.startswith("{")), self.last)


def _ending(client: JobSubmissionClient, job: str, figures: dict[str, Any], last: str) -> dict[str, Any]:
    """How the job ended: its figures, or an error with its exit status."""
    details = client.get_job_info(job)
    status, code = details.status.value, details.driver_exit_code
    if status == "STOPPED":
        raise _Ended(f"job {job} was stopped", 1)
    if code == 0 or (code == 3 and last):
        return {**figures, "result": _result(last), **({"quarantined": True} if code == 3 else {})}
    if code is None:
        reason = " ".join(str(details.message or "").split())
        raise _Ended(f"job {job} ended as {status} before its command did: {reason[:500]}", 1)
    raise _Ended(f"job {job} failed with exit status {code}; its log is above", code if 0 < code < 128 else 1)


def _result(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("submit"))
