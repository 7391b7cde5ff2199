"""`parvae score`: how anomalous every row of a dataset is."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_overwrite, add_workers, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="folder of Parquet files, or one file, with the model's columns")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder of a trained model")
    parser.add_argument("--out", required=True, metavar="SCORES", help="folder to write: a file of scores a file")
    parser.add_argument(
        "--samples", type=positive, default=16, metavar="M", help="latent draws that a score averages (default: 16)"
    )
    parser.add_argument(
        "--contributions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write what each column adds to a row's strangeness, and the strangest column (default: yes)",
    )
    parser.add_argument(
        "--keys",
        action="append",
        metavar="COL",
        help="a column to copy beside the scores; repeat for more (default: those that the model passes through)",
    )
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument(
        "--threshold", type=float, metavar="T", help="rows with a higher score are anomalous: is_anomaly is written"
    )
    threshold.add_argument(
        "--threshold-quantile", type=float, metavar="Q", help="the threshold is this quantile of the scores, e.g. 0.99"
    )
    threshold.add_argument(
        "--threshold-label",
        metavar="COL",
        help="the threshold has the highest F1 against this column of DATA, whose anomalies are true, the larger "
        "number, or the rarer text",
    )
    parser.add_argument(
        "--neighbours", type=positive, metavar="K", help="write the distance to the K-th nearest reference latent, too"
    )
    parser.add_argument(
        "--reference", metavar="ARCHIVE", help="archive whose latents are the reference (default: a sample of DATA)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random draws (default: 0)")
    add_workers(parser)
    add_overwrite(parser, "scores")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Scores; returns the figures."""
    from pipeline.locate import locate
    from pipeline.score import score
    from pipeline.score_files import ScoreOptions

    data, model, out = locate(options.data, "DATA"), locate(options.model, "--model"), locate(options.out, "--out")
    wanted = ScoreOptions(
        samples=options.samples,
        contributions=options.contributions,
        keys=None if options.keys is None else tuple(options.keys),
        threshold=options.threshold,
        quantile=options.threshold_quantile,
        label=options.threshold_label,
        neighbours=options.neighbours,
        reference=None if options.reference is None else locate(options.reference, "--reference"),
        seed=options.seed,
    )
    figures = score(data, model, out, wanted, options.workers, options.gpu, options.overwrite)
    return {"out": str(out), **figures}


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("score"))
