"""The box that pairs are searched in, and the search where that box is mostly empty.

A search by boxes as wide as the cutoff needs memory for every box, also for empty ones: eleven
molecules ten kilometres apart (as atoms go) have a thousand million of them. A tree needs memory
for atoms and pairs alone.
"""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree

from dcase.errors import DataError

BOXES = 200_000
"""So many boxes may be empty, however few atoms there are; more where there are more atoms."""
_LEAST_HEIGHT = 0.01  # A, of a periodic cell: more than a thousand images of a direction


def enclosing_cell(
    positions: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A cell for the search: the periodic vectors, and others that hold all atoms.

    Where a direction is not periodic, its vector says nothing about where atoms may be: it may be
    zero, and atoms may lie far outside.

    Args:
        positions: A, shape [n_atoms, 3].
        cell: Lattice vectors as rows, shape [3, 3], needed if any direction is periodic.
        pbc: Periodic directions, bool, shape [3].

    Returns:
        Vectors as rows [3, 3], those of directions that are not periodic at right angles to all
        others, and the origin [3]; atoms may only be outside in periodic directions.

    Raises:
        DataError: If periodic vectors are zero, parallel, in one plane, or no numbers.
    """
    vectors = np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64)
    periodic = np.asarray(pbc, dtype=bool)
    rows = np.flatnonzero(periodic)
    full, origin = np.where(periodic[:, None], vectors, 0.0), np.zeros(3)
    usable = bool(np.isfinite(full).all())
    # Unit vectors at right angles to the periodic ones: the rest of an orthonormal basis.
    _, lengths, basis = np.linalg.svd(full[rows] if usable else np.zeros((len(rows), 3)))
    usable = usable and not (len(rows) and lengths.min() <= 1e-9 * lengths.max())
    if usable:
        free = np.eye(3) if len(rows) == 0 else basis[len(rows) :]
        for row, unit in zip(np.flatnonzero(~periodic), free, strict=True):
            along = positions @ unit
            low = along.min() - 1.0
            full[row] = (along.max() + 1.0 - low) * unit
            origin += low * unit
        usable = bool(heights(full)[rows].min(initial=np.inf) > _LEAST_HEIGHT)
    if not usable:
        raise DataError(
            "a periodic system needs a cell with a volume (a vector for every periodic direction, "
            "not all in one plane): set the cell, or switch pbc off"
        )
    return full, origin


def heights(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of a cell, A, shape [3]."""
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0))


def mostly_empty(cell: np.ndarray, cutoff: float, n_atoms: int) -> bool:
    """Whether boxes as wide as the cutoff would be too many to keep."""
    return bool(np.prod(np.maximum(heights(cell) / cutoff, 1.0)) > BOXES + 8 * n_atoms)


def tree_pairs(
    positions: np.ndarray, cutoff: float, cell: np.ndarray, origin: np.ndarray, pbc: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs both ways, as ``neighbour_list("ijS")``, by a tree of atoms and images near them.

    Args:
        positions: A, shape [n_atoms, 3].
        cutoff: A.
        cell: As of :func:`enclosing_cell`.
        origin: Likewise.
        pbc: Periodic directions, bool, shape [3].

    Returns:
        Atoms i, atoms j [n_pairs] and shifts [n_pairs, 3], sorted by i, j and shift.
    """
    periodic = np.asarray(pbc, dtype=bool)
    scaled = (positions - origin) @ np.linalg.inv(cell)
    home = np.where(periodic, np.floor(scaled), 0.0)
    scaled -= home
    inside = positions - home @ cell
    margin = np.where(periodic, cutoff / heights(cell), np.inf) * (1 + 1e-9)
    reach = [int(np.ceil(m)) if p else 0 for m, p in zip(margin, periodic, strict=True)]
    owners, shifts = [], []
    for shift in itertools.product(*(range(-k, k + 1) for k in reach)):
        moved = scaled + shift
        near = np.flatnonzero(((moved >= -margin) & (moved <= 1.0 + margin)).all(axis=1))
        owners.append(near)
        shifts.append(np.broadcast_to(np.array(shift, dtype=np.float64), (len(near), 3)))
    owner, shift_of = np.concatenate(owners), np.concatenate(shifts)
    images = inside[owner] + shift_of @ cell
    found = cKDTree(inside).sparse_distance_matrix(cKDTree(images), cutoff, output_type="ndarray")
    i, image = found["i"].astype(np.int64), found["j"].astype(np.int64)
    j = owner[image]
    moved_by = shift_of[image] + home[i] - home[j]
    kept = (found["v"] < cutoff) & ((i != j) | moved_by.any(axis=1))
    i, j, moved_by = i[kept], j[kept], moved_by[kept]
    order = np.lexsort((*moved_by.T[::-1], j, i))
    return i[order], j[order], moved_by[order]


def neighbours_of(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms i, atoms j and distances (A) of all pairs both ways, in any cell.

    Raises:
        DataError: As :func:`enclosing_cell`.
    """
    cell, origin = enclosing_cell(atoms.positions, atoms.cell.array, atoms.pbc)
    system = (atoms.positions, cutoff, cell, origin, atoms.pbc)
    if not mostly_empty(cell, cutoff, len(atoms)):
        return neighbour_list(
            "ijd", positions=system[0], cutoff=cutoff, cell=cell, cell_origin=origin, pbc=atoms.pbc
        )
    i, j, shifts = tree_pairs(*system)
    r = atoms.positions[j] - atoms.positions[i] + shifts @ cell
    return i, j, np.linalg.norm(r, axis=1)
