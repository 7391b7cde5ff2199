"""Is the encoder a scikit-learn transformer: by scikit-learn's own checks, in a pipeline, on frames and arrays?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.config import Optimization, TrainConfig
from pipeline.local import fit_table
from pipeline.storage import Location
from pipeline.transformer import ParvaeEncoder
from vae_model.config import NetworkConfig

SMALL = {"hidden": (8,), "epochs": 2, "random_state": 0}


@parametrize_with_checks(
    [
        ParvaeEncoder(2, hidden=(8,), epochs=2),
        ParvaeEncoder(2, hidden=(8,), epochs=2, latents="mean+variance", whiten=True),
    ]
)
def test_does_it_pass_the_checks_of_scikit_learn(
    estimator: ParvaeEncoder, check: Callable[[ParvaeEncoder], None]
) -> None:
    """Each check raises what it finds."""
    check(estimator)


def frame(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    made = pd.DataFrame({"x": x, "y": x + rng.normal(0, 0.2, rows), "c": np.where(x > 0, "high", "low"), "b": x < 1})
    made.loc[3, "y"] = np.nan
    made.loc[5, "c"] = None
    return made


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = TrainConfig(network=NetworkConfig(latent_dim=3, hidden=(16,)), training=Optimization(epochs=20))
    return fit_table(pa.Table.from_pandas(frame(), preserve_index=False), config)


def test_do_latents_serve_a_classifier_in_a_pipeline() -> None:
    x, y = load_digits(return_X_y=True)
    encoder = ParvaeEncoder(16, hidden=(64,), epochs=15, random_state=0)
    scores = cross_val_score(make_pipeline(encoder, LogisticRegression(max_iter=2000)), x, y, cv=2)
    assert scores.mean() > 0.8


def test_does_whitening_give_mean_0_and_identity() -> None:
    features = ParvaeEncoder(3, whiten=True, **SMALL).fit_transform(frame())
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(np.cov(features.T), np.eye(3), atol=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_is_the_inverse_near_the_rows(whiten: bool, bundle: Bundle) -> None:
    rows = frame()
    encoder = ParvaeEncoder(model=bundle, whiten=whiten).fit(rows)
    decoded = encoder.inverse_transform(encoder.transform(rows))
    assert list(decoded.columns) == list(rows.columns)
    assert decoded["x"].corr(rows["x"]) > 0.8
    assert (decoded["c"] == rows["c"]).mean() > 0.9


def test_does_the_inverse_of_an_array_have_its_shape() -> None:
    x = load_digits().data
    for shape in (None, (8, 8)):
        encoder = ParvaeEncoder(4, shape=shape, **SMALL).fit(x)
        assert encoder.inverse_transform(encoder.transform(x[:5])).shape == (5, 64)


def test_are_the_features_those_of_the_model(bundle: Bundle, tmp_path: Path) -> None:
    rows = frame()
    bundle.save(Location(str(tmp_path / "model")))
    bins, _ = bundle.rows.from_batch(pa.RecordBatch.from_pandas(rows, preserve_index=False))
    for model in (bundle, str(tmp_path / "model")):
        encoder = ParvaeEncoder(model=model, latents="stored").fit(rows)
        assert np.array_equal(encoder.transform(rows), bundle.to_latents(bins).astype(float))
        mean, logvar = bundle.to_posterior(bins)
        both = ParvaeEncoder(model=model, latents="mean+variance").fit_transform(rows)
        np.testing.assert_allclose(both, np.concatenate([mean, logvar], 1), atol=1e-4)


def test_are_fewer_components_than_the_model_has_its_largest_directions(bundle: Bundle) -> None:
    rows = frame()
    full = ParvaeEncoder(model=bundle).fit_transform(rows)
    two = ParvaeEncoder(2, model=bundle).fit_transform(rows)
    spread = np.linalg.eigvalsh(np.cov(full.T))[::-1]
    np.testing.assert_allclose(two.var(0, ddof=1), spread[:2], rtol=1e-6)


def test_do_frames_of_all_libraries_give_the_same(bundle: Bundle) -> None:
    rows = frame().dropna()
    expected = ParvaeEncoder(model=bundle).fit_transform(rows)
    for other in (pl.from_pandas(rows), pa.Table.from_pandas(rows), rows.astype({"c": "category"})):
        assert np.array_equal(ParvaeEncoder(model=bundle).fit_transform(other), expected)


def test_does_set_output_name_the_features(bundle: Bundle) -> None:
    named = ParvaeEncoder(model=bundle).set_output(transform="pandas").fit_transform(frame())
    assert list(named.columns) == ["latent0", "latent1", "latent2"]
    wide = ParvaeEncoder(model=bundle, latents="mean+variance").fit(frame())
    assert list(wide.get_feature_names_out())[3:] == ["logvar0", "logvar1", "logvar2"]


def test_does_a_pickled_one_give_the_same() -> None:
    encoder = ParvaeEncoder(2, **SMALL).fit(frame())
    expected = encoder.transform(frame())
    again = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(again.transform(frame()), expected)
    assert b"torch" not in pickle.dumps(encoder)


def test_does_the_seed_decide() -> None:
    def features(seed: int) -> npt.NDArray[np.float64]:
        return clone(ParvaeEncoder(2, hidden=(8,), epochs=2)).set_params(random_state=seed).fit_transform(frame())

    assert np.array_equal(features(1), features(1))
    assert not np.allclose(features(1), features(2))


@pytest.mark.parametrize(("asked", "widths"), [({}, (128, 40)), ({"encoder_hidden": [12]}, (12,))])
def test_may_the_encoder_have_widths_of_its_own(asked: dict[str, object], widths: tuple[int, ...]) -> None:
    fitted = ParvaeEncoder(2, hidden=(200, 40), epochs=1, random_state=0, **asked).fit(frame())
    assert fitted.bundle_.description.config.encoder_hidden == widths
    assert fitted.bundle_.description.config.hidden == (200, 40)
    assert fitted.transform(frame()).shape == (400, 2)


def test_may_columns_be_configured() -> None:
    rows = pd.DataFrame({"hour": np.arange(200) % 24, "load": np.arange(200) % 24 * 1.5})
    encoder = ParvaeEncoder(2, columns={"hour": {"kind": "categorical"}}, **SMALL).fit(rows)
    assert [column.kind for column in encoder.bundle_.rows.columns] == ["categorical", "numeric"]
    options = ParvaeEncoder(2, columns={"hour": ColumnOptions(kind="categorical")}, **SMALL).fit(rows)
    assert options.bundle_.rows.to_json() == encoder.bundle_.rows.to_json()


@pytest.mark.parametrize(
    ("parameters", "rows", "message"),
    [
        ({"n_components": 16}, frame(10), "16 latents cannot be learned from 10 rows"),
        ({"latents": "all"}, frame(), "latents = 'all'"),
        ({"shape": (3, 3)}, np.zeros((5, 8)), "9 elements, the rows have 8"),
        ({"columns": {"nope": {"kind": "numeric"}}}, frame(), "'nope'"),
        ({"model": "/there/is/none"}, frame(), "does not exist"),
        ({"likelihood": "cauchy"}, frame(), "cauchy"),
    ],
)
def test_are_mistakes_named(parameters: dict[str, object], rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParvaeEncoder(**{**SMALL, **parameters}).fit(rows)


def test_are_other_columns_than_the_models_refused(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="lack the column 'c'"):
        ParvaeEncoder(model=bundle).fit(frame()[["x", "y", "b"]])
    with pytest.raises(ValueError, match="column 'x' is"):
        ParvaeEncoder(model=bundle).fit(frame().assign(x="text"))
    with pytest.raises(ValueError, match="expected 1 to 3"):
        ParvaeEncoder(4, model=bundle).fit(frame())
    with pytest.raises(ValueError, match=r"expected \(rows, 3\)"):
        ParvaeEncoder(model=bundle).fit(frame()).inverse_transform(np.zeros((2, 4)))
