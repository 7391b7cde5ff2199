"""`parvae encode`: encode a dataset into an archive."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.arguments import add_overwrite, add_workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("data", metavar="DATA", help="folder of Parquet files, or one file")
    parser.add_argument("--model", required=True, metavar="MODEL", help="folder of a trained model")
    parser.add_argument("--out", required=True, metavar="ARCHIVE", help="folder to write the archive to")
    add_workers(parser, "one a CPU, or one a GPU with --gpu")
    add_overwrite(parser, "an archive")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Encodes; returns the figures."""
    from pipeline.encode import encode
    from pipeline.storage import locate

    data, model, out = (
        locate(options.data, "DATA"),
        locate(options.model, "--model"),
        locate(options.out, "--out"),
    )
    result = encode(data, model, out, options.workers, options.gpu, options.overwrite)
    manifest = result.manifest
    return {
        "archive": str(out),
        **{key: manifest[key] for key in ("rows", "files", "parts", "bytes_in")},
        "bytes": manifest["bytes"],
        "parts_resumed": result.resumed,
        "seconds": result.seconds,
        "rows_per_second": manifest["rows"] / max(result.seconds, 1e-9),
    }


if __name__ == "__main__":
    from jobs.cli import run_module

    raise SystemExit(run_module("encode"))
