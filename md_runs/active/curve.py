"""Errors against the number of labels: as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from dcase.errors import DataError
from dcase.md_runs.active.folder import read_json
from dcase.plotting import BLUE, GREEN, ORANGE, RED, new_figure

PANELS = (
    ("forces_mae_mev_angstrom", "force MAE (meV/Å)"),
    ("energy_mae_mev", "energy MAE (meV)"),
)
WIDE = 20.0
"""Largest over smallest error beyond which the axis is logarithmic."""

_LOOKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (RED, "D", ":"))
_NAMES = {"uncertainty": "most uncertain frames", "random": "random frames"}


def load_curve(path: Path) -> dict[str, Any]:
    """A ``learning_curve.json``, or that of a run's folder.

    Raises:
        DataError: If it is not one.
    """
    file = path / "learning_curve.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{path}: holds no learning_curve.json of dcase active-learn")
    curve = read_json(file)
    if not {"strategy", "rounds", "errors_on"} <= set(curve):
        raise DataError(f"{file}: is not a learning curve of dcase active-learn")
    return curve


def curve_figure(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Errors of forces and energies against the number of labels.

    Runs of one strategy are drawn as their mean over the numbers of labels that all of them have,
    with the single runs behind it.

    Args:
        curves: As in ``learning_curve.json``.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for curve in curves:
        groups.setdefault(str(curve["strategy"]), []).append(curve)
    figure, axes = new_figure(1, len(PANELS), (4.2 * len(PANELS), 3.6))
    for ax, (key, label) in zip(axes, PANELS, strict=True):
        for (strategy, members), look in zip(groups.items(), _LOOKS * len(groups), strict=False):
            _group(ax, members, key, _NAMES.get(strategy, strategy), look)
        drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
        if len(drawn) and drawn.min() > 0.0 and drawn.max() > WIDE * drawn.min():
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        else:
            ax.set_ylim(0.0, 1.05 * ax.get_ylim()[1])
        ax.set_xlabel("labelled frames")
        ax.set_ylabel(label)
    where = {str(curve["errors_on"]) for curve in curves}
    axes[0].legend(frameon=False, fontsize=9, title=f"errors on {' and '.join(sorted(where))}",
                   title_fontsize=9)  # fmt: skip
    return figure


def _group(
    ax: Axes,
    curves: Sequence[Mapping[str, Any]],
    key: str,
    name: str,
    look: tuple[str, str, str],
) -> None:
    color, marker, line = look
    found = [points(curve, key) for curve in curves]
    many = f" ({len(found)} seeds)" if len(found) > 1 else ""
    if len(found) > 1:
        for each in found:
            ax.plot(*zip(*each.items(), strict=True), color=color, linewidth=0.7, alpha=0.45)
    shared = sorted(set.intersection(*(set(each) for each in found)))
    if not shared:  # runs with different numbers of labels: their mean would compare unlikes
        shared, found = sorted(found[0]), found[:1]
    mean = [float(np.mean([each[n] for each in found])) for n in shared]
    ax.plot(shared, mean, color=color, marker=marker, linestyle=line, linewidth=1.6,
            markersize=5, label=name + many)  # fmt: skip


def points(curve: Mapping[str, Any], key: str) -> dict[int, float]:
    """Error by number of labels."""
    return {
        int(row["labels"]): float(row["errors"][key])
        for row in curve["rounds"]
        if row.get("errors", {}).get(key) is not None
    }
