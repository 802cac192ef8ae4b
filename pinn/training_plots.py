"""Pictures of training: losses, the points trained on, and comparisons of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from dcase.errors import DataError
from dcase.pinn.field_plots import SIZE_MAP, WIDTH, round_ticks
from dcase.plotting import BLUE, GREEN, GREY, ORANGE, RED, log_scale, new_figure

History = tuple[str, Sequence[Mapping[str, float]]]
"""A phase of training: its label, and rows of its ``metrics.csv``."""

Segment = tuple[np.ndarray, np.ndarray]
COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#8C6D1F")
STYLES = ("-", "--", ":", "-.")
MOST_POINTS = 600
"""Bins of a long curve, each drawn as its geometric mean."""


def loss_figure(histories: Sequence[History]) -> Figure:
    """Every term of the loss by name against steps, with switches of optimiser and window marked.

    A long curve is drawn as geometric means over bins, the total loss with the band between its
    extremes. A term that is exactly zero cannot be drawn on a logarithmic axis; the legend says so.

    Args:
        histories: Phases of training in order, each with its label and its rows from
            :func:`dcase.training.logs.read_metrics`; each phase counts its own steps. In a label
            such as ``"window 2, L-BFGS"`` a change of what stands before the comma is marked by a
            solid line, any other switch by a dashed one.
    """
    figure, (ax,) = new_figure(size=(WIDTH, 3.8))
    starts, curves = _joined(histories)
    end = max((x[-1] for segments in curves.values() for x, _ in segments), default=1.0)
    for i, name in enumerate(name for name in curves if name != "loss"):
        style = STYLES[i // len(COLORS) % len(STYLES)]
        _curve(ax, curves[name], name.replace("_", " "), COLORS[i % len(COLORS)], style)
    if "loss" in curves:
        _curve(ax, curves["loss"], "total loss", "black", "-", band=True)
    log_scale(ax)
    ax.set_xlim(0.0, float(end) or 1.0)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if curves:
        ax.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02),
            borderaxespad=0.3, handlelength=1.8,
        )  # fmt: skip
    if histories:
        _mark_phases(figure, ax, [label for label, _ in histories], starts, float(end) or 1.0)
    return figure


def _joined(histories: Sequence[History]) -> tuple[list[float], dict[str, list[Segment]]]:
    """Where each phase starts, and the curve of each term, one segment (steps, values) a phase."""
    starts: list[float] = []
    curves: dict[str, list[Segment]] = {}
    offset = 0.0
    for _, rows in histories:
        starts.append(offset)
        keys = dict.fromkeys(key for row in rows for key in row if key.startswith("train_"))
        for key in keys:
            pairs = [(offset + row["step"], row[key]) for row in rows if key in row]
            x, y = np.array(pairs, dtype=np.float64).T
            curves.setdefault(key.removeprefix("train_"), []).append((x, y))
        offset += max((row["step"] for row in rows), default=0.0)
    return starts, curves


def _curve(
    ax: Axes, segments: Sequence[Segment], label: str, color: str, style: str, band: bool = False
) -> None:
    width = 1.8 if band else 1.1
    per_bin = -(-sum(len(x) for x, _ in segments) // MOST_POINTS)
    drawn = False
    for x, y in segments:
        with np.errstate(invalid="ignore"):
            keep = np.isfinite(y) & (y > 0.0)
        if not keep.any():
            continue
        x, logs = x[keep], np.log(y[keep])
        bins = np.arange(0, len(x), per_bin)
        counts = np.diff(np.append(bins, len(x)))
        if band and per_bin > 1:
            middle = np.add.reduceat(x, bins) / counts
            low, high = np.minimum.reduceat(logs, bins), np.maximum.reduceat(logs, bins)
            ax.fill_between(middle, np.exp(low), np.exp(high), color=color, alpha=0.2, lw=0.0)
        centre, mean = np.add.reduceat(x, bins) / counts, np.add.reduceat(logs, bins) / counts
        ax.plot(
            centre, np.exp(mean), color=color, linewidth=width, linestyle=style,
            label="_" if drawn else label, marker="o" if len(mean) == 1 else None, markersize=4,
        )  # fmt: skip
        drawn = True
    if not drawn:
        zero = all((y == 0.0).all() for _, y in segments)
        note = " (= 0)" if zero else " (not finite)"
        ax.plot([], [], color=color, linewidth=width, linestyle=style, label=label + note)


def _mark_phases(
    figure: Figure, ax: Axes, labels: Sequence[str], starts: Sequence[float], end: float
) -> None:
    """A line where each phase begins and its label above; windows in a second row above those."""
    windows, _, phases = zip(*(label.rpartition(", ") for label in labels), strict=True)
    firsts = [i for i in range(len(labels)) if i == 0 or windows[i] != windows[i - 1]]
    for i, start in list(enumerate(starts))[1:]:
        line = "-" if i in firsts else "--"
        ax.axvline(start, color=GREY, linewidth=0.8, linestyle=line, zorder=1)
    figure.draw_without_rendering()  # places the axes, which gives them their width
    inches_a_step = ax.get_position().width * figure.get_figwidth() / end
    height = _label_row(ax, phases, [*starts, end], inches_a_step, 3.0)
    edges = [*(starts[i] for i in firsts), end]
    _label_row(ax, [windows[i] for i in firsts], edges, inches_a_step, 3.0 + height)


def _label_row(
    ax: Axes, labels: Sequence[str], edges: Sequence[float], inches_a_step: float, above: float
) -> float:
    """Labels over their intervals, upright where there is no room, left out where none at all.

    Args:
        ax: Labels go above it.
        labels: One an interval.
        edges: Of the intervals, in steps.
        inches_a_step: Scale of the axis.
        above: Points between the axis and the row.

    Returns:
        The row's height in points.
    """
    height, taken = 0.0, -1.0
    for label, start, stop in zip(labels, edges, edges[1:], strict=False):
        half = 0.5 * (stop - start) * inches_a_step
        level = half >= 0.03 * len(label) + 0.02
        at = start * inches_a_step + (half if level else max(0.06, min(half, 0.1)))
        reach = 0.03 * len(label) if level else 0.055
        if not label or at - reach < taken:
            continue
        taken = at + reach
        height = max(height, 12.0 if level else 5.0 * len(label) + 4.0)
        ax.annotate(
            label, (at / inches_a_step, 1.0), (0.0, above), xycoords=ax.get_xaxis_transform(),
            textcoords="offset points", ha="center", va="bottom", fontsize=8, color=GREY,
            rotation=0 if level else 90, annotation_clip=False,
        )  # fmt: skip
    return height


def bars_figure(
    results: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    trivial: Mapping[str, float] | None = None,
    metric: str = "nRMSE",
    emphasis: str | None = None,
) -> Figure:
    """A metric by variant, such as activations, one panel a task, the best on top.

    Each seed is an open dot, their mean a bar's end, their extremes a line. Seeds that gave no
    finite number are left out and counted beside the name.

    Args:
        results: By task and variant, the metric of each seed.
        trivial: By task, the best trivial predictor's metric, drawn as a line.
        metric: Its name, for the axis.
        emphasis: A variant to draw in another colour, such as the baseline.
    """
    count = max(1, len(results))
    most = max((len(variants) for variants in results.values()), default=1)
    figure, axes = new_figure(1, count, (max(4.4, WIDTH / 3 * count), 1.1 + 0.23 * most))
    for ax, (task, variants) in zip(axes, results.items(), strict=False):
        finite = {name: [v for v in seeds if math.isfinite(v)] for name, seeds in variants.items()}
        means = {name: float(np.mean(v)) if v else math.inf for name, v in finite.items()}
        order = sorted(means, key=lambda name: (means[name], name))
        every = [v for seeds in finite.values() for v in seeds if v > 0.0]
        line = (trivial or {}).get(task)
        every += [line] if line else []
        low = 0.6 * min(every, default=0.1)
        high = 1.5 * max(every, default=1.0)
        for row, name in enumerate(order):
            seeds = finite[name]
            if not seeds:
                continue
            color = ORANGE if name == emphasis else BLUE
            ax.barh(row, means[name] - low, left=low, height=0.62, color=color, alpha=0.45)
            ax.plot([min(seeds), max(seeds)], [row, row], color="black", linewidth=1.0)
            ax.plot(
                seeds, [row] * len(seeds), "o", markersize=4, color="black",
                markerfacecolor="white", markeredgewidth=0.8, zorder=3,
            )  # fmt: skip
        if line:
            ax.axvline(line, color=RED, linewidth=1.2, linestyle="--")
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ax.set_ylim(len(order) - 0.4, -0.6)
        lost = {name: len(variants[name]) - len(finite[name]) for name in order}
        names = [f"{name} ({lost[name]} failed)" if lost[name] else name for name in order]
        ax.set_yticks(range(len(order)), names, fontsize=8)
        ax.grid(False, axis="y")
        ax.set_title(task, fontsize=10)
        ax.set_xlabel(metric)
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        if high / low < 30.0:  # hardly a decade: 1, 2 and 5 of each
            ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    bar = {"linewidth": 6.0, "alpha": 0.45}
    handles: dict[str, dict[str, Any]] = {"mean": {"color": BLUE, **bar}}
    if any(emphasis in variants for variants in results.values()):
        handles[f"mean of {emphasis}"] = {"color": ORANGE, **bar}
    handles["one seed"] = {
        "color": "black",
        "marker": "o",
        "markersize": 4,
        "linewidth": 1.0,
        "markerfacecolor": "white",
    }
    if trivial:
        handles["best trivial predictor"] = {"color": RED, "linewidth": 1.2, "linestyle": "--"}
    lines = [Line2D([], [], label=name, **style) for name, style in handles.items()]
    figure.legend(
        handles=lines, ncols=len(lines), frameon=False, fontsize=8, loc="outside upper center"
    )
    return figure


def points_figure(
    points: Any,
    residuals: Any,
    coordinates: Sequence[str],
    *,
    domain: Mapping[str, tuple[float, float]] | None = None,
    label: str = "|residual|",
) -> Figure:
    """Collocation points, coloured by the size of the residual there, the largest on top.

    Args:
        points: ``(N, d)``, in the order of ``coordinates``; array or tensor.
        residuals: ``(N,)``; for several equations, their norm.
        coordinates: ``("x", "t")``, or ``("x", "y", "t")``, drawn in four intervals of time.
        domain: Limits of the axes by coordinate.
        label: Of the colours.

    Raises:
        DataError: If shapes do not fit.
    """
    points, sizes = _numbers(points), np.abs(_numbers(residuals))
    if points.ndim != 2 or points.shape[1] != len(coordinates) or sizes.shape != points.shape[:1]:
        raise DataError(
            f"points {points.shape} and residuals {sizes.shape} must be "
            f"(N, {len(coordinates)}) and (N,)"
        )
    keep = np.isfinite(sizes) & (sizes > 0.0)
    points, sizes = points[keep], np.log10(sizes[keep])
    order = np.argsort(sizes, kind="stable")
    points, sizes = points[order], sizes[order]
    low, high = (np.percentile(sizes, [1.0, 100.0])) if len(sizes) else (-1.0, 0.0)
    low = float(np.clip(low, high - 4.0, high - 1.0))
    columns = {name: points[:, i] for i, name in enumerate(coordinates)}
    if len(coordinates) == 2:
        across, up = coordinates[1], coordinates[0]
        figure, axes = new_figure(1, 1, (5.4, 3.6))
        parts, shrink = [np.full(len(sizes), True)], 1.0
    else:
        across, up = coordinates[:2]
        figure, axes = new_figure(1, 4, (WIDTH, 2.25), sharex=True, sharey=True)
        t = columns[coordinates[-1]]
        if domain is not None:
            edges = np.linspace(*domain[coordinates[-1]], 5)
        else:
            edges = np.linspace(t.min(), t.max(), 5) if len(t) else np.arange(5.0)
        which = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, 3)
        parts, shrink = [which == i for i in range(4)], 0.7
        for i, ax in enumerate(axes):
            ax.set_title(f"t = {edges[i]:.3g} … {edges[i + 1]:.3g}", fontsize=9)
            ax.set_aspect("equal")
            ax.xaxis.set_major_locator(round_ticks(2))
    area = float(np.clip(1.2e4 / max(1, len(sizes)), 1.5, 12.0))
    for ax, part in zip(axes, parts, strict=True):
        ax.grid(False)
        shown = ax.scatter(
            columns[across][part], columns[up][part], c=sizes[part], s=area,
            cmap=SIZE_MAP, vmin=low, vmax=high, linewidths=0.0,
        )  # fmt: skip
        names = {"t": "time t"} if len(parts) == 1 else {}
        ax.set_xlabel(names.get(across, across))
        if domain is not None:
            ax.set_xlim(domain[across])
            ax.set_ylim(domain[up])
    axes[0].set_ylabel(f"position {up}" if len(parts) == 1 else up)
    bar = figure.colorbar(shown, ax=axes, pad=0.02, extend="min", aspect=16, shrink=shrink)
    bar.set_label(f"log₁₀ {label}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _numbers(values: Any) -> np.ndarray:
    """An array or a tensor, on any device, as float64."""
    values = values.detach().cpu() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=np.float64)
