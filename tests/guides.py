"""Runs the blocks of a guide, in order, in the current folder: `python -m tests.guides GUIDE.md`.

The python blocks share one namespace, as in a notebook; each sh block is a bash script of its own that stops at the
first command that fails. A block marked ```text output shows what the block before it prints: a line `...` stands for
any lines, `...` within a line for any text.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(\S*)[ ]*([^\n]*)\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
_OUTPUT = "output"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what is written behind it, its first line's number, and its text."""

    language: str
    mark: str
    line: int
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are run or compared."""
    found = [Block(m[1], m[2].strip(), page.count("\n", 0, m.start(3)) + 1, m[3]) for m in _FENCE.finditer(page)]
    return [block for block in found if block.language in ("python", "sh") or block.mark == _OUTPUT]


def run_guide(guide: Path) -> int:
    """Runs all blocks; returns how many were run.

    Raises:
        AssertionError: A block's output is not the one that the guide shows.
        Exception: Whatever a block raises; CalledProcessError for a shell block.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    count, printed = 0, None
    for block in blocks(guide.read_text()):
        where = f"{guide.name}:{block.line}"
        if block.mark == _OUTPUT:
            assert printed is not None, f"{where}: no block before this output"
            _compare(block.text, printed, where)
            continue
        print(f"--- {where}", flush=True)
        printed = _python(block, where, space) if block.language == "python" else _shell(block)
        print(printed, flush=True)
        count += 1
    return count


def _python(block: Block, where: str, space: dict[str, Any]) -> str:
    # so many empty lines before it that a traceback names the guide's own line
    code = compile("\n" * (block.line - 1) + block.text, where.rsplit(":", 1)[0], "exec")
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            exec(code, space)
    except BaseException:
        print(told.getvalue(), flush=True)
        raise
    return told.getvalue()


def _shell(block: Block) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout


def _compare(expected: str, found: str, where: str) -> None:
    expected, found = expected.rstrip() + "\n", found.rstrip() + "\n"
    same = doctest.OutputChecker().check_output(expected, found, doctest.ELLIPSIS)
    assert same, f"{where}: the guide shows\n{expected}\nbut the block prints\n{found}"


if __name__ == "__main__":
    run_guide(Path(sys.argv[1]))
