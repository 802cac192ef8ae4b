"""Uncertainty against error: a table for the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from dcase import plotting
from dcase.potentials.fitting.calibration import Calibration, spread_bins
from dcase.potentials.fitting.ensemble_evaluation import Uncertainty

MANY_POINTS = 3000  # above, density in place of dots
_COLORS = {"energy": plotting.ORANGE, "forces": plotting.BLUE}


def _unit(one: Uncertainty) -> tuple[float, str]:
    """Factor and name of the unit that is shown: meV for eV."""
    return (1e3, "m" + one.unit) if one.unit.startswith("eV") else (1.0, one.unit)


def uncertainty_table(found: Mapping[str, Uncertainty], members: int) -> Table:
    """A row a quantity: rank correlations, and whether the standard deviations have the right size.

    Args:
        found: By ``"energy"`` and ``"forces"``.
        members: Of the ensemble.
    """
    table = Table(
        title=f"Standard deviation over {members} potentials, against the error",
        box=SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    columns = ("RMS std", "error", "rank corr.", "per atom", "per frame", "area", "scale", "NLL")
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name, one in found.items():
        c = one.calibration
        factor, unit = _unit(one)
        table.add_row(
            f"{ {'energy': 'E', 'forces': 'F'}.get(name, name) } {unit}",
            _number(c.sharpness * factor, ".2f"),
            _number(c.rmse * factor, ".2f"),
            _number(c.spearman, ".3f"),
            _number(one.spearman_per_atom, ".3f"),
            _number(one.spearman_per_frame, ".3f"),
            _number(c.miscalibration_area, ".3f"),
            _number(c.scale, ".2f"),
            _number(c.nll, ".2f"),
            verdict(c),
        )
    return table


def verdict(calibration: Calibration) -> str:
    """In words, what a user should do with the standard deviations."""
    c = calibration
    words = []
    if c.scale == c.scale:
        size = "too small" if c.scale > 1.0 else "too large"
        words.append("right size" if 0.9 < c.scale < 1.1 else f"{size}: multiply by {c.scale:.2g}")
    if c.n_zero:
        words.append(f"{c.n_zero} of {c.n} are exactly 0")
    if c.n_left_out:
        words.append(f"{c.n_left_out} not finite, left out")
    return "; ".join(words)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or value != value else format(value, form)


def write_reliability_figure(found: Mapping[str, Uncertainty], path: Path) -> Path:
    """Draw :func:`reliability_figure` into ``path`` with ``_reliability`` added to its stem."""
    target = path.with_stem(path.stem + "_reliability")
    plotting.save(reliability_figure(found), target)
    return target


def reliability_figure(found: Mapping[str, Uncertainty]) -> Figure:
    """Coverage against the nominal level, and for each quantity the error against the spread.

    Args:
        found: By ``"energy"`` and ``"forces"``.
    """
    figure, (curve, *axes) = plotting.new_figure(1, 1 + len(found), (4.0 + 4.2 * len(found), 3.9))
    curve.plot((0, 1), (0, 1), color=plotting.GREY, linewidth=0.9)
    for ax, (name, one) in zip(axes, found.items(), strict=True):
        c, color = one.calibration, _COLORS.get(name, plotting.GREEN)
        label = "force components" if name == "forces" else name
        curve.plot(
            c.levels,
            c.coverage,
            color=color,
            linewidth=1.6,
            label=f"{label} (area {c.miscalibration_area:.2f})",
        )
        curve.fill_between(c.levels, c.levels, c.coverage, color=color, alpha=0.15, linewidth=0)
        _spread_panel(figure, ax, one, name)
    curve.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    curve.set_xlabel("nominal level of the central interval")
    curve.set_ylabel("share of errors inside")
    for x, y, side, word in ((0.97, 0.04, "right", "too small"), (0.03, 0.72, "left", "too large")):
        curve.text(x, y, f"standard deviation {word}", ha=side, fontsize=8, color=plotting.GREY)
    curve.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _spread_panel(figure: Figure, ax: Axes, one: Uncertainty, name: str) -> None:
    """|error| against std, both logarithmic, with the root mean square error in bins of std."""
    factor, unit = _unit(one)
    unit = unit.replace("/A", "/Å")
    error, std = np.abs(one.error).ravel() * factor, one.std.ravel() * factor
    shown = np.isfinite(error) & np.isfinite(std) & (error > 0) & (std > 0)
    what = "force components" if name == "forces" else f"the {name}"
    ax.set_xlabel(f"standard deviation of {what} ({unit})")
    ax.set_ylabel(f"|error| ({unit})")
    if not shown.any():
        ax.text(0.5, 0.5, "no spread to show", ha="center", transform=ax.transAxes)
        return
    x, y = std[shown], error[shown]
    ax.set_xscale("log")
    ax.set_yscale("log")
    # The smallest errors are chance: they would stretch the axis over decades of no interest.
    low = max(min(x.min(), y.min()), 1e-3 * float(np.median(y)))
    limits = (0.7 * min(low, x.min()), 1.4 * max(x.max(), y.max()))
    if len(x) <= MANY_POINTS:
        size = 12.0 if len(x) < 500 else 4.0
        ax.scatter(x, y, s=size, color=plotting.BLUE, alpha=0.4, linewidths=0.0, zorder=2)
    else:
        cells = ax.hexbin(
            x, y, gridsize=60, bins="log", mincnt=1, cmap="cividis_r", zorder=2,
            xscale="log", yscale="log",
        )  # fmt: skip
        bar = figure.colorbar(cells, ax=ax, pad=0.02)
        bar.set_label("points per cell", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    ax.plot(limits, limits, color=plotting.GREY, linewidth=0.9, zorder=3, label="of the right size")
    spread, rms, _ = spread_bins(error, std)
    ax.plot(
        spread, rms, "o-", color=plotting.RED, markersize=4, linewidth=1.2, zorder=4,
        label="RMS error in bins",
    )  # fmt: skip
    ax.set_xlim(0.8 * x.min(), 1.25 * x.max())
    ax.set_ylim(0.8 * max(low, y.min()), 1.4 * max(y.max(), rms.max()))
    rank = _number(one.calibration.spearman, ".2f")
    ax.legend(
        fontsize=8, title_fontsize=9, loc="lower left", framealpha=0.85, edgecolor="none",
        title=f"rank correlation {rank}",
    ).set_zorder(5)  # fmt: skip
