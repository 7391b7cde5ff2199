"""The report's plots: matplotlib's SVG, inline, in the colours of the page's theme.

Every colour is drawn as a placeholder and then named by a CSS variable, so that one plot serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.likeness import Marginals

CLASSES = 9
"""Classes with a colour of their own; others share the last one."""
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
    "#060606": "var(--page)",
    **{f"#0707{number:02x}": f"var(--class{number})" for number in range(1, CLASSES + 2)},
}
_INK, _MUTED, _RULE, _ACCENT, _SECOND, _PAGE, *_CLASS = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}
_WIDTH = 6.4
_BESIDE = 3
_MEASURES = {"pearson": "Pearson", "cramer": "Cramér's V", "ratio": "correlation ratio"}
_MOST_TICKS = 24
_NEAR = 0.04
"""How far around a point of a map it counts what lies there, as a share of the map."""
Point = Mapping[str, Any]


def training(history: Sequence[Point]) -> str:
    """−ELBO of training and validation by epoch, with the change of phases marked."""
    with rc_context(_STYLE | {"svg.hashsalt": "training"}):
        figure, axes = _figure(3.1)
        epochs = [int(point["epoch"]) + 1 for point in history]
        train = [float(point["train_minus_elbo_bits"]) for point in history]
        validation = [float(point["minus_elbo_bits"]) for point in history]
        marker = "o" if len(epochs) <= 40 else None
        axes.plot(epochs, train, color=_SECOND, linewidth=1.6, linestyle=(0, (4, 2)), label="training")
        axes.plot(epochs, validation, color=_ACCENT, linewidth=2, marker=marker, markersize=3.5, label="validation")
        _mark_phases(axes, history)
        _set_range(axes, [*train, *validation])
        axes.set_xlabel("epoch")
        axes.set_ylabel("−ELBO, bits a row")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.grid(True, axis="y")
        axes.legend(loc="upper right")
        return _svg(figure, "minus ELBO in bits a row over the epochs, training and validation")


def _mark_phases(axes: Axes, history: Sequence[Point]) -> None:
    second = [int(point["epoch"]) + 1 for point in history if point.get("phase") == 2]
    if second and second[0] > 1:
        axes.axvline(second[0] - 0.5, color=_MUTED, linewidth=1, linestyle=":")
        axes.annotate(
            "rounding noise ",
            (second[0] - 0.5, 0.98),  # above the curves, and not where the legend is
            xycoords=("data", "axes fraction"),
            color=_MUTED,
            fontsize=8.5,
            ha="right",
            va="top",
        )


def _set_range(axes: Axes, values: Sequence[float]) -> None:
    """Leaves the first epochs out of the range where all others would be a flat line."""
    shown = np.array(values)
    low, middle, high = shown.min(), float(np.median(shown)), shown.max()
    if high - low > 8 * max(middle - low, 1e-9):
        high = middle + 4 * (middle - low)
    margin = 0.06 * max(high - low, 1e-3)
    axes.set_ylim(low - margin, high + margin)


def divergence(kl_bits: Sequence[float], threshold: float) -> str:
    """KL of each latent, the largest first; those below the threshold are pale.

    Args:
        kl_bits: Mean KL of each latent, in bits.
        threshold: KL in bits above which a latent is active.
    """
    with rc_context(_STYLE | {"svg.hashsalt": "divergence"}):
        figure, axes = _figure(2.9)
        order = np.argsort(-np.array(kl_bits), kind="stable")
        for active, colour, label in ((True, _ACCENT, "active"), (False, _MUTED, "inactive")):
            places = [place for place, number in enumerate(order) if (kl_bits[number] > threshold) == active]
            heights = [kl_bits[order[place]] for place in places]
            if not places:
                continue
            if active:
                axes.bar(places, heights, color=colour, width=0.8, label=f"{label} ({len(places)})")
            else:  # bars would be too low to be seen
                axes.plot(
                    places, heights, "x", color=colour, markersize=4.5, clip_on=False, label=f"{label} ({len(places)})"
                )
        axes.set_xlim(-0.7, len(order) - 0.3)
        axes.set_ylim(0, max([*kl_bits, threshold]) * 1.08)
        if len(order) <= _MOST_TICKS:
            axes.set_xticks(range(len(order)), [str(number) for number in order])
        axes.set_xlabel("latent" if len(order) <= _MOST_TICKS else "latents, by rank")
        axes.set_ylabel("KL, bits a row")
        axes.grid(True, axis="y")
        axes.legend(loc="upper right")
        return _svg(figure, "mean KL divergence of each latent, in bits a row")


def map_of_classes(points: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """Rows as points, coloured by class; classes are named where their points lie, if there is room.

    Args:
        points: Shape (rows, 2).
        codes: Class of each row, the most frequent ones first.
        names: Names of the classes; those from `CLASSES` on share a colour.
    """
    with rc_context(_STYLE | {"svg.hashsalt": "map"}):
        figure, axes = _map_figure()
        for code in range(len(names)):
            own = points[codes == code]
            colour = _CLASS[min(code, CLASSES)] if len(names) > 1 else _ACCENT
            axes.scatter(own[:, 0], own[:, 1], s=7, color=colour, alpha=0.75, linewidths=0)
        named: list[npt.NDArray[np.float64]] = []
        for code, name in enumerate(names if len(names) > 1 else []):
            place = _heart(points, codes == code)
            if all(_are_apart(place, other, points) for other in named):
                _name_class(axes, place, name)
                named.append(place)
        return _svg(figure, "map of the latents of sampled rows")


def _heart(points: npt.NDArray[np.float64], own: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The point of a class with the most of its own and the fewest of the others around it."""
    scaled = points / np.maximum(np.ptp(points, axis=0), 1e-12)
    squares = np.square(scaled[own][:, None] - scaled[None]).sum(-1)
    near = np.exp(-squares / (2 * _NEAR**2))
    found: npt.NDArray[np.float64] = points[own][np.argmax(near @ np.where(own, 1.0, -1.0))]
    return found


