"""Fits codecs for a dataset: bounds and a seeded sample of rows become what codes each column."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.blocks import Run, coded_block_rows, sample_runs
from pipeline.bundle import Bundle
from pipeline.cluster import Cluster
from pipeline.codec_store import StoredCodec
from pipeline.dataset import Dataset
from pipeline.progress import Board
from pipeline.promise import BOTH, FAST, Errors
from pipeline.storage import Location
from pipeline.units import run_units

if TYPE_CHECKING:
    from pipeline.codec.guide import Guide

LOG = logging.getLogger(__name__)
SAMPLE_ROWS = 1 << 19
SAMPLE_BYTES = 256 << 20
FAST_SHARE = 4
"""With effort "fast" the sample is smaller by this factor."""
_GUIDE_ROWS = 8192
"""Rows that say how far the activations of the exact decoder go."""


def fit_codecs(
    dataset: Dataset,
    bundle: Bundle,
    errors: Errors,
    keeps: Sequence[str],
    effort: str,
    seed: int,
    cluster: Cluster,
) -> dict[str, StoredCodec]:
    """Fits one codec for each thing that archives may keep, in one worker.

    Args:
        dataset: The dataset.
        bundle: The model: its columns and, where latents are kept, its latents.
        errors: The bounds.
        keeps: What archives keep: "both", "corrections".
        effort: "fast", "balanced" or "small".
        seed: Seed of the sample and of training.
        cluster: The cluster.

    Returns:
        Codecs by what archives keep.

    Raises:
        DatasetError: If a file cannot be read.
    """
    share = FAST_SHARE if effort == FAST else 1
    runs = sample_runs(dataset, SAMPLE_ROWS // share, SAMPLE_BYTES // share, seed)
    LOG.info("choosing a coder for every column on %s rows", f"{sum(run.rows for run in runs):,}")
    with Board(lambda message: LOG.info("%s", message["text"])) as board:
        arguments = {
            "files": bundle.files(),
            "errors": errors,
            "root": dataset.root,
            "runs": runs,
            "block_rows": coded_block_rows(dataset),
            "rows": dataset.rows,
            "effort": effort,
            "seed": seed,
            "threads": cluster.threads_per_worker(1),
            "board": board.handle,
        }
        found = {
            result["keep"]: StoredCodec.from_json(result["codec"])
            for result in run_units([{"keep": keep} for keep in keeps], CodecFitter, arguments, cluster, 1)
        }
    for keep, codec in found.items():
        LOG.info("codec for %s: %.1f s, networks of %s bytes", keep, codec.seconds, f"{codec.model_bytes:,}")
    return found


class CodecFitter:
    """Worker: fits codecs to a sample.

    Args:
        files: The model's files.
        errors: The bounds.
        root: The dataset's root folder.
        runs: The sample.
        block_rows: Most rows that are coded together.
        rows: Rows of the dataset.
        effort: How hard to look.
        seed: Seed of every random draw.
        threads: Compute threads.
        board: Where progress is told.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        errors: Errors,
        root: Location,
        runs: Sequence[Run],
        block_rows: int,
        rows: int,
        effort: str,
        seed: int,
        threads: int,
        board: Any = None,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._bundle, self._rows = Bundle.from_files(files, "the model"), rows
        self._effort, self._seed, self._board = effort, seed, board
        names = [column.name for column in self._bundle.rows.modelled]
        self._batches = [batch for run in runs for batch in run.read(root, names, block_rows)]
        schema = pa.schema([self._bundle.rows.schema.field(name) for name in names])
        table = pa.Table.from_batches([batch.cast(schema) for batch in self._batches], schema)
        sample = table.unify_dictionaries().combine_chunks().to_batches()
        self._transform = self._bundle.rows.with_bounds(errors.absolute, sample[0] if len(sample) == 1 else None)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Fits the codec of an archive that keeps `item["keep"]`."""
        from pipeline.codec.fit import fit_codec

        latents = steps = None
        latent_bytes = 0.0
        if item["keep"] == BOTH:
            latents = [self._bundle.to_latents(self._bundle.rows.from_batch(batch)[0]) for batch in self._batches]
            steps = self._bundle.vae.latent_step_Z.cpu().numpy()
            latent_bytes = _parquet_bytes(latents) * self._rows / max(1, sum(map(len, latents)))
        report = None if self._board is None else self._tell
        guide = None if latents is None or steps is None else self._guide(latents, steps)
        fitted = fit_codec(
            self._transform, self._batches, latents, steps, self._rows, self._effort, self._seed, report, guide
        )
        codec = StoredCodec(
            fitted.codec.files(),
            fitted.sizes,
            latent_bytes,
            self._rows,
            fitted.sample_rows,
            fitted.seconds,
            self._effort,
        )
        return {"keep": item["keep"], "codec": codec.to_json()}

    def _guide(self, latents: Sequence[npt.NDArray[np.float32]], steps: npt.NDArray[np.float32]) -> Guide | None:
        """The exact decoder of the VAE, if a column is wide enough to listen to it."""
        import torch

        from pipeline.codec.fit import is_wide
        from pipeline.codec.guide import Guide, latent_indices
        from vae_model.exact import ExactDecoder

        wide = [column for column in self._transform.modelled if is_wide(column)]
        if self._effort == FAST or not wide:
            return None
        grids = {column.name: column.spans()[-1] for column in self._transform.modelled if column.spans()}
        sample = latent_indices(np.concatenate(latents)[:_GUIDE_ROWS], steps)
        try:
            decoder = ExactDecoder.from_vae(self._bundle.vae, grids, torch.from_numpy(sample))
        except ValueError as error:
            LOG.warning("the decoder has no exact form (%s); latents are no context of vectors", error)
            return None
        return Guide.of(decoder, steps)

    def _tell(self, text: str) -> None:
        self._board.tell.remote({"text": text})


def _parquet_bytes(latents: Sequence[npt.NDArray[np.float32]]) -> int:
    """Bytes of latents as a column of a part."""
    if not latents or not sum(map(len, latents)):
        return 0
    values = np.concatenate(latents)
    array = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    sink = io.BytesIO()
    pq.write_table(pa.table({"latent": array}), sink, compression="zstd", compression_level=6, write_statistics=False)
    return sink.getbuffer().nbytes
