"""Dynamics, vibrations and relaxation of atoms that are held in part, and under restraints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import (
    ExternalForce,
    FixAtoms,
    FixBondLength,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixScaled,
    FixSubsetCom,
    Hookean,
    MirrorForce,
)
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.vibrations import Vibrations
from md_models import spring_molecule

from dcase.data.held import free_axes, projectors, restraint_energy
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.dt_scan import dt_scan, start_state
from dcase.md_runs.analysis.frequency import (
    INVERSE_CM,
    harmonic_frequencies,
    hessian,
    highest_frequency,
)
from dcase.md_runs.files.trajectory import read_observables, read_trajectory
from dcase.md_runs.loop.mechanics import degrees_of_freedom, keeps_still
from dcase.md_runs.relax import relax
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.simulate import MDSettings, run_md
from dcase.potentials import create_potential
from dcase.potentials.calculator import DCCalculator
from dcase.units import FS

KINDS = {
    "FixAtoms": ([FixAtoms([0, 2])], 6),
    "FixCartesian": ([FixCartesian([0, 2, 5], (True, False, True))], 6),
    "FixScaled": ([FixScaled([1, 2], (False, True, False))], 2),
    "FixedPlane": ([FixedPlane([0, 3], (1.0, 2.0, -0.5))], 2),
    "FixedLine": ([FixedLine([1, 4], (1.0, -1.0, 3.0))], 4),
    "several": ([FixAtoms([0]), FixCartesian([1], (0, 0, 1)), FixedPlane(2, (1, 1, 0))], 5),
}
NVE = {"temperature_K": 300.0, "timestep_fs": 0.5, "equilibrate": 0, "bond_stretch_A": None}


def ethanol(*constraints, seed=1):
    atoms = spring_molecule("CH3CH2OH")
    atoms.set_cell([8.0, 8.0, 8.0])
    atoms.set_constraint(list(constraints))
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(9, 3)) * np.sqrt(atoms.get_masses())[:, None] * 0.15)
    return atoms


@pytest.mark.physics
@pytest.mark.parametrize("kind", KINDS)
def test_the_trajectory_is_that_of_ase_and_stands_still_where_it_is_held(tmp_path, kind):
    constraints, held = KINDS[kind]
    atoms = ethanol(*constraints)
    settings = MDSettings(**NVE, steps=60, keep_momenta=True, traj_every=1, log_every=1)
    result = run_md(atoms, settings, tmp_path)
    frames = read_trajectory(tmp_path)

    own = atoms.copy()
    own.calc = atoms.calc
    own.set_momenta(own.get_momenta())  # as ASE does from the first step on
    dynamics = VelocityVerlet(own, 0.5 * FS)
    for frame in frames:
        np.testing.assert_allclose(frame.positions, own.positions, rtol=0, atol=1e-11)
        np.testing.assert_allclose(frame.get_momenta(), own.get_momenta(), rtol=0, atol=1e-11)
        dynamics.step()

    still = np.eye(3) - projectors(free_axes(atoms))
    for frame in frames:
        for vectors in (frame.get_momenta(), frame.positions - atoms.positions):
            assert np.abs(np.einsum("nij,nj->ni", still, vectors)).max() < 1e-12
    assert result.n_dof == 27 - held
    series = result.series()
    assert series["temperature"] == pytest.approx(
        2.0 * series["kinetic_energy"] / (result.n_dof * 8.617333e-5), rel=1e-6
    )
    assert np.ptp(series["total_energy"]) < 0.02 * series["kinetic_energy"].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_is_counted_once_and_nothing_is_stilled(kind):
    constraints, held = KINDS[kind]
    atoms = ethanol(*constraints)
    for ensemble in ("nve", "langevin", "bussi"):
        assert degrees_of_freedom(atoms, ensemble) == 27 - held
        assert keeps_still(atoms, ensemble) == (False, False)
    twice = ethanol(*constraints, *constraints, FixCartesian(range(9), (0, 0, 0)))
    assert degrees_of_freedom(twice, "nve") == 27 - held


@pytest.mark.physics
@pytest.mark.parametrize("ensemble", ["langevin", "bussi"])
def test_a_thermostat_heats_what_can_move(tmp_path, ensemble):
    atoms = ethanol(FixCartesian(range(5), (True, False, True)), FixedPlane([5, 6], (1, 1, 1)))
    settings = MDSettings(
        steps=4000, ensemble=ensemble, temperature_K=300.0, timestep_fs=0.5, equilibrate=500,
        friction_per_fs=0.05, taut_fs=20.0, bond_stretch_A=None,
    )  # fmt: skip
    result = run_md(atoms, settings, tmp_path)
    assert result.n_dof == 27 - 12
    assert result.series()["temperature"].mean() == pytest.approx(300.0, rel=0.08)


@pytest.mark.physics
def test_a_run_is_resumed_exactly(tmp_path):
    def settings(steps):
        return MDSettings(
            **{**NVE, "equilibrate": 20}, steps=steps, checkpoint_every=20, ensemble="langevin"
        )

    constraints = [FixedPlane([0, 3], (1.0, 2.0, -0.5)), Hookean(0, 4, 3.0, rt=1.0)]
    whole = run_md(ethanol(*constraints), settings(60), tmp_path / "a")
    run_md(ethanol(*constraints), settings(20), tmp_path / "b")
    parts = run_md(ethanol(*constraints), settings(60), tmp_path / "b", resume=True)
    np.testing.assert_array_equal(whole.atoms.positions, parts.atoms.positions)
    np.testing.assert_array_equal(whole.atoms.get_momenta(), parts.atoms.get_momenta())


@pytest.mark.physics
@pytest.mark.parametrize(
    "constraints",
    [
        [FixScaled([0, 1, 2], (True, False, False))],
        [FixedPlane(0, (0, 0, 1)), FixedPlane(0, (0, 1, 1))],
        [ExternalForce(0, 5, 0.5)],
        [FixAtoms([0]), Hookean(0, 13, 5.0, rt=2.0)],
    ],
    ids=["skewed cell", "tilted planes", "external force", "restraint on a held atom"],
)
def test_energy_is_conserved_where_ases_own_loop_does_not_or_does(tmp_path, constraints):
    atoms = bulk("Cu") * (3, 3, 3)
    atoms.rattle(0.05, seed=0)
    atoms.set_constraint(constraints)
    atoms.calc = EMT()
    settings = MDSettings(
        steps=100, temperature_K=300.0, timestep_fs=2.0, equilibrate=0, max_temperature_K=1e9
    )
    result = run_md(atoms, settings, tmp_path)
    series = result.series()
    assert np.ptp(series["kinetic_energy"][5:]) > 0.1
    assert np.ptp(series["total_energy"]) < 0.02
    axes = free_axes(atoms)
    if axes is not None:
        still = np.eye(3) - projectors(axes)
        moved = result.atoms.positions - atoms.positions
        assert np.abs(np.einsum("nij,nj->ni", still, moved)).max() < 1e-12


# ------------------------------------------------------------------------------- restraints


def stretched(seed=3):
    """A molecule whose ends a spring of 5 eV/A^2 draws together."""
    atoms = ethanol(seed=seed)
    far = np.unravel_index(np.argmax(atoms.get_all_distances()), (9, 9))
    atoms.set_constraint(Hookean(int(far[0]), int(far[1]), 5.0, rt=2.5))
    return atoms


@pytest.mark.physics
def test_restraints_belong_to_the_conserved_energy(tmp_path):
    """What ASE's total energy is; the drift of a run under a restraint is as small as without."""
    atoms = stretched()
    settings = MDSettings(**NVE, steps=200, keep_momenta=True, traj_every=10, log_every=1)
    result = run_md(atoms, settings, tmp_path)
    series = result.series()
    own = atoms.copy()
    own.calc = atoms.calc
    dynamics = VelocityVerlet(own, 0.5 * FS)
    totals = [own.get_total_energy()]
    for _ in range(200):
        dynamics.step()
        totals.append(own.get_total_energy())
    np.testing.assert_allclose(series["total_energy"], totals, rtol=0, atol=1e-9)
    frames, observed = read_trajectory(tmp_path), read_observables(tmp_path)
    pulls = [restraint_energy(_restrained(frame, atoms)) for frame in frames]
    assert np.ptp(pulls) > 0.01
    np.testing.assert_allclose(observed["restraint_energy"], pulls, atol=1e-12)
    for k, frame in enumerate(frames):  # the frames' own energies are the potential's
        raw = own.calc.get_potential_energy(frame)
        stored = frame.get_potential_energy(apply_constraint=False)
        assert stored == pytest.approx(raw, abs=1e-9)
        assert observed["potential_energy"][k] == pytest.approx(raw + pulls[k], abs=1e-9)


