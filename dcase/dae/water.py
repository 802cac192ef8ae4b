"""A droplet of flexible water: its trajectory at constant energy.

Molecules start on a cubic lattice of density 1 g/cm^3 inside a ball, in random orientations. A
short descent takes out the clashes, Langevin dynamics brings the droplet to its temperature, and
velocity Verlet then moves it at constant energy: no walls, no periodic images, no thermostat, no
constraints on bonds (the rigid geometry is what a network may be asked to keep; the data only
vibrate about it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ase.data import atomic_masses

from dcase._version import __version__
from dcase.dae.force_field import ANGLE, BOND_LENGTH, SPECIES, WaterForces
from dcase.dae.trajectory_file import Trajectory
from dcase.errors import OptionError, SimulationError
from dcase.options import check_memory, check_size
from dcase.units import FS, KB

REVISION = 1
"""Raised when the same settings give another trajectory, so that old caches are not used."""

SPACING = 3.104
"""Lattice constant of one molecule per cell at 1 g/cm^3, A."""

EQUILIBRATION_FS = 0.5
"""Time step before the recorded run, fs; 1/19 of the period of the fastest vibration."""

FRICTION = 0.01
"""Of the Langevin dynamics, 1/fs."""

REPORT_EVERY = 500
"""Steps between two reports of progress."""

Forces = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Potential energy (eV) and forces (eV/A) at positions (A)."""


def water_settings(
    steps: int = 100_000,
    *,
    molecules: int = 32,
    seed: int = 0,
    timestep_fs: float = 0.1,
    stride: int = 5,
    temperature_K: float = 300.0,
    equilibrate: int = 20_000,
    bond: str = "harmonic",
) -> dict[str, Any]:
    """The settings of :func:`simulate_water` as a dictionary, checked.

    Raises:
        OptionError: For a value that makes no sense.
    """
    least = {"steps": (steps, 1), "molecules": (molecules, 1), "seed": (seed, 0)}
    least |= {"stride": (stride, 1), "equilibrate": (equilibrate, 0)}
    for name, (count, minimum) in least.items():
        check_size(name, count)
        if isinstance(count, bool) or int(count) != count or count < minimum:
            raise OptionError(f"{name} must be a whole number of at least {minimum}, got {count!r}")
    frames, atoms = steps // max(stride, 1), 3 * molecules
    check_memory(float(frames) * atoms * 6 * 8, f"{frames} frames of {molecules} molecules")
    if steps < stride:
        raise OptionError(f"steps must be at least the stride {stride}, got {steps}")
    for name, number in (("timestep_fs", timestep_fs), ("temperature_K", temperature_K)):
        if not (math.isfinite(number) and number > 0):
            raise OptionError(f"{name} must be a positive number, got {number!r}")
    if bond not in ("harmonic", "morse"):
        raise OptionError(f"bond must be harmonic or morse, got {bond!r}")
    return {
        "steps": int(steps),
        "molecules": int(molecules),
        "seed": int(seed),
        "timestep_fs": float(timestep_fs),
        "stride": int(stride),
        "temperature_K": float(temperature_K),
        "equilibrate": int(equilibrate),
        "bond": bond,
        "revision": REVISION,
        "version": __version__,
    }


