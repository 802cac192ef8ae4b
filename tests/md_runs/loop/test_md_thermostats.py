"""Thermostats against closed forms of one harmonic oscillator and of free particles."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from dcase.errors import OptionError
from dcase.md_runs.loop.ensembles import ENSEMBLES, LANGEVIN, ensemble_named
from dcase.md_runs.loop.integrators import begin_motion, restore_rng, rng_state
from dcase.md_runs.settings import MDSettings
from dcase.units import KB


class Traps(Calculator):
    """Every atom on a spring of its own to where it belongs; with stiffness 0, free."""

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, home, stiffness):
        super().__init__()
        self.home, self.stiffness = home, stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.positions - self.home
        energy = 0.5 * self.stiffness * float((away**2).sum())
        self.results = {
            "energy": energy, "free_energy": energy, "forces": -self.stiffness * away
        }  # fmt: skip


def trapped(stiffness, n=50, temperature_K=300.0, seed=0):
    """``n`` argon atoms, each in its trap, at equilibrium."""
    rng = np.random.default_rng(seed)
    home = 10.0 * np.arange(3 * n).reshape(n, 3)
    atoms = Atoms(f"Ar{n}", home)
    atoms.calc = Traps(home, stiffness)
    heat = KB * temperature_K
    if stiffness:
        atoms.positions += rng.normal(0, np.sqrt(heat / stiffness), (n, 3))
    atoms.set_momenta(rng.normal(0, 1, (n, 3)) * np.sqrt(atoms.get_masses() * heat)[:, None])
    return atoms


@pytest.mark.physics
def test_langevin_forgets_velocities_at_its_friction():
    """<v(0) v(t)> / <v^2> = exp(-gamma t) of free particles."""
    atoms = trapped(0.0, n=1500)
    settings = MDSettings(ensemble="langevin", timestep_fs=2.0, friction_per_fs=0.01)
    motion = begin_motion(atoms, settings, np.random.default_rng(1))
    start = atoms.get_momenta()
    for steps in (20, 30, 50):
        forces = None
        for _ in range(steps):
            forces = motion.step(forces)
        kept = float((start * atoms.get_momenta()).sum() / (start**2).sum())
        assert kept == pytest.approx(np.exp(-0.01 * 2.0 * steps), abs=0.03)
        start = atoms.get_momenta()


@pytest.mark.physics
@pytest.mark.parametrize("ensemble", ["langevin", "bussi"])
def test_kinetic_energies_are_those_of_the_gamma_distribution(ensemble):
    """<K> = n kT/2 and var K = n (kT)^2/2, of the trapped atoms' n degrees of freedom."""
    atoms = trapped(0.5, n=4)
    settings = MDSettings(
        ensemble=ensemble, timestep_fs=4.0, friction_per_fs=0.02, taut_fs=40.0, temperature_K=300.0
    )
    motion = begin_motion(atoms, settings, np.random.default_rng(2))
    n_dof = motion.dynamics.ndof if ensemble == "bussi" else 12
    kinetic, forces = [], None
    for step in range(12_000):
        forces = motion.step(forces)
        if step > 500:
            kinetic.append(atoms.get_kinetic_energy())
    heat = KB * 300.0
    assert np.mean(kinetic) == pytest.approx(0.5 * n_dof * heat, rel=0.08)
    assert np.var(kinetic) == pytest.approx(0.5 * n_dof * heat**2, rel=0.3)


@pytest.mark.physics
def test_bussi_relaxes_at_its_time():
    """The mean kinetic energy of free particles goes to its target as exp(-t / tau)."""
    atoms = trapped(0.0, n=4000, temperature_K=600.0)
    settings = MDSettings(ensemble="bussi", timestep_fs=2.0, taut_fs=50.0, temperature_K=300.0)
    motion = begin_motion(atoms, settings, np.random.default_rng(3))
    target = motion.dynamics.target_kinetic_energy
    before = atoms.get_kinetic_energy() / target - 1.0
    for _ in range(25):
        motion.dynamics.step()
    now = atoms.get_kinetic_energy() / target - 1.0
    assert now / before == pytest.approx(np.exp(-1.0), rel=0.1)


@pytest.mark.physics
def test_nose_hoover_swings_at_its_period():
    """Small swings of the kinetic energy of free particles: omega = sqrt(2) / tau.

    A chain of one: Q d(zeta)/dt = 2 K - n kT and dK/dt = -2 zeta K give omega^2 = 2 n kT / Q with
    Q = n kT tau^2; the other two of the chain hardly matter to it.
    """
    atoms = trapped(0.0, n=300, temperature_K=330.0)
    settings = MDSettings(ensemble="nose-hoover", timestep_fs=1.0, taut_fs=60.0)
    motion = begin_motion(atoms, settings, np.random.default_rng(4))
    kinetic = []
    for _ in range(900):
        motion.step(None)
        kinetic.append(atoms.get_kinetic_energy())
    swing = np.array(kinetic) - np.mean(kinetic)
    crossings = np.flatnonzero((swing[:-1] < 0) & (swing[1:] >= 0))
    period = np.diff(crossings).mean()
    assert period == pytest.approx(2 * np.pi / np.sqrt(2.0) * 60.0, rel=0.1)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_a_record_restores_what_the_next_step_depends_on(name):
    atoms = trapped(0.5, n=5)
    settings = MDSettings(ensemble=name, timestep_fs=2.0, taut_fs=30.0)
    motion = begin_motion(atoms, settings, np.random.default_rng(5))
    for _ in range(7):
        motion.step(None)
    state, random = motion.state(), str(rng_state_of(motion, name))
    positions, momenta = atoms.get_positions(), atoms.get_momenta()
    for _ in range(5):
        motion.step(None)
    other = trapped(0.5, n=5, seed=9)
    other.set_positions(positions)
    other.set_momenta(momenta)
    rng = restore_rng(random) if random != "None" else np.random.default_rng()
    again = begin_motion(other, settings, rng)
    again.restore(state)
    for _ in range(5):
        again.step(None)
    np.testing.assert_array_equal(other.positions, atoms.positions)
    np.testing.assert_array_equal(other.get_momenta(), atoms.get_momenta())
    for energy in (1.0, np.array([1.0, 2.0])):
        np.testing.assert_array_equal(again.conserved(energy), motion.conserved(energy))


def rng_state_of(motion, name):
    rng = getattr(motion.dynamics, "rng", None)
    return None if rng is None else rng_state(rng)


def test_records():
    assert [record.name for record in ENSEMBLES.values()] == list(ENSEMBLES)
    assert ensemble_named("langevin") is LANGEVIN
    assert LANGEVIN.conserved is None
    assert [r.title for r in ENSEMBLES.values()][:2] == ["NVE", "NVT (langevin)"]
    with pytest.raises(OptionError, match="ensemble must be one of nve, langevin"):
        ensemble_named("npt")
