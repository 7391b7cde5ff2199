"""Are rows that a model makes up distributed like those it was trained on, with and without conditions?"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli import main
from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.conditions import parse_conditions
from pipeline.config import Optimization, TrainConfig
from pipeline.dataset import open_dataset
from pipeline.errors import ArchiveError, ConfigError, InputError, OutputError
from pipeline.generate import RowGenerator
from pipeline.latent_prior import AggregatePrior, NormalPrior, fit_aggregate
from pipeline.local import fit_table
from pipeline.sample import sample
from pipeline.sample_files import SampleOptions
from pipeline.storage import Location
from pipeline.stored_latents import row_latents, sample_latents, with_posterior_noise
from pipeline.walk import walk
from tests.small import encode_here, tiny_bundle
from vae_model.config import NetworkConfig
from vae_model.latent_density import LatentDensity

ROWS = 6000


def known(rows: int = ROWS, seed: int = 0) -> pa.Table:
    """c is "a" (0.5), "b" (0.3) or "c" (0.2); x is N(-2, 0.5), N(0, 0.5) or N(3, 0.5) by it; y = 2x + N(0, 0.3)."""
    rng = np.random.default_rng(seed)
    group = rng.choice(3, rows, p=[0.5, 0.3, 0.2])
    x = np.array([-2.0, 0.0, 3.0])[group] + rng.normal(0, 0.5, rows)
    age = np.clip(np.round(40 + 8 * x + rng.normal(0, 3, rows)), 0, 127).astype(np.uint8)
    rare = np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows))
    day = [
        None if g == 1 else datetime.date(2020, 1, 1) + datetime.timedelta(int(d))
        for g, d in zip(group, age, strict=True)
    ]
    schema = pa.schema(
        [
            pa.field("key", pa.int64()),
            pa.field("c", pa.dictionary(pa.int8(), pa.string()), metadata={"of": "group"}),
            pa.field("x", pa.float64(), nullable=False),
            pa.field("y", pa.float32()),
            pa.field("age", pa.uint8(), nullable=False),
            pa.field("rare", pa.float64()),
            pa.field("day", pa.date32()),
            pa.field("high", pa.bool_()),
        ],
        metadata={"about": "groups"},
    )
    names = pa.array(np.array(["a", "b", "c"])[group]).dictionary_encode().cast(schema.field("c").type)
    y = (2 * x + rng.normal(0, 0.3, rows)).astype(np.float32)
    columns = [np.arange(rows), names, x, y, age, rare, pa.array(day, pa.date32()), x > 1]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = TrainConfig(
        passthrough=("key",),
        network=NetworkConfig(latent_dim=4, hidden=(48,)),
        training=Optimization(epochs=14, batch_size=128, beta=0.5, learning_rate=5e-3),
    )
    return fit_table(known(), config, threads=1)


@pytest.fixture(scope="module")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = Location(str(tmp_path_factory.mktemp("model")))
    bundle.save(folder)
    return folder


@pytest.fixture(scope="module")
def archive(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = tmp_path_factory.mktemp("archive")
    pq.write_table(known(), folder / "data.parquet", row_group_size=2500)
    out = Location(str(folder / "archive"))
    encode_here(open_dataset(Location(str(folder / "data.parquet"))), bundle, out, "latents")
    return out


@pytest.fixture(scope="module", autouse=True)
def fitted_once() -> Iterator[None]:
    """The same latents are fitted once for all tests."""
    known: dict[tuple[bytes, int], AggregatePrior] = {}

    def fit(latents: np.ndarray, active: np.ndarray, steps: np.ndarray, seed: int) -> AggregatePrior:
        key = (latents.tobytes(), seed)
        if key not in known:
            known[key] = fit_aggregate(latents, active, steps, seed)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sample.fit_aggregate", fit)
        yield


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., pa.Table]:
    """Samples into a folder of its own; returns the rows."""
    count = iter(range(100))

    def make(source: Location, rows: int = ROWS, **options: Any) -> pa.Table:
        out = tmp_path / f"out{next(count)}"
        figures = sample(source, Location(str(out)), SampleOptions(rows, **options))
        assert figures["rows"] == rows
        table = pq.read_table(out)
        assert table.num_rows == rows
        table.validate(full=True)
        return table

    return make


def same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables are equal, NaN like NaN."""
    return repr(one.to_pylist()) == repr(other.to_pylist())


def shares(values: pa.ChunkedArray) -> dict[Any, float]:
    counts = values.to_pandas().astype(object).value_counts(normalize=True)
    return {name: float(share) for name, share in counts.items()}


