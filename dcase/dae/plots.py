"""Pictures of runs: training, snapshots, violations, roll-outs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dcase import plotting
from dcase.dae.evaluation import RollOut
from dcase.dae.rollouts import SIMPLE, roll_outs
from dcase.dae.settings import DaeSettings
from dcase.dae.systems import System, system_named
from dcase.dae.task import PairSource
from dcase.dae.trajectories import Trajectory
from dcase.errors import OptionError
from dcase.plotting import BLUE, GREEN, GREY, ORANGE, RED
from dcase.training.logs import read_metrics

COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SNAPSHOTS = 4
APPLICATIONS = 10  # of a run's own roll-out
SHOWN = 200  # test samples in pictures of violations and errors
FLOOR = 1e-17  # of violations on a logarithmic axis: what rounding leaves
FEW_DECADES = 2.5  # up to which a logarithmic axis has plain numbers


def draw_run(
    folder: str | Path,
    model: Any,
    test: PairSource,
    settings: DaeSettings,
    trajectory: Trajectory,
    *,
    applications: int | None = None,
    log: str | Path | None = None,
) -> list[str]:
    """Draw a run.

    Args:
        folder: Gets the pictures.
        model: The trained network.
        test: Test samples.
        settings: Of the run.
        trajectory: The true motion.
        applications: Of the roll-out; None: 10, or none if the trajectory is too short.
        log: Folder with ``metrics.csv``; None: ``folder``.

    Returns:
        Names of the pictures: ``training.png`` (if there is a log), ``snapshots.png`` (pendulum) or
        ``errors.png`` (water), ``violations.png``, ``rollout.png``.

    Raises:
        OptionError: If the trajectory is too short for the roll-out that was asked for.
        DcaseError: If a picture cannot be written.
    """
    folder, system = Path(folder), system_named(settings.system)
    figures: dict[str, Figure] = {}
    metrics = Path(log or folder) / "metrics.csv"
    rows = read_metrics(metrics) if metrics.exists() else []
    if rows:
        figures["training"] = training_figure(rows)
    model.eval()
    batch = test.batch(torch.arange(min(SHOWN, len(test))))
    with torch.no_grad():
        found = model(batch.r, batch.v)
    r, r_later, predicted = (a.double().cpu().numpy() for a in (batch.r, batch.r_later, found.r))
    if system.name == "pendulum":
        few = np.unique(np.linspace(0, len(r) - 1, SNAPSHOTS).round().astype(int))
        later = f"{settings.duration:g} {system.time} later"
        figures["snapshots"] = snapshots_figure(r[few], r_later[few], predicted[few], later)
    else:
        figures["errors"] = atom_errors_figure(r, r_later, predicted, trajectory.numbers)
    violation = model.constraint.violation(found.r).double().cpu().numpy()
    tolerance = settings.tolerance or model.constraint.tolerance
    exact = settings.method in ("end", "smooth", "manifold")
    figures["violations"] = violations_figure(violation, system, tolerance if exact else None)
    label = settings.method
    try:
        n = applications or APPLICATIONS
        states, unseen = roll_outs({label: (model, settings)}, trajectory, n)
        figures["rollout"] = rollout_figure(states, system, unseen=unseen)
    except OptionError:
        if applications is not None:
            raise
    for name, figure in figures.items():
        plotting.save(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in figures]


def training_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Relative errors of training and validation against the epoch.

    Args:
        rows: Of ``metrics.csv``.
    """
    figure, (ax,) = plotting.new_figure()
    shown = {
        "train_loss": ("training loss", GREY, "-"),
        "val_loss": ("validation loss", BLUE, "-"),
        "val_positions_rmse": ("validation, positions (relative RMSE)", ORANGE, "--"),
        "val_velocities_rmse": ("validation, velocities (relative RMSE)", GREEN, ":"),
    }
    for name, (label, colour, style) in shown.items():
        # A limit may end training within an epoch; the mean loss of a few batches is no epoch's.
        points = [
            (row["epoch"], row[name])
            for row in rows
            if name in row and (name != "train_loss" or row["epoch"].is_integer())
        ]
        if points:
            marker = "o" if len(points) < 3 else None
            ax.plot(*zip(*points, strict=True), style, color=colour, label=label, marker=marker)
    plotting.log_scale(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_log(ax.yaxis)
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss; error relative to the motion")
    ax.legend(frameon=False, fontsize=8)
    return figure


def snapshots_figure(
    before: np.ndarray, true: np.ndarray, predicted: np.ndarray, later: str = "later"
) -> Figure:
    """Pendulums now (grey), later in truth (light green) and as predicted (blue).

    Args:
        before: Input positions [S, N, 2] in m.
        true: Target positions likewise.
        predicted: Of the network likewise.
        later: When, for the legend.
    """
    everything = np.concatenate([before, true, predicted]).reshape(-1, before.shape[-1])
    everything = np.vstack([everything, np.zeros(everything.shape[-1])])  # the pivot
    low, high = np.nanmin(everything, 0) - 0.25, np.nanmax(everything, 0) + 0.25
    wide, tall = (high - low)[:2]
    # All panels show the same stretch of the plane; the tallest they get is 4 inches.
    width = min(2.7, 4.0 * wide / tall)
    size = (width * len(before) + 0.7, width * tall / wide + 1.1)
    figure, axes = plotting.new_figure(1, len(before), size, sharex=True, sharey=True)
    chains = (
        (before, GREY, "now", "-", ".", 1.0),
        (true, "#7fceb9", f"{later}, true", "-", "o", 4.5),
        (predicted, BLUE, f"{later}, predicted", "-", ".", 1.2),
    )
    for number, ax in enumerate(axes):
        for positions, colour, label, style, marker, line in chains:
            x, y = np.concatenate([np.zeros((1, 2)), positions[number]]).T
            ax.plot(x, y, style, marker=marker, linewidth=line, color=colour, label=label)
        ax.plot(0.0, 0.0, "s", color="black", markersize=5)
        error = 100.0 * np.linalg.norm(predicted[number] - true[number], axis=-1).mean()
        ax.set_title(f"MAE {error:.2f} cm", fontsize=9)
        ax.set_aspect("equal")
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
        ax.set_xlabel("x (m)")
    axes[0].set_ylabel("y (m)")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def atom_errors_figure(
    before: np.ndarray, true: np.ndarray, predicted: np.ndarray, numbers: np.ndarray
) -> Figure:
    """Distances from the true positions by kind of atom, as histograms, beside the motion itself.

    Args:
        before: Input positions [S, N, 3] in A.
        true: Target positions likewise.
        predicted: Of the network likewise.
        numbers: Atomic numbers [N].
    """
    figure, axes = plotting.new_figure(1, 2, (8.8, 3.4))
    kind_of_bar: Any
    for ax, (number, kind) in zip(axes, ((8, "oxygen"), (1, "hydrogen")), strict=True):
        atoms = np.asarray(numbers) == number
        sets = {
            "moved (identity)": (before, GREY, "stepfilled"),
            "error of the network": (predicted, BLUE, "step"),
        }
        values = {
            name: 100.0 * np.linalg.norm((r - true)[:, atoms], axis=-1).ravel()
            for name, (r, _, _) in sets.items()
        }
        finite = np.concatenate([v[np.isfinite(v)] for v in values.values()])
        bins = np.linspace(0.0, float(np.quantile(finite, 0.995)) or 1.0, 50)
        for name, (_, colour, kind_of_bar) in sets.items():
            ax.hist(
                values[name],
                bins=bins.tolist(),
                density=True,
                histtype=kind_of_bar,
                color=colour,
                alpha=0.4 if kind_of_bar == "stepfilled" else 1.0,
                linewidth=1.6,
                label=f"{name}, mean {np.mean(values[name]):.2f} pm",
            )
        ax.set_title(kind, fontsize=10)
        ax.set_xlabel("distance from the true position (pm)")
        ax.set_ylabel("density (1/pm)")
        ax.legend(frameon=False, fontsize=8)
    return figure


def violations_figure(violation: np.ndarray, system: System, tolerance: float | None) -> Figure:
    """How large the violations of all constraints of all samples are.

    Args:
        violation: Not negative, in the system's length.
        system: For the unit.
        tolerance: Of projections; None: nothing is projected.
    """
    figure, (ax,) = plotting.new_figure()
    values = np.clip(violation[np.isfinite(violation)].ravel(), FLOOR, None)
    if len(values):
        low, high = np.log10(values.min()) - 0.2, np.log10(values.max()) + 0.2
        ax.hist(values, bins=np.logspace(low, high, 50).tolist(), color=BLUE)
        worst = float(values.max())
        unit = system.length
        ax.set_title(
            f"mean {values.mean():.2g} {unit}, largest {worst:.2g} {unit}, "
            f"{len(violation)} test samples",
            fontsize=9,
        )
    if tolerance is not None:
        ax.axvline(tolerance, color=RED, linestyle="--", label="tolerance of the projection")
        ax.legend(loc="upper left", frameon=False, fontsize=8)
    plotting.log_scale(ax, "x")
    ax.set_xlabel(f"violation of a constraint ({system.length})")
    ax.set_ylabel("number of constraints")
    return figure


def rollout_figure(found: Mapping[str, RollOut], system: System, *, unseen: bool = True) -> Figure:
    """Error, violation and, if known, change of energy against time.

    Args:
        found: Roll-outs by label; constant velocity and identity become grey.
        system: For units.
        unseen: Whether the motion was never seen in training, for the title.
    """
    energy = any(r.energy is not None for r in found.values())
    count = 3 if energy else 2
    rows = -(-(len(found) + 1) // 4)  # of the legend
    size = (4.3 * count, 3.8 + 0.22 * rows)
    figure, axes = plotting.new_figure(1, count, size)
    spread_out(figure)
    number, lost = 0, False
    for label, states in found.items():
        style: dict[str, Any]
        if label in SIMPLE:
            style = {"color": "#999999", "linestyle": ":" if label == "identity" else "-."}
        else:
            style = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": ("-", "--")[number // len(COLOURS) % 2],
                "marker": MARKERS[number % len(MARKERS)],
                "markersize": 3.5,
                "markevery": max(1, len(states.time) // 12),
            }
            number += 1
        time, error = states.time[1:], system.factor * states.error[1:]  # the first state is true
        axes[0].plot(time, error, label=label, **style)
        finite = np.flatnonzero(np.isfinite(error))
        if len(finite) < len(error):  # where it ran away
            last = finite[-1:]
            axes[0].plot(time[last], error[last], "x", color=style["color"], markersize=9)
            lost = True
        if label == "identity":  # it violates as much as the data, and keeps the energy
            continue
        _positive(axes[1], time, states.worst[1:], style)
        if label not in SIMPLE:
            mean = {"color": style["color"], "linestyle": ":", "linewidth": 1.0}
            _positive(axes[1], time, states.mean[1:], mean)
        if energy and states.energy is not None:
            _positive(axes[2], time, states.energy[1:], style)
    plotting.log_scale(axes[0])
    axes[0].set_ylabel(f"mean position error ({system.error})")
    axes[1].set_ylabel(f"violation of the constraint ({system.length})")
    if number:
        keys = [Line2D([], [], color="black"), Line2D([], [], color="black", linestyle=":")]
        axes[1].legend(keys, ["largest", "mean"], frameon=False, fontsize=8)
    if energy:
        axes[2].set_ylabel("mean |change of energy| (J)")
    for ax in axes:
        ax.set_xlabel(f"time ({system.time})")
        ax.set_xlim(left=0.0)
        plain_log(ax.yaxis)
    lines, labels = axes[0].get_legend_handles_labels()
    if lost:
        lines.append(Line2D([], [], color="black", marker="x", linestyle="none", markersize=9))
        labels.append("last before it ran away")
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    what = "motion not used in training" if unseen else "the part of the motion that training used"
    figure.suptitle(f"Roll-outs, {what}", fontsize=10)
    return figure


def spread_out(figure: Figure) -> None:
    """Room between panels, so that the label of one does not look like the other's."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(wspace=0.06)


def plain_log(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that spans few decades: 20 rather than 2 x 10^1.

    Call it when everything is drawn.
    """
    low, high = axis.get_view_interval()
    if axis.get_scale() != "log" or not 0 < low < high or np.log10(high / low) > FEW_DECADES:
        return
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _positive(ax: Axes, time: np.ndarray, values: np.ndarray, style: Mapping[str, Any]) -> None:
    """A line on a logarithmic axis, on which exact zeros lie at rounding."""
    ax.plot(time, np.maximum(values, FLOOR), **style)  # NaN stays NaN
    plotting.log_scale(ax)
