"""Damages archives in many ways and reads them: each must be decoded exactly as it was, or refused by a typed error.

usage: python -m benchmarks.fuzz [ARCHIVE …] [--mutations N] [--seed S] [--out FILE.json]

Mutation number n is drawn from (seed, n) alone, so that `--first n --mutations 1` repeats it. The archives (the golden
ones, unless others are named) are read in a process of its own with an address-space limit; a process that crashes or
hangs is a failure of the mutation that it was at, and the next one goes on behind it. *Forged* mutations have every
checksum around the damage made to fit, so that it reaches the decoders; what they decode may differ, everything else
is as for the others.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.mutations import Damage, forge, mutate
from jobs.inspect import format_table
from pipeline.archive import Archive
from pipeline.columns.arrays import storage_of
from pipeline.errors import InputError
from pipeline.storage import Location

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "v1"
EXACT, REFUSED, DIFFERENT = "decoded exactly", "refused", "forged, decoded otherwise"
"""Outcomes that are no failure."""
_FORGED = 0.2
_MIB = 1 << 20


def bits_of(values: pa.Array | pa.ChunkedArray) -> Any:
    """Python objects that are equal exactly if the values are, bit for bit; of dictionaries what they say."""
    if isinstance(values, pa.ChunkedArray):
        values = values.unify_dictionaries().combine_chunks()
    values = storage_of(values)
    if pa.types.is_floating(values.type):
        return values.view(pa.int16() if values.type.bit_width == 16 else f"int{values.type.bit_width}").to_pylist()
    if pa.types.is_fixed_size_list(values.type):
        return values.is_valid().to_pylist(), bits_of(values.flatten())
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode().to_pylist()
    return values.to_pylist()


def same(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables have the same schema, metadata included, and the same values, bit for bit."""
    if not left.schema.equals(right.schema, check_metadata=True) or left.num_rows != right.num_rows:
        return False
    pairs = zip(left.columns, right.columns, strict=True)
    return all(bits_of(a) == bits_of(b) for a, b in pairs)


class Fuzzer:
    """Damages one archive in a folder of its own.

    Args:
        archive: The archive.
        work: An empty folder.
    """

    def __init__(self, archive: Path, work: Path) -> None:
        self._work = work
        self._files = {
            str(path.relative_to(archive)): path.read_bytes() for path in sorted(archive.rglob("*")) if path.is_file()
        }
        self._restore()
        self._archive = Archive.open(Location(str(work)))
        self._expected = self._archive.read()

    def __call__(self, draw: random.Random, forged: bool) -> tuple[str, str]:
        """Damages, reads and restores the archive.

        Returns:
            The outcome, and what was done.
        """
        damage = forge(self._archive, self._files, draw) if forged else mutate(self._files, draw)
        try:
            for name, data in damage.files.items():
                (self._work / name).unlink() if data is None else (self._work / name).write_bytes(data)
            return self._outcome(draw, forged), damage.what
        finally:
            self._restore(damage)

    def _outcome(self, draw: random.Random, forged: bool) -> str:
        columns, rows = self._draw_part(draw)
        expected = self._expected
        if rows is not None:
            expected = expected.slice(rows.start, len(rows))
        if columns is not None:
            expected = expected.select([name for name in expected.column_names if name in columns])
        try:
            found = Archive.open(Location(str(self._work))).read(rows, columns)
        except InputError:
            return REFUSED
        except TimeoutError:
            return "too slow"
        except (Exception, MemoryError) as error:
            return f"{type(error).__name__}: {error}"[:200]
        if same(found, expected):
            return EXACT
        return DIFFERENT if forged else "wrong values"

    def _draw_part(self, draw: random.Random) -> tuple[list[str] | None, range | None]:
        kind, names, count = draw.random(), self._expected.column_names, self._expected.num_rows
        if kind < 0.15:
            return draw.sample(names, draw.randint(1, min(3, len(names)))), None
        if kind < 0.3:
            start = draw.randrange(count)
            return None, range(start, draw.randint(start, count))
        return None, None

    def _restore(self, damage: Damage | None = None) -> None:
        for name in self._files if damage is None else damage.files:
            path = self._work / name
            if name in self._files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._files[name])
            else:
                path.unlink(missing_ok=True)