def ks(one: pa.ChunkedArray, other: pa.ChunkedArray) -> float:
    from scipy.stats import ks_2samp

    first, second = (column.drop_null().to_numpy().astype(float) for column in (one, other))
    return float(ks_2samp(first[~np.isnan(first)], second[~np.isnan(second)]).statistic)


def test_are_marginals_and_correlations_those_of_the_data(archive: Location, made: Callable[..., pa.Table]) -> None:
    real, rows = known(seed=1), made(archive)
    for name, share in {"a": 0.5, "b": 0.3, "c": 0.2}.items():
        assert shares(rows["c"])[name] == pytest.approx(share, abs=0.04)
    for name in ("x", "y", "age", "rare"):
        assert ks(rows[name], real[name]) < 0.07, name
    assert rows["day"].null_count / ROWS == pytest.approx(0.3, abs=0.04)
    assert np.isnan(rows["rare"].to_numpy()).mean() == pytest.approx(0.1, abs=0.03)
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    assert np.corrcoef(x, y)[0, 1] == pytest.approx(np.corrcoef(real["x"], real["y"])[0, 1], abs=0.02)
    group = rows["c"].to_pandas().astype(str).to_numpy()
    for name, mean in {"a": -2.0, "b": 0.0, "c": 3.0}.items():
        assert x[group == name].mean() == pytest.approx(mean, abs=0.25), name
    assert ((x > 1) == rows["high"].to_numpy()).mean() > 0.97


def test_is_the_aggregate_posterior_nearer_than_the_prior(archive: Location, made: Callable[..., pa.Table]) -> None:
    real = known(seed=1)
    near, far = (ks(made(archive, prior=prior)["x"], real["x"]) for prior in ("aggregate", "normal"))
    assert near < far


def test_is_the_schema_that_of_the_dataset(
    archive: Location, made: Callable[..., pa.Table], caplog: pytest.LogCaptureFixture
) -> None:
    schema = known(10).schema
    rows = made(archive, 50)
    assert rows.schema.equals(schema.remove(0), check_metadata=True)
    assert "not modelled" in caplog.text
    assert "'key'" in caplog.text


def test_does_the_seed_decide_everything(model: Location, made: Callable[..., pa.Table]) -> None:
    one, again, other = made(model, 500), made(model, 500), made(model, 500, seed=1)
    assert same(one, again)
    assert not same(one, other)
    assert same(made(model, 5000).slice(0, 500), one)


def test_does_a_run_of_rows_not_depend_on_where_it_begins(bundle: Bundle) -> None:
    prior = NormalPrior(bundle.vae.latent_active_Z.numpy())
    whole = pa.Table.from_batches(RowGenerator(bundle, prior, 3).batches(range(9000)))
    part = pa.Table.from_batches(RowGenerator(bundle, prior, 3).batches(range(4000, 8500)))
    assert same(whole.slice(4000, 4500), part)


def test_are_means_less_spread_and_decided_by_latents(
    bundle: Bundle, made: Callable[..., pa.Table], model: Location
) -> None:
    mean, drawn = made(model, 4000, mean=True), made(model, 4000)
    assert same(mean, made(model, 4000, mean=True))
    latents = NormalPrior(bundle.vae.latent_active_Z.numpy()).draw(4000, np.random.default_rng([0, 0, 0]))
    bins = bundle.to_bins(latents)
    assert mean["x"].to_pylist()[:4000] == bundle.rows.to_arrays(bins, {})["x"].to_pylist()
    assert np.nanstd(mean["rare"].to_numpy()) < np.nanstd(drawn["rare"].to_numpy())


@pytest.mark.parametrize(("value", "mean"), [("a", -2.0), ("c", 3.0)])
def test_do_rows_with_a_category_have_the_others_that_go_with_it(
    archive: Location, made: Callable[..., pa.Table], value: str, mean: float
) -> None:
    rows = made(archive, 3000, where=(f"c={value}",))
    assert set(rows["c"].to_pylist()) == {value}
    x = rows["x"].to_numpy()
    assert x.mean() == pytest.approx(mean, abs=0.25)
    assert 0.25 < x.std() < 1.1  # 0.5 in the data, 2.0 over all categories; 0.6 to 0.9 with seeds 0 to 3
    assert rows["day"].null_count / 3000 < 0.1
    assert len(set(x.tolist())) > 300


