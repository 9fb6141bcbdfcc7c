"""Rows as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ....schemas.errors import ConfigurationError
from .row import Row
from .table import number

__all__ = ["check_plot", "plot"]

_INCHES_PER_ROW = 0.32
_INCHES_PER_PANEL = 1.0
_WIDTH = 11.0
_OURS, _THEIRS = "#1f6f8b", "#c9c9c9"


def check_plot() -> None:
    """Makes sure that there is what a plot needs.

    Raises:
        ConfigurationError: there is not; says what to install.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigurationError("--plot needs matplotlib: pip install 'rankmq[bench]'") from None


def plot(rows: Sequence[Row], file: Path, caption: str) -> None:
    """Writes a PNG with a panel for each benchmark, and in it a line for each row.

    A row with a ceiling is a dot at its ratio, with a line from the least round to the greatest, on a scale of
    logarithms; the ceiling is at 1. A row without one is a bar as long as its value.

    Args:
        rows: at least one.
        file: where.
        caption: of the machine.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [list(of_name) for _, of_name in groupby(rows, key=lambda row: (row.name, row.ratio is None))]
    heights = [_INCHES_PER_PANEL + _INCHES_PER_ROW * len(panel) for panel in panels]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"rankmq bench: {caption}", fontsize=10)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        (_ratios if panel[0].ratio is not None else _values)(panel, axis)
        axis.set_title(panel[0].name, loc="left", fontsize=10, fontweight="bold")
        axis.set_yticks(range(len(panel)), [row.case for row in panel], fontsize=8)
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    figure.savefig(file, format="png")


def _ratios(rows: Sequence[Row], axis: Any) -> None:
    axis.axvline(1.0, color=_THEIRS, linewidth=2, zorder=0)
    ends = [1.0]
    for line, row in enumerate(rows):
        least, middle, greatest = (it or 1.0 for it in (row.ratio_min, row.ratio, row.ratio_max))
        ends += [least, greatest]
        axis.plot([least, greatest], [line, line], color=_OURS, linewidth=2, alpha=0.5)
        axis.plot([middle], [line], marker="o", color=_OURS)
        text = f"{number(middle)} x   {number(row.value)} of {number(row.ceiling)} {row.unit}"
        axis.annotate(
            text, (1.01, line), xycoords=("axes fraction", "data"), fontsize=8, va="center", annotation_clip=False
        )
    axis.set_xscale("log")
    axis.set_xlim(min(ends) / 1.3, max(ends) * 1.3)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if max(ends) / min(ends) < 5 else "")
    axis.tick_params(axis="x", which="minor", labelsize=7)
    axis.set_xlabel("of the ceiling", fontsize=8)


def _values(rows: Sequence[Row], axis: Any) -> None:
    values = [row.value for row in rows]
    axis.barh(range(len(rows)), values, height=0.6, color=_OURS)
    for line, row in enumerate(rows):
        text = f"{number(row.value)} {row.unit}"
        axis.annotate(
            text, (1.01, line), xycoords=("axes fraction", "data"), fontsize=8, va="center", annotation_clip=False
        )
    if min(values) > 0 and max(values) > 30 * min(values):
        axis.set_xscale("log")
