"""Vibrational frequencies from forces: the highest one by Lanczos, all of them by differences."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase import units as ase_units
from ase.constraints import FixBondLengths, FixCom

from dcase.data.held import free_axes, other_constraints, projectors, restraints
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.loop.constrain import normal_space, tension
from dcase.units import FS

DISPLACEMENT_A = 0.005
"""Largest displacement of an atom in a finite difference, Angstrom.

Between the curvature of a bond and the noise of single precision forces.
"""

PERIODS_WANTED = 10.0
"""Steps per period of the fastest vibration below which a warning is given."""

WHOLE = 1e-6
"""A rigid motion of which a smaller share is held is free."""

RIGID_STEP_A = 1e-5
"""Largest displacement of an atom in finite differences of restraints, which have no noise, A."""

RESISTED = 1e-6
"""Curvature along a rigid motion, eV/A^2/amu, from which on a restraint resists it: 0.5 cm^-1."""

INVERSE_CM = 1e-2 / (2.0 * math.pi * ase_units._c * 1e-15)
"""One rad/fs in cm^-1: 1 / (2 pi c)."""


def highest_frequency(atoms: Atoms, *, iterations: int = 16) -> float:
    """Highest vibrational angular frequency in rad/fs, from about 30 force calls.

    Fixed bond lengths are projected out: with multipliers ``mu`` of the bonds' tension (see
    ``constrain.tension``), the forces of the constrained motion have the gradient
    ``P (H + E^T mu E) P``, where ``E`` takes differences along bonds and ``P`` leaves the allowed
    directions, those of atoms held in place or in part (:mod:`dcase.data.held`) as well. Restraints
    count as the potential. Constraints of other kinds are ignored: what they hold might vibrate
    faster than anything that can, so that time steps are judged too strictly, never too leniently.

    Lanczos iteration with full re-orthogonalisation on the mass-weighted Hessian
    ``M^-1/2 H M^-1/2`` whose product with a vector is a central difference of forces
    (Golub and Van Loan, Matrix Computations, 10.1). The top of the spectrum converges first.

    Args:
        atoms: With a calculator; left unchanged.
        iterations: Krylov vectors at most (3N are always enough).

    Returns:
        ``sqrt`` of the largest eigenvalue; 0 if no curvature is positive.
    """
    probe = _unheld(atoms)
    start = probe.get_positions()
    root = np.sqrt(probe.get_masses())[:, None]  # (N, 1)
    forbidden = normal_space(atoms)  # (R, 3N)
    incidence, mu = tension(atoms, probe.get_forces()) if len(forbidden) else (None, None)
    axes = free_axes(atoms)
    through = None if axes is None else projectors(axes)

    def allowed(vector: np.ndarray) -> np.ndarray:
        if through is not None:
            vector = np.einsum("nij,nj->ni", through, vector.reshape(-1, 3)).ravel()
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

    size = 3 * len(probe) if axes is None else int(axes.any(axis=2).sum())
    size -= len(forbidden)
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


def _unheld(atoms: Atoms) -> Atoms:
    """A copy that moves wherever it is put, with the calculator and the restraints."""
    probe = atoms.copy()
    probe.set_constraint(restraints(probe))
    probe.calc = atoms.calc
    return probe


def hessian(atoms: Atoms) -> np.ndarray:
    """Hessian by central differences of forces, eV/A^2, symmetrised.

    Restraints count as the potential; other constraints are not looked at, but for the directions
    in which they hold atoms (:mod:`dcase.data.held`), which are left out.

    Args:
        atoms: With a calculator; left unchanged.

    Returns:
        ``(k, k)`` for the k free directions of the atoms, one after the other: 3N where none is
        held, and 2 k force calls.

    Raises:
        SimulationError: If a force is not a finite number.
    """
    probe = _unheld(atoms)
    start = probe.get_positions()
    atom, along = _free_directions(atoms)
    rows = np.zeros((len(atom), len(atom)))
    for k in range(len(atom)):
        for sign in (1.0, -1.0):
            moved = start.copy()
            moved[atom[k]] += sign * DISPLACEMENT_A * along[k]
            probe.set_positions(moved)
            pull = np.einsum("kx,kx->k", probe.get_forces()[atom], along)
            rows[k] -= sign * pull / (2.0 * DISPLACEMENT_A)
    if not np.all(np.isfinite(rows)):
        raise SimulationError("a force near this structure is not a finite number")
    return np.asarray(0.5 * (rows + rows.T))


def _free_directions(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Atoms ``(k,)`` and unit vectors ``(k, 3)`` of all directions in which they are free."""
    axes = free_axes(atoms)
    if axes is None:
        axes = np.tile(np.eye(3), (len(atoms), 1, 1))
    free = axes.any(axis=2)
    return np.nonzero(free)[0], axes[free]


