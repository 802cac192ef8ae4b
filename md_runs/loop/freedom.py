"""Which motions of a set of atoms there are: centre of mass, rotation, degrees of freedom."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import (
    ExternalForce,
    FixBondLengths,
    FixCom,
    FixInternals,
    FixLinearTriatomic,
    FixSubsetCom,
    Hookean,
)

from dcase.data.held import (
    Restraint,
    free_axes,
    other_constraints,
    restraints,
    wholly_free,
    working_constraints,
)
from dcase.errors import OptionError
from dcase.md_runs.loop.constrain import normal_space, only_bonds

LINEAR_MOMENT = 1e-6
"""A principal moment of inertia below this share of the largest one counts as zero."""


def unmoved(atoms: Atoms, conserves_momentum: bool) -> tuple[bool, bool]:
    """Whether the centre of mass and the rotation are taken out: ``(translation, rotation)``.

    Where the ensemble does not conserve momentum, nothing is removed. Fixed atoms (also those held
    in part) and restraints to a place break Newton's third law, so nothing is removed either; fixed
    bond lengths and restraints between atoms do not. Rotation is conserved only without walls.
    """
    if not conserves_momentum or not only_bonds(atoms) or len(atoms) < 2:
        return False, False
    if not all(_between_atoms(restraint) for restraint in restraints(atoms)):
        return False, False
    return True, not bool(np.any(atoms.pbc))


def is_linear(atoms: Atoms) -> bool:
    """Whether all atoms lie on one line (two atoms always do)."""
    moments = np.linalg.eigvalsh(inertia(atoms.get_positions(), atoms.get_masses()))
    return bool(moments[0] <= LINEAR_MOMENT * moments[-1])


def moving_dof(atoms: Atoms, conserves_momentum: bool) -> int:
    """Degrees of freedom that move.

    3N - 6 for a molecule (3N - 5 if linear), 3N - 3 with periodic boundaries, 3N where momentum is
    not conserved; less the directions in which atoms are held, each counted once, less the rank of
    the fixed bond lengths, less what ASE counts for other constraints.
    """
    translation, rotation = unmoved(atoms, conserves_momentum)
    removed = 3 if translation else 0
    if rotation:
        removed += 2 if is_linear(atoms) else 3
    axes = free_axes(atoms)
    if axes is not None:
        removed += 3 * len(atoms) - int(axes.any(axis=2).sum())
    for constraint in other_constraints(atoms):
        if not isinstance(constraint, FixBondLengths):
            removed += int(constraint.get_removed_dof(atoms))
    return 3 * len(atoms) - removed - len(normal_space(atoms))


MOVABLE = (FixBondLengths, FixCom, FixInternals, FixLinearTriatomic)
"""Of the constraints that tie atoms together those under which ASE's dynamics is right."""


def check_movable(atoms: Atoms) -> None:
    """Refuse dynamics that would be wrong.

    ASE moves all atoms for the sake of FixSubsetCom, takes FixedMode out of momenta rather than
    velocities, and for the others knows no degrees of freedom. Constraints that tie atoms together
    let go of what holds one of these atoms, as they are worked through one after the other.

    Raises:
        OptionError: For a constraint of ASE's under which atoms cannot be simulated.
    """
    axes = free_axes(atoms)
    for constraint in other_constraints(atoms):
        name = type(constraint).__name__
        if not isinstance(constraint, MOVABLE) or isinstance(constraint, FixSubsetCom):
            raise OptionError(
                f"molecular dynamics with the constraint {name} would be wrong: remove it, or use "
                "FixAtoms, FixCartesian, FixedPlane, FixedLine, FixBondLengths or FixCom"
            )
        if axes is None:
            continue
        tied = np.arange(len(atoms))
        if not isinstance(constraint, FixCom):
            tied = np.unique(np.asarray(constraint.get_indices(), dtype=np.int64))
        held = tied[~wholly_free(axes)[tied]]
        if len(held):
            raise OptionError(
                f"atom {int(held[0])} is held in place and also part of the constraint {name}: "
                "such constraints undo each other; remove one of the two"
            )


def hold_as_given(atoms: Atoms) -> None:
    """Make ``atoms`` (changed) ready to move under the constraints they have.

    Momenta lose what the constraints forbid. See :func:`dcase.data.held.working_constraints`.

    Raises:
        OptionError: As :func:`check_movable`.
    """
    if not atoms.constraints:
        return
    check_movable(atoms)
    atoms.set_constraint(working_constraints(atoms))
    if atoms.has("momenta"):
        atoms.set_momenta(atoms.get_momenta())


def _between_atoms(restraint: object) -> bool:
    """Whether a restraint pushes atoms equally and oppositely, along the line between them."""
    if isinstance(restraint, Restraint):
        restraint = restraint.restraint
    if isinstance(restraint, Hookean):
        return bool(restraint._type == "two atoms")
    return isinstance(restraint, ExternalForce)


def inertia(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Inertia tensor about the centre of mass, ``(3, 3)`` amu A^2."""
    r = positions - masses @ positions / masses.sum()
    return np.einsum("i,ij,ij->", masses, r, r) * np.eye(3) - np.einsum("i,ij,ik->jk", masses, r, r)