class Well:
    """A restraint of one's own, as ASE's documentation has it: k/2 (z - z0)^2 for one atom."""

    def __init__(self, index, z, k):
        self.index, self.z, self.k = index, z, k

    def adjust_positions(self, atoms, new):
        pass

    def adjust_momenta(self, atoms, momenta):
        pass

    def get_removed_dof(self, atoms):
        return 0

    def adjust_forces(self, atoms, forces):
        forces[self.index, 2] -= self.k * (atoms.positions[self.index, 2] - self.z)

    def adjust_potential_energy(self, atoms):
        return 0.5 * self.k * (atoms.positions[self.index, 2] - self.z) ** 2


@pytest.mark.physics
def test_a_restraint_of_ones_own(tmp_path):
    """One free atom in a well: the closed form of its swing, its energy, and its mode."""
    atoms = Atoms("Ar", [[0.0, 0.0, 0.5]])
    atoms.calc = LennardJones()
    atoms.set_constraint(Well(0, 0.0, 2.0))
    atoms.set_momenta(np.zeros((1, 3)))
    omega = np.sqrt(2.0 / atoms.get_masses()[0])
    assert highest_frequency(atoms) == pytest.approx(omega * FS, rel=1e-6)
    settings = MDSettings(
        steps=100, timestep_fs=1.0, equilibrate=0, keep_momenta=True, log_every=1, traj_every=100
    )
    result = run_md(atoms, settings, tmp_path)
    assert result.finished
    swing = 0.5 * np.cos(omega * 100.0 * FS)
    assert result.atoms.positions[0, 2] == pytest.approx(swing, abs=1e-4)
    assert result.series()["total_energy"] == pytest.approx(0.25, abs=1e-4)
    moved = atoms.copy()
    moved.calc = atoms.calc
    moved.constraints[0].k = 2.1
    with pytest.raises(SimulationError, match="constraints"):
        run_md(moved, replace(settings, steps=200), tmp_path, resume=True)


