"""Bytes that general tools need for one table within the same error bound: those of `pipeline.report.peers`, and SZ3.

SZ3: as the best of them, column by column, but every float column by SZ3 (absolute bound, otherwise its defaults);
integers, and floats that it is not given, as in best. Only above the bound 0.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.columns import Bound
from pipeline.report.peers import Binned, measure, one_array, to_bins

__all__ = ["measure_peers", "one_array", "to_bins", "versions"]
SZ3_ROWS = 16
"""Shorter columns are not given to SZ3."""


def measure_peers(table: pa.Table, bound: Bound, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """What general tools need for a table.

    Args:
        table: The table.
        bound: The error bound of every numeric column; relative ones count in the column's range.
        report: Told what is being measured.

    Returns:
        Bytes by tool, `sz3` None where it does not apply (`sz3_note` says why), and what `best` took by column.
    """
    found = measure(table, lambda _: bound, report)
    sizes = {name: found.columns[name][tool] for name, tool in found.smallest.items()}
    tools = {name: f"{tool} {sizes[name]:,}" for name, tool in found.smallest.items()}
    figures: dict[str, Any] = {
        "rows": table.num_rows,
        "arrow": table.nbytes,
        "parquet": found.parquet,
        "parquet_on_bins": found.on_bins,
        "best": found.best,
        "exact_columns": found.exact,
        "columns": dict.fromkeys(found.exact_names, "parquet") | tools,
    }
    return figures | _sz3(found.binned, sizes, found.exact, bound)


def versions() -> dict[str, str]:
    """The versions of the tools; "" for one that is not installed."""
    found = {}
    for name in ("pyarrow", "pcodec", "pysz"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _sz3(binned: dict[str, Binned], best: dict[str, int], rest: int, bound: Bound) -> dict[str, Any]:
    """Bytes with every float column by SZ3, its own error checked."""
    floats = {name: column for name, column in binned.items() if np.issubdtype(column.values.dtype, np.floating)}
    fit = [name for name, column in floats.items() if len(column.values) >= SZ3_ROWS and column.bound > 0]
    note = ""
    if bound.exact:
        note = "SZ3 keeps no bound of 0"
    elif not fit:
        note = "no float columns"
    elif not versions()["pysz"]:
        note = "pysz is not installed"
    if note:
        return {"sz3": None, "sz3_columns": {}, "sz3_violations": 0, "sz3_note": note}
    found = {name: _sz3_column(floats[name]) for name in fit}
    sizes = {name: size for name, (size, _) in found.items()}
    return {
        "sz3": rest + sum((best | sizes).values()),
        "sz3_columns": sizes,
        "sz3_violations": sum(missed for _, missed in found.values()),
        "sz3_note": f"{len(sizes)} of {len(binned)} numeric columns",
    }


def _sz3_column(column: Binned) -> tuple[int, int]:
    """Bytes of SZ3 for a column of floats, and how many values are then further off than the bound."""
    from pysz import sz, szConfig, szErrorBoundMode

    values = column.values.astype(np.float32) if column.values.dtype == np.float16 else column.values
    results = []
    for order in [values] if values.ndim == 1 else [values, values.T]:
        data = np.ascontiguousarray(order)
        config = szConfig()
        config.errorBoundMode = szErrorBoundMode.ABS
        config.absErrorBound = column.bound
        packed, _ = sz.compress(data, config)
        decoded, _ = sz.decompress(packed, data.dtype, data.shape)
        missed = np.abs(decoded.astype(np.float64) - data.astype(np.float64)) > column.bound
        results.append((int(packed.size), int(missed.sum())))
    return min(results)
