"""Which motions of a set of atoms there are: centre of mass, rotation, degrees of freedom."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dcase.md_runs.loop.constrain import normal_space, only_bonds

LINEAR_MOMENT = 1e-6
"""A principal moment of inertia below this share of the largest one counts as zero."""


def unmoved(atoms: Atoms, conserves_momentum: bool) -> tuple[bool, bool]:
    """Whether the centre of mass and the rotation are taken out: ``(translation, rotation)``.

    Where the ensemble does not conserve momentum, nothing is removed. Fixed atoms break Newton's
    third law, so nothing is removed either; fixed bond lengths do not. Rotation is conserved only
    without walls.
    """
    if not conserves_momentum or not only_bonds(atoms) or len(atoms) < 2:
        return False, False
    return True, not bool(np.any(atoms.pbc))


def is_linear(atoms: Atoms) -> bool:
    """Whether all atoms lie on one line (two atoms always do)."""
    moments = np.linalg.eigvalsh(inertia(atoms.get_positions(), atoms.get_masses()))
    return bool(moments[0] <= LINEAR_MOMENT * moments[-1])


def moving_dof(atoms: Atoms, conserves_momentum: bool) -> int:
    """Degrees of freedom that move.

    3N - 6 for a molecule (3N - 5 if linear), 3N - 3 with periodic boundaries, 3N where momentum is
    not conserved; less the rank of the fixed bond lengths. With other constraints what ASE counts.
    """
    if not only_bonds(atoms):
        return int(atoms.get_number_of_degrees_of_freedom())
    translation, rotation = unmoved(atoms, conserves_momentum)
    removed = 3 if translation else 0
    if rotation:
        removed += 2 if is_linear(atoms) else 3
    return 3 * len(atoms) - removed - len(normal_space(atoms))


def inertia(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Inertia tensor about the centre of mass, ``(3, 3)`` amu A^2."""
    r = positions - masses @ positions / masses.sum()
    return np.einsum("i,ij,ij->", masses, r, r) * np.eye(3) - np.einsum("i,ij,ik->jk", masses, r, r)
