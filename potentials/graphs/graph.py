"""Atoms and the pairs within the cutoff: the input of every energy model.

Pairs are kept as a *half list*: each pair of atoms (and each periodic image of it) appears once.
Whatever depends on the distance alone is then computed once for both directions. No neighbour is
ever dropped: a "maximum number of neighbours" would make the energy discontinuous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from matscipy.neighbours import neighbour_list
from torch import Tensor

from dcase.boxes import enclosing_cell, heights, mostly_empty, tree_pairs

# Up to this many atoms all pairs are enumerated and filtered; beyond it a cell list is faster.
_ALL_PAIRS_LIMIT = 200
# From this many atoms on, pairs are listed in the order of where they are in space: features of the
# atoms around them are then still in the processor's cache, however the atoms are numbered.
_ORDERED_FROM = 2000


@dataclass(frozen=True)
class AtomicGraph:
    """One or more systems, atoms concatenated.

    Attributes:
        numbers: Atomic numbers, int64, shape [n_atoms].
        positions: A, float64, shape [n_atoms, 3]. Geometry is float64 also for float32 networks:
            it costs nothing and keeps rounding out of the distances.
        system: Which system an atom belongs to, int64, shape [n_atoms].
        n_systems: Number of systems.
        pairs: Atoms i and j of each pair, int64, shape [2, n_pairs]; each pair once.
        shifts: How many lattice vectors lie between i's and j's cell, float64, shape [n_pairs, 3],
            or None when nothing is periodic. ``r_ij = x_j - x_i + shifts @ cell``.
        cells: Lattice vectors as rows, A, float64, shape [n_systems, 3, 3], or None.
        known: Whether its maker has seen that the potential knows all elements; to ask the device
            once more would wait for it.
    """

    known: ClassVar[bool] = False

    numbers: Tensor
    positions: Tensor
    system: Tensor
    n_systems: int
    pairs: Tensor
    shifts: Tensor | None = None
    cells: Tensor | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all systems together."""
        return self.numbers.shape[0]

    def vectors(self) -> Tensor:
        """``r_ij = x_j - x_i`` with periodic images, A, shape [n_pairs, 3]."""
        i, j = self.pairs
        r = self.positions.index_select(0, j) - self.positions.index_select(0, i)
        if self.shifts is not None and self.cells is not None:
            cell = self.cells.index_select(0, self.system.index_select(0, i))  # [n_pairs, 3, 3]
            r = r + torch.einsum("pc,pcx->px", self.shifts, cell)
        return r

    def distances(self) -> Tensor:
        """``|r_ij|`` in A, shape [n_pairs]."""
        return torch.linalg.vector_norm(self.vectors(), dim=1)

    def to(self, device: torch.device | str) -> AtomicGraph:
        """A copy on ``device``."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(
            self,
            numbers=self.numbers.to(device),
            positions=self.positions.to(device),
            system=self.system.to(device),
            pairs=self.pairs.to(device),
            shifts=move(self.shifts),
            cells=move(self.cells),
        )

    def sum_over_atoms(self, values: Tensor) -> Tensor:
        """Per-system sums of per-atom ``values`` [n_atoms], shape [n_systems]."""
        total = values.new_zeros(self.n_systems)
        return total.index_add(0, self.system, values)

    def to_pyg(self):
        """The same graph as a ``torch_geometric.data.Data`` with a full (two-way) edge list."""
        from torch_geometric.data import Data

        i, j = self.pairs
        data = Data(
            z=self.numbers,
            pos=self.positions,
            batch=self.system,
            edge_index=torch.cat([torch.stack([j, i]), torch.stack([i, j])], dim=1),
        )
        if self.shifts is not None:
            data.shifts = torch.cat([self.shifts, -self.shifts])
            data.cell = self.cells
        return data


def half_neighbour_list(
    positions: np.ndarray,
    cutoff: float,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """All pairs closer than ``cutoff``, each once.

    Args:
        positions: A, shape [n_atoms, 3]; may lie outside the cell.
        cutoff: A.
        cell: Lattice vectors as rows, shape [3, 3], needed if any direction is periodic.
        pbc: Periodic directions, shape [3].

    Returns:
        Pairs (int64, shape [2, n_pairs]) and shifts (float64, shape [n_pairs, 3]; None for
        molecules). The order is fixed by the geometry alone.

    Raises:
        DataError: If the vectors of periodic directions are zero, parallel or in one plane.
    """
    n_atoms = len(positions)
    periodic = pbc is not None and bool(np.any(pbc))
    if not periodic and n_atoms <= _ALL_PAIRS_LIMIT:
        i, j = np.triu_indices(n_atoms, k=1)
        close = ((positions[j] - positions[i]) ** 2).sum(1) < cutoff * cutoff
        return np.stack([i[close], j[close]]).astype(np.int64), None
    directions = np.asarray(pbc if periodic else np.zeros(3), dtype=bool)
    full, origin = enclosing_cell(positions, cell, directions)
    if mostly_empty(full, cutoff, n_atoms):
        order = None
        i, j, shifts = tree_pairs(positions, cutoff, full, origin, directions)
    else:
        order = _spatial_order(positions - origin, full, cutoff)
        i, j, shifts = neighbour_list(
            "ijS",
            positions=positions if order is None else positions[order],
            cutoff=cutoff,
            cell=full,
            cell_origin=origin,
            pbc=directions,
        )
    if not periodic:
        return _numbered(i, j, np.flatnonzero(i < j), order), None
    # (i, j, S) and (j, i, -S) are the same pair; an atom's own images come as +S and -S.
    half = i < j
    own = np.flatnonzero(i == j)
    x, y, z = shifts[own].T
    half[own] = np.where(x != 0, x, np.where(y != 0, y, z)) > 0
    kept = np.flatnonzero(half)
    return _numbered(i, j, kept, order), shifts.take(kept, axis=0).astype(np.float64)


def _numbered(
    i: np.ndarray, j: np.ndarray, kept: np.ndarray, order: np.ndarray | None
) -> np.ndarray:
    """The pairs ``kept`` by the atoms' own numbers, int64, shape [2, n_kept]."""
    pairs = np.empty((2, len(kept)), dtype=np.int64)
    for row, index in zip(pairs, (i, j), strict=True):
        found = index.take(kept)
        row[:] = found if order is None else order.take(found)
    return pairs