def test_is_a_condition_the_same_as_leaving_the_others_out(archive: Location, made: Callable[..., pa.Table]) -> None:
    """The conditional distribution against what unconditional samples of the same model give."""
    free = made(archive, 12_000)
    rows = made(archive, 4000, where=("c=b",))
    alike = free.filter(pc.equal(free["c"].cast(pa.string()), "b"))
    for name in ("x", "y", "age"):
        assert ks(rows[name], alike[name]) < 0.06, name


def test_are_comparisons_kept(archive: Location, made: Callable[..., pa.Table]) -> None:
    real = known(seed=1)
    rows = made(archive, 3000, where=("age>=30", "age<60", "c!=a"))
    age = rows["age"].to_numpy()
    assert age.min() >= 30
    assert age.max() < 60
    assert "a" not in rows["c"].to_pylist()
    mask = (real["age"].to_numpy() >= 30) & (real["age"].to_numpy() < 60) & (real["c"].to_pandas() != "a").to_numpy()
    assert ks(rows["x"], real["x"].filter(pa.array(mask))) < 0.15
    dated = made(archive, 200, where=("day>2020-02-15",))
    assert min(dated["day"].to_pylist()) > datetime.date(2020, 2, 15)


def test_is_a_number_given_as_it_was_asked_for(archive: Location, made: Callable[..., pa.Table]) -> None:
    rows = made(archive, 2000, where=("x=2.9001", "high=true"))
    assert set(rows["x"].to_pylist()) == {2.9001}
    assert set(rows["high"].to_pylist()) == {True}
    assert rows["y"].to_numpy().mean() == pytest.approx(5.8, abs=0.4)
    counts = shares(rows["c"])
    assert counts["c"] > 0.9


