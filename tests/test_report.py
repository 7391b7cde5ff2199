"""Does the report say what `evaluate` found, whatever columns are called, and load nothing from anywhere?"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from pipeline.archive import Archive
from pipeline.dataset import open_dataset
from pipeline.errors import ConfigError, JobError, OutputError
from pipeline.evaluate import PartEvaluator, evaluate
from pipeline.generate import RowGenerator
from pipeline.likeness import compare
from pipeline.report import originals, plots, sections
from pipeline.report.collect import SAMPLE_ROWS, DetailOptions, Details
from pipeline.report.generated import generated
from pipeline.report.options import ReportOptions
from pipeline.report.peers import measure, parquet_bytes
from pipeline.report.projection import project
from pipeline.sample import usual_prior
from pipeline.storage import Location
from tests import small
from tests.report import HISTORY, HOSTILE, OPTIONS, ROWS, Page, encoded, hostile_table, report
from tests.report import here as here

SECTIONS = ["sizes", "errors", "rates", "training", "divergence", "map", "pictures", "generated", "worst"]
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def archived(folder: Path) -> tuple[Location, Location]:
    return encoded(folder / "both", hostile_table(), "both")


@pytest.fixture(scope="module")
def drawn(here: None, archived: tuple[Location, Location], folder: Path) -> tuple[dict[str, Any], str]:
    return report(*archived, Location(str(folder / "report.html")))


def test_are_all_sections_there_with_the_figures_of_the_json_line(drawn: tuple[dict[str, Any], str]) -> None:
    figures, html = drawn
    page = Page(html)
    assert page.ids == SECTIONS
    text = " ".join(page.text.split())
    assert figures["violations"] == 0
    assert f"{figures['rows']:,}" in text
    assert f"0 violations in {ROWS * (6 + 16):,} values" in text
    assert f"everything {figures['bytes_out']:,}" in text
    assert f"{figures['latent_dim']} latents {figures['active_units']} active" in text
    assert f"−ELBO {figures['minus_elbo_bits_per_row']:,.1f} bits a row" in text
    for name, size in figures["bytes_by_part"].items():
        if size > 0.02 * figures["bytes_out"] and name in ("latents", "corrections", "model"):
            assert f"{name} {size:,}" in text
    assert f"{HISTORY[-1]['minus_elbo_bits']:.2f} bits a row, reached in epoch 6" in text
    worst = figures["columns"][HOSTILE]
    assert f"{100 * worst['max_error'] / worst['bound']:.1f} %" in text
    assert len(page.tags["img"]) == 3 * 10 + 10 + 3 * 8  # sampled rows, rows made up, strangest rows


def test_is_everything_a_column_says_escaped(drawn: tuple[dict[str, Any], str]) -> None:
    page = Page(drawn[1])
    assert len(page.scripts) == 1
    assert "alert" not in page.scripts[0]
    assert HOSTILE in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "</svg><script>alert(2)</script>" in page.text
    assert "$x_{1}$ {{ 7 * 7 }}" in page.text
    for found in page.tags.values():
        for attributes in found:
            assert not [name for name in attributes if name.startswith("on")], attributes


def test_does_the_page_reach_out_to_nothing(drawn: tuple[dict[str, Any], str]) -> None:
    html = drawn[1]
    page = Page(html)
    for found in page.tags.values():
        for attributes in found:
            for name, value in attributes.items():
                if name in ("src", "href", "xlink:href", "data", "action"):
                    assert str(value).startswith(("#", "data:image/png;base64,")), attributes
                elif name != "content":
                    assert "//" not in str(value), attributes
    assert not page.tags.keys() & {"link", "iframe", "object", "embed", "base", "form"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(str(tag["content"]) for tag in page.tags["meta"] if tag.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(html) < 3 << 20


def test_are_there_colours_for_light_and_dark(drawn: tuple[dict[str, Any], str]) -> None:
    html = drawn[1]
    style = html[html.index("<style>") : html.index("</style>")]
    blocks = re.findall(r"color-scheme: (light|dark);([^}]*)}", style)
    themes = [(name, set(re.findall(r"(--\w+):", body))) for name, body in blocks]
    assert [name for name, _ in themes] == ["light", "dark", "dark"]
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    assert "@media (max-width" in style
    used = set(re.findall(r"var\((--\w+)\)", html))
    fonts = {"--font", "--mono"}
    assert used <= themes[0][1]
    assert used - fonts <= themes[1][1] == themes[2][1]
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert drawings.count("<svg") == 5
    assert "var(--ink)" in drawings
    assert not re.findall(r"(?:fill|stroke): #", drawings)


@pytest.mark.parametrize("keep", ["corrections", "latents"])
def test_are_sections_that_do_not_apply_left_out_with_a_reason(tmp_path: Path, keep: str) -> None:
    data, archive = encoded(tmp_path, hostile_table(), keep)
    figures, html = report(data, archive, Location(str(tmp_path / "report.html")))
    text = " ".join(Page(html).text.split())
    if keep == "corrections":
        assert html.count("keeps no latents, so it carries no VAE") == 5
        assert "<svg" not in html
        assert "Kept" in text
        assert len(Page(html).tags["img"]) == 2 * 10
    else:
        assert figures["violations"] is None
        assert "latents only: decoded values are approximate" in text
        assert "The archive promises nothing" in text
        assert html.count("<svg") == 5


def test_is_a_model_without_history_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.report.with_history", lambda bundle: bundle)
    data, archive = encoded(tmp_path, hostile_table(), "latents")
    html = report(data, archive, Location(str(tmp_path / "report.html")), peers=False)[1]
    assert "holds no training history" in html
    assert "General tools were not measured" in html


def test_are_the_figures_the_same_with_and_without_a_report(
    archived: tuple[Location, Location], drawn: tuple[dict[str, Any], str]
) -> None:
    plain, figures = evaluate(*archived), dict(drawn[0])
    assert figures.pop("report").endswith("report.html")
    del plain["seconds"], figures["seconds"]
    assert plain == figures


def test_do_the_bytes_of_columns_add_up(archived: tuple[Location, Location], drawn: tuple[dict[str, Any], str]) -> None:
    html = drawn[1]
    rates = html[html.index('id="rates"') : html.index('id="training"')]
    totals = [int(size.replace(",", "")) for size in re.findall(r">([\d,]+) bytes</td>", rates)]
    columns = [int(size.replace(",", "")) for size in re.findall(r'<td class="n wide">([\d,]+)</td>', rates)]
    assert len(columns) == 7
    assert sum(columns) + sum(totals[:-1]) == totals[-1] == Archive.open(archived[1]).sizes()["total"]
    assert sum(columns) > 0.1 * totals[-1]


def test_is_a_broken_promise_reported_before_it_fails(archived: tuple[Location, Location], tmp_path: Path) -> None:
    table = hostile_table(seed=1)
    (tmp_path / "data").mkdir()
    pq.write_table(table.slice(0, ROWS // 2), tmp_path / "data" / "a.parquet", row_group_size=100)
    pq.write_table(table.slice(ROWS // 2), tmp_path / "data" / "b.parquet")
    out = Location(str(tmp_path / "report.html"))
    with pytest.raises(JobError, match="does not keep to its error bounds"):
        evaluate(Location(str(tmp_path / "data")), archived[1], report=ReportOptions(out))
    text = " ".join(Page(out.read_bytes().decode()).text.split())
    assert re.search(r"Broken [\d,]+ violations in", text)
    assert "break their bounds" in text


def test_is_a_wide_table_folded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = small.as_stored(pa.table({f"column {number}": rng.normal(size=120) for number in range(110)}))
    data, archive = encoded(tmp_path, table, "both", nothing=OPTIONS["label"])
    html = report(data, archive, Location(str(tmp_path / "report.html")), peers=False)[1]
    errors = html[html.index('id="errors"') : html.index('id="rates"')]
    assert errors.index("95 more columns") < errors.index("</details>")
    shown, folded = errors.split("<details>")
    assert shown.count('<td class="name">') == sections.TOP
    assert folded.count('<td class="name">') == 95


def test_does_what_the_sample_holds_not_depend_on_the_order_of_parts(archived: tuple[Location, Location]) -> None:
    archive = Archive.open(archived[1])
    options = DetailOptions.of(archive.rows, ("label",), 0)
    work = PartEvaluator(dict(archive.model.files), archive.form, archived[0], archived[1], "cpu", 1, 0, options)
    parts = [work(part.to_json())["details"] for part in archive.parts]
    assert len(parts) > 1
    first, second = Details(), Details()
    for part in parts:
        first.merge(part)
    for part in reversed(parts):
        second.merge(part)
    assert first.sample == second.sample
    assert first.worst == second.worst
    assert [row["priority"] for row in first.sample] == sorted(row["priority"] for row in first.sample)
    assert len(first.sample) == ROWS
    whole = hostile_table()
    worst = first.worst[0]
    half = whole.slice(0, ROWS // 2) if worst["file"] == "a.parquet" else whole.slice(ROWS // 2)
    told = {column["column"]: column["original"] for column in worst["columns"]}
    assert told["word"] == half["word"][worst["row"]].as_py()


def test_is_a_large_sample_cut() -> None:
    rows = [{"priority": number, "means": "", "labels": {}} for number in range(SAMPLE_ROWS + 100)]
    found = Details()
    found.merge(Details(sample=rows[::-1]).to_json())
    assert [row["priority"] for row in found.sample] == list(range(SAMPLE_ROWS))
    assert DetailOptions.of(10**9, (), 0).share == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"many": range(100), "few": [0, 1] * 50, "same": [1] * 100}, "few"),
        ({"rare": [1] + [0] * 99, "even": ["a", "b", "c", "d"] * 25}, "even"),
        ({"same": [1] * 100}, None),
    ],
)
def test_is_a_label_chosen_that_says_something(values: dict[str, Any], expected: str | None) -> None:
    lists = {name: list(column) for name, column in values.items()}
    sample = [{"labels": {name: column[row] for name, column in lists.items()}} for row in range(100)]
    assert sections._choose_label(Details(sample=sample)) == expected


def test_is_the_map_coloured_by_numbers_where_there_are_many(
    archived: tuple[Location, Location], tmp_path: Path
) -> None:
    html = report(*archived, Location(str(tmp_path / "a.html")), label=HOSTILE, peers=False)[1]
    assert "from its 1st to its 99th percentile" in html
    assert "The model saw this column" in html
    assert Page(html).scripts[1:] == []


@pytest.mark.parametrize("active", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [3, 100])
def test_are_latents_of_any_number_projected(active: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.projection.FEWEST_ROWS", 60)
    latents = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    method, points = project(latents, [1.0] * active + [0.0] * (4 - active))
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()
    assert method == {1: "one latent", 2: "latents"}.get(active, "PCA" if rows == 3 else "t-SNE")


def test_do_equal_latents_make_no_trouble() -> None:
    assert project(np.zeros((100, 3), np.float32), [1.0] * 3)[1].shape == (100, 2)


def test_are_texts_in_plots_taken_as_they_are() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))
    drawing = plots.map_of_classes(points, np.repeat([0, 1], 20), ["$\\frac{", "<b>&"])
    assert "$\\frac{" in drawing
    assert "&lt;b&gt;&amp;" in drawing


def test_does_a_class_of_two_groups_get_its_name_in_the_larger_one() -> None:
    rng = np.random.default_rng(0)
    larger, other, smaller = (rng.normal((x, 0), 0.3, (rows, 2)) for x, rows in ((-5, 60), (0, 60), (5, 40)))
    points = np.concatenate([larger, other, smaller])
    heart = plots._heart(points, np.repeat([True, False, True], [60, 60, 40]))
    assert np.abs(heart - (-5, 0)).max() < 1  # and not in the middle, where the other class lies


def test_are_peers_measured_within_the_archives_own_bounds(archived: tuple[Location, Location]) -> None:
    from pipeline.bounds import Bound
    from pipeline.report.sizes import sizes

    archive, dataset = Archive.open(archived[1]), open_dataset(archived[0])
    figures = evaluate(*archived)
    found = sizes(dataset, archive.model, figures, True)
    table = hostile_table()
    expected = measure(table, lambda name: Bound(archive.model.bounds.get(name, 0)))
    assert [bar["bytes"] for bar in found["bars"]] == [
        dataset.size,
        parquet_bytes(table),
        expected.on_bins,
        expected.best,
        figures["bytes_out"],
    ]
    assert found["whole"]
    assert sum(part["bytes"] for part in found["parts"]) == figures["bytes_out"]
    assert max(bar["width"] for bar in found["bars"]) == 100


def test_is_nothing_begun_without_what_draws(
    archived: tuple[Location, Location],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.report.options.NEEDED", {"no_such_module": "matplotlib"})
    monkeypatch.setattr("pipeline.evaluate.run_units", None)
    argv = ["evaluate", archived[0].path, archived[1].path, "--report", str(tmp_path / "report.html")]
    assert main(argv) == 2
    assert "--report needs matplotlib; pip install 'parvae[report]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"label": "no such column"}, "--label names 'no such column'"),
        ({"label": "picture"}, "--label 'picture' is fixed_size_list"),
    ],
)
def test_is_a_label_that_is_none_refused(
    archived: tuple[Location, Location], tmp_path: Path, arguments: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        evaluate(*archived, report=ReportOptions(Location(str(tmp_path / "r.html")), **arguments))


def test_are_places_that_are_none_refused(
    archived: tuple[Location, Location], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.html").write_text("old")
    for place, said in {
        tmp_path / "old.html": "is there already",
        tmp_path: "is a folder",
        Path(archived[1].path) / "r.html": "lies in ARCHIVE",
        tmp_path / "old.html" / "r.html": "no folder that may be written",
    }.items():
        with pytest.raises(OutputError, match=said):
            evaluate(*archived, report=ReportOptions(Location(str(place))))
    evaluate(*archived, report=ReportOptions(Location(str(tmp_path / "old.html")), overwrite=True, peers=False))
    assert (tmp_path / "old.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["evaluate", archived[0].path, archived[1].path, "--label", "label"]) == 2
    assert "--label is of use with --report FILE only" in capsys.readouterr().err


def test_is_the_page_published_in_an_object_store(archived: tuple[Location, Location]) -> None:
    out = Location("memory://reports/page.html")
    try:
        assert report(*archived, out, peers=False)[1].rstrip().endswith("</html>")
    finally:
        out.remove()


def test_are_rows_made_up_compared_with_the_originals(archived: tuple[Location, Location]) -> None:
    archive, details = Archive.open(archived[1]), Details()
    form, options = archive.form, DetailOptions(1.0, ("label",), 0)
    work = PartEvaluator(
        dict(archive.load_model().files), form, open_dataset(archived[0]).root, archived[1], "cpu", 1, 0, options
    )
    for part in archive.parts:
        details.merge(work(part.to_json())["details"])
    real = originals.unpack(details.originals, ROWS)
    source = pq.read_table(str(archived[0]))
    names = [HOSTILE, 'a & "b" = http://example.com/', "$x_{1}$ {{ 7 * 7 }}", "word"]
    assert real.column_names == names
    assert sorted(real[HOSTILE].to_pylist()) == sorted(source[HOSTILE].to_pylist())
    section = generated(archive, details)
    batches = RowGenerator(archive.model.bundle, usual_prior(archive, 0), 0).batches(range(ROWS))
    expected = compare(real, pa.Table.from_batches(batches).select(names))
    assert section["rows"] == ROWS
    assert section["distance"] == expected.mean_distance
    assert {row["name"]: row["distance"] for row in section["columns"]} == {
        column.column: column.distance for column in expected.columns
    }
    assert section["pairs"] == 6
    assert section["chance_distance"] < section["distance"]  # the network is not trained


def test_are_images_made_up_where_nothing_else_can_be_compared(tmp_path: Path) -> None:
    table = hostile_table(60).select(["picture", "label"])
    options = {name: OPTIONS[name] for name in table.column_names}
    data, archive = encoded(tmp_path, table, "both", **options)
    page = Page(report(data, archive, Location(str(tmp_path / "report.html")))[1])
    assert page.ids == SECTIONS
    assert "Drawn from the model" in page.text
    assert sum(dict(tag).get("alt", "").startswith("made up") for tag in page.tags["img"]) == 10


def test_do_few_rows_make_a_page(tmp_path: Path) -> None:
    for rows in (2, 5):
        table = hostile_table(rows)
        data, archive = encoded(tmp_path / str(rows), table, "both")
        html = report(data, archive, Location(str(tmp_path / f"{rows}.html")))[1]
        assert Page(html).ids == SECTIONS
