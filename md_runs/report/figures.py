"""Pictures of runs and errors; see :mod:`dcase.plotting` for the style they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dcase.md_runs.analysis.correlated import Part, average, blocks, extremes, sliceable
from dcase.md_runs.analysis.drift import EnergyDrift, plus_minus
from dcase.plotting import BLUE, GREY, ORANGE, RED, new_figure

MOST_POINTS = 400
"""Bins of a long series, each drawn as its mean in a band from its lowest to its highest value."""

MANY_POINTS = 3000
"""Above this a parity plot shows density instead of dots."""


def _series(
    ax: Axes,
    x: tuple[Any, float],
    y: tuple[Any, float, float],
    color: str,
    label: str,
) -> None:
    """A line, or for a long series the band between its extremes, so that no peak is lost.

    Args:
        ax: Where to draw.
        x: Values, as an array or an open file's, and what to multiply them with.
        y: The same, and what to subtract before.
        color: Of the line.
        label: Of the line.
    """
    (times, stretch), (values, zero, scale) = x, y
    n = len(values)
    if n <= 2 * MOST_POINTS:
        shown = (np.asarray(values[:]) - zero) * scale
        keep = np.isfinite(shown)
        drawn = np.asarray(times[:])[keep] * stretch
        ax.plot(drawn, shown[keep], color=color, linewidth=0.9, label=label)
        return
    rows = []
    size = -(-n // MOST_POINTS)
    for t, v in blocks(times, values, size=size):
        keep, starts = np.isfinite(v), np.arange(0, len(v), size)
        counts = np.add.reduceat(keep.astype(float), starts)
        sums = [np.add.reduceat(np.where(keep, part, 0.0), starts) for part in (t, v)]
        low = np.minimum.reduceat(np.where(keep, v, np.inf), starts)
        high = np.maximum.reduceat(np.where(keep, v, -np.inf), starts)
        rows.append(np.stack([counts, *sums, low, high])[:, counts > 0])
    counts, middle, mean, low, high = np.concatenate(rows, axis=1)
    middle, mean = middle / counts * stretch, mean / counts
    mean, low, high = ((part - zero) * scale for part in (mean, low, high))
    ax.fill_between(middle, low, high, color=color, alpha=0.3, linewidth=0.0)
    ax.plot(middle, mean, color=color, linewidth=1.0, label=label)


def _time_axis(times_fs: Any) -> tuple[float, str]:
    """What to multiply times with, and their name: fs up to 2 ps, ps beyond."""
    if len(times_fs) and times_fs[len(times_fs) - 1 :][0] > 2000.0:
        return 1e-3, "time (ps)"
    return 1.0, "time (fs)"


def energies_figure(series: Mapping[str, Any], *, n_atoms: int, temperature_K: float) -> Figure:
    """Potential, kinetic and total energy, and temperature, against time.

    Args:
        series: From ``trajectory.read_series``.
        n_atoms: Energies are per atom.
        temperature_K: Asked for; drawn as a line.
    """
    figure, (top, bottom) = new_figure(2, 1, (6.4, 5.0), sharex=True, height_ratios=(3, 2))
    stretch, label = _time_axis(series["time"])
    time = (series["time"], stretch)
    lowest = extremes(series["potential_energy"])[1]
    zero = lowest if math.isfinite(lowest) else 0.0
    scale = 1e3 / n_atoms
    _series(top, time, (series["potential_energy"], zero, scale), BLUE, "potential")
    _series(top, time, (series["kinetic_energy"], 0.0, scale), ORANGE, "kinetic")
    _series(top, time, (series["total_energy"], zero, scale), "black", "total")
    top.set_ylabel("energy (meV/atom)")
    top.margins(x=0.01)
    low, high = top.get_ylim()
    top.set_ylim(low, high + 0.16 * (high - low))  # room for the legend above the curves
    top.legend(ncols=3, frameon=False, fontsize=9, loc="upper right")
    _series(bottom, time, (series["temperature"], 0.0, 1.0), RED, "kinetic temperature")
    bottom.margins(x=0.01)
    bottom.axhline(
        temperature_K,
        color="black",
        linewidth=1.0,
        linestyle="--",
        label=f"{temperature_K:g} K asked for",
    )
    bottom.set_ylim(0.0, 1.18 * bottom.get_ylim()[1])
    bottom.legend(ncols=2, frameon=False, fontsize=9, loc="upper right")
    bottom.set_ylabel("temperature (K)")
    bottom.set_xlabel(label)
    return figure


def drift_figure(
    times_fs: Any, energy: Any, drift: EnergyDrift, *, n_atoms: int, name: str
) -> Figure:
    """Deviation of the conserved energy from its start, with the fitted line and its uncertainty.

    Args:
        times_fs: ``(n,)`` fs.
        energy: ``(n,)`` eV.
        drift: From ``drift.analyse``.
        n_atoms: The deviation is per atom.
        name: Of the energy, such as "total energy".
    """
    figure, (ax,) = new_figure(size=(6.4, 3.8))
    count = drift.n_samples
    times_fs, energy = Part(sliceable(times_fs), count), Part(sliceable(energy), count)
    stretch, label = _time_axis(times_fs)
    if count:
        scale = 1e3 / n_atoms
        start = float(energy[:1][0])
        _series(ax, (times_fs, stretch), (energy, start, scale), BLUE, name)
        slope, error = drift.slope_mev_per_atom_ps, drift.slope_stderr_mev_per_atom_ps
        if math.isfinite(slope) and count > 1:
            centre = average(times_fs)[0]
            height = (average(energy)[0] - start) * scale
            ends = float(times_fs[:1][0]), float(times_fs[count - 1 :][0])
            fs = np.linspace(*ends, 50)
            drawn, along = fs * stretch, (fs - centre) * 1e-3
            line = height + slope * along
            ax.plot(
                drawn,
                line,
                color=RED,
                linewidth=1.6,
                label=f"slope {plus_minus(slope, error)} meV/atom/ps".replace("-", "\u2212"),
            )
            if math.isfinite(error):
                # Lines through the mean point with slope +- 2 standard errors: a bow-tie.
                reach = 2.0 * error * np.abs(along)
                ax.fill_between(
                    drawn,
                    line - reach,
                    line + reach,
                    color=RED,
                    alpha=0.25,
                    linewidth=0.0,
                    label="± 2 standard errors",
                )
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.22 * (high - low))
    ax.margins(x=0.01)
    ax.set_xlabel(label)
    ax.set_ylabel(f"{name}, deviation\nfrom start (meV/atom)")
    if count:
        ax.legend(ncols=3, frameon=False, fontsize=8, loc="upper center", columnspacing=1.0)
    return figure


def uncertainty_figure(times_fs: Any, values: Any, limit: float | None = None) -> Figure:
    """How far an ensemble's members disagree on the forces, against time.

    Args:
        times_fs: ``(n,)`` fs.
        values: ``(n,)`` largest standard deviation of the force on an atom, eV/A.
        limit: Largest one trusted, eV/A; drawn as a line.
    """
    figure, (ax,) = new_figure(size=(6.4, 3.4))
    stretch, label = _time_axis(times_fs)
    _series(ax, (times_fs, stretch), (values, 0.0, 1.0), BLUE, "largest of all atoms")
    if limit is not None:
        limit_label = f"limit, {limit:g} eV/Å"
        ax.axhline(limit, color=RED, linewidth=1.2, linestyle="--", label=limit_label)
    ax.margins(x=0.01)
    ax.set_ylim(0.0, 1.18 * ax.get_ylim()[1])
    ax.legend(ncols=2, frameon=False, fontsize=9, loc="upper right")
    ax.set_xlabel(label)
    ax.set_ylabel("standard deviation\nof forces (eV/Å)")
    return figure


def dt_scan_figure(entries: Sequence[Mapping[str, Any]]) -> Figure:
    """Energy fluctuation against time step, both logarithmic, with the dt^2 law as a guide.

    Args:
        entries: Of a ``DtScan``.
    """
    figure, (ax,) = new_figure(size=(4.8, 3.8))
    steps = np.array([float(e["timestep_fs"]) for e in entries])
    rms = np.array([float(e["rms_mev_per_atom"]) for e in entries])
    good = np.isfinite(rms) & (rms > 0.0)
    steps, rms = steps[good], rms[good]
    if len(steps):
        largest = int(np.argmax(steps))
        guide = np.array([steps.min() / 1.25, steps.max() * 1.25])
        ax.loglog(
            guide,
            rms[largest] * (guide / steps[largest]) ** 2,
            color=GREY,
            linestyle="--",
            linewidth=1.2,
            label="dt² (through the largest step)",
        )
        ax.loglog(steps, rms, "o", color=BLUE, markersize=7, label="measured")
        for entry in entries:
            ratio = entry.get("ratio_to_next")
            if ratio is not None:
                ax.annotate(
                    f"÷ {ratio:.2f}",
                    (float(entry["timestep_fs"]), float(entry["rms_mev_per_atom"])),
                    xytext=(-8, 4),
                    textcoords="offset points",
                    ha="right",
                    fontsize=9,
                )
        ax.set_xticks(steps, [f"{s:g}" for s in steps])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=9, loc="upper left")
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.2)
    ax.set_xlabel("time step (fs)")
    ax.set_ylabel("RMS of the total energy (meV/atom)")
    return figure


def distances_figure(
    r: np.ndarray, density: np.ndarray, reference: np.ndarray | None, *, error: float | None = None
) -> Figure:
    """h(r) of a run, over the reference's if there is one.

    Args:
        r: ``(bins,)`` A.
        density: ``(bins,)`` 1/A.
        reference: ``(bins,)`` 1/A or None.
        error: ``10 MAE`` between the two.
    """
    figure, (ax,) = new_figure()
    if reference is not None:
        ax.fill_between(r, reference, color=GREY, alpha=0.35, linewidth=0.0, label="reference")
    ax.plot(r, density, color=BLUE, linewidth=1.1, label="this run")
    seen = density > 0.0
    if reference is not None:
        seen |= reference > 0.0
    if seen.any():
        ax.set_xlim(max(0.0, float(r[seen].min()) - 0.2), float(r[seen].max()) + 0.2)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("interatomic distance r (Å)")
    ax.set_ylabel("h(r) (1/Å)")
    title = None if error is None else f"10 × mean |h − h_ref| = {error:.3g}"
    ax.legend(frameon=False, fontsize=9, title=title, title_fontsize=9)
    return figure


def parity_figure(
    reference: np.ndarray,
    predicted: np.ndarray,
    unit: str,
    *,
    quantity: str = "energy",
    centre: bool = False,
) -> Figure:
    """Predicted against reference values, with the errors below.

    Many points are shown as density on a logarithmic colour scale.

    Args:
        reference: Any shape.
        predicted: The same shape.
        unit: As printed, such as ``"meV/Å"``.
        quantity: As printed, such as ``"force component"``.
        centre: Subtract the reference's mean from both, so that a total energy's offset does not
            hide the differences.
    """
    x = np.asarray(reference, dtype=np.float64).ravel()
    y = np.asarray(predicted, dtype=np.float64).ravel()
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    figure, (ax, below) = new_figure(2, 1, (4.8, 5.6), sharex=True, height_ratios=(3, 1))
    error = y - x
    if centre and len(x):
        mean = x.mean()
        x, y = x - mean, y - mean
    if len(x):
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        pad = 0.04 * (high - low) or 1.0
        limits = (low - pad, high + pad)
        ax.plot(limits, limits, color=GREY, linewidth=0.9, zorder=1)
        _cloud(figure, ax, x, y)
        _cloud(None, below, x, error)
        ax.set_xlim(limits)
        ax.set_ylim(limits)
        mae, rmse = float(np.mean(np.abs(error))), float(np.sqrt(np.mean(error**2)))
        ax.text(
            0.04,
            0.96,
            f"MAE  {mae:.3g} {unit}\nRMSE {rmse:.3g} {unit}\nn = {len(x):,}",
            transform=ax.transAxes,
            va="top",
            fontsize=9,
        )
    below.axhline(0.0, color=GREY, linewidth=0.9, zorder=1)
    shift = " − mean" if centre else ""
    ax.set_ylabel(f"predicted {quantity}{shift} ({unit})")
    below.set_xlabel(f"reference {quantity}{shift} ({unit})")
    below.set_ylabel(f"error ({unit})")
    return figure


def _cloud(figure: Figure | None, ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) <= MANY_POINTS:
        size = 10.0 if len(x) < 500 else 4.0
        ax.scatter(x, y, s=size, color=BLUE, alpha=0.6, linewidths=0.0, zorder=2)
        return
    shown = ax.hexbin(x, y, gridsize=70, bins="log", mincnt=1, cmap="cividis_r", zorder=2)
    if figure is not None:
        bar = figure.colorbar(shown, ax=ax, pad=0.02)
        bar.set_label("points per cell", fontsize=9)
        bar.ax.tick_params(labelsize=8)