def simulate_water(
    steps: int = 100_000,
    *,
    molecules: int = 32,
    seed: int = 0,
    timestep_fs: float = 0.1,
    stride: int = 5,
    temperature_K: float = 300.0,
    equilibrate: int = 20_000,
    bond: str = "harmonic",
    progress: Callable[[int, int], object] | None = None,
) -> Trajectory:
    """A droplet of flexible TIP3P water at constant energy.

    The energy is the mean energy of the equilibration, so that the mean temperature is near
    ``temperature_K``; momentum and angular momentum are zero. A trajectory is a prefix of every
    longer one with the same settings (on one machine: rounding decides in the long run).

    Args:
        steps: Velocity Verlet steps.
        molecules: Molecules, three atoms each, in the order O, H, H.
        seed: Of the orientations, the first velocities and the Langevin noise.
        timestep_fs: Time step of the recorded run, fs.
        stride: Store the start and every ``stride``-th step: ``steps // stride`` frames.
        temperature_K: Temperature, K.
        equilibrate: Langevin steps of 0.5 fs before the recorded run.
        bond: ``"harmonic"`` or ``"morse"``; see :mod:`dcase.dae.force_field`.
        progress: Called with (steps done, steps in all), equilibration included, now and then.

    Returns:
        The trajectory: ``positions [frames, 3 molecules, 3]`` in A and ``velocities`` in A/fs,
        both float32; ``energy [frames]`` in eV, float64; ``interval`` in fs.

    Raises:
        OptionError: For an impossible option.
        SimulationError: If the time step is too long and the droplet blows up.
    """
    settings = water_settings(
        steps,
        molecules=molecules,
        seed=seed,
        timestep_fs=timestep_fs,
        stride=stride,
        temperature_K=temperature_K,
        equilibrate=equilibrate,
        bond=bond,
    )
    rng = np.random.default_rng(seed)
    forces = WaterForces(molecules, bond).energy_forces
    numbers = np.tile(SPECIES, molecules)
    masses = atomic_masses[numbers]
    total = equilibrate + steps

    def report(done: int) -> None:
        if progress is not None and (done % REPORT_EVERY == 0 or done == total):
            progress(done, total)

    positions = relax(droplet(molecules, rng), forces)
    positions, velocities = thermalise(
        positions, masses, forces, temperature_K, equilibrate, rng, report
    )
    frames = steps // stride
    stored = np.empty((2, frames, len(masses), 3), dtype=np.float32)
    energy = np.empty(frames)

    def record(step: int, x: np.ndarray, v: np.ndarray, potential: float) -> None:
        frame, rest = divmod(step, stride)
        report(equilibrate + step)
        if rest or frame >= frames:
            return
        stored[0, frame], stored[1, frame] = x, v * FS
        energy[frame] = potential + kinetic(v, masses)
        if not math.isfinite(energy[frame]):
            raise SimulationError(
                f"the droplet blew up after {step * timestep_fs:g} fs; use a shorter time step"
            )

    with np.errstate(all="ignore"):  # told by the energy
        velocity_verlet(positions, velocities, masses, forces, timestep_fs, steps, record)
    return Trajectory(
        system="water",
        positions=stored[0],
        velocities=stored[1],
        masses=masses,
        numbers=numbers,
        interval=stride * timestep_fs,
        energy=energy,
        settings=settings,
    )