def fuzz(
    archives: Sequence[Path], work: Path, numbers: range, seed: int, seconds: int = 0
) -> Iterator[tuple[int, str, str, str]]:
    """Runs mutations in this process.

    Args:
        archives: The archives.
        work: An empty folder.
        numbers: Numbers of the mutations.
        seed: Seed of all of them.
        seconds: Longest that one may take (0: any); needs the main thread.

    Yields:
        Number, name of the archive, outcome, what was done.
    """
    fuzzers = [Fuzzer(archive, work / archive.name) for archive in archives]
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        place = draw.randrange(len(fuzzers))
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        outcome, what = fuzzers[place](draw, draw.random() < _FORGED)
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield number, archives[place].name, outcome, what


def is_failure(outcome: str) -> bool:
    """Whether an outcome is one that must not be."""
    return outcome not in (EXACT, REFUSED, DIFFERENT)


def _too_slow(*_: object) -> None:
    raise TimeoutError


def _child(options: argparse.Namespace) -> None:
    """Runs mutations and prints a line of JSON for each."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    numbers = range(options.first, options.first + options.mutations)
    with tempfile.TemporaryDirectory() as work:
        for number, _ in enumerate(fuzz(options.archives, Path(work), range(2), options.seed)):
            del number  # everything is loaded once before memory is limited
        shutil.rmtree(work)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + options.memory * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for line in fuzz(options.archives, Path(work), numbers, options.seed, options.seconds):
            print(json.dumps(line), flush=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all mutations in child processes; returns counts and failures."""
    outcomes: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, Any]] = []
    begun, place, stop, crashes = time.monotonic(), options.first, options.first + options.mutations, 0
    while place < stop:
        lines = _lines(options, place, stop - place)
        for number, archive, outcome, what in lines:
            forged = what.startswith("forged")
            outcomes["forged" if forged else "damaged", outcome if not is_failure(outcome) else "FAILED"] += 1
            if is_failure(outcome):
                failures.append({"number": number, "archive": archive, "outcome": outcome, "what": what})
                print(f"FAILED seed {options.seed}, mutation {number} ({archive}, {what}): {outcome}", flush=True)
            place = number + 1
            if place % 500 == 0:
                print(f"{place:,} of {stop:,} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if place < stop:
            crashes += 1
            outcomes["damaged", "FAILED"] += 1
            failures.append({"number": place, "outcome": "crash or hang"})
            print(f"FAILED seed {options.seed}, mutation {place}: the process crashed or hung", flush=True)
            place += 1
            if crashes > 20:
                break
    table = [{"mutations": kind, "outcome": outcome, "number": count} for (kind, outcome), count in outcomes.items()]
    return {
        "seed": options.seed,
        "mutations": sum(outcomes.values()),
        "seconds": time.monotonic() - begun,
        "outcomes": sorted(table, key=lambda row: (row["mutations"], row["outcome"])),
        "failures": failures,
    }


def _lines(options: argparse.Namespace, first: int, count: int) -> Iterator[tuple[int, str, str, str]]:
    """What a child says, until it ends or says nothing for too long."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--child", *map(str, options.archives)]
    numbers = {"first": first, "mutations": count, "seed": options.seed}
    numbers |= {"seconds": options.seconds, "memory": options.memory}
    command += [f"--{name}={value}" for name, value in numbers.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        wait = 300 + options.seconds  # the first line comes after everything is loaded
        while select.select([child.stdout], [], [], wait)[0]:
            line = child.stdout.readline()
            if not line:
                break
            yield tuple(json.loads(line))
        child.kill()


def main() -> None:
    """Fuzzes, prints one table, and fails if a mutation did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("archives", nargs="*", type=Path, default=None)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=120, help="longest that a mutation may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB of address space beyond what loading takes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.archives = options.archives or sorted(path for path in GOLDEN.iterdir() if path.is_dir())
    if options.child:
        _child(options)
        return
    result = run(options)
    print(format_table(result["outcomes"]))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
