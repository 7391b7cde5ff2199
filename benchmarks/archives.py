"""Archives made for measuring: with an untrained or a trained VAE, every decoded value checked against its bound."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from benchmarks.peers import one_array
from pipeline.archive import Archive
from pipeline.blocks import read_blocks
from pipeline.bounds import Bound, overrides
from pipeline.bundle import WEIGHTS_FILE, Bundle
from pipeline.cluster import Cluster
from pipeline.codec.codec import CODER_FILE
from pipeline.codec.elements import ElementCoder
from pipeline.codec.networks import Networks
from pipeline.codec.rowcoder import RowCoder
from pipeline.codec.sections import FIRST_MODEL_ROLE, unpack_cell
from pipeline.compare import ColumnError
from pipeline.config import TrainConfig
from pipeline.dataset import Dataset, read_unit
from pipeline.encode import encode
from pipeline.errors import JobError
from pipeline.evaluate import evaluate
from pipeline.fit import fit_columns
from pipeline.fitting import column_options
from pipeline.model import MODEL_FOLDER
from pipeline.parts import PartReader, Wanted
from pipeline.promise import BOTH, Errors
from pipeline.request import EncodeOptions
from pipeline.storage import Location
from pipeline.train import train
from vae_model.config import NetworkConfig
from vae_model.network import VAE
from vae_model.weights import to_bytes

UNTRAINED = NetworkConfig(latent_dim=1, hidden=(1,), conv_channels=())
"""A VAE for archives that keep no latents: nothing of it is stored or used."""
NOTHING = Bound(None)


def untrained_bundle(dataset: Dataset, config: TrainConfig, cluster: Cluster) -> Bundle:
    """A model with fitted columns, and a VAE that is good for nothing."""
    options = column_options(dataset.schema, config.passthrough, config.columns, config.defaults)
    rows = fit_columns(dataset, options, config.seed, cluster, cluster.workers_for(None, False)).rows
    vae = VAE(rows.layout(), UNTRAINED)
    vae.set_latent_grid(torch.full((1,), 0.1), torch.ones(1))
    return Bundle(rows, to_bytes(vae))


def trained_bundle(dataset: Dataset, config: TrainConfig) -> Bundle:
    """A model with a trained VAE, and no codec yet."""
    columns = {name: dataclasses.replace(option, error=None) for name, option in config.columns.items()}
    wanted = dataclasses.replace(config, columns=columns, error=NOTHING)
    with tempfile.TemporaryDirectory() as folder:
        return train(dataset.location, Location(f"{folder}/model"), wanted).bundle


def measure_archive(
    dataset: Dataset, bundle: Bundle, config: TrainConfig, keep: str, error: Bound, effort: str, ideal: bool
) -> dict[str, Any]:
    """Encodes a dataset, decodes it again, and counts.

    Args:
        dataset: The dataset.
        bundle: The model.
        config: Its configuration, with the bounds that columns have of their own.
        keep: What is kept: "corrections" or "both".
        error: The error bound of the other columns.
        effort: Time spent on the choice of coders.
        ideal: Whether the ideal code length is computed as well.

    Returns:
        Bytes by part, bits a row, ideal and coded bytes of the networks, violations, seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, out = Location(f"{folder}/model"), Location(f"{folder}/archive")
        own = overrides(config.columns)
        dataclasses.replace(bundle, errors=Errors.resolve(bundle.rows, error, own)).save(model)
        encoded = encode(dataset.location, model, out, EncodeOptions(keep, None, effort, config.seed))
        archive = Archive.open(out)
        figures: dict[str, Any] = {"rows": archive.rows, **part_sizes(archive), "encode_seconds": encoded.seconds}
        figures |= {"coders": dict(Counter(archive.model.codec.coded.values()))}
        started = time.monotonic()
        figures |= violations(dataset, archive, error, own)
        figures["decode_seconds"] = time.monotonic() - started
        figures |= code_lengths(dataset, archive) if ideal else {"coded": None, "ideal": None}
        figures["minus_elbo_bits_per_row"] = _elbo(dataset, out) if keep == BOTH else None
    return figures


def part_sizes(archive: Archive) -> dict[str, int]:
    """Bytes of an archive by what they are for; they add up to `total`."""
    sizes = archive.sizes()
    files = {stat.path: stat.size for stat in archive.location.join(MODEL_FOLDER).files()}
    weights = sum(files.get(name, 0) for name in (CODER_FILE, WEIGHTS_FILE))
    found = {
        "corrections": sizes["corrections"],
        "plain": sizes["plain"] + sizes["passthrough"],
        "latents": sizes["latents"],
        "weights": weights,
        "model": sum(files.values()) - weights,
    }
    return {**found, "description": sizes["total"] - sum(found.values()), "total": sizes["total"]}


