"""The style of every picture: axes with units, colours that the colour-blind can tell apart.

A figure is a ``matplotlib.figure.Figure`` with its own Agg canvas: no pyplot, no back-end switch,
no figure that outlives its caller.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dcase.files import atomic_path

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
"""Okabe and Ito's palette (Color Universal Design, 2008)."""

DPI = 160


def new_figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 3.8), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with axes in a list, without global state.

    Args:
        rows: Of axes.
        columns: Of axes.
        size: Inches.
        **options: For ``Figure.subplots``.
    """
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        ax.tick_params(labelsize=9)
        ax.grid(True, color="#e6e6e6", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, list(axes.flat)


def log_scale(ax: Axes, axis: Literal["x", "y"] = "y") -> bool:
    """Make an axis logarithmic if anything drawn on it is positive: errors may all be zero.

    Returns:
        Whether it is.
    """
    positive = math.isfinite((ax.yaxis if axis == "y" else ax.xaxis).get_minpos())
    if positive:
        ax.set(**{f"{axis}scale": "log"})
    return positive


def png(figure: Figure) -> bytes:
    """The figure as PNG, without a time stamp: the same data give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG atomically.

    Raises:
        DcaseError: If it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(figure))