def test_does_the_effective_sample_size_say_how_rare_a_condition_is(archive: Location, tmp_path: Path) -> None:
    def figures(where: str) -> dict[str, Any]:
        return sample(archive, Location(str(tmp_path / where)), SampleOptions(1000, where=(where,)))

    common, rare = figures("c=a"), figures("age=75")
    assert common["probability"] == pytest.approx(0.5, abs=0.05)
    assert rare["probability"] < 0.02
    assert common["effective_sample_size"] > 1000
    assert rare["draws_per_row"] > common["draws_per_row"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("c=d", "knows no such value of 'c'; known are 'a', 'b', 'c'"),
        ("key=1", "passed through"),
        ("nope=1", "no column 'nope'; it has 'c', 'x'"),
        ("age=old", "'old' is no uint8"),
        ("age=126", "fitted to values from"),
        ("c<b", "has no order"),
        ("age", "expected COL=VALUE"),
        ("x>1000", "hardly a row"),
    ],
)
def test_are_impossible_conditions_refused(model: Location, tmp_path: Path, where: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--where") as caught:
        sample(model, Location(str(tmp_path / "out")), SampleOptions(10, where=(where,)))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_may_a_column_not_have_two_values(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_conditions(["c=a", "c=b"], bundle.rows)
    with pytest.raises(ConfigError, match="a value and a range"):
        parse_conditions(["age=40", "age>30"], bundle.rows)


def test_is_what_is_there_not_overwritten(model: Location, tmp_path: Path) -> None:
    out = Location(str(tmp_path / "out"))
    sample(model, out, SampleOptions(10))
    with pytest.raises(OutputError, match="samples already"):
        sample(model, out, SampleOptions(20))
    assert sample(model, out, SampleOptions(20), overwrite=True)["rows"] == 20
    assert pq.read_table(tmp_path / "out").num_rows == 20
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        sample(model, out, SampleOptions(20), overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_is_a_source_without_latents_refused(bundle: Bundle, model: Location, tmp_path: Path) -> None:
    pq.write_table(known(300), tmp_path / "data.parquet")
    data, bare = open_dataset(Location(str(tmp_path / "data.parquet"))), Location(str(tmp_path / "bare"))
    encode_here(data, bundle, bare, "corrections")
    with pytest.raises(ArchiveError, match="keeps no latents"):
        sample(bare, Location(str(tmp_path / "out")), SampleOptions(10))
    with pytest.raises(ConfigError, match="give an archive"):
        sample(model, Location(str(tmp_path / "out")), SampleOptions(10, prior="aggregate"))
    with pytest.raises(InputError, match="does not exist"):
        sample(Location(str(tmp_path / "nothing")), Location(str(tmp_path / "out")), SampleOptions(10))


def test_are_files_continued_after_a_stop(model: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sample_files._FILE_ROWS", 4096)
    monkeypatch.setattr("pipeline.sample.connected", lambda: pytest.fail("there is one file left"))
    whole, out = Location(str(tmp_path / "whole")), Location(str(tmp_path / "out"))
    monkeypatch.setattr("pipeline.sample._results", here)
    sample(model, whole, SampleOptions(10_000))
    monkeypatch.setattr(
        "pipeline.sample._results", lambda *a: (result for result, _ in zip(here(*a), range(2), strict=False))
    )
    with pytest.raises(Exception, match="8192 rows were made"):
        sample(model, out, SampleOptions(10_000))
    with pytest.raises(OutputError, match="unfinished samples of another model or other options"):
        sample(model, out, SampleOptions(10_000, seed=1))
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.sample_files._FILE_ROWS", 4096)
    assert sample(model, out, SampleOptions(10_000))["resumed"] == 2
    assert same(pq.read_table(tmp_path / "out"), pq.read_table(tmp_path / "whole"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"samples-00000{n}.parquet" for n in range(3)]


def here(request: Any, out: Location, items: list[dict[str, Any]], *_: Any) -> Any:
    """Makes all files in this process."""
    from pipeline.sample_files import write_file

    for item in items:
        yield write_file(request.generator(), request.bundle, out, item)


def test_do_workers_make_the_same_files(
    ray_session: None, model: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sample_files._FILE_ROWS", 4096)
    options = SampleOptions(9000, where=("c=a",))
    figures = sample(model, Location(str(tmp_path / "pool")), options, workers=2)
    assert figures["files"] == 3
    monkeypatch.setattr("pipeline.sample._results", here)
    sample(model, Location(str(tmp_path / "here")), options)
    assert same(pq.read_table(tmp_path / "pool"), pq.read_table(tmp_path / "here"))


def on_a_grid(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three clusters of two dependent latents on a grid of 0.5, and one that is not used."""
    rng = np.random.default_rng(0)
    centres = np.array([[-3.0, 0, 0], [3, 3, 0], [0, -3, 0]])
    latents = centres[rng.integers(0, 3, rows)] + rng.normal(0, 0.3, (rows, 3))
    steps = np.array([0.5, 0.5, 1.0])
    latents = np.round(latents / steps) * steps
    latents[:, 1] += latents[:, 0]
    latents[:, 2] = 0
    return latents.astype(np.float32), np.array([True, True, False]), steps


def test_is_an_aggregate_posterior_found_again() -> None:
    latents, active, steps = on_a_grid(6000)
    prior = fit_aggregate(latents, active, steps, 0)
    drawn = prior.draw(20_000, np.random.default_rng(1))
    assert not drawn[:, 2].any()
    np.testing.assert_allclose(drawn[:, :2] / 0.5, np.round(drawn[:, :2] / 0.5), atol=1e-5)
    cells, counts = np.unique(latents, axis=0, return_counts=True)
    entropy = -(counts / 6000 * np.log2(counts / 6000)).sum()
    assert prior.bits == pytest.approx(entropy, abs=0.3)
    share = {tuple(cell): count / 6000 for cell, count in zip(cells, counts, strict=True)}
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    found = {tuple(cell): count / 20_000 for cell, count in zip(cells, counts, strict=True)}
    far = sum(abs(share.get(cell, 0) - found.get(cell, 0)) for cell in {*share, *found}) / 2
    assert far < 0.2
    drawn[:, 0] = drawn[np.random.default_rng(2).permutation(20_000), 0]
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    apart = {tuple(cell): count / 20_000 for cell, count in zip(cells, counts, strict=True)}
    assert sum(abs(share.get(cell, 0) - apart.get(cell, 0)) for cell in {*share, *apart}) / 2 > 0.5


def test_is_the_density_a_probability_of_cells() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = LatentDensity(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 0.25]))
    grid = torch.cartesian_prod(torch.arange(-60, 61) * 0.5, torch.arange(-120, 121) * 0.25)
    assert float(density.log_prob(grid).detach().exp().sum()) == pytest.approx(1.0, abs=1e-4)
    later = grid.clone()
    later[:, 1] += 1.0
    assert torch.equal(density.conditionals(grid).loc[:, 0], density.conditionals(later).loc[:, 0])
    assert not torch.equal(density.conditionals(grid).loc[:, 1], density.conditionals(grid + 1).loc[:, 1])


def test_is_a_density_without_a_grid_one_that_integrates() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        density = LatentDensity(torch.ones(1), torch.full((1,), 2.0), torch.zeros(1))
    places = torch.linspace(-80, 80, 64_001)[:, None]
    assert float(density.log_prob(places).detach().exp().sum() * (160 / 64_000)) == pytest.approx(1.0, abs=1e-3)


def test_has_a_model_without_latents_a_prior() -> None:
    latents, steps = np.zeros((60, 3), np.float32), np.zeros(3)
    assert not fit_aggregate(latents, np.zeros(3, bool), steps, 0).draw(5, np.random.default_rng(0)).any()


def test_are_means_without_a_grid_given_the_posteriors_noise(tmp_path: Path) -> None:
    config = TrainConfig(
        passthrough=("key",),
        network=NetworkConfig(latent_dim=2, hidden=(16,)),
        training=Optimization(epochs=3, batch_size=256, rounding=False),
    )
    bundle = fit_table(known(1500), config, threads=1)
    assert not bundle.vae.latent_step_Z.any()
    pq.write_table(known(1500), tmp_path / "data.parquet")
    archive = encode_here(
        open_dataset(Location(str(tmp_path / "data.parquet"))), bundle, Location(str(tmp_path / "archive")), "latents"
    )
    means = sample_latents(archive, 0)
    noise = with_posterior_noise(bundle, means, 0) - means
    bins, _ = bundle.rows.from_batch(known(1500).combine_chunks().to_batches()[0])
    expected = np.exp(0.5 * bundle.to_posterior(bins)[1])
    assert np.sqrt((noise**2).mean()) == pytest.approx(np.sqrt((expected**2).mean()), rel=0.15)


def test_begin_and_end_walks_at_the_rows(bundle: Bundle, archive: Location, tmp_path: Path) -> None:
    opened, out = Archive.open(archive), Location(str(tmp_path / "walk"))
    figures = walk(archive, 17, 4321, 7, out)
    rows = pq.read_table(tmp_path / "walk")
    assert rows.num_rows == figures["rows"] == 7
    names = ["c", "x", "y", "age", "high"]
    for place, row in ((0, 17), (6, 4321)):
        expected = opened.read(range(row, row + 1), names).to_pylist()
        assert rows.slice(place, 1).select(names).to_pylist() == expected
    first, last = (row_latents(opened, row, "--from") for row in (17, 4321))
    middle = bundle.to_bins(((first + last) / 2).astype(np.float32))
    assert rows["x"][3].as_py() == bundle.rows.to_arrays(middle, {})["x"][0].as_py()
    with pytest.raises(OutputError, match="a walk already"):
        walk(archive, 0, 1, 3, out)
    with pytest.raises(ConfigError, match="--to 6000: the archive"):
        walk(archive, 0, ROWS, 3, Location(str(tmp_path / "other")))


def test_are_images_drawn_as_a_grid(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 17, 64 * 300), pa.uint8()), 64)
    table = pa.table({"image": pixels, "label": rng.integers(0, 10, 300)})
    bundle = tiny_bundle(table, {"image": ColumnOptions(kind="vector", shape=(8, 8))})
    model, picture = Location(str(tmp_path / "model")), tmp_path / "grid.png"
    bundle.save(model)
    out = tmp_path / "out"
    sample(model, Location(str(out)), SampleOptions(30), Location(str(picture)))
    drawn = np.asarray(image.open(picture))
    assert drawn.shape == (5 * 9 + 1, 6 * 9 + 1)
    first = np.array(pq.read_table(out)["image"][0].as_py()).reshape(8, 8)
    np.testing.assert_array_equal(drawn[1:9, 1:9], np.rint(first / 16 * 255))
    with pytest.raises(OutputError, match="is there already"):
        sample(model, Location(str(tmp_path / "again")), SampleOptions(30), Location(str(picture)))
    with pytest.raises(OutputError, match="lies in --out"):
        sample(model, Location(str(tmp_path / "again")), SampleOptions(30), Location(str(tmp_path / "again" / "g.png")))


def test_is_a_grid_without_images_refused(model: Location, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column of images"):
        sample(model, Location(str(tmp_path / "out")), SampleOptions(5), Location(str(tmp_path / "g.png")))


def test_do_the_commands_answer(archive: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sample", str(archive), "--rows", "20", "--out", str(out), "--where", "c=b", "--seed", "3"]) == 0
    assert '"prior": "aggregate"' in capsys.readouterr().out
    assert main(["walk", str(archive), "--from", "0", "--to", "9", "--steps", "4", "--out", str(tmp_path / "w")]) == 0
    assert '"rows": 4' in capsys.readouterr().out
    assert main(["sample", str(archive), "--rows", "20", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_is_torchs_state_left_alone(model: Location, made: Callable[..., pa.Table]) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    made(model, 10, where=("age>30",))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
