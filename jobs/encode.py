"""`parvae encode`: encode a dataset into an archive."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from jobs.arguments import add_effort, add_error, add_overwrite, add_workers

if TYPE_CHECKING:
    from pipeline.request import EncodeOptions
    from pipeline.storage import Location


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="folder of Parquet files, or one file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder of a trained model")
    parser.add_argument("--out", required=True, metavar="ARCHIVE", help="folder to write the archive to")
    parser.add_argument(
        "--keep",
        choices=("both", "corrections", "latents"),
        help="what the archive holds: latents and what decoding within the bound needs beside them; only what "
        "decoding needs, the smallest; or only latents, from which decoding is approximate (default: both)",
    )
    add_error(parser, "that of the model; columns with a bound of their own keep theirs")
    add_effort(parser, "that of the model")
    parser.add_argument("--dry-run", action="store_true", help="print what every choice would cost; write nothing")
    parser.add_argument(
        "--on-error",
        choices=("fail", "quarantine"),
        default="fail",
        help="quarantine: files that cannot be read are left out and listed in the manifest, the others are encoded, "
        "and the exit status is 3 (default: fail)",
    )
    add_workers(parser)
    add_overwrite(parser, "an archive")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Encodes, or says what encoding would cost; returns the figures."""
    from pipeline.archive import Archive
    from pipeline.encode import encode
    from pipeline.locate import locate
    from pipeline.request import EncodeOptions

    data, model, out = (
        locate(options.data, "DATA"),
        locate(options.model, "--model"),
        locate(options.out, "--out"),
    )
    wanted = EncodeOptions(options.keep, options.error, options.effort, on_error=options.on_error)
    if options.dry_run:
        return _dry_run(data, model, out, wanted)
    result = encode(data, model, out, wanted, options.workers, options.gpu, options.overwrite)
    manifest, plan = result.manifest, result.plan
    return {
        "archive": str(out),
        "keep": plan.keep,
        "error": plan.error,
        "own_errors": dict(plan.columns),
        "guaranteed": plan.guaranteed,
        **{key: manifest[key] for key in ("rows", "files", "parts", "bytes_in")},
        "added": {"rows": result.rows, "files": result.files, "parts": result.parts},
        "bytes": Archive.open(out).sizes(),
        "parts_resumed": result.resumed,
        "files_gone": list(result.gone),
        "drift": [dataclasses.asdict(drift) for drift in result.drift],
        "quarantined": [{"path": path, "reason": reason} for path, reason in sorted(result.quarantined.items())],
        "seconds": result.seconds,
        "rows_per_second": result.rows / max(result.seconds, 1e-9),
    }


def _dry_run(data: Location, model: Location, out: Location, options: EncodeOptions) -> dict[str, Any]:
    from jobs.inspect import format_table
    from pipeline.dry_run import dry_run

    report = dry_run(data, model, out, options)
    for title, rows in report.tables:
        print(f"{title}\n{format_table(rows)}\n")
    return report.figures


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("encode"))