def _spatial_order(positions: np.ndarray, cell: np.ndarray, cutoff: float) -> np.ndarray | None:
    """Atoms box by box, boxes about as wide as the cutoff; None where atoms are few."""
    if len(positions) < _ORDERED_FROM:
        return None
    scaled = positions @ np.linalg.inv(cell)
    scaled -= np.floor(scaled)
    # At most 1000 boxes a direction, lest their number overflow.
    counts = np.clip(heights(cell) / cutoff, 1, 1000).astype(np.int64)
    boxes = np.minimum((scaled * counts).astype(np.int64), counts - 1)
    return np.argsort(np.ravel_multi_index(tuple(boxes.T), tuple(counts)), kind="stable")


COINCIDENT_A = 1e-6
"""Atoms closer than this are in the same place: there is no direction to push them apart in."""


def coincident_atoms(
    positions: np.ndarray, pairs: np.ndarray, offsets: np.ndarray | None = None
) -> str:
    """Which atoms are in the same place, as in "atoms 4 and 5 are in the same place"; "" if none.

    Args:
        positions: A, shape [n_atoms, 3].
        pairs: Half list, shape [2, n_pairs].
        offsets: ``shifts @ cell`` in A, shape [n_pairs, 3], or None for a molecule.
    """
    r = positions[pairs[1]] - positions[pairs[0]]
    if offsets is not None:
        r = r + offsets
    squares = np.einsum("pc,pc->p", r, r)
    if not squares.min(initial=np.inf) < COINCIDENT_A**2:
        return ""
    i, j = sorted(map(int, pairs[:, np.argmin(squares)]))
    what = f"atoms {i} and {j} are" if i != j else f"atom {i} and an image of it are"
    return f"{what} in the same place"


def build_graph(
    numbers: np.ndarray,
    positions: np.ndarray,
    cutoff: float,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> AtomicGraph:
    """The graph of a single system (shapes as in :func:`half_neighbour_list`)."""
    pairs, shifts = half_neighbour_list(positions, cutoff, cell, pbc)
    n_atoms = len(numbers)
    return AtomicGraph(
        numbers=torch.as_tensor(np.asarray(numbers), dtype=torch.int64),
        positions=torch.as_tensor(np.asarray(positions), dtype=torch.float64),
        system=torch.zeros(n_atoms, dtype=torch.int64),
        n_systems=1,
        pairs=torch.as_tensor(pairs),
        shifts=None if shifts is None else torch.as_tensor(shifts),
        cells=None
        if shifts is None
        else torch.as_tensor(np.asarray(cell, dtype=np.float64)).reshape(1, 3, 3),
    )
