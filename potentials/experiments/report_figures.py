"""Figures 1 and 2 of the SchNet report: the training loss of every step, and its straight line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dcase import plotting
from dcase.potentials.experiments.report_format import number
from dcase.potentials.experiments.report_format import page as page_of
from dcase.potentials.experiments.report_published import LONG
from dcase.potentials.experiments.report_tables import caption, run_lengths
from dcase.tables import markdown_table

SHOWN = 10_000 / LONG.steps
"""Share of the steps that the report shows: the last 10,000 of 15,630."""


def regression(steps: npt.ArrayLike, losses: npt.ArrayLike) -> tuple[float, float]:
    """Values of the straight line of least squares at the first and at the last step."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    slope, intercept = np.polyfit(x - x[0], y, 1)
    return float(intercept), float(intercept + slope * (x[-1] - x[0]))


def last_steps(losses: np.ndarray) -> np.ndarray:
    """The last :data:`SHOWN` of steps and losses, shape [n, 2]."""
    return losses[len(losses) - max(2, math.ceil(SHOWN * len(losses))) :]


def trend(losses: np.ndarray) -> dict[str, Any]:
    """What the report reads off its figure.

    Args:
        losses: Steps and losses, shape [n, 2].

    Returns:
        First and last step shown, the line's value at both, and whether it falls.
    """
    shown = last_steps(losses)
    first, last = regression(shown[:, 0], shown[:, 1])
    return {
        "first_step": int(shown[0, 0]),
        "last_step": int(shown[-1, 0]),
        "line_first": first,
        "line_last": last,
        "falling": last < first,
    }


def loss_figure(losses: Mapping[str, np.ndarray], path: Path) -> None:
    """A panel a molecule.

    Args:
        losses: Molecule -> steps and losses in (kcal/mol)^2, shape [n, 2].
        path: PNG to write.
    """
    columns = min(len(losses), 2)
    rows = -(-len(losses) // columns)
    size = (6.4, 3.6) if columns == 1 else (9.0, 2.6 * rows + 0.4)
    figure, axes = plotting.new_figure(rows, columns, size)
    for ax, (molecule, all_losses) in zip(axes, losses.items(), strict=False):
        shown = last_steps(all_losses)
        found = trend(all_losses)
        ax.plot(shown[:, 0], shown[:, 1], color=plotting.BLUE, lw=0.6, label="training loss")
        ends = (found["line_first"], found["line_last"])
        ax.plot(
            shown[[0, -1], 0],
            ends,
            color=plotting.ORANGE,
            lw=1.8,
            label=f"straight line: {ends[0]:.3g} to {ends[1]:.3g}",
        )
        # A few steps are far above the rest; they should not press it flat.
        top = float(np.quantile(shown[:, 1], 0.995))
        ax.set_ylim(0, 1.1 * max(top, *ends, 1e-12))
        ax.set_xlabel("step")
        ax.set_ylabel("(E - Ê)², (kcal/mol)²")
        ax.set_title(molecule, fontsize=10)
        ax.legend(fontsize=8, frameon=False, loc="upper right")
    for ax in axes[len(losses) :]:
        ax.set_visible(False)
    plotting.save(figure, path)


def page(
    title: str,
    results: Mapping[Any, Mapping[str, Any]],
    files: Mapping[Any, Path],
    options: Mapping[str, Any],
) -> tuple[str, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The figure in numbers.

    Args:
        title: Of the figure.
        results: By system, task and recipe.
        files: Steps and losses of the same runs.
        options: Of the command.

    Returns:
        Markdown, rows for CSV and JSON, and what is to be drawn, by molecule.
    """
    rows: list[dict[str, Any]] = []
    drawn: dict[str, np.ndarray] = {}
    body, lacking = [], []
    for key, result in results.items():
        system = key[0]
        error = result["metrics"].get("energy_mae_kcal_mol")
        losses = np.load(files[key]) if files[key].exists() else np.zeros((0, 2))
        if len(losses) < 3:
            lacking.append(system)
            continue
        drawn[system] = losses
        found = trend(losses)
        rows.append({"system": system, **found, "energy_mae_kcal_mol": error})
        fall = 1.0 - found["line_last"] / found["line_first"] if found["line_first"] else 0.0
        body.append(
            [
                system,
                f"{found['first_step']:,} to {found['last_step']:,}",
                number(found["line_first"]),
                number(found["line_last"]),
                f"{100 * fall:.0f} %",
                number(error),
            ]
        )
    head = ["molecule", "steps shown", "line at first", "at last", "falls by", "test MAE"]
    notes = [
        "Squared energy error of every batch in (kcal/mol)^2, its straight line of least squares, "
        "and the mean absolute error on test frames in kcal/mol. The report sees a clear fall in "
        "its own and takes it for undertraining.",
        *(f"{system}: no losses were kept with this run." for system in lacking),
        *run_lengths(results, list(dict.fromkeys(key[2] for key in results))),
    ]
    return (
        page_of(caption(title, LONG, results, options), markdown_table(head, body), notes),
        rows,
        drawn,
    )
