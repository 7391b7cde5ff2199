"""`parvae classify`: what an archive's latents are worth to a classifier."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import positive
from jobs.inspect import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("archive", metavar="ARCHIVE", help="folder of an archive")
    parser.add_argument(
        "--label", required=True, metavar="COL", help="column of the classes, passed through by the model"
    )
    parser.add_argument("--allow-modelled-label", action="store_true", help="even if the model saw the label (a leak)")
    parser.add_argument(
        "--split", metavar="COL=VALUE", help="rows with VALUE in COL are the test rows (default: drawn)"
    )
    parser.add_argument(
        "--test-fraction", type=float, default=0.2, metavar="F", help="share of test rows (default: 0.2)"
    )
    parser.add_argument("--seeds", type=positive, default=5, metavar="N", help="repetitions (default: 5)")
    parser.add_argument(
        "--classifier", action="append", choices=("logistic", "boosting"), help="may be given twice (default: both)"
    )
    parser.add_argument(
        "--features", action="append", choices=("latents", "pca", "raw"), help="may be repeated (default: all three)"
    )
    parser.add_argument(
        "--latents",
        choices=("stored", "mean", "mean+variance"),
        default="stored",
        help="rounded means as they are stored, or encoded again: means, or log-variances beside them",
    )
    parser.add_argument("--whiten", action="store_true", help="turn and scale latents to the identity as covariance")
    parser.add_argument("--model", metavar="MODEL", help="the model, for an archive that keeps corrections alone")
    parser.add_argument(
        "--memory", type=positive, default=2048, metavar="MIB", help="a larger matrix is streamed (default: 2048)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="Ray workers (default: one a CPU)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Classifies; prints a table, and returns the figures."""
    from pipeline.classify import ClassifyOptions, classify
    from pipeline.errors import ConfigError
    from pipeline.locate import locate

    split = None
    if options.split is not None:
        column, equals, value = options.split.partition("=")
        if not equals or not column:
            raise ConfigError(f"--split {options.split!r}: expected COL=VALUE, e.g. --split split=test")
        split = (column, value)
    asked = ClassifyOptions(
        label=options.label,
        allow_modelled=options.allow_modelled_label,
        split=split,
        test_fraction=options.test_fraction,
        seeds=options.seeds,
        classifiers=tuple(options.classifier or ("logistic", "boosting")),
        features=tuple(options.features or ("latents", "pca", "raw")),
        latents=options.latents,
        whiten=options.whiten,
        model=None if options.model is None else locate(options.model, "--model"),
        memory=options.memory << 20,
    )
    figures = classify(locate(options.archive, "ARCHIVE"), asked, options.workers)
    print(f"\n{format_table([_shown(row) for row in figures['scores']])}\n")
    return figures


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the table: means ± standard deviations."""
    line: dict[str, Any] = {"features": f"{row['features']} ({row['width']})", "classifier": row["classifier"]}
    for name in ("accuracy", "macro_f1", "auroc"):
        mean, deviation = row[name], row[f"{name}_sd"]
        spread = "" if deviation is None else f" ± {deviation:.4f}"
        line[name.replace("_", "-")] = "–" if mean is None else f"{mean:.4f}{spread}"
    return line


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("classify"))
