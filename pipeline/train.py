"""Training: fit the columns, the VAE with Ray Train, then the codec for the error bounds; write the model folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchTrainer

from pipeline.bounds import overrides
from pipeline.bundle import BUNDLE_FILE, CHECKPOINTS_FOLDER, WEIGHTS_FILE, Bundle, schema_to_text
from pipeline.checkpoints import WEIGHTS, read_state
from pipeline.cluster import Cluster, connected
from pipeline.codec_store import StoredCodec, remove_codecs, save_codecs
from pipeline.config import TrainConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import DatasetError, OutputError, TrainingError
from pipeline.fit import fit_columns
from pipeline.fit_codec import fit_codecs
from pipeline.fitting import Fitted, column_options
from pipeline.locate import check_output
from pipeline.lock import is_vacant, locked
from pipeline.packed import PackedRows
from pipeline.progress import Board, EpochProgress
from pipeline.promise import BOTH, CORRECTIONS, Errors
from pipeline.sampling import held_out
from pipeline.storage import Location
from pipeline.training_data import PACKED_TOGETHER, PackUnits, epoch_plan, held_out_fraction
from pipeline.training_loop import LoopSettings
from pipeline.training_process import Checkpoints, ProcessHost, UnitRows, train_here
from pipeline.training_worker import train_worker

LOG = logging.getLogger(__name__)
RUN_FILE = "run.json"
_MAX_WORKER_FAILURES = 3


@dataclass(frozen=True)
class TrainResult:
    """What training came to.

    Attributes:
        bundle: The model.
        codecs: What codes each column within the error bounds, by what archives keep.
        rows: Rows of the dataset.
        seconds: Wall time.
        explanations: For each column, its kind and why.
    """

    bundle: Bundle
    codecs: Mapping[str, StoredCodec]
    rows: int
    seconds: float
    explanations: dict[str, str]


def train(
    data: Location,
    model: Location,
    config: TrainConfig,
    workers: int | None = None,
    gpu: bool = False,
    overwrite: bool = False,
    tensorboard: Location | None = None,
) -> TrainResult:
    """Trains a model on a dataset and writes it to a folder.

    A run that was killed continues from its last checkpoint when it is started again with the same dataset and
    configuration.

    Args:
        data: Folder of Parquet files.
        model: Folder to write.
        config: The configuration.
        workers: Training workers; None: one, or one a GPU with `gpu`.
        gpu: Whether workers train on GPUs.
        overwrite: Whether a model, or another run's checkpoints, in the folder may be replaced.
        tensorboard: Folder for TensorBoard event files, or None.

    Raises:
        InputError: Bad input, found before any work.
        TrainingError: The loss stopped being finite, or workers failed too often.
    """
    started = time.monotonic()
    check_output(model, "--model", {"DATA": data})
    if tensorboard is not None:
        check_output(tensorboard, "--tensorboard", {"DATA": data, "--model": model})
    dataset = open_dataset(data)
    if dataset.rows == 0:
        raise DatasetError(f"DATA {data} has no rows; nothing can be learned from it")
    options = column_options(dataset.schema, config.passthrough, config.columns, config.defaults)
    run = _run_fingerprint(dataset, config)
    _check_model_folder(model, run, overwrite)
    with connected() as cluster, locked(model, "--model") as lock:
        _check_model_folder(model, run, overwrite)
        count = cluster.workers_for(workers if gpu or workers else 1, gpu)
        fitted = fit_columns(dataset, options, config.seed, cluster, cluster.workers_for(None, False, dataset.size))
        for name, text in fitted.explanations.items():
            LOG.info("column %r: %s", name, text)
        _begin(model, run)
        weights, history = _fit_network(_Job(dataset, fitted, config, model, cluster, count, gpu))
        seconds = time.monotonic() - started
        training = {"config": config.to_json(), "rows": dataset.rows, "seconds": seconds, "history": history}
        errors = Errors.resolve(fitted.rows, config.bound, overrides(options))
        bundle = Bundle(fitted.rows, weights, training, errors=errors)
        codecs = {}
        if errors.guaranteed:
            codecs = fit_codecs(dataset, bundle, errors, (BOTH, CORRECTIONS), config.effort, config.seed, cluster)
        lock.check()
        save_codecs(model, codecs)
        bundle.save(model)
        seconds = time.monotonic() - started
        if tensorboard is not None:
            _write_events(tensorboard, history)
        model.join(CHECKPOINTS_FOLDER).remove()
    return TrainResult(bundle, codecs, dataset.rows, seconds, fitted.explanations)


@dataclass(frozen=True)
class _Job:
    """One training run: what is trained on what, by whom."""

    dataset: Dataset
    fitted: Fitted
    config: TrainConfig
    model: Location
    cluster: Cluster
    workers: int
    gpu: bool

    @property
    def fraction(self) -> float:
        """Share of the rows that is held out."""
        return held_out_fraction(self.dataset.rows, self.config.training)

    def settings(self) -> LoopSettings:
        """What the driver decides for all workers."""
        config, layout = self.config, self.fitted.rows.layout()
        units = self.dataset.units()
        kept = sum(int(np.count_nonzero(held_out(config.seed, unit, self.fraction))) for unit in units)
        rows = self.dataset.rows - kept
        plan, epochs = epoch_plan(rows, PackedRows(layout).row_bytes, config.training, self.workers, config.seed)
        LOG.info(
            "training on %s rows, %s held out; %d epochs of %d steps of %d rows, %d latents",
            f"{rows:,}",
            f"{kept:,}",
            epochs,
            plan.steps,
            plan.local_batch * self.workers,
            config.network.latent_dim,
        )
        return LoopSettings(
            layout.to_json(),
            config.network.to_json(),
            config.training,
            config.seed,
            epochs,
            plan,
            kept == 0,
            self.cluster.threads_per_worker(self.workers),
        )

    @property
    def packing(self) -> PackUnits:
        """What packs rows."""
        return PackUnits(
            self.dataset.root,
            self.fitted.rows.to_json(),
            schema_to_text(self.dataset.schema),
            min(PACKED_TOGETHER, self.dataset.block_rows),
            self.config.seed,
            self.fraction,
        )

    def trainer(self, settings: LoopSettings, board: Any) -> TorchTrainer:
        """The Ray Train job."""
        resources = {"CPU": self.cluster.cpus_per_worker(self.workers), **({"GPU": 1} if self.gpu else {})}
        if memory := self.cluster.memory_per_worker():
            resources["memory"] = memory
        return TorchTrainer(
            train_worker,
            train_loop_config={"loop": settings, "board": board},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.workers, use_gpu=self.gpu, resources_per_worker=resources
            ),
            run_config=_run_config(self.model),
            datasets={"rows": _rows(self.dataset.units(), self.packing)},
            dataset_config=ray.train.DataConfig(execution_options=_execution_options()),
        )


def _fit_network(job: _Job) -> tuple[bytes, list[dict[str, Any]]]:
    """Runs the training job; returns the weights and the history."""
    epochs, settings = EpochProgress(_log_epoch), job.settings()
    if job.cluster.local and job.workers == 1 and not job.gpu:
        checkpoints = Checkpoints(job.model.join(CHECKPOINTS_FOLDER))
        rows = UnitRows(job.dataset.units(), job.packing)
        found = train_here(settings, ProcessHost(torch.device("cpu"), rows, epochs, checkpoints))
        epochs.end()
        return found
    with Board(epochs) as board:
        trainer = job.trainer(settings, board.handle)
        try:
            result = trainer.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise TrainingError(f"training failed: {error}") from error
    if board.failure:
        raise TrainingError(board.failure)
    epochs.end()
    with result.checkpoint.as_directory() as folder:
        with open(os.path.join(folder, WEIGHTS), "rb") as stream:
            weights = stream.read()
        return weights, read_state(folder).history


def _rows(units: list[Any], packing: PackUnits) -> ray.data.Dataset:
    items = [{"item": json.dumps(unit.to_json())} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(packing, batch_size=None, batch_format="pyarrow", num_cpus=0.5)


def _execution_options() -> ray.data.ExecutionOptions:
    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def _run_config(model: Location) -> ray.train.RunConfig:
    storage: dict[str, Any] = {"storage_path": model.path}
    if not model.is_local:
        storage["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(model.fs))
    return ray.train.RunConfig(
        name=CHECKPOINTS_FOLDER,
        failure_config=ray.train.FailureConfig(max_failures=_MAX_WORKER_FAILURES),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        **storage,
    )


def _run_fingerprint(dataset: Dataset, config: TrainConfig) -> str:
    text = json.dumps([dataset.fingerprint(), config.to_json()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_model_folder(model: Location, run: str, overwrite: bool) -> None:
    """Refuses a folder that holds a model, another run, or anything that is not parvae's."""
    if is_vacant(model):
        return
    record = model.join(CHECKPOINTS_FOLDER, RUN_FILE)
    if not model.join(BUNDLE_FILE).exists() and not record.exists():
        raise OutputError(f"--model {model} holds something that is no model; choose an empty folder")
    if overwrite:
        return
    if model.join(BUNDLE_FILE).exists():
        model.join(CHECKPOINTS_FOLDER).remove()  # left by a run that was killed after its last step
        raise OutputError(f"--model {model} holds a model already; choose another folder, or give --overwrite")
    if _run_of(model) != run:
        raise OutputError(
            f"--model {model} holds an unfinished run on other data or with another configuration; choose another "
            "folder, or give --overwrite to drop it"
        )
    LOG.info("continuing the unfinished run in %s", model)