def droplet(molecules: int, rng: np.random.Generator) -> np.ndarray:
    """Positions ``[3 molecules, 3]`` in A: lattice points nearest the origin, turned at random."""
    size = math.ceil(molecules ** (1 / 3)) + 2
    # Off-centre, so that no two shells of the lattice have the same radius.
    line = np.arange(-size, size + 1) - 0.5 + 0.03
    grid = np.stack(np.meshgrid(line, line + 0.01, line + 0.03, indexing="ij"), -1).reshape(-1, 3)
    centres = SPACING * grid[np.argsort(np.sum(grid**2, axis=1), kind="stable")[:molecules]]
    half = ANGLE / 2
    shape = BOND_LENGTH * np.array(
        [[0, 0, 0], [math.sin(half), math.cos(half), 0], [-math.sin(half), math.cos(half), 0]]
    )
    # A uniform rotation from a uniform unit quaternion.
    q = rng.standard_normal((molecules, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    turns = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return (centres[:, None, :] + np.einsum("abm,sb->msa", turns, shape)).reshape(-1, 3)


def relax(positions: np.ndarray, forces: Forces, steps: int = 300) -> np.ndarray:
    """Steepest descent of at most 0.05 A a step: takes out the clashes, finds no minimum."""
    for _ in range(steps):
        _, force = forces(positions)
        largest = float(np.abs(force).max())
        positions = positions + force * min(0.005, 0.05 / max(largest, 1e-12))
    return positions


def thermalise(
    positions: np.ndarray,
    masses: np.ndarray,
    forces: Forces,
    temperature_K: float,
    steps: int,
    rng: np.random.Generator,
    report: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Langevin dynamics (BAOAB splitting), then momenta removed and the energy set to its mean.

    Args:
        positions: ``[N, 3]`` A.
        masses: ``[N]`` amu.
        forces: Potential.
        temperature_K: Temperature, K.
        steps: Steps of 0.5 fs.
        rng: Of the velocities and the noise.
        report: Called with the number of steps done.

    Returns:
        ``(positions, velocities)``, the centre of mass at rest in the origin; A and ASE's unit of
        velocity.

    Raises:
        SimulationError: If the atoms fly apart.
    """
    dt, heat = EQUILIBRATION_FS * FS, KB * temperature_K
    m = masses[:, None]
    thermal = np.sqrt(heat / m)
    kept = math.exp(-FRICTION * EQUILIBRATION_FS)
    noise = math.sqrt(1.0 - kept**2)
    x, v = positions, thermal * rng.standard_normal(positions.shape)
    potential, force = forces(x)
    energies = [potential + kinetic(v, masses)]
    for step in range(steps):
        if report is not None:
            report(step)
        v = v + (0.5 * dt) * force / m
        x = x + (0.5 * dt) * v
        v = kept * v + noise * thermal * rng.standard_normal(v.shape)
        x = x + (0.5 * dt) * v
        potential, force = forces(x)
        v = v + (0.5 * dt) * force / m
        energies.append(potential + kinetic(v, masses))
    if not math.isfinite(energies[-1]):
        raise SimulationError(
            "the droplet blew up while it was equilibrated; lower the temperature"
        )
    x, v = still(x, v, masses)
    # Six degrees of freedom stand still now, each of which held kT/2 of the mean. One fluctuating
    # instant must not decide the energy, and so the temperature, of the whole run.
    mean = float(np.mean(energies[len(energies) // 2 :])) - 3.0 * heat
    now = kinetic(v, masses)
    wanted = now + mean - (potential + now)
    if steps and wanted > 0.25 * now:
        v = v * math.sqrt(wanted / now)
    return x, v


def still(
    positions: np.ndarray, velocities: np.ndarray, masses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move the centre of mass to the origin; take out momentum and angular momentum."""
    x = positions - masses @ positions / masses.sum()
    v = velocities - masses @ velocities / masses.sum()
    moment = np.einsum("i,ij,ij->", masses, x, x) * np.eye(3) - (x.T * masses) @ x
    turn = np.linalg.solve(moment, masses @ np.cross(x, v))
    return x, v - np.cross(turn, x)


def kinetic(velocities: np.ndarray, masses: np.ndarray) -> float:
    """Kinetic energy in eV from velocities ``[N, 3]`` in ASE's unit and masses in amu."""
    return 0.5 * float(masses @ np.einsum("ij,ij->i", velocities, velocities))


def velocity_verlet(
    positions: np.ndarray,
    velocities: np.ndarray,
    masses: np.ndarray,
    forces: Forces,
    timestep_fs: float,
    steps: int,
    record: Callable[[int, np.ndarray, np.ndarray, float], None],
) -> None:
    """Velocity Verlet: half a kick, a drift, half a kick.

    Args:
        positions: ``[N, 3]`` A.
        velocities: ``[N, 3]`` in ASE's unit, A sqrt(eV/amu)/A.
        masses: ``[N]`` amu.
        forces: Potential.
        timestep_fs: Time step, fs.
        steps: Steps.
        record: Called with ``(step, positions, velocities, potential energy)`` at the start and
            after each step; it may keep the arrays, which are never changed in place.
    """
    dt = timestep_fs * FS
    kick = (0.5 * dt / masses)[:, None]
    x, v = positions, velocities
    potential, force = forces(x)
    record(0, x, v, potential)
    for step in range(1, steps + 1):
        v = v + kick * force
        x = x + dt * v
        potential, force = forces(x)
        v = v + kick * force
        record(step, x, v, potential)