def violations(dataset: Dataset, archive: Archive, error: Bound, own: Mapping[str, Bound]) -> dict[str, Any]:
    """Decodes the whole archive and compares every value with the original one, in the column's own type.

    The bounds are worked out here from the values; where the archive promises less than that, its promise counts.

    Returns:
        `violations`: values further off than the bound, or another null, NaN, infinity or category; at the bound 0
        floats that are not the same bit for bit. `violated`: their number by column.

    Raises:
        JobError: If decoding gives other columns, types or rows.
    """
    bounds = _bounds(dataset, archive.model.bounds, error, own)
    errors = {name: ColumnError(bound=bounds[name]) for name in dataset.schema.names}
    begun = 0
    for record in archive.parts:
        decoded = archive.read(range(begun, begun + record.rows))
        begun += record.rows
        seen = 0
        for batch in read_unit(dataset.root, record.work_unit, None, dataset.block_rows):
            part = decoded.slice(seen, batch.num_rows)
            seen += batch.num_rows
            if part.schema.names != batch.schema.names or part.schema.types != batch.schema.types:
                raise JobError(f"{archive.location} decodes to other columns than those of {dataset.location}")
            for name, values in zip(part.column_names, part.columns, strict=True):
                errors[name].add(batch.column(name), one_array(values))
        if seen != record.rows:
            raise JobError(f"{archive.location} decodes to {record.rows} rows where {dataset.location} has {seen}")
    violated = {name: found.violations for name, found in errors.items() if found.violations}
    values = sum(found.values for found in errors.values())
    return {"values": values, "violations": sum(violated.values()), "violated": violated}


def _bounds(
    dataset: Dataset, promised: Mapping[str, float], error: Bound, own: Mapping[str, Bound]
) -> dict[str, float]:
    """The bound of every column, from the range of its values."""
    ranges: dict[str, tuple[Any, Any]] = {}
    for unit in dataset.units():
        for batch in read_unit(dataset.root, unit, list(promised), dataset.block_rows):
            for name in promised:
                found = _range(batch.column(batch.schema.get_field_index(name)))
                if found is not None:
                    low, high = ranges.get(name, found)
                    ranges[name] = min(low, found[0]), max(high, found[1])
    bounds = dict.fromkeys(dataset.schema.names, 0.0)
    for name, (low, high) in ranges.items():
        bounds[name] = min(promised[name], float(own.get(name, error).absolute(low, high)))
    return bounds


def _range(column: pa.Array) -> tuple[Any, Any] | None:
    """Smallest and largest finite number; None without one."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return _range(column.flatten())
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    values: npt.NDArray[Any] = column.drop_null().to_numpy(zero_copy_only=False)
    values = values[np.isfinite(values)]
    return (values.min().item(), values.max().item()) if values.size else None


class _Measured:
    """Stands in for a row coder or an element coder: adds up the ideal code length of what it is to code."""

    def __init__(self, coder: RowCoder | ElementCoder) -> None:
        self._coder = coder
        self.bits = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coder, name)

    def encode(self, *given: Any) -> dict[int, bytes]:
        """Measures what it is given first, the symbols, under what it is given last; codes nothing."""
        self.bits += float(np.sum(self._coder.measure(given[0], given[-1])))
        return {}


def code_lengths(dataset: Dataset, archive: Archive) -> dict[str, float | None]:
    """Bytes of the networks' streams, and their ideal code length under the same integer model, in bytes.

    None where no network codes anything.
    """
    codec = archive.model.codec
    if not isinstance(codec.model, Networks):
        return {"coded": None, "ideal": None}
    rows = None if codec.model.rows is None else _Measured(codec.model.rows)
    elements = {name: _Measured(coder) for name, coder in codec.model.elements.items()}
    networks: Any = dataclasses.replace(codec.model, rows=cast(Any, rows), elements=cast(Any, elements))
    measured, coded = dataclasses.replace(codec, model=networks), 0
    for record in archive.parts:
        originals = read_blocks(dataset.root, record.work_unit, archive.plan.block_rows)
        with PartReader(archive.part_location(record), record, archive.form) as part:
            for batch, block in zip(originals, part.blocks(_wanted(archive)), strict=True):
                measured.encode_block(batch, block.latents)
                sections = unpack_cell(block.cell.coded)
                coded += sum(len(sections[key]) for key in sections if key[0] >= FIRST_MODEL_ROLE)
    bits = sum(coder.bits for coder in [*elements.values(), *([] if rows is None else [rows])])
    return {"coded": coded, "ideal": bits / 8}


def _wanted(archive: Archive) -> Wanted:
    return Wanted((), archive.plan.latents, True)


def _elbo(dataset: Dataset, archive: Location) -> float | None:
    """−ELBO of all rows in bits a row; None where the archive breaks its promise."""
    try:
        return float(evaluate(dataset.location, archive)["minus_elbo_bits_per_row"])
    except JobError:
        return None