def _begin(model: Location, run: str) -> None:
    """Clears what is to be overwritten and says which run the folder belongs to."""
    if _run_of(model) != run:
        for name in (BUNDLE_FILE, WEIGHTS_FILE, CHECKPOINTS_FOLDER):
            model.join(name).remove()
        remove_codecs(model)
    model.join(BUNDLE_FILE).remove()
    model.join(CHECKPOINTS_FOLDER, RUN_FILE).write_json({"run": run})


def _run_of(model: Location) -> str | None:
    """Fingerprint of the unfinished run in a folder; None if there is none, or its record is damaged."""
    try:
        return str(model.join(CHECKPOINTS_FOLDER, RUN_FILE).read_json()["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log_epoch(entry: dict[str, Any]) -> None:
    LOG.info(
        "epoch %d of %d%s: -ELBO %.2f bits/row (reconstruction %.2f, KL %.2f), %d active units, %s rows/s",
        entry["epoch"] + 1,
        entry["epochs"],
        " (rounding)" if entry["phase"] == 2 else "",
        entry["minus_elbo_bits"],
        entry["minus_reconstruction_bits"],
        entry["kl_bits"],
        entry["active_units"],
        f"{entry['rows_per_second']:,.0f}",
    )


def _write_events(folder: Location, history: list[dict[str, Any]]) -> None:
    """Writes TensorBoard event files, one scalar a figure of the history."""
    import tempfile

    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as spool:
        with SummaryWriter(spool) as writer:
            for entry in history:
                for name, value in entry.items():
                    if name not in ("epoch", "phase"):
                        writer.add_scalar(name, value, entry["epoch"])
        for name in os.listdir(spool):
            with open(os.path.join(spool, name), "rb") as stream:
                folder.join(name).write_bytes(stream.read())
