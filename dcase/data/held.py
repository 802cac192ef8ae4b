"""What ASE's constraints leave to the atoms: directions to move in, and energies of restraints.

Constraints come in three kinds:

* **holding** ones take directions from single atoms: FixAtoms, FixCartesian, FixScaled, FixedPlane,
  FixedLine. What they leave is a subspace of every atom, kept as :func:`free_axes`;
* **restraints** add an energy and its forces (``adjust_potential_energy``: Hookean, ExternalForce).
  They hold nothing; they belong to the potential energy that is conserved or minimised;
* **others** tie atoms together (bond lengths, centres of mass, internal coordinates) or make forces
  other than they are. They have no subspace of single atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian, FixConstraint, FixedLine, FixedPlane, FixScaled

HOLDING = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine)
"""Constraints that take directions from single atoms."""

TOLERANCE = 1e-9
"""Directions that differ by less are the same."""

FEW = 8
"""More holding constraints than these are put together: ASE works through them one by one."""


def holding(atoms: ase.Atoms) -> list[Any]:
    """The constraints that take directions from single atoms."""
    return [c for c in atoms.constraints if isinstance(c, HOLDING)]


def restraints(atoms: ase.Atoms) -> list[Any]:
    """The constraints that add an energy."""
    return [c for c in atoms.constraints if hasattr(c, "adjust_potential_energy")]


def other_constraints(atoms: ase.Atoms) -> list[Any]:
    """The constraints that are neither: they have no subspace of single atoms."""
    return [
        c
        for c in atoms.constraints
        if not isinstance(c, HOLDING) and not hasattr(c, "adjust_potential_energy")
    ]


def restraint_energy(atoms: ase.Atoms) -> float:
    """What the restraints add to the potential energy at these positions, eV."""
    return float(sum(c.adjust_potential_energy(atoms) for c in restraints(atoms)))


def restraint_energies(atoms: ase.Atoms, positions: np.ndarray) -> np.ndarray:
    """The same at many positions.

    Args:
        atoms: With restraints; left unchanged.
        positions: A, shape [n_frames, n_atoms, 3].

    Returns:
        eV, shape [n_frames].
    """
    probe = atoms.copy()
    energies = np.zeros(len(positions))
    for k, where in enumerate(positions):
        probe.set_positions(where, apply_constraint=False)
        energies[k] = restraint_energy(probe)
    return energies


def free_axes(atoms: ase.Atoms) -> np.ndarray | None:
    """The directions in which each atom may move.

    Where several constraints hold an atom, it may move only where all of them let it.

    Returns:
        Float64, shape [n_atoms, 3, 3]: orthonormal directions as rows, and rows of zeros for what
        is held; along x, y, z where these are free or held as they are. None where nothing is held.
    """
    held = np.zeros((len(atoms), 3, 3))
    for constraint in holding(atoms):
        held[np.asarray(constraint.index)] += _held_by(constraint, atoms)
    return axes_beside(held) if held.any() else None


def axes_beside(held: np.ndarray) -> np.ndarray:
    """Orthonormal directions, as rows, that sums of projectors ``held`` [n, 3, 3] map to zero."""
    diagonal = np.einsum("nii->ni", held)
    axes = np.eye(3) * (diagonal < TOLERANCE)[:, :, None]
    tilted = np.abs(held - np.eye(3) * diagonal[:, :, None]).max(axis=(1, 2)) > TOLERANCE
    if tilted.any():
        values, vectors = np.linalg.eigh(held[tilted])
        axes[tilted] = np.swapaxes(vectors, 1, 2) * (values < TOLERANCE)[:, :, None]
    return np.asarray(axes)


def _held_by(constraint: Any, atoms: ase.Atoms) -> np.ndarray:
    """Projector on the directions that a constraint takes from its atoms, [3, 3]."""
    if isinstance(constraint, FixAtoms):
        return np.eye(3)
    if isinstance(constraint, FixCartesian):
        return np.diag(np.asarray(constraint.mask, dtype=np.float64))
    if isinstance(constraint, FixedPlane):
        return np.outer(constraint.dir, constraint.dir)
    if isinstance(constraint, FixedLine):
        return np.eye(3) - np.outer(constraint.dir, constraint.dir)
    # FixScaled: the atom goes along the lattice vectors that are not held.
    along, _ = np.linalg.qr(atoms.cell.complete().array[~constraint.mask].T)
    return np.asarray(np.eye(3) - along @ along.T)


def projectors(axes: np.ndarray) -> np.ndarray:
    """Projectors [n, 3, 3] on the directions that are the rows of ``axes`` [n, 3, 3]."""
    return np.einsum("nki,nkj->nij", axes, axes)


def std_along(axes: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standard deviations [n, 3] along x, y, z as those along the rows of ``axes`` [n, 3, 3].

    Along tilted directions as if those along x, y and z were independent.
    """
    return np.asarray(np.sqrt(np.einsum("nij,nj->ni", axes**2, std**2)))


def wholly_free(axes: np.ndarray) -> np.ndarray:
    """Which atoms have all three directions, bool, shape [n]."""
    return np.asarray(axes.any(axis=2).sum(axis=1) == 3)


def wholly_held(axes: np.ndarray) -> np.ndarray:
    """Which atoms have no direction left, bool, shape [n]."""
    return np.asarray(~axes.any(axis=(1, 2)))


def partly_held(axes: np.ndarray) -> np.ndarray:
    """Which atoms have some directions left but not all, bool, shape [n]."""
    return ~(wholly_held(axes) | wholly_free(axes))


