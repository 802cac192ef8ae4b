"""Relaxation and harmonic modes; bond stability and h(r)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import read
from md_models import PairSprings, spring_molecule

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.stability import (
    bond_stability,
    distance_distribution,
    distribution_error,
)
from dcase.md_runs.relax import relax


@pytest.mark.parametrize("optimizer", ["lbfgs", "bfgs", "fire"])
def test_finds_the_minimum(optimizer, tmp_path):
    atoms = spring_molecule("CH4")
    best = atoms.get_positions().copy()
    atoms.rattle(0.08, seed=2)
    start = atoms.get_positions().copy()
    result = relax(atoms, fmax=1e-4, optimizer=optimizer, out=tmp_path, vibrations=True)
    assert result.converged
    assert result.status == f"converged in {result.steps} steps"
    assert result.fmax_after_eV_A <= 1e-4 < result.fmax_before_eV_A
    assert result.energy_after_eV == pytest.approx(0.0, abs=1e-8)
    assert result.energy_before_eV > 0.01
    assert result.imaginary_modes == 0
    assert len(result.frequencies_cm) == 9
    assert np.array_equal(atoms.get_positions(), start)
    found = result.atoms.get_all_distances()
    assert found == pytest.approx(Atoms("CH4", best).get_all_distances(), abs=1e-3)
    images = read(tmp_path / "relaxation.extxyz", ":")
    assert len(images) == result.steps + 1
    assert images[-1].get_potential_energy() == pytest.approx(result.energy_after_eV, abs=1e-8)
    assert np.allclose(read(tmp_path / "relaxed.extxyz").positions, result.atoms.positions)
    stored = json.loads((tmp_path / "relax.json").read_text())
    assert stored["converged"] is True
    assert stored["options"]["optimizer"] == optimizer


def test_too_few_steps_are_said_clearly_and_results_are_not_overwritten(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.rattle(0.1, seed=2)
    told = []
    result = relax(atoms, fmax=1e-8, steps=2, out=tmp_path, notify=told.append)
    assert not result.converged
    assert result.status.startswith("NOT converged after 2 steps: largest force")
    assert told == [result.status]
    with pytest.raises(SimulationError, match="holds a run: --overwrite"):
        relax(atoms, out=tmp_path)
    assert relax(atoms, out=tmp_path, overwrite=True).converged


def test_a_saddle_point_is_noticed():
    """A straight triatomic whose ends pull each other in: a string that wants to fold."""
    atoms = Atoms("OCO", [[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0]])
    atoms.calc = PairSprings([(0, 1), (1, 2), (0, 2)], [1.3, 1.3, 2.0], depth=1.0)
    result = relax(atoms, fmax=1e-4, vibrations=True)
    assert result.converged
    assert result.imaginary_modes == 2
    assert "2 imaginary modes: not a minimum" in result.status


def test_cell_relaxation_finds_the_lattice_constant():
    copper = bulk("Cu", cubic=True, a=3.75)
    copper.calc = EMT()
    result = relax(copper, cell=True, fmax=1e-3)
    assert result.converged
    assert result.atoms.cell.lengths() == pytest.approx([3.59] * 3, abs=0.01)


class Falling(PairSprings):
    """Forces that stop being numbers after a few calls."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.calls > 4:
            self.results["forces"] = self.results["forces"] * np.nan


def test_divergence_gives_the_last_good_structure():
    source = spring_molecule("CH4")
    atoms = source.copy()
    atoms.rattle(0.1, seed=2)
    atoms.calc = Falling(source.calc.pairs, source.calc.lengths, depth=1.5)
    result = relax(atoms)
    assert not result.converged
    assert result.status.startswith("diverged at step")
    assert np.isfinite(result.atoms.positions).all()
    assert np.isfinite(result.fmax_after_eV_A)
    atoms.calc.calls = 10
    atoms.calc.reset()
    with pytest.raises(SimulationError, match="not finite"):
        relax(atoms)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "newton"}, "optimizer must be one of"),
        ({"fmax": 0.0}, "fmax must be"),
        ({"steps": -1}, "steps must be"),
        ({"cell": True}, "periodic"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(OptionError, match=words):
        relax(spring_molecule("H2O"), **options)


def test_bond_stability_counts_to_the_first_broken_frame():
    atoms = molecule("CH4")
    frames = np.repeat(atoms.positions[None], 20, axis=0)
    times = np.arange(20) * 100.0
    held = bond_stability(times, frames, atoms)
    assert (held.stable_ps, held.collapsed, held.n_bonds) == (pytest.approx(1.9), False, 4)
    frames[12:, 3] *= 1.6  # 1.09 -> 1.75 A
    broke = bond_stability(times, frames, atoms)
    assert (broke.stable_ps, broke.collapsed, broke.bond) == (pytest.approx(1.2), True, "C0-H3")
    longer = np.repeat(1.2 * atoms.positions[None], 3, axis=0)  # of the reference: within 0.5 A
    assert not bond_stability(times, frames, atoms, reference_positions=longer).collapsed
    frames[5, 0] = np.nan
    assert bond_stability(times, frames, atoms).stable_ps == pytest.approx(0.5)


def test_h_of_r_is_a_density_of_all_pairs():
    atoms = molecule("CH4")
    r, density = distance_distribution(atoms.positions[None])
    assert len(r) == 500
    assert density.sum() * (r[1] - r[0]) == pytest.approx(1.0)
    peaks = r[density > 0]
    distances = atoms.get_all_distances()[np.triu_indices(5, 1)]
    assert all(np.abs(peaks - d).min() < 0.02 for d in distances)
    assert distribution_error(density, density) == 0.0
    assert distribution_error(density, np.zeros(500)) == pytest.approx(10 * density.mean())
    with pytest.raises(OptionError, match="at least two atoms"):
        distance_distribution(np.zeros((4, 1, 3)))
