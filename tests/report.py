"""Reports in this process: what `parvae evaluate --report` does, without a cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.evaluate
import pipeline.report.projection
import pipeline.report.sections
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.dataset import open_dataset
from pipeline.evaluate import evaluate
from pipeline.report.options import ReportOptions
from pipeline.storage import Location
from tests.small import as_stored, encode_here, tiny_bundle

HOSTILE = "<script>alert('x')</script>"
ROWS = 500
HISTORY = [
    {
        "epoch": epoch,
        "phase": 1 + (epoch >= 4),
        "minus_elbo_bits": 40.0 - 3 * epoch,
        "train_minus_elbo_bits": 39.5 - 3 * epoch,
    }
    for epoch in range(6)
]


class OneWorker:
    """A cluster of one worker: this process."""

    def workers_for(self, workers: int | None, gpu: bool, size: int | None = None) -> int:
        return 1

    def threads_per_worker(self, workers: int) -> int:
        return 1


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """Workers of `evaluate` run in this process; what they are told and answer goes through JSON as ever."""

    @contextlib.contextmanager
    def connected() -> Iterator[OneWorker]:
        yield OneWorker()

    def run_units(
        units: list[dict[str, Any]], worker: type, arguments: dict[str, Any], *_: object
    ) -> Iterator[dict[str, Any]]:
        work = worker(**arguments)
        for unit in units:
            yield json.loads(json.dumps(work(json.loads(json.dumps(unit)))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.evaluate, "connected", connected)
        patch.setattr(pipeline.evaluate, "run_units", run_units)
        patch.setattr(pipeline.report.sections, "COSTLY", 10)
        patch.setattr(pipeline.report.projection, "FEWEST_ROWS", 10**9)  # PCA is quicker
        yield


def images(rows: int, rng: np.random.Generator) -> pa.Array:
    pixels = np.clip(rng.normal(100, 60, (rows, 1)) + rng.normal(0, 20, (rows, 16)), 0, 255).astype(np.uint8)
    return pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 16)


def hostile_table(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """Columns whose names and values are markup, mathematics and addresses."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=rows)
    return as_stored(
        pa.table(
            {
                HOSTILE: base,
                'a & "b" = http://example.com/': base * 2 + rng.normal(0, 0.1, rows),
                "$x_{1}$ {{ 7 * 7 }}": rng.integers(0, 5, rows),
                "word": np.where(base > 0, "<img src=x onerror=alert(1)>", "plain"),
                "picture": images(rows, rng),
                "label": np.where(base > 0.5, "</svg><script>alert(2)</script>", "$no$"),
                "key": np.arange(rows),
            }
        ),
        200,
    )


OPTIONS = {
    "picture": ColumnOptions(kind="vector", shape=(4, 4)),
    "label": ColumnOptions(kind="passthrough"),
    "key": ColumnOptions(kind="passthrough"),
}


def with_history(bundle: Bundle) -> Bundle:
    return Bundle(bundle.rows, bundle.weights, {"rows": ROWS, "history": HISTORY})


def encoded(
    folder: Path, table: pa.Table, keep: str, error: str = "0.01r", **options: Any
) -> tuple[Location, Location]:
    """A dataset of two files, and its archive."""
    (folder / "data").mkdir(parents=True)
    half = table.num_rows // 2
    pq.write_table(table.slice(0, half), folder / "data" / "a.parquet", row_group_size=100)
    pq.write_table(table.slice(half), folder / "data" / "b.parquet")
    data, archive = Location(str(folder / "data")), Location(str(folder / "archive"))
    bundle = with_history(tiny_bundle(table, options or OPTIONS))
    encode_here(open_dataset(data), bundle, archive, keep, error)
    return data, archive


def report(data: Location, archive: Location, out: Location, **options: Any) -> tuple[dict[str, Any], str]:
    """The figures of `evaluate`, and the page."""
    figures = evaluate(data, archive, report=ReportOptions(out, **options))
    return figures, out.read_bytes().decode()


class Page(HTMLParser):
    """What a browser would find in a page.

    Attributes:
        tags: Tag → the attributes of each.
        ids: The sections.
        scripts: The text of each script.
        text: All other text.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, list[dict[str, str | None]]] = {}
        self.scripts: list[str] = []
        self.text = ""
        self._within: list[str] = []
        self.feed(html)
        self.close()

    @property
    def ids(self) -> list[str | None]:
        return [section["id"] for section in self.tags["section"]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag in ("script", "style"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.text += " " if tag in ("td", "th", "dt", "dd", "div", "p", "h1", "h2", "li", "summary") else ""
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if self._within:
            if self._within[-1] == "script":
                self.scripts.append(data)
        else:
            self.text += data
