"""Held bonds: the solver against ASE's, ranks, frequencies, and the physics of constrained runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms, FixBondLengths
from ase.geometry import find_mic
from md_models import PairSprings, spring_molecule
from scipy.linalg import eigh, null_space

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.frequency import check_timestep, hessian, highest_frequency
from dcase.md_runs.loop.constrain import BondConstraint, constrain, normal_space
from dcase.md_runs.loop.integrators import make_dynamics
from dcase.md_runs.loop.mechanics import degrees_of_freedom, draw_momenta, still
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import dt_scan, run_md
from dcase.units import FS, KB


class Field(Calculator):
    """A constant pull ``force`` (eV/A) along z, down on even atoms and up on odd ones."""

    implemented_properties = ("energy", "free_energy", "forces")

    def __init__(self, force=0.0):
        super().__init__()
        self.force = force

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros_like(self.atoms.positions)
        forces[0::2, 2], forces[1::2, 2] = -self.force, self.force
        energy = -float((forces * self.atoms.positions).sum())
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


def pairs_of(atoms, pairs):
    i, j = np.asarray(pairs).T
    return BondConstraint(atoms, (i, j, np.zeros((len(i), 3))))


def all_pairs(n):
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


# ------------------------------------------------------------------------------------- solver


@pytest.mark.parametrize("kind", ["bonds-to-hydrogen", "all-bonds"])
def test_solver_equals_that_of_ase(kind):
    atoms = molecule("CH3CH2OH")
    ours = constrain(atoms, kind)
    theirs = FixBondLengths(ours.pairs, bondlengths=ours.bondlengths)
    rng = np.random.default_rng(0)
    moved = atoms.positions + 0.08 * rng.standard_normal((9, 3))
    momenta = rng.standard_normal((9, 3))
    found, expected = moved.copy(), moved.copy()
    ours.adjust_positions(atoms, found)
    theirs.adjust_positions(atoms, expected)
    assert np.abs(found - moved).max() > 0.02
    assert np.abs(found - expected).max() < 1e-11
    found, expected = momenta.copy(), momenta.copy()
    ours.adjust_momenta(atoms, found)
    theirs.adjust_momenta(atoms, expected)
    assert np.abs(found - momenta).max() > 0.1
    assert np.abs(found - expected).max() < 1e-10


@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_lengths_return_wherever_the_molecule_is(shift):
    atoms = molecule("CH3CH2OH")
    held = constrain(atoms, "all-bonds")
    atoms.positions += shift
    moved = atoms.positions + 0.05 * np.random.default_rng(1).standard_normal((9, 3))
    atoms.set_positions(moved)  # through ASE
    assert held.largest_violation(atoms.positions) < 1e-12 + 1e-15 * shift


def test_a_bond_across_the_boundary():
    atoms = Atoms("CH", [(9.8, 1, 1), (10.89, 1, 1)], cell=[10, 10, 10], pbc=True)
    atoms.wrap()
    held = constrain(atoms, "bonds-to-hydrogen")
    assert held.bondlengths == pytest.approx([1.09])
    moved = atoms.positions + np.random.default_rng(1).standard_normal((2, 3)) * 0.1
    atoms.set_positions(moved)
    assert atoms.get_distance(0, 1, mic=True) == pytest.approx(1.09, abs=1e-12)
    assert degrees_of_freedom(atoms, "nve") == 2


def test_redundant_constraints_count_once():
    rng = np.random.default_rng(3)
    atoms = Atoms("C5", 1.5 * rng.standard_normal((5, 3)))
    held = pairs_of(atoms, all_pairs(5))  # 10 distances of a body with 9 internal motions
    atoms.set_constraint(held)
    assert held.rank == len(normal_space(atoms)) == 9
    assert degrees_of_freedom(atoms, "nve") == 0
    assert degrees_of_freedom(atoms, "langevin") == 6
    momenta = rng.standard_normal((5, 3))
    atoms.set_momenta(momenta)
    masses = atoms.get_masses()
    rows = normal_space(atoms)
    scaled = (momenta / np.sqrt(masses)[:, None]).ravel()
    scaled -= rows.T @ (rows @ scaled)
    expected = scaled.reshape(5, 3) * np.sqrt(masses)[:, None]
    assert np.abs(atoms.get_momenta() - expected).max() < 1e-9
    atoms.set_positions(atoms.positions + 0.02 * rng.standard_normal((5, 3)))
    assert held.largest_violation(atoms.positions) < 1e-10


@pytest.mark.parametrize(("name", "rank"), [("H2O", 3), ("CO2", 2)])
def test_a_triangle_on_a_line_has_one_constraint_less(name, rank):
    assert pairs_of(molecule(name), all_pairs(3)).rank == rank


def test_lengths_that_cannot_be_had_are_one_line():
    atoms = molecule("H2O")
    held = constrain(atoms, "all-bonds")
    new = atoms.positions.copy()
    new[1] = new[0] + 3.0 * np.cross(new[1] - new[0], (1.0, 0.3, 0.2))  # no way along the old bond
    with pytest.raises(SimulationError, match=r"cannot be restored \(O0-H1 went from 0\.97 to"):
        held.adjust_positions(atoms, new)


# --------------------------------------------------------------------- counting and frequencies


@pytest.mark.parametrize(
    ("name", "hydrogen", "every"),
    [("CH4", 5, 5), ("CH3CH2OH", 15, 13), ("H2O", 1, 1), ("C6H6", 24, 18), ("HCN", 3, 2)],
)
def test_degrees_of_freedom(name, hydrogen, every):
    for kind, n_dof in (("bonds-to-hydrogen", hydrogen), ("all-bonds", every)):
        atoms = molecule(name)
        held = constrain(atoms, kind)
        assert degrees_of_freedom(atoms, "nve") == n_dof
        assert degrees_of_freedom(atoms, "langevin") == 3 * len(atoms) - held.rank
        atoms.set_constraint(FixBondLengths(held.pairs))  # ASE's own is counted alike
        assert degrees_of_freedom(atoms, "bussi") == n_dof


def test_other_constraints_are_left_as_they_were():
    atoms = molecule("H2O")
    atoms.set_constraint(FixAtoms([0]))
    assert degrees_of_freedom(atoms, "nve") == 6


@pytest.mark.physics
def test_momenta_are_canonical_in_what_can_move():
    """<K> = n_dof kT / 2 over draws, nothing along the bonds, nothing of the rigid motions."""
    atoms = molecule("CH3CH2OH")
    constrain(atoms, "bonds-to-hydrogen")
    rows = normal_space(atoms)
    root = np.sqrt(atoms.get_masses())[:, None]
    rng = np.random.default_rng(2)
    kinetic = []
    for _ in range(600):
        draw_momenta(atoms, 300.0, rng)
        still(atoms, "nve")
        assert np.abs(rows @ (atoms.get_momenta() / root).ravel()).max() < 1e-12
        kinetic.append(atoms.get_kinetic_energy())
    mean = 0.5 * 15 * KB * 300.0
    error = mean * math.sqrt(2.0 / 15.0 / 600.0)
    assert abs(np.mean(kinetic) - mean) < 4.0 * error  # 3N - 6 would be 30 errors away
    assert np.var(kinetic) == pytest.approx(2.0 / 15.0 * mean**2, rel=0.25)


@pytest.mark.physics
@pytest.mark.parametrize("kind", ["bonds-to-hydrogen", "all-bonds"])
def test_highest_frequency_is_that_of_the_motions_left(kind):
    atoms = spring_molecule("CH3OH")
    held = constrain(atoms, kind)
    i, j = held.pairs.T
    d = atoms.positions[j] - atoms.positions[i]
    rows = np.zeros((len(d), 3 * len(atoms)))
    for k in range(len(d)):
        rows[k, 3 * i[k] : 3 * i[k] + 3] = -d[k]
        rows[k, 3 * j[k] : 3 * j[k] + 3] = d[k]
    free = null_space(rows)
    masses = np.diag(np.repeat(atoms.get_masses(), 3))
    values = eigh(free.T @ hessian(atoms) @ free, free.T @ masses @ free, eigvals_only=True)
    expected = math.sqrt(values[-1]) * FS
    assert highest_frequency(atoms) == pytest.approx(expected, rel=1e-3)
    unconstrained = spring_molecule("CH3OH")
    assert highest_frequency(unconstrained) > 1.3 * expected


@pytest.mark.physics
def test_a_pendulum_swings_by_the_tension_of_its_bond():
    """A rigid dipole in a field: omega^2 = f / (mu L), though the energy has no curvature."""
    atoms = Atoms("CO", [(0, 0, 0), (0, 0, 1.13)])
    atoms.calc = Field(2.0)
    assert highest_frequency(atoms) == 0.0
    constrain(atoms, "all-bonds")
    m1, m2 = atoms.get_masses()
    expected = math.sqrt(2.0 / (m1 * m2 / (m1 + m2) * 1.13)) * FS
    assert highest_frequency(atoms) == pytest.approx(expected, rel=1e-6)


def test_the_guard_knows_what_is_held():
    atoms = spring_molecule("CH3CH2OH", depth=2.5)
    period, _ = check_timestep(atoms, 0.2)
    with pytest.raises(SimulationError, match="past the stability limit"):
        check_timestep(atoms, 1.1 * period / math.pi)
    constrain(atoms, "all-bonds")
    longer, _ = check_timestep(atoms, 1.1 * period / math.pi)
    assert longer > 1.4 * period


# -------------------------------------------------------------------------------------- physics


@pytest.mark.physics
def test_a_rigid_rotor_turns_at_its_rate(tmp_path):
    """RATTLE turns a free rotor by arcsin(omega dt) per step: the period is right to dt^2."""
    length, speed, dt = 1.1, 0.02, 2.0  # A, A/fs, fs
    atoms = Atoms("N2", [(0, 0, 0), (length, 0, 0)])
    atoms.calc = Field()
    atoms.set_velocities(np.array([(0, -speed / 2, 0), (0, speed / 2, 0)]) / FS)
    settings = MDSettings(
        constrain="all-bonds", keep_momenta=True, equilibrate=0, timestep_fs=dt, steps=400,
        traj_every=1,
    )  # fmt: skip
    result = run_md(atoms, settings, tmp_path / "run")
    omega = speed / length
    bond = result.atoms.positions[1] - result.atoms.positions[0]
    angle = 400 * math.asin(omega * dt)
    assert bond == pytest.approx(length * np.array([math.cos(angle), math.sin(angle), 0]), abs=1e-9)
    assert angle == pytest.approx(omega * 400 * dt, rel=omega**2 * dt**2 / 5)
    assert np.ptp(result.series()["kinetic_energy"]) < 1e-12


class WholeSprings(PairSprings):
    """Springs of a molecule smaller than half of its cell, which a boundary may cut."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        from_first, _ = find_mic(atoms.positions - atoms.positions[0], atoms.cell)
        super().calculate(Atoms(atoms.numbers, from_first), properties, system_changes)


