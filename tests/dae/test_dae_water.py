"""Flexible water: forces against differences and a plain loop, and the laws of mechanics."""

import math
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from dcase.dae import water
from dcase.dae.force_field import (
    ANGLE,
    BOND_CONSTANT,
    BOND_LENGTH,
    COULOMB,
    FlexibleWater,
    WaterForces,
)
from dcase.dae.trajectories import read, write
from dcase.errors import DataError, OptionError, SimulationError
from dcase.units import FS, KB, KCAL_PER_MOL

pytestmark = pytest.mark.physics


def cluster(molecules, seed=0):
    rng = np.random.default_rng(seed)
    start = water.droplet(molecules, rng)
    return start + rng.normal(0, 0.05, start.shape)


def numerical(energy, x, step=1e-3):
    """Forces by central differences of fourth order."""
    forces = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        values = []
        for shift in (-2, -1, 1, 2):
            moved = x.copy()
            moved[index] += shift * step
            values.append(energy(moved))
        forces[index] = (8 * (values[1] - values[2]) + values[3] - values[0]) / (12 * step)
    return forces


@pytest.mark.parametrize("bond", ["harmonic", "morse"])
def test_forces_are_minus_the_gradient(bond):
    x, field = cluster(4), WaterForces(4, bond)
    forces = field.energy_forces(x)[1].copy()
    expected = numerical(lambda y: field.energy_forces(y)[0], x)
    assert np.abs(forces - expected).max() < 1e-8 * np.abs(forces).max()


def by_hand(x):
    """The energy, term by term, in kcal/mol."""
    charge = [-0.834, 0.417, 0.417]
    depth, half = [0.1521, 0.046, 0.046], [1.7682, 0.2245, 0.2245]
    total = 0.0
    for i in range(len(x)):
        for j in range(i):
            if i // 3 == j // 3:
                continue
            a, b = i % 3, j % 3
            r = math.dist(x[i], x[j])
            ratio = ((half[a] + half[b]) / r) ** 6
            total += 332.0637 * charge[a] * charge[b] / r
            total += math.sqrt(depth[a] * depth[b]) * (ratio**2 - 2 * ratio)
    for m in range(0, len(x), 3):
        u, w = x[m + 1] - x[m], x[m + 2] - x[m]
        p, q = math.hypot(*u), math.hypot(*w)
        total += 450 * ((p - 0.9572) ** 2 + (q - 0.9572) ** 2)
        total += 55 * (math.acos(u @ w / p / q) - math.radians(104.52)) ** 2
    return total


def test_energy_against_a_plain_loop():
    for molecules in (1, 2, 5):
        x = cluster(molecules, seed=molecules)
        energy = WaterForces(molecules).energy_forces(x)[0] / KCAL_PER_MOL
        assert energy == pytest.approx(by_hand(x), rel=2e-6)  # digits of 332.0637
    assert abs(COULOMB - 14.399645) < 1e-6


def test_a_molecule_at_rest_and_its_vibrations():
    x = BOND_LENGTH * np.array(
        [[0, 0, 0], [1, 0, 0], [math.cos(ANGLE), math.sin(ANGLE), 0]], dtype=float
    )
    for bond in ("harmonic", "morse"):
        field = WaterForces(1, bond)
        energy, forces = field.energy_forces(x)
        assert abs(energy) < 1e-25
        assert np.abs(forces).max() < 1e-13
        # The same curvature along a bond: 2 k
        stretched = x.copy()
        stretched[1, 0] += 1e-5
        pull = field.energy_forces(stretched)[1][1, 0]
        assert pull == pytest.approx(-2 * BOND_CONSTANT * 1e-5, rel=1e-4)
    # Far apart, the Morse bond breaks: its energy levels off.
    stretched[1, 0] = 12.0
    assert WaterForces(1, "morse").energy_forces(stretched)[0] < 116.1 * KCAL_PER_MOL
    assert WaterForces(1).energy_forces(stretched)[0] > 50_000 * KCAL_PER_MOL