def _are_apart(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], points: npt.NDArray[np.float64]
) -> bool:
    """Whether names at two places would not cover each other."""
    step = np.abs(first - second) / np.maximum(np.ptp(points, axis=0), 1e-12)
    return bool(step[0] > 0.12 or step[1] > 0.05)


def _name_class(axes: Axes, place: npt.NDArray[np.float64], name: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "facecolor": _PAGE, "edgecolor": "none", "alpha": 0.78}
    short = name if len(name) <= 18 else name[:17] + "…"
    axes.text(place[0], place[1], short, ha="center", va="center", fontsize=9, fontweight="bold", bbox=box)


def map_of_numbers(points: npt.NDArray[np.float64], values: npt.NDArray[np.float64], name: str) -> str:
    """Rows as points, coloured by a number; without one they are grey.

    Args:
        points: Shape (rows, 2).
        values: The numbers, NaN where there is none.
        name: What they are.
    """
    with rc_context(_STYLE | {"svg.hashsalt": "map"}):
        figure, axes = _map_figure(4.6)
        known = np.isfinite(values)
        low, high = np.quantile(values[known], [0.01, 0.99])
        axes.scatter(points[~known, 0], points[~known, 1], s=7, color=_MUTED, alpha=0.5, linewidths=0)
        drawn = axes.scatter(
            points[known, 0], points[known, 1], s=7, c=values[known], cmap=_shades(), vmin=low, vmax=high, linewidths=0
        )
        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, extend="both")
        bar.outline.set_visible(False)
        bar.set_label(name if len(name) <= 40 else name[:39] + "…")
        return _svg(figure, "map of the latents of sampled rows, coloured by a number")


def distributions(columns: Sequence[tuple[str, Marginals, bool]]) -> str:
    """Distributions of columns in two tables, three beside each other.

    Args:
        columns: Name, shares, and whether the numbers are times, whose axis says nothing, of each column.
    """
    with rc_context(_STYLE | {"svg.hashsalt": "distributions"}):
        lines = -(-len(columns) // _BESIDE)
        figure = Figure(figsize=(_WIDTH, 1.9 * lines), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(lines, _BESIDE, squeeze=False)
        for axes, (name, shares, times) in zip(grid.flat, columns, strict=False):
            axes.set_title(_cut(name, 26), fontsize=9)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            if shares.edges is None:
                places = np.arange(len(shares.names))
                axes.barh(places - 0.2, shares.first, 0.4, color=_ACCENT)
                axes.barh(places + 0.2, shares.second, 0.4, color=_SECOND)
                axes.set_yticks(places, [_cut(text, 12) for text in shares.names], fontsize=7)
                axes.invert_yaxis()
                axes.xaxis.set_major_locator(MaxNLocator(3))
            else:
                axes.stairs(shares.first, shares.edges, fill=True, color=_ACCENT, alpha=0.45)
                axes.stairs(shares.second, shares.edges, color=_SECOND, linewidth=1.4)
                axes.xaxis.set_major_locator(MaxNLocator(4))
                if times:
                    axes.set_xticks([])
            axes.tick_params(axis="x", labelsize=7)
        for axes in grid.flat[len(columns) :]:
            axes.set_axis_off()
        return _svg(figure, "distributions of columns among the dataset's rows and among rows made up")


def associations(pairs: Sequence[tuple[str, float, float]]) -> str:
    """Associations of pairs of columns in one table against those in another: measure, first, second."""
    with rc_context(_STYLE | {"svg.hashsalt": "associations"}):
        figure, axes = _figure(4.4)
        low = min(0.0, *(min(first, second) for _, first, second in pairs))
        axes.plot([low, 1], [low, 1], color=_RULE, linewidth=1)
        for measure, colour in zip(_MEASURES, (_ACCENT, _SECOND, _MUTED), strict=True):
            own = [(first, second) for kind, first, second in pairs if kind == measure]
            if own:
                axes.plot(
                    *np.array(own).T, "o", color=colour, markersize=3.2, label=f"{_MEASURES[measure]} ({len(own)})"
                )
        axes.set_aspect("equal")
        axes.set_xlabel("among the dataset's rows")
        axes.set_ylabel("among rows made up")
        axes.grid(True)
        axes.legend(loc="upper left")
        return _svg(figure, "associations of pairs of columns")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _shades() -> ListedColormap:
    """Cividis without its ends, which would be lost on a dark or a light page."""
    return ListedColormap(colormaps["cividis"](np.linspace(0.22, 0.95, 128)))


def _map_figure(height: float = 4.8) -> tuple[Figure, Axes]:
    figure, axes = _figure(height)
    axes.set_axis_off()
    axes.margins(0.02)
    return figure, axes


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> str:
    """A figure as an SVG element that scales with the page and has no colours of its own."""
    sink = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(sink, format="svg", transparent=True, metadata=metadata)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text[:1000])
    assert box is not None
    text = f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">' + text[text.index(">") + 1 :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r'style="([^"]*)"', _themed, text).strip()


def _themed(style: re.Match[str]) -> str:
    """A style attribute with the theme's colours, and without fonts."""
    text = re.sub(r"font-family: [^;]*(; )?", "", style[1])
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    return f'style="{text}"'