@pytest.mark.physics
@pytest.mark.parametrize(
    ("kind", "ensemble"),
    [
        pytest.param("bonds-to-hydrogen", "nve", marks=pytest.mark.slow),
        ("all-bonds", "langevin"),
    ],
)
def test_a_molecule_cut_by_the_boundary_moves_as_in_the_middle(tmp_path, kind, ensemble):
    from dcase.md_runs.files.trajectory import read_positions

    given = spring_molecule("CH3CH2OH")
    middle = Atoms(given.numbers, given.positions, cell=[11, 12, 13], pbc=True)
    middle.center()
    cut = middle.copy()
    cut.positions -= middle.positions[2]  # the oxygen is at the corner
    cut.wrap()
    assert np.ptp(cut.positions, axis=0).min() > 10.0
    settings = MDSettings(
        steps=60, timestep_fs=1.0, equilibrate=20, constrain=kind, ensemble=ensemble, traj_every=1
    )
    found = []
    for name, atoms in (("middle", middle), ("cut", cut)):
        atoms.calc = WholeSprings(given.calc.pairs, given.calc.lengths, depth=1.5)
        result = run_md(atoms, settings, tmp_path / name)
        assert result.finished
        _, positions, _ = read_positions(tmp_path / name)
        moved = positions - atoms.positions
        found.append((moved, result.series()["kinetic_energy"], result.atoms.get_momenta()))
        assert constrain(atoms.copy(), kind).largest_violation(positions) < 1e-11
    for one, other in zip(*found, strict=True):
        assert np.abs(one).max() > 0.1
        assert other == pytest.approx(one, abs=1e-8)


