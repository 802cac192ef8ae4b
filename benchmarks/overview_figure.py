"""The picture of the README: energy conservation and force errors of the shipped potential.

    dcase md --steps 10000 --dtype float64 --out overview_md
    python benchmarks/overview_figure.py overview_md docs/images/overview.png

Errors are on the embedded GFN2-xTB frames that the potential was not trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dcase import load_potential
from dcase import plotting as figures
from dcase.data.md17 import load_md17
from dcase.data.splits import split
from dcase.md_runs.files.trajectory import read_series
from dcase.potentials.fitting.evaluation import evaluate_potential


def main(run: str, target: str) -> None:
    potential = load_potential("aspirin_irelu.pt")
    frames = load_md17("aspirin", "xtb")
    chosen = potential.metadata["split"]
    seed = potential.metadata["recipe"]["training"]["seed"]
    parts = split(len(frames), chosen["n_train"], chosen["n_val"], seed)
    held_out = frames.subset(np.concatenate([parts.val, parts.test]))
    outcome = evaluate_potential(potential, held_out)
    assert outcome.forces is not None

    figure, (left, right) = figures.new_figure(1, 2, (9.6, 3.6), width_ratios=(1.7, 1))
    series = read_series(run)
    n_atoms = int(frames.n_atoms[0])
    deviation = (series["total_energy"] - series["total_energy"][0]) / n_atoms * 1e3
    kinetic = (series["kinetic_energy"] - series["kinetic_energy"].mean()) / n_atoms * 1e3
    time = series["time"] / 1e3
    left.plot(time, kinetic, color=figures.ORANGE, lw=0.3, label="kinetic energy, about its mean")
    left.plot(time, deviation, color=figures.BLUE, lw=0.8, label="total energy, from its start")
    left.set_xlabel("time (ps)")
    left.set_ylabel("meV/atom")
    left.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    left.set_ylim(top=left.get_ylim()[1] * 1.25)

    reference, predicted = outcome.forces
    right.scatter(reference, predicted, s=2, color=figures.BLUE, alpha=0.4, linewidths=0)
    limits = (float(outcome.forces.min()), float(outcome.forces.max()))
    right.plot(limits, limits, color=figures.GREY, lw=0.8)
    right.set_xlabel("GFN2-xTB force (eV/Å)")
    right.set_ylabel("predicted force (eV/Å)")
    mae = outcome.metrics["forces_mae_mev_angstrom"]
    right.text(
        0.05,
        0.92,
        f"MAE {mae:.0f} meV/Å, {len(held_out)} frames not trained on",
        transform=right.transAxes,
        fontsize=8,
    )
    figures.save(figure, Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