def _restrained(frame, atoms):
    copy = frame.copy()
    copy.set_constraint(atoms.constraints)
    return copy


def test_stored_forces_are_those_of_the_potential(tmp_path):
    atoms = stretched()
    atoms.rattle(0.05, seed=1)
    atoms.set_constraint([FixAtoms([0]), FixedPlane(1, (1, 1, 1)), *atoms.constraints])
    run_md(atoms, MDSettings(**NVE, steps=10), tmp_path / "md")
    relax(atoms, steps=3, out=tmp_path / "relax")
    stored = [read(tmp_path / "md" / "final.extxyz")]
    stored += read(tmp_path / "relax" / "relaxation.extxyz", ":")
    stored += [read(tmp_path / "relax" / "relaxed.extxyz")]
    for frame in stored:
        bare = Atoms(frame.numbers, frame.positions)
        bare.calc = atoms.calc
        kept = frame.calc.results
        np.testing.assert_allclose(kept["forces"], bare.get_forces(), atol=2e-6)
        assert kept["energy"] == pytest.approx(bare.get_potential_energy(), abs=1e-6)
        assert np.abs(kept["forces"][0]).max() > 1e-3


@pytest.mark.physics
def test_relaxation_minimises_potential_and_restraint_together(tmp_path):
    atoms = stretched()
    told = []
    result = relax(atoms, fmax=1e-4, steps=2000, vibrations=True, out=tmp_path, notify=told.append)
    assert result.converged
    final = result.atoms
    bare = final.copy()
    bare.calc = atoms.calc
    assert result.energy_after_eV == pytest.approx(bare.get_potential_energy(), abs=1e-9)
    assert final.get_potential_energy() == pytest.approx(result.energy_after_eV, abs=1e-9)
    assert np.abs(final.get_forces()).max() < 1e-4
    assert result.restraint_energy_eV == pytest.approx(restraint_energy(final))
    assert result.restraint_energy_eV > 0.01
    assert f"energies include {result.restraint_energy_eV:.4g} eV of restraints" in told[-1]
    stored = json.loads((tmp_path / "relax.json").read_text())
    assert stored["restraint_energy_eV"] == result.restraint_energy_eV
    # A taut spring between two atoms turns with the molecule: six motions cost no energy.
    assert len(result.frequencies_cm) == 21
    assert result.imaginary_modes == 0