@pytest.mark.physics
@pytest.mark.parametrize(("kind", "n_dof"), [("bonds-to-hydrogen", 15), ("all-bonds", 13)])
def test_nve_holds_lengths_and_conserves(tmp_path, kind, n_dof):
    from dcase.md_runs.files.trajectory import read_positions
    from dcase.md_runs.report.report import write_report

    atoms = spring_molecule("CH3CH2OH")
    settings = MDSettings(steps=800, timestep_fs=1.0, equilibrate=200, constrain=kind)
    result = run_md(atoms, settings, tmp_path / "run")
    assert (result.status, result.n_dof) == ("finished", n_dof)
    held = constrain(atoms.copy(), kind)
    _, positions, _ = read_positions(tmp_path / "run")
    assert np.ptp(positions, axis=0).max() > 0.1  # it moved
    assert held.largest_violation(positions) < 1e-11
    series = result.series()
    assert series["com_momentum"].max() < 1e-12
    assert series["angular_momentum"].max() < 1e-12
    report = write_report(tmp_path / "run")
    drift = report["energy_drift"]
    assert abs(drift["slope_mev_per_atom_ps"]) < 0.1
    assert drift["fluctuation_ratio"] < 0.1
    assert report["constraints"]["max_violation_A"] == held.largest_violation(positions)
    assert report["constraints"]["bonds"] == held.names()
    assert report["constraints"]["n_dof_removed"] == held.rank == 21 - n_dof
    assert result.atoms.constraints == []


