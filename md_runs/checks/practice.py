"""Conformance in use: precision, files, copies, dynamics; each check measures one number.

Every function takes a :class:`~dcase.md_runs.checks.subject.Subject` and returns the number and a
line about it; :mod:`dcase.md_runs.checks.conformance` holds the limits.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from dcase.md_runs.analysis.frequency import highest_frequency
from dcase.md_runs.checks.subject import (
    Predicted,
    Skip,
    Subject,
)
from dcase.potentials.potential import load_potential
from dcase.units import FS, KB

# ------------------------------------------------------------------------------------------------
# Precision, files, bookkeeping


def single_precision(subject: Subject, what: str) -> tuple[float, str]:
    """What float32 loses of the energy or of the forces."""
    results = []
    for dtype in ("float32", "float64"):
        calculator = subject.calculator(dtype=dtype, device="cpu")
        atoms = subject.given.copy()
        results.append((calculator.get_potential_energy(atoms), calculator.get_forces(atoms)))
    (e32, f32), (e64, f64) = results
    if what == "energy":
        return abs(e32 - e64) / len(subject.given), f"{len(subject.given)} atoms, on the CPU"
    return float(np.abs(f32 - f64).max()) / subject.force_scale, "on the CPU"


def device(subject: Subject) -> tuple[float, str]:
    """The device gives what the CPU gives."""
    if subject.device.type == "cpu":
        raise Skip("this is the CPU")
    calculator, atoms = subject.calculator(device="cpu"), subject.given.copy()
    energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
    return subject.error(subject(subject.given), energy, forces), f"{subject.device} against CPU"


def save_and_load(subject: Subject) -> tuple[float, str]:
    """A checkpoint gives back the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "potential.pt"
        subject.potential.save(path)
        loaded = load_potential(path).to(subject.device)
    before, graph = subject.potential, subject.graph(subject.given)
    if loaded.dtype != before.dtype or loaded.scale != before.scale:
        return float("inf"), "another dtype or label scale came back"
    differences = [
        float((value - before.network.state_dict()[name]).abs().max()) if value.numel() else 0.0
        for name, value in loaded.network.state_dict().items()
    ]
    if subject.device.type == "cpu":  # sums on a GPU are not the same twice
        after = loaded(graph)
        differences += [float((v - after[k]).abs().max()) for k, v in before(graph).items()]
    return max(differences), "weights, scale, energies and forces, bit for bit"


def calculator_copies(subject: Subject) -> tuple[float, str]:
    """Copied and pickled calculators give the same results."""
    original = subject.calculator()
    copies = {
        "copy": original.copy(),
        "deepcopy": copy.deepcopy(original),
        "pickle": pickle.loads(pickle.dumps(original)),
    }
    atoms = subject.given.copy()
    energy, forces = original.get_potential_energy(atoms), original.get_forces(atoms)
    worst = 0.0
    for other in copies.values():
        found = Predicted(
            other.get_potential_energy(atoms), np.empty(0), other.get_forces(atoms), None
        )
        worst = max(worst, subject.error(found, energy, forces))
    return worst, ", ".join(copies)


def kept_list(subject: Subject) -> tuple[float, str]:
    """A calculator that keeps its neighbour list, against a fresh search at every step."""
    worst = 0.0
    for start in (subject.molecule, subject.crystal):
        calculator, rng = subject.calculator(skin=0.6), subject.rng()
        atoms = start.copy()
        for step in range(12):
            atoms.positions += rng.normal(0, 0.06, (len(atoms), 3))
            if step == 4 and atoms.pbc.any():
                atoms.positions[0] += atoms.cell.array[0] - atoms.cell.array[2]
            if step == 6 and atoms.pbc.any():
                atoms.wrap()
            if step == 8 and atoms.pbc.any():
                atoms.set_cell(atoms.cell.array * [[0.97], [1.02], [1.0]], scale_atoms=False)
            if step == 10:
                atoms.numbers[:] = atoms.numbers[::-1].copy()
            fresh = subject(atoms)
            energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
            # Other elements in the wrong places can be pressed together: rounding is relative.
            stiffer = float(np.sqrt(np.mean(fresh.forces**2))) / subject.force_scale
            worst = max(worst, subject.error(fresh, energy, forces) / max(1.0, stiffer))
    return worst, "12 moves with wrapping, a cell change and other elements"


# ------------------------------------------------------------------------------------------------
# Dynamics


def _start_of_dynamics(subject: Subject, seed: int = 1) -> Atoms:
    """The structure with momenta of 300 K and a calculator."""
    atoms = subject.given.copy()
    masses = atoms.get_masses()[:, None]
    noise = subject.rng(seed).normal(size=(len(atoms), 3))
    atoms.set_momenta(np.sqrt(masses * KB * 300.0) * noise)
    atoms.calc = subject.calculator(skin=0.4)
    return atoms


def _time_step(atoms: Atoms) -> float:
    """In fs: 0.5, or 20 steps in the period of the fastest vibration if that is shorter."""
    omega = highest_frequency(atoms)
    return min(0.5, 0.3 / omega) if omega > 0 else 0.5


def time_reversal(subject: Subject) -> tuple[float, str]:
    """Turned momenta lead velocity Verlet back to where it started."""
    atoms = _start_of_dynamics(subject)
    dt, start, steps = _time_step(atoms), atoms.positions.copy(), 50
    VelocityVerlet(atoms, dt * FS).run(steps)
    travelled = float(np.abs(atoms.positions - start).max())
    atoms.set_momenta(-atoms.get_momenta())
    VelocityVerlet(atoms, dt * FS).run(steps)
    error = float(np.abs(atoms.positions - start).max())
    return error, f"{steps} steps of {dt:.2g} fs there ({travelled:.2f} A) and back"


def timestep_law(subject: Subject) -> tuple[float, str]:
    """Halving the time step must quarter the energy error of velocity Verlet.

    Where the curvature of the energy jumps (IReLU), the error of the one step that crosses the jump
    depends on where in the step it lies, so that the ratio holds on average: hence several starts.
    """
    coarse = _time_step(_start_of_dynamics(subject))
    starts, samples, squares = 4, 16, np.zeros(3)
    for start in range(starts):
        for halvings in range(3):
            atoms = _start_of_dynamics(subject, 1 + start)
            dynamics = VelocityVerlet(atoms, coarse / 2**halvings * FS)
            energies = [atoms.get_total_energy()]
            for _ in range(samples):
                dynamics.run(2**halvings)
                energies.append(atoms.get_total_energy())
            squares[halvings] += np.mean((np.array(energies) - energies[0]) ** 2) / starts
    rms = np.sqrt(squares)
    if rms[-1] < 100 * np.spacing(abs(energies[0])):
        raise Skip("the energy is constant to rounding: nothing to measure")
    ratios = rms[:-1] / rms[1:]
    shown = ", ".join(f"{r:.3f}" for r in ratios)
    return (
        float(np.abs(ratios - 4.0).max()),
        f"ratios {shown} for {coarse:.2g} fs halved twice, {starts} starts of {samples} steps",
    )