@pytest.mark.physics
@pytest.mark.parametrize(("tethered", "modes"), [([0], 24), ([0, 1], 26), ([0, 1, 2, 8], 27)])
def test_a_tether_to_a_point_leaves_only_turning_about_it(tethered, modes):
    atoms = ethanol()
    rng = np.random.default_rng(0)
    points = atoms.positions + rng.normal(0, 0.05, (9, 3))
    atoms.set_constraint([Hookean(a, points[a], 5.0, rt=0.0) for a in tethered])
    result = relax(atoms, fmax=1e-5, steps=5000, vibrations=True)
    assert result.converged
    assert len(result.frequencies_cm) == modes
    assert result.imaginary_modes == 0
    assert min(result.frequencies_cm) > 20.0


def test_a_restraint_on_a_held_atom_is_no_remaining_force():
    atoms = stretched()
    pair = list(atoms.constraints[0].indices)
    atoms.set_constraint([FixAtoms(pair), *atoms.constraints])
    assert relax(atoms, fmax=1e-3, steps=2000).converged


def test_restraints_between_atoms_leave_the_molecule_its_momentum():
    assert degrees_of_freedom(stretched(), "nve") == 27 - 6
    assert keeps_still(stretched(), "nve") == (True, True)
    tied = ethanol(Hookean(0, (1.0, 2.0, 3.0), 5.0, rt=0.1))
    assert degrees_of_freedom(tied, "nve") == 27
    assert keeps_still(tied, "nve") == (False, False)


def test_the_compiled_loop_hands_over_and_replicas_refuse(tmp_path):
    atoms = molecule("CH3CH2OH")
    potential = create_potential("schnet", elements=[1, 6, 8], size="tiny", filter_knots=64)
    ends = []
    for optimize in (None, False):
        copy = atoms.copy()
        copy.calc = DCCalculator(potential, dtype="float64", optimize=optimize)
        copy.set_constraint([FixedPlane([1], (1, 2, 3)), Hookean(0, 8, 2.0, rt=1.0)])
        ends.append(run_md(copy, MDSettings(**NVE, steps=40), tmp_path / str(optimize)))
    np.testing.assert_allclose(ends[0].atoms.positions, ends[1].atoms.positions, atol=1e-7)
    assert np.ptp(ends[0].series()["total_energy"]) < 1e-3
    for constraint in (Hookean(0, 8, 2.0, rt=1.0), FixedLine(0, (0, 0, 1))):
        copy.set_constraint(constraint)
        with pytest.raises(OptionError, match="replicas cannot"):
            run_replicas(copy, MDSettings(**NVE, steps=5), 2, tmp_path / "replicas")


# ------------------------------------------------------------------------------- vibrations


@pytest.mark.physics
def test_modes_of_held_atoms_are_those_of_ase():
    """Six atoms held: 3 (N - 6) modes, the square roots of the block's eigenvalues."""
    held = [0, 1, 2, 3, 4, 5]
    atoms = ethanol(FixAtoms(held))
    found = harmonic_frequencies(atoms)
    assert len(found) == 9
    bare = atoms.copy()
    bare.set_constraint()
    bare.calc = atoms.calc
    rows = np.repeat(np.arange(9) >= 6, 3)
    mass = np.repeat(atoms.get_masses(), 3)[rows]
    block = hessian(bare)[np.ix_(rows, rows)] / np.sqrt(np.outer(mass, mass))
    values = np.linalg.eigvalsh(block)
    wanted = np.sort(np.sign(values) * np.sqrt(np.abs(values))) * FS * INVERSE_CM
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.physics
def test_modes_are_those_of_ases_vibrations(tmp_path):
    atoms = ethanol(FixAtoms([0, 1, 2, 3, 4, 5]))
    ase_modes = Vibrations(atoms, indices=[6, 7, 8], name=str(tmp_path / "vib"), delta=0.005)
    ase_modes.run()
    wanted = np.sort(ase_modes.get_frequencies().real)
    np.testing.assert_allclose(harmonic_frequencies(atoms), wanted, rtol=1e-3, atol=0.5)


