"""The VAE as a scikit-learn transformer.

```python
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from pipeline.transformer import ParvaeEncoder

make_pipeline(ParvaeEncoder(8), LogisticRegression()).fit(frame, labels)          # trains a model
make_pipeline(ParvaeEncoder(model="s3://bucket/models/flights"), LogisticRegression())   # uses one
```
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.bundle import Bundle
from pipeline.columns import ColumnOptions
from pipeline.config import Optimization, TrainConfig
from pipeline.errors import ParvaeError
from pipeline.features import LatentKind, encode_batch, feature_names
from pipeline.frames import from_columns, is_frame, to_table
from pipeline.whitening import Whitening

DEFAULT_COMPONENTS = 16
_BATCH_ROWS = 8192
Doubles = npt.NDArray[np.float64]


class ParvaeEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Latents of a VAE (Kingma & Welling 2014) as features: nonlinear, where PCA is linear.

    Rows may be a pandas or Polars frame or an Arrow table, with columns of every kind that `parvae train` models
    (numbers, text as categories, booleans, times, vectors, nulls in any of them), or an array of numbers, NaN and
    infinities included. Training runs in this process, without Ray; `parvae train` makes models for data that do not
    fit in memory, and `model` uses them.

    Args:
        n_components: Number of latents. None: those of `model`, else 16, or as many as there are features if that is
            less. With `model` fewer than it has are the directions of largest variance.
        model: A trained model to use instead of training one: path or URI of its folder, or a `Bundle`. `fit` then
            only looks at the rows' columns (and whitens).
        latents: `"mean"`: the posterior means. `"mean+variance"`: the log-variances behind them, twice as many
            features. `"stored"`: means rounded as an archive keeps them; inactive ones are 0.
        whiten: Whether features are turned and scaled to mean 0 and the identity as covariance.
        hidden: Widths of the hidden layers, as in `vae_model.config.NetworkConfig`.
        encoder_hidden: Widths of the encoder's, if they are to be others.
        likelihood: p(x|z) of numbers: "logistic_mixture", "gaussian" or "gaussian_learned".
        beta: Weight of the KL term (Higgins et al. 2017): less keeps more of a row in its latents.
        epochs: Passes over the rows; None: about 3,000 steps.
        batch_size: Rows a step; None: by the number of rows.
        learning_rate: Adam's peak learning rate.
        shape: `(H, W)` or `(H, W, C)` if the rows of an array are images in row-major order.
        columns: Options by column name, as in the YAML of `parvae train`: `{"hour": {"kind": "categorical"}}`.
        device: Torch device.
        random_state: Seed, `RandomState` or None.

    Attributes:
        bundle_: The model.
        history_: Figures of every epoch; empty with `model`.
        whitening_: What turns latents into features, or None.
        n_features_in_: Columns of the rows.
        feature_names_in_: Their names, where they have some.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        model: Any = None,
        latents: LatentKind = "mean",
        whiten: bool = False,
        hidden: tuple[int, ...] = (256, 256),
        encoder_hidden: tuple[int, ...] | None = None,
        likelihood: str = "logistic_mixture",
        beta: float = 1.0,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 2e-3,
        shape: tuple[int, ...] | None = None,
        columns: Mapping[str, Any] | None = None,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.model = model
        self.latents = latents
        self.whiten = whiten
        self.hidden = hidden
        self.encoder_hidden = encoder_hidden
        self.likelihood = likelihood
        self.beta = beta
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.shape = shape
        self.columns = columns
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> ParvaeEncoder:
        """Trains the model, or checks that the one given goes with the rows.

        Args:
            X: Rows.
            y: Ignored.

        Raises:
            ValueError: The rows or a parameter cannot be used; the message says which and why.
        """
        del y
        with _as_value_errors():
            table = self._table(X, reset=True)
            self.bundle_ = self._trained(table) if self.model is None else self._given(table)
            self.history_ = [] if self.model is not None else list(self.bundle_.training["history"])
            latents = self._latents(table)
            self.whitening_ = None
            if self.whiten or self._width(latents.shape[1]) < latents.shape[1]:
                self.whitening_ = Whitening.fit([latents], latents.shape[1], self.whiten)
        return self

    def transform(self, X: Any) -> Doubles:
        """The features of rows.

        Args:
            X: Rows with the columns of `fit`.

        Returns:
            float64 array of shape (rows, features).

        Raises:
            ValueError: The rows have not the columns of `fit`.
        """
        check_is_fitted(self)
        with _as_value_errors():
            latents = self._latents(self._table(X, reset=False))
        if self.whitening_ is None:
            return latents
        return self.whitening_.transform_double(latents)[:, : self._width(latents.shape[1])]

    def inverse_transform(self, X: Any) -> Any:
        """Decodes features to the most plausible rows.

        Args:
            X: Features of shape (rows, features); log-variances are ignored.

        Returns:
            A pandas frame if `fit` saw a frame or a table, else a float64 array.

        Raises:
            ValueError: The number of features is another one.
        """
        check_is_fitted(self)
        values = np.asarray(X, np.float64)
        width = len(self.get_feature_names_out())
        if values.ndim != 2 or values.shape[1] != width:
            raise ValueError(f"features have the shape {values.shape}, expected (rows, {width})")
        latents = values if self.whitening_ is None else self.whitening_.inverse(values)
        bins = self.bundle_.to_bins(latents[:, : self.bundle_.latent_dim].astype(np.float32))
        return from_columns(self.bundle_.rows.to_arrays(bins, {}), self._framed)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the features: `latent0` …, `logvar0` … with variances.

        Args:
            input_features: Ignored; there for scikit-learn.
        """
        del input_features
        check_is_fitted(self)
        width = self.bundle_.latent_dim * (2 if self.latents == "mean+variance" else 1)
        if self.whitening_ is None:
            names = feature_names(width, self.latents)
        else:
            names = [f"latent{number}" for number in range(self._width(width))]
        return np.asarray(names, object)

    def _width(self, available: int) -> int:
        """How many features there are, of `available` numbers."""
        if self.model is None or self.n_components is None:
            return available
        if not 1 <= self.n_components <= available:
            raise ValueError(f"n_components = {self.n_components}: expected 1 to {available}, the width of the model")
        return self.n_components

    def _table(self, X: Any, reset: bool) -> pa.Table:
        if self.latents not in ("mean", "mean+variance", "stored"):
            raise ValueError(f"latents = {self.latents!r}: expected 'mean', 'mean+variance' or 'stored'")
        framed = is_frame(X)
        if framed and not isinstance(X, pa.Table):
            validate_data(self, X, reset=reset, skip_check_array=True)
        if reset:
            self._framed = framed
        if not framed:
            X = validate_data(
                self, X, reset=reset, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=2 if reset else 1
            )
        table = to_table(X, self.shape)
        if not reset:
            return self._as_fitted(table)
        if isinstance(X, pa.Table):
            self.n_features_in_ = X.num_columns
        if table.num_rows < 2:
            raise ValueError(f"there is {table.num_rows} sample (n_samples = {table.num_rows}); at least 2 are needed")
        return table

    def _as_fitted(self, table: pa.Table) -> pa.Table:
        """The modelled columns, with the types that the model knows."""
        schema = pa.schema([column.field for column in self.bundle_.rows.modelled])
        missing = [name for name in schema.names if name not in table.column_names]
        if missing:
            raise ValueError(f"the rows lack the column {missing[0]!r}; they have {table.column_names}")
        table = table.select(schema.names)
        for field, other in zip(schema, table.schema, strict=True):
            try:
                column = table.column(field.name).cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(
                    f"column {field.name!r} is {other.type}, the model was trained on {field.type}: {error}"
                ) from error
            table = table.set_column(table.schema.get_field_index(field.name), field, column)
        return table

    def _trained(self, table: pa.Table) -> Bundle:
        from pipeline.local import fit_table
        from vae_model.config import NetworkConfig

        width = sum(f.type.list_size if pa.types.is_fixed_size_list(f.type) else 1 for f in table.schema)
        latents = min(DEFAULT_COMPONENTS, width) if self.n_components is None else self.n_components
        if self.n_components is not None and table.num_rows < latents:
            raise ValueError(f"n_components = {latents} latents cannot be learned from {table.num_rows} rows")
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        network = NetworkConfig(
            latent_dim=latents,
            hidden=tuple(self.hidden),
            likelihood=self.likelihood,  # type: ignore[arg-type]
            encoder_hidden=None if self.encoder_hidden is None else tuple(self.encoder_hidden),
        )
        training = Optimization(
            epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, beta=self.beta
        )
        columns = {name: _options(value) for name, value in (self.columns or {}).items()}
        if self.shape is not None and not self._framed:
            columns = {table.column_names[0]: ColumnOptions(kind="vector", shape=tuple(self.shape))} | columns
        config = TrainConfig(columns=columns, network=network, training=training, seed=seed)
        return fit_table(table, config, self.device)

    def _given(self, table: pa.Table) -> Bundle:
        from pipeline.locate import locate

        bundle = self.model if isinstance(self.model, Bundle) else Bundle.load(locate(str(self.model), "model"))
        self.bundle_ = bundle
        self._as_fitted(table)
        return bundle

    def _latents(self, table: pa.Table) -> Doubles:
        """Latents in float64, so that a row's do not depend on the rows beside it."""
        bundle, parts = self.bundle_, []
        for batch in self._as_fitted(table).combine_chunks().to_batches(max_chunksize=_BATCH_ROWS):
            if self.latents == "stored":
                parts.append(encode_batch(bundle, batch, "stored").astype(np.float64))
            else:
                parts.append(self._posterior(batch))
        width = bundle.latent_dim * (2 if self.latents == "mean+variance" else 1)
        return np.concatenate(parts) if parts else np.zeros((0, width))

    def _posterior(self, batch: pa.RecordBatch) -> Doubles:
        import torch

        if getattr(self, "_network", None) is None:
            self._network = copy.deepcopy(self.bundle_.vae).double()
        bins, _ = self.bundle_.rows.from_batch(batch)
        with torch.inference_mode():
            posterior = self._network.encode(torch.from_numpy(bins).to(self.bundle_.device))
            parts = [posterior.mu_BZ] if self.latents == "mean" else [posterior.mu_BZ, posterior.logvar_BZ]
            values: Doubles = torch.cat(parts, dim=1).cpu().numpy()
        return values

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_network", None)
        if "bundle_" in state:
            state["bundle_"] = (state["bundle_"].files(), state["bundle_"].device)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "bundle_" in state:
            files, device = state["bundle_"]
            state = {**state, "bundle_": Bundle.from_files(files, "the pickled estimator", device)}
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _options(value: Any) -> ColumnOptions:
    if isinstance(value, ColumnOptions):
        return value
    import pydantic

    return pydantic.TypeAdapter(ColumnOptions).validate_python(dict(value))


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
    """The package's errors as what scikit-learn's users catch."""
    try:
        yield
    except ParvaeError as error:
        raise ValueError(str(error)) from error