@pytest.mark.physics
def test_langevin_samples_rigid_rotors():
    """Dipoles in a field: <K> = 5/2 kT and <cos> = coth x - 1/x, x = f L / kT (Langevin, 1905)."""
    count, temperature, length = 40, 300.0, 0.74
    x = 2.0
    atoms = Atoms("H2" * count, np.zeros((2 * count, 3)))
    atoms.positions[:, 0] = 10.0 * np.repeat(np.arange(count), 2)
    atoms.positions[1::2, 2] += length
    atoms.calc = Field(x * KB * temperature / length)
    held = constrain(atoms, "all-bonds")
    assert held.rank == count
    settings = MDSettings(
        ensemble="langevin", timestep_fs=1.0, friction_per_fs=0.05, constrain="all-bonds"
    )
    rng = np.random.default_rng(4)
    draw_momenta(atoms, temperature, rng)
    dynamics = make_dynamics(atoms, settings, rng)
    kinetic, cosine = [], []
    forces = None
    for step in range(3000):
        forces = dynamics.step(forces)
        if step > 300:
            kinetic.append(atoms.get_kinetic_energy())
            cosine.append(np.mean(held.vectors(atoms.positions)[:, 2]) / length)
    expected = 0.5 * degrees_of_freedom(atoms, "langevin") * KB * temperature
    assert degrees_of_freedom(atoms, "langevin") == 5 * count
    assert np.mean(kinetic) == pytest.approx(expected, rel=0.05)
    assert np.mean(cosine) == pytest.approx(1.0 / math.tanh(x) - 1.0 / x, abs=0.05)


@pytest.mark.slow
@pytest.mark.physics
def test_bussi_holds_the_temperature_of_what_can_move():
    atoms = spring_molecule("CH4", morse=False)
    constrain(atoms, "bonds-to-hydrogen")
    settings = MDSettings(
        ensemble="bussi", timestep_fs=0.5, taut_fs=5.0, constrain="bonds-to-hydrogen"
    )
    rng = np.random.default_rng(3)
    draw_momenta(atoms, 300.0, rng)
    still(atoms, "bussi")
    dynamics = make_dynamics(atoms, settings, rng)
    kinetic, forces = [], None
    for _ in range(2500):
        forces = dynamics.step(forces)
        kinetic.append(atoms.get_kinetic_energy())
    # 5 of 9: with the degrees of freedom of free methane it would be 80 % too hot
    assert np.mean(kinetic) == pytest.approx(2.5 * KB * 300.0, rel=0.25)


@pytest.mark.physics
def test_energy_error_falls_as_the_square_of_the_time_step():
    settings = MDSettings(timestep_fs=1.0, equilibrate=200, constrain="all-bonds", seed=2)
    scan = dt_scan(spring_molecule("CH3CH2OH"), settings)
    assert scan.passed, scan.interpretation
    assert [e["ratio_to_next"] for e in scan.entries[:-1]] == pytest.approx([4, 4], rel=0.1)


@pytest.mark.physics
def test_a_longer_time_step_becomes_stable(tmp_path):
    """Stiff bonds: what blows up with all bonds free conserves its energy with them held."""
    settings = {
        "steps": 400, "timestep_fs": 3.0, "equilibrate": 100, "force_timestep": True,
        "temperature_K": 100.0,
    }  # fmt: skip

    def stiff():
        atoms = spring_molecule("CH3OH", depth=0.02)
        bonded = [k for k, n in enumerate(atoms.calc.lengths) if n < 1.5]
        assert len(bonded) == 5
        depth = np.full(len(atoms.calc.lengths), 0.02)
        depth[bonded] = 4.5
        atoms.calc.depth = depth
        atoms.calc.calculate = _with_depths(atoms.calc)
        return atoms

    free = run_md(stiff(), MDSettings(**settings), tmp_path / "free")
    assert free.status.startswith("stopped early")
    held = run_md(stiff(), MDSettings(**settings, constrain="all-bonds"), tmp_path / "held")
    assert held.finished
    series = held.series()
    assert np.std(series["total_energy"]) < 0.1 * np.std(series["kinetic_energy"])