def harmonic_frequencies(atoms: Atoms) -> np.ndarray:
    """Harmonic wavenumbers in cm^-1, ascending, imaginary ones negative.

    Modes are those of the directions that constraints leave: atoms held in place or in part
    (:mod:`dcase.data.held`) and fixed bond lengths. Translations (and, without periodic boundaries,
    rotations) that these allow are projected out of the Hessian, so that rounding cannot make them
    look like imaginary modes; with restraints only those that no restraint resists.

    Args:
        atoms: At a stationary point, with a calculator; left unchanged.

    Returns:
        ``(3N - 6,)`` for a molecule, ``(3N - 5,)`` for a linear one, ``(3N - 3,)`` if periodic;
        less what is held, plus the rigid motions that this takes away: ``(3N - 18,)`` where six
        atoms are held that are not in line.

    Raises:
        OptionError: For a constraint that is neither of these, nor the centre of mass alone.
    """
    check_harmonic(atoms)
    atom, along = _free_directions(atoms)
    if not len(atom):
        return np.zeros(0)
    masses = np.sqrt(atoms.get_masses())[atom]
    forbidden = normal_space(atoms)
    curvature = hessian(atoms)
    if len(forbidden):
        incidence, mu = tension(atoms, _unheld(atoms).get_forces())
        pull = incidence.T @ (mu[:, None] * incidence)
        curvature = curvature + pull[np.ix_(atom, atom)] * (along @ along.T)
    dynamical = curvature / np.outer(masses, masses)
    rows = np.concatenate([forbidden, _rigid_motions(atoms)]).reshape(-1, len(atoms), 3)
    left_out = np.einsum("bkx,kx->bk", rows[:, atom], along)
    # Orthonormal rows: those of rigid motions are orthogonal to those of the bonds.
    complement = np.linalg.svd(left_out, full_matrices=True)[2][len(left_out) :]
    values = np.linalg.eigvalsh(complement @ dynamical @ complement.T)
    return np.asarray(np.sort(np.sign(values) * np.sqrt(np.abs(values))) * FS * INVERSE_CM)


def check_harmonic(atoms: Atoms) -> None:
    """Refuse constraints whose modes would be wrong.

    Raises:
        OptionError: If there is one.
    """
    for constraint in other_constraints(atoms):
        alone = free_axes(atoms) is None and type(constraint) is FixCom
        if not (alone or isinstance(constraint, FixBondLengths)):
            raise OptionError(
                f"vibrations with the constraint {type(constraint).__name__} would be wrong: "
                "remove it, or use FixAtoms, FixCartesian, FixedPlane, FixedLine or FixBondLengths"
            )


def _rigid_motions(atoms: Atoms) -> np.ndarray:
    """Orthonormal mass-weighted translations and rotations, ``(3, 5 or 6; 3N)``.

    Where atoms are held or restrained to a place, those of them and of their combinations that are
    left: fewer, or none.
    """
    masses = atoms.get_masses()
    root = np.sqrt(masses)[:, None]
    r = atoms.get_positions() - masses @ atoms.get_positions() / masses.sum()
    motions = [root * axis for axis in np.eye(3)]
    if not np.any(atoms.pbc):
        motions += [root * np.cross(axis, r) for axis in np.eye(3)]
    flat = np.array([np.broadcast_to(m, r.shape).ravel() for m in motions])
    _, sizes, vectors = np.linalg.svd(flat, full_matrices=False)
    rigid = vectors[sizes > 1e-3 * sizes[0]]
    axes = free_axes(atoms)
    if axes is not None:  # those that the projection on the free directions leaves as they are
        shape = (len(rigid), -1, 3)
        free = np.einsum("nij,bnj->bni", projectors(axes), rigid.reshape(shape))
        shares, turn = np.linalg.eigh(free.reshape(len(rigid), -1) @ rigid.T)
        rigid = turn[:, shares > 1.0 - WHOLE].T @ rigid
    return np.asarray(_unresisted(atoms, rigid))


def _unresisted(atoms: Atoms, rigid: np.ndarray) -> np.ndarray:
    """The rigid motions, out of orthonormal rows ``(R, 3N)``, that cost no restraint any energy.

    With a restraint's forces f, a motion u = t + w x r costs it none where its forces turn with the
    atoms: df = w x f. (They do so between two atoms, however taut.)
    """
    if not restraints(atoms) or not len(rigid):
        return rigid
    probe = atoms.copy()
    probe.set_constraint(restraints(probe))
    root = np.sqrt(atoms.get_masses())[:, None]
    r = atoms.get_positions() - atoms.get_center_of_mass()

    def forces(move: np.ndarray) -> np.ndarray:
        probe.set_positions(atoms.positions + move)
        found = np.zeros((len(atoms), 3))
        for restraint in probe.constraints:
            restraint.adjust_forces(probe, found)
        return found

    images = []
    for row in rigid:
        u = row.reshape(-1, 3) / root
        step = RIGID_STEP_A / float(np.max(np.linalg.norm(u, axis=1)))
        change = (forces(step * u) - forces(-step * u)) / (2.0 * step)
        turned = np.cross(_turn(r, u), forces(0.0 * u))
        images.append(((turned - change) / root).ravel())
    stiffness = rigid @ np.array(images).T
    values, mix = np.linalg.eigh(0.5 * (stiffness + stiffness.T))
    return np.asarray(mix[:, np.abs(values) < RESISTED].T @ rigid)


def _turn(r: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The angular velocity w of the motion ``u = t + w x r``, ``(N, 3)``."""
    columns = [np.broadcast_to(axis, r.shape).ravel() for axis in np.eye(3)]
    columns += [np.cross(axis, r).ravel() for axis in np.eye(3)]
    return np.asarray(np.linalg.lstsq(np.array(columns).T, u.ravel(), rcond=1e-9)[0][3:])


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
