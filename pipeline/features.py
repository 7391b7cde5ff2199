"""Latents of an archive as features: pandas, Polars, NumPy, torch; in memory or as a stream.

```python
from pipeline.features import load

features = load("s3://bucket/archives/flights", columns=["delayed"])
frame = features.to_pandas()                    # latent0 … latent15, delayed
x, y = features.to_numpy(label="delayed")       # float32 (rows, Z), and the labels
for batch in features.batches(): ...            # Arrow record batches, block by block
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.archive import Archive
from pipeline.bundle import Bundle
from pipeline.decoder import Decoder
from pipeline.errors import ConfigError
from pipeline.locate import locate
from pipeline.machine import one_thread
from pipeline.parts import PartReader, Wanted
from pipeline.storage import Location
from pipeline.whitening import Whitening

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import torch.utils.data

LatentKind = Literal["stored", "mean", "mean+variance"]
Floats = npt.NDArray[np.float32]


def load(
    archive: str | Location,
    columns: Sequence[str] = (),
    *,
    latents: LatentKind = "stored",
    model: str | Location | None = None,
    whiten: bool = False,
    width: int | None = None,
) -> Features:
    """Opens the latents of an archive, with columns beside them. Nothing is read before it is asked for.

    Args:
        archive: Path or URI of an archive.
        columns: Columns that come beside the latents: passed-through ones as they were, modelled ones decoded.
        latents: `"stored"`: the rounded posterior means that the archive keeps. `"mean"` and `"mean+variance"` decode
            the rows and send them through the encoder: means that are not rounded, with the posterior's
            log-variances behind them. They take as long as encoding, and no space in the archive.
        model: The model's folder, for an archive that keeps corrections alone.
        whiten: Whether latents are turned and scaled to mean 0 and the identity as covariance, which takes one pass
            over them.
        width: Only so many of the directions of largest variance, by the same pass; None: all.

    Raises:
        ConfigError: A column does not exist, or an option does not go with this archive.
        ArchiveError: There is no archive, or it is damaged.
        ModelError: The model cannot be read, or is another one than the archive's.
    """
    place = archive if isinstance(archive, Location) else locate(archive, "ARCHIVE")
    folder = locate(model, "model") if isinstance(model, str) else model
    opened = Archive.open(place)
    opened.check_columns(columns, "columns")
    if latents not in get_args(LatentKind):
        raise ConfigError(f"latents = {latents!r}: expected one of {', '.join(map(repr, get_args(LatentKind)))}")
    bundle = _bundle(opened, folder, latents)
    source = _Source(opened, tuple(dict.fromkeys(columns)), latents, bundle)
    if width is not None and not 1 <= width <= source.width:
        raise ConfigError(f"width = {width}: expected 1 to {source.width}, the number of latents in {place}")
    return Features(source, whiten, width)


def _bundle(archive: Archive, folder: Location | None, latents: LatentKind) -> Bundle | None:
    """The model that encodes the rows again; None if the stored latents are what is wanted."""
    if archive.plan.latents and latents == "stored":
        return None
    if archive.plan.latents:
        return archive.model.bundle
    if folder is None:
        raise ConfigError(
            f"{archive.location} keeps corrections alone: name the model that encoded it (model=...), so that its rows "
            "can be decoded and encoded again, or encode with --keep both"
        )
    bundle = Bundle.load(folder)
    bundle.rows.check_schema(archive.schema, f"the archive {archive.location}")
    return bundle


@dataclass(frozen=True)
class _Source:
    """Where the latents come from, block by block."""

    archive: Archive
    columns: tuple[str, ...]
    latents: LatentKind
    bundle: Bundle | None

    @cached_property
    def width(self) -> int:
        """Numbers a row: Z, twice that with variances."""
        bundle = self.bundle if self.bundle is not None else self.archive.model.bundle
        return bundle.latent_dim * (2 if self.latents == "mean+variance" else 1)

    @property
    def schema(self) -> pa.Schema:
        """The columns beside the latents."""
        return pa.schema([self.archive.schema.field(name) for name in self.columns])

    def blocks(self, parts: range | None = None) -> Iterator[tuple[Floats, pa.RecordBatch]]:
        """Yields latents of shape (rows, width) and the columns of the same rows."""
        for number in range(len(self.archive.parts)) if parts is None else parts:
            record = self.archive.parts[number]
            with PartReader(self.archive.part_location(record), record, self.archive.form, whole=False) as part:
                for block in range(len(part.block_rows)):
                    with one_thread():
                        found = self._block(part, block)
                    yield found

    def _block(self, part: PartReader, number: int) -> tuple[Floats, pa.RecordBatch]:
        if self.bundle is None:
            rows = self._columns(part, number, self.columns)
            latents = part.block(number, Wanted((), latents=True, cell=False)).latents
            assert latents is not None
            return latents, rows
        modelled = [column.name for column in self.bundle.rows.modelled]
        decoded = self._columns(part, number, (*self.columns, *modelled))
        rows = decoded.select(list(self.columns))
        return encode_batch(self.bundle, decoded, self.latents), rows.cast(self.schema)

    def _columns(self, part: PartReader, number: int, names: Sequence[str]) -> pa.RecordBatch:
        wanted = [name for name in self.archive.schema.names if name in names]
        if not wanted:
            return pa.RecordBatch.from_struct_array(pa.array([{}] * part.block_rows[number], pa.struct([])))
        batch = Decoder(self.archive.model, wanted).batch(part, number)
        order = [name for name in dict.fromkeys(names) if name in wanted]
        return batch.select(order).cast(pa.schema([self.archive.schema.field(name) for name in order]))


def encode_batch(bundle: Bundle, batch: pa.RecordBatch, latents: LatentKind) -> Floats:
    """The latents of rows.

    Args:
        bundle: The model.
        batch: Rows with at least the modelled columns.
        latents: Which; see `load`.

    Returns:
        float32 array of shape (rows, Z); (rows, 2·Z) with variances, the log-variances behind the means.
    """
    bins, _ = bundle.rows.from_batch(batch)
    if latents == "stored":
        return bundle.to_latents(bins)
    mean, logvar = bundle.to_posterior(bins)
    return mean if latents == "mean" else np.concatenate([mean, logvar], axis=1)


class Features:
    """Latents and columns of an archive's rows, in the archive's order; made by `load`.

    Attributes:
        rows: Number of rows.
        names: Names of the features.
        schema: Arrow schema of a batch: the features (float32), then the columns.
    """

    def __init__(self, source: _Source, whiten: bool, width: int | None) -> None:
        self._source, self._whiten, self._width = source, whiten, width
        self.rows = source.archive.rows
        self.names = self._names()
        clash = sorted(set(self.names) & set(source.columns))
        if clash:
            raise ConfigError(f"the column {clash[0]!r} has the name of a feature; read it with Archive.read instead")
        fields = [pa.field(name, pa.float32(), nullable=False) for name in self.names]
        self.schema = pa.schema([*fields, *source.schema])

    def _names(self) -> list[str]:
        width = self._source.width
        if self._whiten or self._width is not None:
            return [f"latent{number}" for number in range(self._width or width)]
        return feature_names(width, self._source.latents)

    def beside(self, columns: Sequence[str]) -> Features:
        """The same latents with other columns beside them.

        Raises:
            ConfigError: If a column does not exist.
        """
        self._source.archive.check_columns(columns, "columns")
        other = Features(replace(self._source, columns=tuple(dict.fromkeys(columns))), self._whiten, self._width)
        other.__dict__["whitening"] = self.whitening
        return other

    @cached_property
    def whitening(self) -> Whitening | None:
        """What turns latents into features; None: they are taken as they are. Reads all latents once.

        Raises:
            ConfigError: If there are fewer rows than latents.
        """
        if not self._whiten and self._width is None:
            return None
        return Whitening.fit((latents for latents, _ in self._source.blocks()), self._source.width, self._whiten)

    def arrays(self) -> Iterator[tuple[Floats, pa.RecordBatch]]:
        """Yields features of shape (rows, width) and the columns of the same rows, block by block."""
        for latents, rows in self._source.blocks():
            yield self._features(latents), rows

    def _features(self, latents: Floats) -> Floats:
        whitening = self.whitening
        return latents if whitening is None else whitening.transform(latents)[:, : len(self.names)]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields Arrow record batches, one a block of the archive."""
        for values, rows in self.arrays():
            yield self._batch(values, rows)

    def _batch(self, values: Floats, rows: pa.RecordBatch) -> pa.RecordBatch:
        features = [pa.array(np.ascontiguousarray(values[:, number])) for number in range(values.shape[1])]
        return pa.RecordBatch.from_arrays([*features, *rows.columns], schema=self.schema)

    def to_arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        return pa.Table.from_batches(list(self.batches()), self.schema)

    def to_pandas(self) -> pd.DataFrame:
        """All rows as a pandas frame."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_polars(self) -> pl.DataFrame:
        """All rows as a Polars frame.

        Raises:
            ImportError: If Polars is not installed.
        """
        import polars

        frame = polars.from_arrow(self.to_arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_numpy(self, label: str | None = None) -> Any:
        """All features as an array.

        Args:
            label: One of the columns that were asked for.

        Returns:
            float32 array of shape (rows, width); with `label` a pair of it and the labels, of shape (rows,).

        Raises:
            ConfigError: If `label` is not among the columns.
        """
        self._check_label(label)
        values, labels = np.empty((self.rows, len(self.names)), np.float32), []
        start = 0
        for part, rows in self.arrays():
            values[start : start + len(part)] = part
            start += len(part)
            if label is not None:
                labels.append(rows.column(label))
        if label is None:
            return values
        joined = pa.chunked_array(labels, self.schema.field(label).type)
        return values, joined.to_pandas().to_numpy()

    def to_torch(self, label: str | None = None) -> torch.utils.data.IterableDataset[Any]:
        """A torch dataset that streams; a `DataLoader`'s workers share its parts.

        Args:
            label: A column of numbers among those that were asked for; it comes beside the features.

        Returns:
            An `IterableDataset` of tensors of shape (width,), or of pairs with the label. It has the archive's order:
            shuffle with a buffer, or load all with `to_numpy`.

        Raises:
            ConfigError: If `label` is not among the columns, or holds no numbers.
        """
        from pipeline.torch_dataset import LatentDataset

        self._check_label(label)
        if label is not None and not _is_number(self.schema.field(label).type):
            raise ConfigError(
                f"label {label!r} is {self.schema.field(label).type}, a tensor holds numbers: turn it into codes "
                "(to_numpy gives it as it is)"
            )
        return LatentDataset(self, label)

    def parts(self, numbers: range) -> Iterator[tuple[Floats, pa.RecordBatch]]:
        """As `arrays`, of some parts of the archive alone."""
        for latents, rows in self._source.blocks(numbers):
            yield self._features(latents), rows

    @property
    def part_count(self) -> int:
        """How many parts the archive has."""
        return len(self._source.archive.parts)

    def _check_label(self, label: str | None) -> None:
        if label is not None and label not in self._source.columns:
            listed = ", ".join(map(repr, self._source.columns)) or "none"
            raise ConfigError(f"label {label!r} is not among the columns that were asked for ({listed}): load it, too")


def feature_names(width: int, latents: LatentKind) -> list[str]:
    """Names of features: `latent0` …, with variances behind them `logvar0` …."""
    if latents != "mean+variance":
        return [f"latent{number}" for number in range(width)]
    return [f"{name}{number}" for name in ("latent", "logvar") for number in range(width // 2)]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
