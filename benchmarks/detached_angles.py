"""What detached angles do to a simulation: NVE of DimeNet++ with and without them, same weights.

    train="dcase train md17 -m ethanol --model dimenet++ --size tiny --hidden-channels 32
        --out-emb-channels 32 --int-emb-size 16 --num-spherical 5 --num-radial 5 --epochs 16
        --n-train 400 --n-val 50"
    $train --out ethanol.pt
    $train --out ethanol_paper.pt --variant paper
    python benchmarks/detached_angles.py ethanol.pt docs/images/dimenet_detached_angles.png \
        --paper ethanol_paper.pt

Open Catalyst's DimeNet++, which the DC paper trained, takes the positions inside the angles out of
the graph. The energy is that of the full network; the "forces" lack their angular part and are the
gradient of nothing. Trained that way, the network fits "forces" to the data all the same, which
says nothing of its energy. All runs start from one frame of the data with the same momenta, in
float64.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

from dcase import DCCalculator
from dcase.data.md17 import load_md17
from dcase.errors import PaperVariantWarning
from dcase.md_runs.analysis.drift import analyse
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, still
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.plotting import BLUE, GREY, ORANGE, new_figure, save
from dcase.potentials.networks.registry import build_potential
from dcase.potentials.potential import Potential, load_potential


def detached(potential: Potential) -> Potential:
    """The same weights in the published implementation."""
    paper = build_potential(
        potential.architecture,
        {**potential.hyper_parameters, "variant": "paper"},
        potential.elements,
    ).with_dtype(potential.dtype)
    paper.load_state_dict(potential.state_dict())
    paper.set_scale(potential.scale)
    return paper


def main() -> None:
    """Run both, print the figures, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("target", type=Path, help="the picture")
    parser.add_argument("--paper", help="a checkpoint trained with --variant paper")
    parser.add_argument("--molecule", default="ethanol")
    parser.add_argument("--source", default="xtb", help="of the starting frame, as in dcase train")
    parser.add_argument("--ps", type=float, default=2.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    options = parser.parse_args()
    warnings.simplefilter("ignore", PaperVariantWarning)

    potential = load_potential(options.checkpoint)
    atoms = load_md17(options.molecule, options.source).frame(0)
    draw_momenta(atoms, options.temperature, np.random.default_rng(0))
    still(atoms, "nve")
    settings = MDSettings(
        temperature_K=options.temperature,
        timestep_fs=options.timestep,
        steps=round(1000 * options.ps / options.timestep),
        equilibrate=0,
        keep_momenta=True,
        max_temperature_K=1e5,
        bond_stretch_A=None,
    )

    subjects = [
        ("angles differentiated (default)", potential, BLUE),
        ("angles detached, the same weights", detached(potential), ORANGE),
    ]
    if options.paper:
        subjects.append(("angles detached, trained so", load_potential(options.paper), GREY))
    figure, (axes,) = new_figure(1, 1, (6.4, 3.4))
    # Symlog: one line would be a flat zero beside the other on any even axis.
    axes.set_yscale("symlog", linthresh=0.1)
    for name, model, color in subjects:
        moving = atoms.copy()
        moving.calc = DCCalculator(model, dtype="float64")
        with tempfile.TemporaryDirectory() as folder:
            result = run_md(moving, settings, Path(folder) / "run")
            series = read_series(Path(folder) / "run")
        total, kinetic = series["total_energy"], series["kinetic_energy"]
        drift = analyse(
            series["time"],
            total,
            kinetic,
            n_atoms=len(atoms),
            n_dof=degrees_of_freedom(atoms, "nve"),
        )
        deviation = (total - total[0]) / len(atoms) * 1e3
        print(
            f"{name}: {result.status}, {series['time'][-1] / 1e3:.2f} ps, "
            f"drift {drift.slope_mev_per_atom_ps:.3g} meV/atom/ps, "
            f"largest deviation {np.abs(deviation).max():.3g} meV/atom, "
            f"kinetic energy {kinetic.mean() / len(atoms) * 1e3:.3g} meV/atom"
        )
        axes.plot(series["time"] / 1e3, deviation, color=color, lw=1, label=name)
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("total energy from its start (meV/atom)")
    axes.legend(frameon=False, fontsize=8)
    save(figure, options.target)


if __name__ == "__main__":
    main()