def test_a_straight_molecule_has_finite_forces():
    x = np.array([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]])
    for tilt in (0.0, 1e-9, 1e-3):
        x[2, 1] = tilt
        assert np.isfinite(WaterForces(1).energy_forces(x)[1]).all()


def test_the_dimer_binds_as_tip3p_does():
    """The minimum of TIP3P's dimer is near -6.5 kcal/mol at O-O 2.75 A."""
    from ase.optimize import BFGS

    acceptor = [[2.8, 0, 0], [3.3, 0.76, 0.3], [3.3, -0.76, 0.3]]
    dimer = Atoms("OH2OH2", [[0, 0, 0], [0.957, 0, 0], [-0.24, 0.927, 0], *acceptor])
    dimer.calc = FlexibleWater()
    BFGS(dimer, logfile=None).run(fmax=0.002, steps=300)
    assert -7.1 < dimer.get_potential_energy() / KCAL_PER_MOL < -6.3
    assert 2.65 < dimer.get_distance(0, 3) < 2.85


def test_turning_moving_and_momentum():
    x, field = cluster(6), WaterForces(6)
    energy, forces = field.energy_forces(x)
    forces = forces.copy()
    scale = np.abs(forces).max()
    assert np.abs(forces.sum(axis=0)).max() < 1e-12 * scale
    assert np.abs(np.cross(x, forces).sum(axis=0)).max() < 1e-11 * scale
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))  # reflections too
    turned_energy, turned = field.energy_forces(x @ turn.T + [10.0, -20.0, 5.0])
    assert turned_energy == pytest.approx(energy, rel=1e-11)
    np.testing.assert_allclose(turned, forces @ turn.T, atol=1e-10 * scale)
    # Molecules, and the hydrogens of one, can be exchanged.
    order = np.r_[3:6, 0:3, 6, 8, 7, 9:18]
    np.testing.assert_allclose(field.energy_forces(x[order])[1], forces[order], atol=1e-12 * scale)


def test_what_the_calculator_refuses():
    x = cluster(2)

    def energy(symbols, positions=x, **options):
        atoms = Atoms(symbols, positions, **options)
        atoms.calc = FlexibleWater()
        return atoms.get_potential_energy()

    assert energy("OHHOHH") == WaterForces(2).energy_forces(x)[0]
    with pytest.raises(DataError, match="atom 1 is O: .* O, H, H$"):
        energy("OOHHHH")
    with pytest.raises(DataError, match="there are 5 atoms"):
        energy("OHHOH", x[:5])
    with pytest.raises(DataError, match=r"no periodic boundaries; set atoms.pbc = False"):
        energy("OHHOHH", cell=[20, 20, 20], pbc=True)
    with pytest.raises(DataError, match="each oxygen must be followed by its own"):
        energy("OHHOHH", x[[0, 1, 5, 3, 4, 2]])
    with pytest.raises(OptionError, match="harmonic or morse"):
        FlexibleWater(bond="stiff")
    with pytest.raises(OptionError, match="at least one molecule"):
        WaterForces(0)


def test_the_calculator_follows_the_atoms():
    """Another number of molecules, and arrays that a later call must not change."""
    calculator = FlexibleWater("morse")
    two = Atoms("OHHOHH", cluster(2), calculator=calculator)
    before = two.get_forces()
    kept = before.copy()
    three = Atoms("OHHOHHOHH", cluster(3), calculator=calculator)
    assert three.get_forces().shape == (9, 3)
    np.testing.assert_array_equal(before, kept)
    two.rattle(0.1, seed=1)
    assert np.abs(two.get_forces() - kept).max() > 0.01


# ---------------------------------------------------------------------------------------------
# Dynamics


def masses_of(molecules):
    return np.tile([15.999, 1.008, 1.008], molecules)


