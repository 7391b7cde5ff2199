"""`parvae train`: fit a model to a Parquet dataset."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_effort, add_error, add_overwrite, add_workers, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="folder of Parquet files, or one file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder to write the model to")
    parser.add_argument(
        "--passthrough",
        action="append",
        default=[],
        metavar="COL",
        help="a column to copy instead of modelling it: label, key; repeat for more",
    )
    add_error(parser, "0.01r")
    add_effort(parser, "balanced")
    parser.add_argument("--latent", type=positive, metavar="N", help="number of latents (default: 16)")
    parser.add_argument("--epochs", type=positive, metavar="N", help="passes over the data (default: by its size)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="seed of all random draws (default: 0)")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file: passthrough, columns, network, training, error, effort, seed"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="one value of the configuration, e.g. training.learning_rate=0.001; repeat for more",
    )
    parser.add_argument("--tensorboard", metavar="DIR", help="write TensorBoard event files there")
    add_workers(parser, "1, or one a GPU with --gpu")
    add_overwrite(parser, "a model")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains; returns the figures."""
    from pipeline.config import load_config, parse_setting
    from pipeline.locate import locate

    settings = dict(parse_setting(text) for text in options.settings)
    named = {
        "network.latent_dim": options.latent,
        "training.epochs": options.epochs,
        "error": options.error,
        "effort": options.effort,
        "seed": options.seed,
    }
    settings.update({key: value for key, value in named.items() if value is not None})
    text = "" if options.config is None else _read_config(options.config)
    config = load_config(text, options.config or "the configuration", settings, options.passthrough)
    data, model = locate(options.data, "DATA"), locate(options.model, "--model")
    tensorboard = None if options.tensorboard is None else locate(options.tensorboard, "--tensorboard")

    from pipeline.train import train

    result = train(data, model, config, options.workers, options.gpu, options.overwrite, tensorboard)
    history: list[dict[str, Any]] = list(result.bundle.training["history"])
    best = min(
        (entry for entry in history if entry["phase"] == history[-1]["phase"]),
        key=lambda entry: float(entry["minus_elbo_bits"]),
    )
    return {
        "model": str(model),
        "rows": result.rows,
        "epochs": len(history),
        "latent_dim": result.bundle.latent_dim,
        "minus_elbo_bits_per_row": best["minus_elbo_bits"],
        "minus_reconstruction_bits_per_row": best["minus_reconstruction_bits"],
        "kl_bits_per_row": best["kl_bits"],
        "active_units": best["active_units"],
        "model_bytes": sum(map(len, result.bundle.files().values())),
        "error": str(result.bundle.errors.default),
        "codec_bytes": {keep: sum(map(len, codec.files.values())) for keep, codec in result.codecs.items()},
        "columns": result.explanations,
        "seconds": result.seconds,
    }


def _read_config(path: str) -> str:
    from pipeline.errors import ConfigError
    from pipeline.locate import locate

    location = locate(path, "--config")
    if not location.is_file():
        raise ConfigError(f"--config {path} does not exist")
    try:
        return location.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path} is no UTF-8 text: {error}") from error


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("train"))
