"""Degrees of freedom, momenta, frequencies, the time step guard, bonds."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from md_models import PairSprings, spring_molecule

from dcase.errors import SimulationError
from dcase.md_runs.analysis.frequency import (
    INVERSE_CM,
    check_timestep,
    harmonic_frequencies,
    highest_frequency,
)
from dcase.md_runs.loop.mechanics import (
    angular_momentum,
    degrees_of_freedom,
    draw_momenta,
    momentum_norms,
    remove_rotation,
    remove_translation,
    still,
)
from dcase.md_runs.loop.watch import BlowUpWatch, covalent_bonds
from dcase.units import FS, KB


@pytest.mark.parametrize(
    ("name", "n_dof"), [("CH4", 9), ("CO2", 4), ("N2", 1), ("H2O", 3), ("CH3CH2OH", 21)]
)
def test_molecules(name, n_dof):
    atoms = molecule(name)
    assert degrees_of_freedom(atoms, "nve") == n_dof
    assert degrees_of_freedom(atoms, "langevin") == 3 * len(atoms)
    atoms.rotate(37, (1, 2, 3))  # a linear molecule is linear in any direction
    assert degrees_of_freedom(atoms, "bussi") == n_dof


def test_periodic_constrained_and_single():
    copper = bulk("Cu", cubic=True)
    assert degrees_of_freedom(copper, "nve") == 9
    copper.set_constraint(FixAtoms([0]))
    assert degrees_of_freedom(copper, "nve") == 9
    assert degrees_of_freedom(Atoms("Ar"), "nve") == 3


@pytest.mark.parametrize("name", ["CH3CH2OH", "CO2", "N2"])
def test_nothing_is_left_of_translation_and_rotation(name):
    atoms = molecule(name)
    atoms.rotate(37, (1, 2, 3))
    atoms.positions += (5, -3, 2)
    draw_momenta(atoms, 300.0, np.random.default_rng(0))
    ours = angular_momentum(atoms.positions, atoms.get_momenta(), atoms.get_masses())
    assert ours == pytest.approx(atoms.get_angular_momentum())
    remove_translation(atoms)
    remove_rotation(atoms)
    linear, turn = norms(atoms)
    assert linear < 1e-13
    assert turn < 1e-12


def norms(atoms):
    periodic = bool(atoms.pbc.any())
    return momentum_norms(
        atoms.positions, atoms.get_momenta(), atoms.get_masses(), periodic=periodic
    )


def test_momenta_of_many_steps():
    atoms = molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(2, 4, len(atoms), 3))
    linear, turn = momentum_norms(x, p, atoms.get_masses(), periodic=False)
    for k in range(4):
        atoms.positions, momenta = x[k], p[k]
        atoms.set_momenta(momenta)
        assert linear[k] == pytest.approx(np.linalg.norm(momenta.sum(axis=0)) * FS)
        assert turn[k] == pytest.approx(np.linalg.norm(atoms.get_angular_momentum()) * FS)


def test_angular_momentum_is_not_asked_of_a_crystal():
    linear, turn = norms(bulk("Cu", cubic=True))
    assert linear == 0.0
    assert np.isnan(turn)


@pytest.mark.physics
@pytest.mark.parametrize("name", ["H2O", "CO2"])
def test_stilled_momenta_are_canonical(name):
    """<K> = n_dof kT / 2 with n_dof = 3N - 6 or 3N - 5, and its variance n_dof (kT)^2 / 2."""
    atoms = molecule(name)
    rng = np.random.default_rng(0)
    kinetic = []
    for _ in range(3000):
        draw_momenta(atoms, 300.0, rng)
        still(atoms, "nve")
        kinetic.append(atoms.get_kinetic_energy())
    n_dof, heat = degrees_of_freedom(atoms, "nve"), KB * 300.0
    assert np.mean(kinetic) == pytest.approx(0.5 * n_dof * heat, rel=0.05)
    assert np.var(kinetic) == pytest.approx(0.5 * n_dof * heat**2, rel=0.15)


@pytest.mark.physics
def test_frequency_of_a_diatomic():
    atoms = Atoms("N2", [[0, 0, 0], [0.8, 0.7, 0.2]])
    k = 2 * 3.0 * 1.9**2
    atoms.calc = PairSprings([(0, 1)], [atoms.get_distance(0, 1)], depth=3.0, a=1.9)
    omega = np.sqrt(k / (atoms.get_masses()[0] / 2)) * FS  # sqrt(k / mu), rad/fs
    assert highest_frequency(atoms) == pytest.approx(omega, rel=1e-3)
    assert harmonic_frequencies(atoms) == pytest.approx([omega * INVERSE_CM], rel=1e-3)
    # 1 cm^-1 is 29.979 GHz: independent arithmetic
    assert pytest.approx(1e15 / (2 * np.pi * 29.9792458e9), rel=1e-9) == INVERSE_CM


@pytest.mark.physics
def test_lanczos_finds_the_top_of_the_full_spectrum():
    atoms = spring_molecule("CH3CH2OH")
    calls = atoms.calc.calls
    top = highest_frequency(atoms) * INVERSE_CM
    assert atoms.calc.calls - calls <= 34
    modes = harmonic_frequencies(atoms)
    assert len(modes) == 21
    assert modes.min() > 100.0  # a minimum, with rigid motions projected out
    assert top == pytest.approx(modes.max(), rel=1e-2)


@pytest.mark.physics
def test_modes_of_a_chain_that_buckles():
    """Ends that attract each other: the two bends fall (negative), both stretches as by hand."""
    k, length = 2 * 2.0 * 1.9**2, (1.2 + 1.6) / 3  # k (x - 1.2) + k (2 x - 1.6) = 0
    atoms = Atoms("CO2", [[0, 0, 0], [0, 0, length], [0, 0, -length]])
    springs = [(0, 1), (0, 2), (1, 2)]
    atoms.calc = PairSprings(springs, [1.2, 1.2, 1.6], morse=False, depth=2.0, a=1.9)
    assert abs(atoms.get_forces()).max() < 1e-12
    modes = harmonic_frequencies(atoms)
    assert len(modes) == 4  # of nine, less three translations and two rotations
    carbon, oxygen = atoms.get_masses()[:2]
    tension = -2 * k * (length - 1.2) / length  # of the two bonds: they are compressed
    stretches = [k * 3 / oxygen, k * (1 / oxygen + 2 / carbon)]
    bend = -tension * (1 / carbon + 1 / (2 * oxygen))
    wanted = [np.sign(w2) * np.sqrt(abs(w2)) * FS * INVERSE_CM for w2 in (bend, bend, *stretches)]
    assert modes == pytest.approx(wanted, rel=2e-3)


def test_frequency_leaves_the_structure_alone_and_works_in_crystals():
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.02, seed=1)
    copper.calc = EMT()
    before = copper.get_positions().copy()
    assert 150 < highest_frequency(copper) * INVERSE_CM < 350
    assert np.array_equal(before, copper.get_positions())


def test_time_step_guard():
    atoms = spring_molecule("CH4")
    period, warning = check_timestep(atoms, 0.2)
    assert warning == ""
    _, warning = check_timestep(atoms, period / 5)
    assert "is large" in warning
    with pytest.raises(SimulationError, match="stability limit"):
        check_timestep(atoms, period / 3)
    _, warning = check_timestep(atoms, period / 3, force=True)
    assert "stability limit" in warning


def test_bonds_of_molecules_but_not_of_metals_and_liquids():
    assert len(covalent_bonds(molecule("CH3CH2OH"))[0]) == 8
    assert len(covalent_bonds(molecule("C6H6"))[0]) == 12
    assert len(covalent_bonds(bulk("Cu", cubic=True))[0]) == 0
    assert len(covalent_bonds(Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]))[0]) == 0


def test_bonds_across_a_periodic_boundary():
    water = molecule("H2O", cell=(4, 4, 4), pbc=True)
    water.wrap()
    assert len(covalent_bonds(water)[0]) == 2
    watch = BlowUpWatch(water, 0.5, 1e4)
    assert watch.lengths == pytest.approx([0.9686, 0.9686], abs=1e-3)
    assert watch.look(water.get_positions(), 0.0, 0.0, 300.0) == ""