@pytest.fixture(scope="module")
def warm():
    """Eight molecules at 300 K: forces, masses, positions, velocities."""
    masses, forces = masses_of(8), WaterForces(8).energy_forces
    rng = np.random.default_rng(5)
    x = water.relax(water.droplet(8, rng), forces)
    return forces, masses, *water.thermalise(x, masses, forces, 300.0, 3000, rng)


def run(warm, timestep, steps):
    forces, masses, x, v = warm
    frames = []

    def record(step, x, v, potential):
        frames.append((x, v, potential + water.kinetic(v, masses)))

    water.velocity_verlet(x, v, masses, forces, timestep, steps, record)
    positions, velocities, energy = (np.array(column) for column in zip(*frames, strict=True))
    return positions, velocities, energy


def test_energy_fluctuates_as_the_square_of_the_step(warm):
    spreads = [np.std(run(warm, dt, round(80 / dt))[2]) for dt in (0.4, 0.2, 0.1)]
    for coarse, fine in pairwise(spreads):
        assert 3.4 < coarse / fine < 4.6
    assert spreads[-1] < 1e-4  # eV, of a kinetic energy of about 1


def test_momentum_and_angular_momentum_stay_zero(warm):
    positions, velocities, _ = run(warm, 0.2, 300)
    masses = warm[1]
    for x, v in zip(positions[::100], velocities[::100], strict=True):
        assert np.abs(masses @ v).max() < 1e-10
        assert np.abs(masses @ np.cross(x, v)).max() < 1e-9
        assert np.abs(masses @ x).max() < 1e-9


def test_same_path_as_ase(warm):
    _, masses, x, v = warm
    atoms = Atoms("OHH" * 8, x, masses=masses, calculator=FlexibleWater())
    atoms.set_velocities(v)
    VelocityVerlet(atoms, 0.1 * units.fs).run(100)
    positions, velocities, energy = run(warm, 0.1, 100)
    np.testing.assert_allclose(atoms.positions, positions[-1], atol=1e-11)
    np.testing.assert_allclose(atoms.get_velocities(), velocities[-1], atol=1e-11)
    assert atoms.get_total_energy() == pytest.approx(energy[-1], abs=1e-10)


def test_backwards_in_time_to_the_start(warm):
    forces, masses, x, _ = warm
    positions, velocities, _ = run(warm, 0.2, 200)
    back, _, _ = run((forces, masses, positions[-1], -velocities[-1]), 0.2, 200)
    assert np.abs(back[-1] - x).max() < 1e-9


def test_droplet_is_dense_and_made_of_whole_molecules():
    x = water.droplet(32, np.random.default_rng(0)).reshape(-1, 3, 3)
    bonds = np.linalg.norm(x[:, 1:] - x[:, :1], axis=-1)
    np.testing.assert_allclose(bonds, BOND_LENGTH, rtol=1e-12)
    across = np.linalg.norm(x[:, 1] - x[:, 2], axis=-1)
    np.testing.assert_allclose(across, 2 * BOND_LENGTH * math.sin(ANGLE / 2), rtol=1e-12)
    apart = np.linalg.norm(x[:, None, 0] - x[None, :, 0], axis=-1) + 9 * np.eye(32)
    np.testing.assert_allclose(apart.min(axis=1), water.SPACING, rtol=1e-9)
    # One gram per cubic centimetre, and a ball rather than a rod
    density = 18.015 / (0.602214 * water.SPACING**3)
    assert density == pytest.approx(1.0, abs=2e-3)
    moments = np.linalg.eigvalsh(np.cov(x[:, 0].T))
    assert moments[-1] < 1.8 * moments[0]
    # Orientations are uniform: the mean direction of the molecules is near zero.
    many = water.droplet(2000, np.random.default_rng(1)).reshape(-1, 3, 3)
    dipole = (many[:, 1:] - many[:, :1]).sum(axis=1)
    assert (
        np.abs((dipole / np.linalg.norm(dipole, axis=1, keepdims=True)).mean(axis=0)).max() < 0.05
    )


