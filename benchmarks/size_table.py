"""The table of `size`: a line an archive, what the lines come to, and both as files."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers import versions

SLACK, SLACK_BYTES = 1.01, 8 << 10
"""An archive is worse than `best` above this factor and so many bytes."""
MANY_ROWS = 40_000


def line(row: dict[str, Any]) -> dict[str, Any]:
    """A row of results as a line of the table."""
    total, peers, elbo = row["total"], row.get("peers", {}), row["minus_elbo_bits_per_row"]
    cells = {name: row[name] for name in ("data", "error", "keep", "effort", "rows")}
    parts = ("corrections", "plain", "latents", "weights", "model", "description")
    cells |= {name: row[name] for name in (*parts, "total")}
    cells |= {"bits/row": 8 * total / max(1, row["rows"]), "−ELBO": "–" if elbo is None else elbo}
    tools = {"parquet": "Parquet", "parquet_on_bins": "on bins", "best": "best", "sz3": "SZ3"}
    sizes = {head: peers.get(tool) for tool, head in tools.items()}
    cells |= {head: "–" if size is None else size for head, size in sizes.items()}
    cells |= {f"÷{head}": "–" if not size else f"{total / size:.3f}" for head, size in sizes.items()}
    ratio = f"{row['coded'] / row['ideal']:.4f}" if row.get("ideal") else "–"
    return cells | {"coded/ideal": ratio, "violations": row["violations"]}


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """What the table comes to, by bound, effort and what is kept."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["error"], row["keep"], row["effort"]), []).append(row)
    lines = []
    for (error, keep, effort), members in groups.items():
        text = f"{error}, keep {keep}, effort {effort}: {sum(row['violations'] for row in members):,} violations in "
        text += f"{sum(row['values'] for row in members):,} values"
        ratios = {row["data"]: row["total"] / row["peers"]["best"] for row in members if row.get("peers")}
        large = [ratios[row["data"]] for row in members if row["data"] in ratios and row["rows"] >= MANY_ROWS]
        if large:
            text += (
                f"; total / best at {MANY_ROWS:,} rows or more: median {statistics.median(large):.3f} of {len(large)}"
            )
        if ratios:
            worst = max(ratios, key=lambda name: ratios[name])
            text += f"; largest {ratios[worst]:.3f} ({worst})"
        worse = [row["data"] for row in members if row.get("peers") and row["total"] > _most(row["peers"]["best"])]
        lines.append(text + (f"; worse than best: {', '.join(worse)}" if worse else ""))
    return lines


def _most(best: int) -> float:
    return SLACK * best + SLACK_BYTES


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes `results.json` and `results.md`."""
    (folder / "results.json").write_text(json.dumps(rows, indent=1))
    lines = [line(row) for row in rows]
    heads = list(lines[0])
    numbers = [not isinstance(lines[0][head], str) or head.startswith(("÷", "−", "coded")) for head in heads]
    text = ["| " + " | ".join(heads) + " |", "|" + "|".join("---:" if flush else "---" for flush in numbers) + "|"]
    text += ["| " + " | ".join(_cell(cells[head]) for head in heads) + " |" for cells in lines]
    notes = {f"{row['data']} {row['error']}": row["peers"]["sz3_note"] for row in rows if row.get("peers")}
    text += ["", *(f"- {sentence}" for sentence in summary(rows))]
    text += [f"- SZ3: {'; '.join(f'{name}: {note}' for name, note in notes.items())}"] if notes else []
    codes = sorted({row["code"] for row in rows})
    if len(codes) > 1:
        text += [f"- The lines were measured with {len(codes)} states of the code: {', '.join(codes)}."]
    if any(row["minus_elbo_bits_per_row"] is not None for row in rows):
        text += ["- −ELBO: bits a row on the grids that the VAE was trained on, which are not those of the bound."]
    used = [f"{name} {version}" for name, version in versions().items() if version]
    text += [f"- Sizes in bytes. Python {platform.python_version()}, {', '.join(used)}."]
    (folder / "results.md").write_text("\n".join(text) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