def _with_depths(calc):
    """``PairSprings.calculate`` for one depth per pair, which its energy sums wrongly."""

    def calculate(atoms=None, properties=("energy",), system_changes=all_changes):
        Calculator.calculate(calc, atoms, properties, system_changes)
        r = calc.atoms.positions
        i, j = calc.pairs.T
        d = r[j] - r[i]
        length = np.linalg.norm(d, axis=1)
        e = np.exp(-calc.a * (length - calc.lengths))
        energy = float((calc.depth * (1 - e) ** 2).sum())
        pull = (2 * calc.depth * calc.a * e * (1 - e) / length)[:, None] * d
        forces = np.zeros_like(r)
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        calc.results = {"energy": energy, "free_energy": energy, "forces": forces}

    return calculate


# ------------------------------------------------------------------------- running and refusing


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "bussi"])
def test_resume_is_exact(tmp_path, ensemble):
    options = {
        "ensemble": ensemble, "constrain": "all-bonds", "equilibrate": 30, "checkpoint_every": 20,
        "traj_every": 5,
    }  # fmt: skip
    atoms = spring_molecule("CH3OH")
    run_md(atoms, MDSettings(**options, steps=50), tmp_path / "parts")
    parts = run_md(atoms, MDSettings(**options, steps=90), tmp_path / "parts", resume=True)
    whole = run_md(atoms, MDSettings(**options, steps=90), tmp_path / "whole")
    one, two = parts.series(), whole.series()
    assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in two)
    assert np.array_equal(parts.atoms.positions, whole.atoms.positions)
    with pytest.raises(SimulationError, match="constrain was 'all-bonds', now 'none'"):
        run_md(
            atoms,
            MDSettings(**{**options, "constrain": "none"}, steps=99),
            tmp_path / "parts",
            resume=True,
        )


def test_momenta_given_lose_what_would_stretch_a_bond(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.set_momenta(np.random.default_rng(0).standard_normal((5, 3)))
    settings = MDSettings(
        steps=20, equilibrate=0, keep_momenta=True, constrain="bonds-to-hydrogen",
        timestep_fs=0.25, max_temperature_K=1e6,
    )  # fmt: skip
    series = run_md(atoms, settings, tmp_path / "run").series()
    assert series["kinetic_energy"][0] < 0.9 * atoms.get_kinetic_energy()
    assert np.ptp(series["total_energy"]) < 0.02 * series["kinetic_energy"][0]


@pytest.mark.parametrize(
    ("atoms", "options", "message"),
    [
        (molecule("CO2"), {"constrain": "bonds-to-hydrogen"}, "CO2 has no bond to hydrogen"),
        (Atoms("Ar2", [(0, 0, 0), (0, 0, 4)]), {"constrain": "all-bonds"}, "has no covalent bond"),
        (molecule("N2"), {"constrain": "all-bonds"}, "leaves N2 nothing to move by"),
        (molecule("N2"), {"constrain": "angles"}, "must be one of none, bonds-to-hydrogen"),
        (
            molecule("H2O"),
            {"constrain": "all-bonds", "ensemble": "nose-hoover"},
            "nose-hoover cannot hold bonds",
        ),
        (
            Atoms("HF", [(0, 0, 0), (0, 0, 0.9)], constraint=FixAtoms([0])),
            {"constrain": "all-bonds"},
            "cannot be combined with the constraints",
        ),
    ],
)
def test_impossible_wishes_are_one_line(tmp_path, atoms, options, message):
    atoms.calc = Field()
    with pytest.raises(OptionError, match=message) as raised:
        run_md(atoms, MDSettings(**options), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_step_that_no_bond_survives_stops_the_run(tmp_path):
    settings = MDSettings(
        steps=50, timestep_fs=40.0, equilibrate=0, constrain="all-bonds", temperature_K=3000.0,
        force_timestep=True,
    )  # fmt: skip
    result = run_md(spring_molecule("CH3OH"), settings, tmp_path / "run")
    assert result.status.startswith("stopped early: the lengths of the constrained bonds")
    assert np.isfinite(result.atoms.positions).all()