@pytest.fixture(scope="module")
def simulated():
    return water.simulate_water(6000, molecules=8, seed=2, timestep_fs=0.2, equilibrate=6000)


def test_a_simulation(simulated):
    assert simulated.positions.shape == simulated.velocities.shape == (1200, 24, 3)
    assert simulated.positions.dtype == np.float32
    assert list(simulated.numbers[:3]) == [8, 1, 1]
    assert simulated.interval == pytest.approx(1.0)
    assert simulated.stride == 5
    assert np.ptp(simulated.energy) < 3e-3
    kinetic = simulated.kinetic_energy()
    temperature = 2 * kinetic.mean() / (66 * KB)
    assert 230 < temperature < 370  # 66 degrees of freedom, a picosecond
    # Units: eV from A/fs and amu
    v = simulated.velocities[7].astype(float) / FS
    assert kinetic[7] == pytest.approx(water.kinetic(v, simulated.masses), rel=1e-6)
    # Stored velocities are those of the stored positions.
    slope = (simulated.positions[2:] - simulated.positions[:-2]) / 2.0
    assert np.abs(slope - simulated.velocities[1:-1]).mean() < 0.1 * np.abs(slope).mean()


def test_no_molecule_leaves_or_breaks(simulated):
    sites = simulated.positions.reshape(1200, 8, 3, 3)
    bonds = np.linalg.norm(sites[:, :, 1:] - sites[:, :, :1], axis=-1)
    assert bonds.mean() == pytest.approx(0.972, abs=0.006)
    assert bonds.std() == pytest.approx(0.025, abs=0.006)
    apart = np.linalg.norm(sites[:, :, None, 0] - sites[:, None, :, 0], axis=-1)
    assert (apart + 99 * np.eye(8)).min(axis=-1).max() < 4.5


def test_seeds_prefixes_and_files(tmp_path):
    options = {"molecules": 3, "equilibrate": 50, "stride": 4}
    first = water.simulate_water(40, seed=1, **options)
    longer = water.simulate_water(43, seed=1, **options)
    other = water.simulate_water(40, seed=2, **options)
    assert first.fingerprint() == longer.fingerprint()  # 43 // 4 frames
    assert water.simulate_water(80, seed=1, **options).prefix(10).fingerprint() == (
        first.fingerprint()
    )
    assert first.fingerprint() != other.fingerprint()
    again = read(write(tmp_path / "water.h5", first))
    assert again.fingerprint() == first.fingerprint()
    assert again.settings == first.settings
    assert again.settings["bond"] == "harmonic"


def test_without_equilibration_it_starts_at_the_drawn_velocities():
    trajectory = water.simulate_water(10, molecules=30, equilibrate=0, temperature_K=200.0)
    assert 2 * trajectory.kinetic_energy()[0] / (264 * KB) == pytest.approx(200, rel=0.3)


def test_progress_counts_all_steps():
    seen = []
    water.simulate_water(
        700, molecules=1, equilibrate=600, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(0, 1300), (500, 1300), (1000, 1300), (1300, 1300)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 3, "stride": 5}, "steps must be at least the stride 5"),
        ({"molecules": 0}, "molecules must be"),
        ({"seed": -1}, "seed must be"),
        ({"timestep_fs": 0.0}, "timestep_fs must be"),
        ({"temperature_K": math.nan}, "temperature_K must be"),
        ({"equilibrate": -1}, "equilibrate must be"),
        ({"bond": "rigid"}, "harmonic or morse"),
    ],
)
def test_options_of_water(options, message):
    with pytest.raises(OptionError, match=message):
        water.simulate_water(**options)


def test_a_step_too_long_is_one_line():
    with pytest.raises(SimulationError, match="blew up after .* use a shorter time step"):
        water.simulate_water(2000, molecules=2, equilibrate=10, timestep_fs=8.0)
