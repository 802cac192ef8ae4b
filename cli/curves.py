"""Pictures of errors, as files."""

from __future__ import annotations

from pathlib import Path

from dcase import plotting
from dcase.md_runs.report.figures import parity_figure
from dcase.potentials.fitting.evaluation import Evaluation
from dcase.units import GPA, KCAL_PER_MOL


def write_parity_figure(outcome: Evaluation, path: Path) -> list[Path]:
    """Parity plots, one file a quantity: energies in kcal/mol, stress in GPa.

    Args:
        outcome: Predictions and references.
        path: Gets ``_energy`` (or the quantity's name), ``_forces`` and ``_stress`` added to its
            stem.

    Returns:
        The files written.
    """
    written = []
    what = outcome.quantity
    own = "kcal/mol" if what.is_energy else what.unit
    for pair, unit, quantity, suffix in (
        (outcome.energy, own, what.key, f"_{what.key}"),
        (outcome.forces, "kcal/mol/Å", "force component", "_forces"),
        (outcome.stress, "GPa", "stress component", "_stress"),
    ):
        if pair is None:
            continue
        in_eV = {"GPa": GPA}.get(unit, KCAL_PER_MOL if unit.startswith("kcal") else 1.0)
        reference, predicted = pair / in_eV
        figure = parity_figure(
            reference, predicted, unit, quantity=quantity, centre=quantity == "energy"
        )
        written.append(path.with_stem(path.stem + suffix))
        plotting.save(figure, written[-1])
    return written
