"""The `parvae` command: one subcommand a job; importing it loads neither ray nor torch."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from jobs.display import Display

Job = Callable[[argparse.Namespace], dict[str, Any]]
COMMANDS = {
    "demo": "train, encode, decode, evaluate and classify scikit-learn's digits",
    "train": "fit a model to a Parquet dataset",
    "encode": "encode a dataset into an archive",
    "decode": "decode an archive back to the dataset",
    "evaluate": "compare an archive with its dataset",
    "score": "score how anomalous every row of a dataset is",
    "sample": "make up rows with a model",
    "walk": "decode the way between two rows through the latents",
    "verify": "check every checksum of an archive",
    "inspect": "explain a dataset, a model or an archive",
    "classify": "train classifiers on an archive's latents, on PCA and on the raw columns",
    "submit": "run one of these commands on a Ray cluster, as a job",
}
DESCRIPTION = "Learned compression for Parquet datasets, on Ray."
EPILOG = (
    "DATA, MODEL, ARCHIVE and OUT are local paths or URIs such as s3://bucket/folder. Progress goes to stderr; the "
    "last line of stdout is one JSON object. Exit status: 0 done, 1 failed, 2 bad usage or input, 3 done "
    "but for files that could not be read. RAY_ADDRESS "
    "names the Ray cluster; without it a local Ray is started."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments, without the program's name; None: those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads read it when they are loaded
    module = importlib.import_module(f"jobs.{options.command}")
    return run(module.run, options)


def run_module(command: str) -> int:
    """Runs `python -m jobs.COMMAND`."""
    return leave(main([command, *sys.argv[1:]]))


def entry() -> int:
    """Runs `parvae`."""
    return leave(main())


def leave(status: int) -> int:
    """Ends the process if Ray was used in it, whose threads may abort an interpreter that winds down (status 134)."""
    if "ray" in sys.modules:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return status


def run(job: Job, options: argparse.Namespace) -> int:
    """Runs a job and prints its figures; turns parvae's errors into one line and an exit status."""
    from pipeline.errors import ParvaeError

    try:
        with _logging(options.log_json):
            figures = job(options)
        print(json.dumps({"command": options.command, **figures}), flush=True)
    except ParvaeError as error:
        return _refuse(options, str(error), error.exit_code)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            return _hang_up()
        return _refuse(options, _explain(error), 1)
    except KeyboardInterrupt:
        return _refuse(options, "interrupted; run the same command to continue", 130)
    return 3 if figures.get("quarantined") else 0


def _refuse(options: argparse.Namespace, reason: str, status: int) -> int:
    """Says in one line why there are no figures; returns the exit status."""
    message = f"parvae {options.command}: {reason}"
    if options.log_json:
        message = json.dumps({"time": time.time(), "level": "ERROR", "message": message})
    print(message, file=sys.stderr)
    return status


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more, such as `head` after its last line."""
    with contextlib.suppress(OSError):  # it has no file
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False


def _hang_up() -> int:
    """Lets what is still to be printed go nowhere; returns the status that a shell gives for SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _explain(error: OSError) -> str:
    """An error of the operating system or of an object store, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the subcommand that is called imports its module."""
    parser = argparse.ArgumentParser("parvae", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.set_defaults(command=None)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary + ".", allow_abbrev=False)
        sub.set_defaults(command=name)
        if name == called:
            importlib.import_module(f"jobs.{name}").add_arguments(sub)
            sub.add_argument("--log-json", action="store_true", help="log to stderr as JSON lines")
    return parser


@contextlib.contextmanager
def _logging(as_json: bool) -> Iterator[None]:
    display = Display(sys.stderr, as_json)
    loggers = [logging.getLogger(name) for name in ("parvae", "pipeline")]
    for logger in loggers:
        logger.addHandler(display)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(display)
        display.close()


if __name__ == "__main__":
    raise SystemExit(entry())