def marks(axes: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Directions as a dataset keeps them: ``fixed`` and ``free_axes``, None where they say nothing.

    Args:
        axes: As of :func:`free_axes`, of any number of frames.
    """
    if axes is None:
        return None, None
    fixed = wholly_held(axes)
    return fixed if fixed.any() else None, axes if partly_held(axes).any() else None


def constraints_of(axes: np.ndarray) -> list[Any]:
    """ASE's constraints that leave just these directions: few of them, at most one an atom.

    Args:
        axes: As of :func:`free_axes`.
    """
    free = np.asarray(axes.any(axis=2))
    count = free.sum(axis=1)
    found: list[Any] = []
    if (count == 0).any():
        found.append(FixAtoms(indices=np.flatnonzero(count == 0)))
    through = projectors(axes)
    beside = np.abs(through - np.eye(3) * np.einsum("nii->ni", through)[:, :, None])
    aligned = beside.max(axis=(1, 2), initial=0.0) < TOLERANCE
    masks = np.einsum("nii->ni", through) < 0.5
    partly = (count > 0) & (count < 3)
    for mask in np.unique(masks[partly & aligned], axis=0):
        chosen = partly & aligned & (masks == mask).all(axis=1)
        found.append(FixCartesian(np.flatnonzero(chosen), mask=tuple(bool(held) for held in mask)))
    todo = np.flatnonzero(partly & ~aligned)
    while len(todo):
        first = todo[0]
        same = np.abs(through[todo] - through[first]).max(axis=(1, 2)) < TOLERANCE
        rows = axes[first][free[first]]
        if len(rows) == 1:
            found.append(FixedLine(todo[same], rows[0]))
        else:
            found.append(FixedPlane(todo[same], np.cross(rows[0], rows[1])))
        todo = todo[~same]
    return found


def describe_constraints(atoms: ase.Atoms) -> str:
    """What holds the atoms of a structure, in a line: "6 atoms held in place, ..."; or ""."""
    said = []
    axes = free_axes(atoms)
    if axes is not None:
        whole, part = int(wholly_held(axes).sum()), int(partly_held(axes).sum())
        counts = (whole, "held in place"), (part, "in part")
        held = [f"{n} atom{'s' * (n > 1)} {how}" for n, how in counts if n]
        said += [", ".join(held) if len(held) > 1 else held[0].replace(" in part", " held in part")]
    others = [type(constraint).__name__ for constraint in other_constraints(atoms)]
    said += [", ".join(dict.fromkeys(others))] if others else []
    n = len(restraints(atoms))
    said += [f"{n} restraint{'s' * (n > 1)}, in the potential energy"] if n else []
    return "; ".join(said)


class Restraint(FixConstraint):
    """A restraint that touches nothing but energy and forces.

    ASE's base class lets restraints that do not say otherwise (ExternalForce) add their force to
    the momenta, too.

    Args:
        restraint: What gives energy and forces.
    """

    def __init__(self, restraint: Any):
        self.restraint = restraint

    def get_removed_dof(self, atoms: ase.Atoms) -> int:
        """None."""
        return 0

    def adjust_momenta(self, atoms: ase.Atoms, momenta: np.ndarray) -> None:
        """Leaves them as they are."""

    def adjust_forces(self, atoms: ase.Atoms, forces: np.ndarray) -> None:
        """Adds the restraint's forces."""
        self.restraint.adjust_forces(atoms, forces)

    def adjust_potential_energy(self, atoms: ase.Atoms) -> float:
        """The restraint's energy, eV."""
        return float(self.restraint.adjust_potential_energy(atoms))


def working_constraints(atoms: ase.Atoms, *, exact: bool = True) -> list[Any]:
    """The constraints of a structure as integrators and optimizers of ASE need them.

    Restraints come first, so that what they do to held atoms is taken away again, and what holds
    comes last. Where ASE's holding constraints, one after the other, are not the projection on what
    all of them leave (two tilted planes; FixScaled in a cell whose free and held vectors are not at
    right angles, where ASE's forces and velocities are not those of the motion that is left), or
    where there are many, equivalent ones take their place.

    Args:
        atoms: The structure.
        exact: Whether to replace at all; not where the cell changes, which FixScaled goes with.
    """
    first = [_quiet(c) for c in restraints(atoms)]
    held, axes = holding(atoms), free_axes(atoms)
    if axes is None:
        held = []
    elif exact and (len(held) > FEW or not _is_projection(atoms, held, axes)):
        held = constraints_of(axes)
    return [*first, *other_constraints(atoms), *held]


def _quiet(restraint: Any) -> Any:
    loud = getattr(type(restraint), "adjust_momenta", None) is FixConstraint.adjust_momenta
    return Restraint(restraint) if loud else restraint


def _is_projection(atoms: ase.Atoms, held: Sequence[Any], axes: np.ndarray) -> bool:
    """Whether constraints, in turn, project forces and steps on the free directions."""
    wanted = projectors(axes)
    for k in range(3):
        forces = np.zeros((len(atoms), 3))
        forces[:, k] = 1.0
        moved = atoms.positions + forces
        for constraint in held:
            constraint.adjust_forces(atoms, forces)
            constraint.adjust_positions(atoms, moved)
        for found in (forces, moved - atoms.positions):
            if np.abs(found - wanted[:, :, k]).max() > 1e3 * TOLERANCE:
                return False
    return True