@pytest.mark.physics
@pytest.mark.parametrize(
    ("constraints", "modes"),
    [
        ([FixAtoms(range(6))], 9),
        ([FixCartesian(range(6), (True, True, True))], 9),
        ([FixCartesian(range(4), (True, True, False))], 27 - 8 - 3),  # the four lie in a plane
        ([FixScaled(range(3), (True, False, True))], 27 - 6 - 1),
        ([FixedPlane(range(9), (0, 0, 1))], 18 - 3),
        ([FixedLine(range(9), (1, 2, 3))], 9 - 1),
        ([FixAtoms([0])], 24 - 3),
        ([FixAtoms([0, 1])], 21 - 1),
        ([FixAtoms(range(9))], 0),
        ([FixCom()], 21),
        ([FixBondLength(0, 1)], 20),
    ],
)
def test_how_many_modes_there_are(constraints, modes):
    """The free directions less the rigid motions of the whole that constraints allow."""
    atoms = ethanol(*constraints)
    found = harmonic_frequencies(atoms)
    assert len(found) == modes
    assert (found > -1.0).all()


@pytest.mark.physics
def test_an_atom_on_a_line_swings_at_the_rate_of_its_springs():
    """Closed form: a bond of k at an angle to the line gives k cos^2 / m."""
    atoms = spring_molecule("N2", morse=False, depth=2.0, a=1.5)
    k, m = 2 * 2.0 * 1.5**2, atoms.get_masses()[0]
    angle = 0.6
    line = (np.sin(angle), 0.0, np.cos(angle))
    atoms.set_constraint([FixAtoms([0]), FixedLine(1, line)])
    omega = np.sqrt(k * np.cos(angle) ** 2 / m) * FS
    assert harmonic_frequencies(atoms)[-1] == pytest.approx(omega * INVERSE_CM, rel=1e-3)
    assert highest_frequency(atoms) == pytest.approx(omega, rel=1e-3)
    # A restraint is one spring more, at the same angle; being taut, it also pulls sideways.
    point = np.array([0.0, 0.0, atoms.positions[1, 2] - 2.0])
    atoms.set_constraint([FixAtoms([0]), FixedLine(1, line), Hookean(1, point, 7.0, rt=1.5)])
    k = k * np.cos(angle) ** 2
    k += 7.0 * (np.cos(angle) ** 2 + np.sin(angle) ** 2 * (1 - 1.5 / 2.0))
    omega = np.sqrt(k / m) * FS
    assert highest_frequency(atoms) == pytest.approx(omega, rel=1e-3)
    assert harmonic_frequencies(atoms)[-1] == pytest.approx(omega * INVERSE_CM, rel=1e-3)


@pytest.mark.physics
@pytest.mark.parametrize("kind", KINDS)
def test_the_highest_frequency_is_the_highest_mode(kind):
    atoms = ethanol(*KINDS[kind][0])
    found = highest_frequency(atoms, iterations=27) * INVERSE_CM
    assert found == pytest.approx(harmonic_frequencies(atoms)[-1], rel=1e-3)


