"""Pictures of errors, as files."""

from __future__ import annotations

from pathlib import Path

from dcase import plotting
from dcase.md_runs.report.figures import parity_figure
from dcase.potentials.fitting.evaluation import Evaluation
from dcase.units import KCAL_PER_MOL


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
