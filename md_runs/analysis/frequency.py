"""Vibrational frequencies from forces: the highest one by Lanczos, all of them by differences."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase import units as ase_units

from dcase.errors import SimulationError
from dcase.md_runs.loop.constrain import normal_space, tension
from dcase.units import FS

DISPLACEMENT_A = 0.005
"""Largest displacement of an atom in a finite difference, Angstrom.

Between the curvature of a bond and the noise of single precision forces.
"""

PERIODS_WANTED = 10.0
"""Steps per period of the fastest vibration below which a warning is given."""

INVERSE_CM = 1e-2 / (2.0 * math.pi * ase_units._c * 1e-15)
"""One rad/fs in cm^-1: 1 / (2 pi c)."""


def highest_frequency(atoms: Atoms, *, iterations: int = 16) -> float:
    """Highest vibrational angular frequency in rad/fs, from about 30 force calls.

    Fixed bond lengths are projected out: with multipliers ``mu`` of the bonds' tension (see
    ``constrain.tension``), the forces of the constrained motion have the gradient
    ``P (H + E^T mu E) P``, where ``E`` takes differences along bonds and ``P`` leaves the allowed
    directions. Constraints of other kinds are ignored.

    Lanczos iteration with full re-orthogonalisation on the mass-weighted Hessian
    ``M^-1/2 H M^-1/2`` whose product with a vector is a central difference of forces
    (Golub and Van Loan, Matrix Computations, 10.1). The top of the spectrum converges first.

    Args:
        atoms: With a calculator; left unchanged.
        iterations: Krylov vectors at most (3N are always enough).

    Returns:
        ``sqrt`` of the largest eigenvalue; 0 if no curvature is positive.
    """
    probe = atoms.copy()
    probe.set_constraint()
    probe.calc = atoms.calc
    start = probe.get_positions()
    root = np.sqrt(probe.get_masses())[:, None]  # (N, 1)
    forbidden = normal_space(atoms)  # (R, 3N)
    incidence, mu = tension(atoms, probe.get_forces()) if len(forbidden) else (None, None)

    def allowed(vector: np.ndarray) -> np.ndarray:
        return vector - forbidden.T @ (forbidden @ vector)

    def product(vector: np.ndarray) -> np.ndarray:
        move = vector.reshape(-1, 3) / root
        step = DISPLACEMENT_A / float(np.max(np.linalg.norm(move, axis=1)))
        probe.set_positions(start + step * move)
        plus = probe.get_forces()
        probe.set_positions(start - step * move)
        minus = probe.get_forces()
        image = -(plus - minus) / (2.0 * step)
        if incidence is not None and mu is not None:
            image += incidence.T @ (mu[:, None] * (incidence @ move))
        return allowed((image / root).ravel())

    size = 3 * len(probe) - len(forbidden)
    if size < 1:
        return 0.0
    # A fixed generic start: the answer must not depend on the run's seed, nor spend its numbers.
    vector = allowed(np.random.default_rng(0).standard_normal(3 * len(probe)))
    basis = [vector / np.linalg.norm(vector)]
    diagonal: list[float] = []
    off: list[float] = []
    best = 0.0
    for _ in range(min(iterations, size)):
        image = product(basis[-1])
        if not np.all(np.isfinite(image)):
            raise SimulationError(
                "the forces at the starting structure are not finite numbers: check the structure"
            )
        diagonal.append(float(image @ basis[-1]))
        matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
        previous, best = best, float(np.linalg.eigvalsh(matrix)[-1])
        if abs(best - previous) < 1e-3 * abs(best) and len(diagonal) > 4:
            break
        stack = np.array(basis)
        for _twice in range(2):
            image = image - stack.T @ (stack @ image)
        norm = float(np.linalg.norm(image))
        if norm < 1e-8 * max(1.0, abs(best)):
            break
        off.append(norm)
        basis.append(image / norm)
    return math.sqrt(max(best, 0.0)) * FS


def hessian(atoms: Atoms) -> np.ndarray:
    """Hessian by central differences of forces, ``(3N, 3N)`` eV/A^2, symmetrised: 6N force calls.

    Raises:
        SimulationError: If a force is not a finite number.
    """
    probe = atoms.copy()
    probe.set_constraint()
    probe.calc = atoms.calc
    start = probe.get_positions()
    size = 3 * len(probe)
    rows = np.zeros((size, size))
    for k in range(size):
        for sign in (1.0, -1.0):
            moved = start.copy()
            moved[k // 3, k % 3] += sign * DISPLACEMENT_A
            probe.set_positions(moved)
            rows[k] -= sign * probe.get_forces().ravel() / (2.0 * DISPLACEMENT_A)
    if not np.all(np.isfinite(rows)):
        raise SimulationError("a force near this structure is not a finite number")
    return 0.5 * (rows + rows.T)


def harmonic_frequencies(atoms: Atoms) -> np.ndarray:
    """Harmonic wavenumbers in cm^-1, ascending, imaginary ones negative.

    Translations (and, without periodic boundaries, rotations) are projected out of the Hessian,
    so that rounding cannot make them look like imaginary modes.

    Args:
        atoms: At a stationary point, with a calculator; left unchanged.

    Returns:
        ``(3N - 6,)`` for a molecule, ``(3N - 5,)`` for a linear one, ``(3N - 3,)`` if periodic.
    """
    masses = np.repeat(np.sqrt(atoms.get_masses()), 3)
    dynamical = hessian(atoms) / np.outer(masses, masses)
    rigid = _rigid_motions(atoms)
    if len(rigid):
        complement = np.eye(len(masses)) - rigid.T @ rigid
        dynamical = complement @ dynamical @ complement
    values, vectors = np.linalg.eigh(dynamical)
    if len(rigid):  # leave out the modes that ARE rigid motions
        share = np.sum((rigid @ vectors) ** 2, axis=0)
        values = values[np.sort(np.argsort(share)[: len(values) - len(rigid)])]
    return np.sort(np.sign(values) * np.sqrt(np.abs(values))) * FS * INVERSE_CM


def _rigid_motions(atoms: Atoms) -> np.ndarray:
    """Orthonormal mass-weighted translations and rotations, ``(3, 5 or 6; 3N)``."""
    masses = atoms.get_masses()
    root = np.sqrt(masses)[:, None]
    r = atoms.get_positions() - masses @ atoms.get_positions() / masses.sum()
    axes = np.eye(3)
    motions = [root * axis for axis in axes]
    if not np.any(atoms.pbc):
        motions += [root * np.cross(axis, r) for axis in axes]
    flat = np.array([np.broadcast_to(m, r.shape).ravel() for m in motions])
    _, sizes, vectors = np.linalg.svd(flat, full_matrices=False)
    return vectors[sizes > 1e-3 * sizes[0]]


def check_timestep(atoms: Atoms, timestep_fs: float, *, force: bool = False) -> tuple[float, str]:
    """Compare the time step with the fastest vibration.

    Verlet is stable for ``omega dt < 2``, that is ``dt < period / pi``; it is accurate to a few
    per cent of the kinetic energy's fluctuation at ``dt = period / 10``.

    Args:
        atoms: With a calculator, and the bonds that are held.
        timestep_fs: fs.
        force: Warn rather than refuse.

    Returns:
        ``(shortest period in fs, warning or "")``; the period is infinite if nothing vibrates.

    Raises:
        SimulationError: Past the stability limit, unless ``force``.
    """
    omega = highest_frequency(atoms)
    if omega <= 0.0:
        return math.inf, ""
    period = 2.0 * math.pi / omega
    fastest = f"the fastest vibration's period is {period:.3g} fs ({omega * INVERSE_CM:.0f} cm^-1)"
    if timestep_fs > period / math.pi:
        text = (
            f"a time step of {timestep_fs:g} fs is past the stability limit of "
            f"{period / math.pi:.2g} fs: {fastest}; use {period / 20.0:.2g} fs"
        )
        if not force:
            raise SimulationError(text)
        return period, text
    if timestep_fs > period / PERIODS_WANTED:
        return period, (
            f"a time step of {timestep_fs:g} fs is large: {fastest}; {period / 20.0:.2g} fs "
            "would conserve energy well"
        )
    return period, ""