@pytest.mark.physics
def test_modes_with_a_bond_held_end_where_the_guard_says():
    atoms = ethanol(FixBondLength(0, 1), FixBondLength(2, 8))
    top = harmonic_frequencies(atoms)[-1]
    assert highest_frequency(atoms, iterations=27) * INVERSE_CM == pytest.approx(top, rel=1e-3)


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ([FixedMode(np.ones((9, 3)))], "the constraint FixedMode would be wrong"),
        ([FixSubsetCom([0, 1])], "the constraint FixSubsetCom would be wrong"),
        ([FixAtoms([1]), FixBondLength(0, 1)], "atom 1 is held in place and also part of"),
        ([FixCartesian([3], (1, 0, 0)), FixCom()], "atom 3 is held in place and also part of"),
        ([FixAtoms(range(9))], "the constraints leave C2H6O nothing to move"),
    ],
)
def test_what_would_give_a_wrong_run_is_one_line(tmp_path, constraints, words):
    with pytest.raises(OptionError, match=words) as error:
        run_md(ethanol(*constraints), MDSettings(**NVE, steps=5), tmp_path / "a")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_constraints_that_change_forces_are_refused_by_dynamics(tmp_path):
    atoms = ethanol(MirrorForce(0, 1))
    with pytest.raises(OptionError, match="MirrorForce would be wrong"):
        run_md(atoms, MDSettings(**NVE, steps=5), tmp_path / "a")
    with pytest.raises(OptionError, match="MirrorForce would be wrong"):
        dt_scan(atoms, MDSettings(**NVE, steps=5))


def test_vibrations_refuse_what_has_no_such_modes():
    bond = FixInternals(bonds=[[1.5, [0, 1]]])
    for constraint in (bond, FixedMode(np.ones((9, 3)))):
        with pytest.raises(OptionError, match="vibrations with the constraint"):
            relax(ethanol(constraint), vibrations=True)


def test_a_scan_starts_under_the_same_constraints():
    atoms = ethanol(FixedPlane(0, (0, 0, 1)), FixedPlane(0, (0, 1, 1)), ExternalForce(0, 5, 0.1))
    start = start_state(atoms, MDSettings(**NVE, steps=5))
    assert np.abs(start.get_momenta()[0, 1:]).max() < 1e-15
    scan = dt_scan(atoms, MDSettings(**NVE, steps=5), (1.0, 0.5), duration_fs=30.0)
    assert scan.entries[0]["rms_mev_per_atom"] < 5.0


@pytest.mark.physics
@pytest.mark.parametrize(
    ("name", "constraint", "n_dof"),
    [
        ("CH3CH2OH", FixCom(), 24),
        ("CH3CH2OH", FixBondLength(0, 1), 27 - 6 - 1),
        ("CH3CH2OH", FixInternals(bonds=[[1.5, [0, 1]]]), 26),
        ("CO2", FixLinearTriatomic([(1, 0, 2)]), 5),
    ],
)
def test_constraints_that_tie_atoms_move_as_ases_do(tmp_path, name, constraint, n_dof):
    atoms = spring_molecule(name)
    if isinstance(constraint, FixInternals):
        atoms.set_distance(0, 1, 1.5, fix=0)
    atoms.set_constraint(constraint)
    velocities = 0.15 * np.random.default_rng(1).normal(size=(len(atoms), 3))
    atoms.set_momenta(velocities * np.sqrt(atoms.get_masses())[:, None])
    own = atoms.copy()
    own.calc = atoms.calc
    own.set_momenta(own.get_momenta())
    settings = MDSettings(**NVE, steps=20, keep_momenta=True, traj_every=20)
    result = run_md(atoms, settings, tmp_path)
    assert result.finished
    dynamics = VelocityVerlet(own, 0.5 * FS)
    for _ in range(20):
        dynamics.step()
    np.testing.assert_allclose(result.atoms.positions, own.positions, rtol=0, atol=1e-9)
    assert result.n_dof == n_dof


def test_a_run_and_a_relaxation_say_what_is_held(tmp_path):
    atoms = ethanol(FixAtoms([0, 1]), FixCartesian([2], (1, 0, 0)), Hookean(3, 4, 1.0, rt=9.0))
    said = (
        "constraints: 2 atoms held in place, 1 atom in part; 1 restraint, in the potential energy"
    )
    told = []
    run_md(atoms, MDSettings(**NVE, steps=1), tmp_path, notify=told.append)
    relax(atoms, steps=1, notify=told.append)
    assert told.count(said) == 2
    assert said in (tmp_path / "log.txt").read_text()
