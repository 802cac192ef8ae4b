"""Pictures of training and of errors, as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FormatStrFormatter

from dcase import plotting
from dcase.md_runs.report.figures import parity_figure
from dcase.potentials.fitting.evaluation import Evaluation
from dcase.potentials.quantity import ENERGY, Quantity
from dcase.training.logs import read_metrics
from dcase.units import KCAL_PER_MOL


def write_training_figure(folder: Path, quantity: Quantity = ENERGY) -> str | None:
    """Validation errors against epochs as ``training.png`` in a run's folder.

    Args:
        folder: Of the run.
        quantity: What was learned.

    Returns:
        The file's name, or None where there was no validation to draw.
    """
    unit = "meV" if quantity.unit == "eV" else quantity.unit
    rows = read_metrics(folder / "metrics.csv")
    panels = []
    for term, label, color in (
        ("forces", "force MAE (meV/Å)", plotting.BLUE),
        (quantity.key, f"{quantity.key} MAE ({unit})", plotting.ORANGE),
    ):
        key = f"val_{term}_mae"
        points = [(r["epoch"], r[key]) for r in rows if key in r]
        if len(points) > 1:
            panels.append((label, color, points))
    if not panels:
        return None
    figure, axes = plotting.new_figure(1, len(panels), (3.6 * len(panels), 3.2))
    for ax, (label, color, points) in zip(axes, panels, strict=True):
        ax.plot(*zip(*points, strict=True), color=color, linewidth=1.2)
        ax.set_yscale("log")
        for axis_format in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            axis_format(FormatStrFormatter("%g"))
        ax.set_xlabel("epoch")
        ax.set_ylabel("validation " + label)
    plotting.save(figure, folder / "training.png")
    return "training.png"


def write_parity_figure(outcome: Evaluation, path: Path) -> list[Path]:
    """Parity plots, one file a quantity: energies in kcal/mol, others in their own unit.

    Args:
        outcome: Predictions and references.
        path: Gets ``_energy`` (or the quantity's name) and ``_forces`` added to its stem.

    Returns:
        The files written.
    """
    written = []
    what = outcome.quantity
    own = "kcal/mol" if what.is_energy else what.unit
    for pair, unit, quantity, suffix in (
        (outcome.energy, own, what.key, f"_{what.key}"),
        (outcome.forces, "kcal/mol/Å", "force component", "_forces"),
    ):
        if pair is None:
            continue
        reference, predicted = pair / KCAL_PER_MOL if unit.startswith("kcal") else pair
        figure = parity_figure(
            reference, predicted, unit, quantity=quantity, centre=quantity == "energy"
        )
        written.append(path.with_stem(path.stem + suffix))
        plotting.save(figure, written[-1])
    return written
