"""The atoms of one molecule in the order of another, by the graph of its bonds.

Files of the same molecule list its atoms in different orders. Two structures are matched where
there is a map between their atoms that keeps elements and bonds. Of several such maps (the three
hydrogens of a methyl group) the one is taken that changes interatomic distances least, as far as
a search that places one atom after another finds it.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dcase.data.dataset import AtomicDataset
from dcase.errors import DataError
from dcase.md_runs.loop.watch import covalent_bonds

FRAMES_TRIED = 20
"""Reference frames looked at for the bonds of the structure."""

MOST_TRIES = 100_000
"""Placements tried before two graphs count as different."""


def matching_order(structure: Atoms, other: Atoms) -> np.ndarray | None:
    """For each atom of ``structure``, which of ``other`` it is.

    Args:
        structure: N atoms.
        other: The same molecule, its atoms in any order.

    Returns:
        Indices into ``other``, shape [N], 0, 1, 2, ... where the bonds are the same as it is; None
        where there is no map.
    """
    if sorted(structure.numbers) != sorted(other.numbers):
        return None
    ours, theirs = _bonds(structure), _bonds(other)
    if (structure.numbers == other.numbers).all() and (ours == theirs).all():
        return np.arange(len(structure))
    return _Search(structure, other, ours, theirs).run()


def matched_frames(frames: AtomicDataset, structure: Atoms, name: str) -> tuple[np.ndarray, bool]:
    """Positions of reference frames, their atoms in the order of a structure.

    Args:
        frames: Of one molecule, all in one order of atoms.
        structure: The same molecule.
        name: Of the file, for the message.

    Returns:
        Positions, A, shape [n_frames, N, 3], and whether atoms had to be put in another order.

    Raises:
        DataError: If the frames are of another molecule, by elements or bonds.
    """
    formula = structure.get_chemical_formula()
    same = frames.numbers.reshape(len(frames), -1) if len(set(frames.n_atoms)) == 1 else None
    if same is None or same.shape[1] != len(structure) or (same != same[0]).any():
        raise DataError(f"--reference {name}: its frames are not {formula}, all in one order")
    positions = frames.positions.reshape(len(frames), -1, 3)
    for index in range(min(len(frames), FRAMES_TRIED)):  # in the first, a bond may be stretched
        order = matching_order(structure, frames.frame(index))
        if order is not None:
            return positions[:, order], bool((order != np.arange(len(order))).any())
    raise DataError(
        f"--reference {name}: its frames are not {formula} with the bonds of the structure, in "
        "whatever order: give frames of the same molecule"
    )


class _Search:
    """Atoms placed one by one, each beside one that has its place; back where that does not fit."""

    def __init__(
        self, structure: Atoms, other: Atoms, ours: np.ndarray, theirs: np.ndarray
    ) -> None:
        self.ours, self.theirs = ours, theirs
        self.colours, self.their_colours = _colours(structure, other, ours, theirs)
        self.distances = structure.get_all_distances()
        self.their_distances = other.get_all_distances()
        self.sequence = _sequence(ours, self.colours)
        self.tries = 0

    def run(self) -> np.ndarray | None:
        """The map, or None."""
        if sorted(self.colours) != sorted(self.their_colours):
            return None
        found: list[int] = []
        choices = [self._candidates(found)]
        while choices:
            if len(found) == len(self.sequence):
                order = np.empty(len(found), dtype=np.int64)
                order[self.sequence] = found
                return order
            self.tries += 1
            if not choices[-1] or self.tries > MOST_TRIES:
                choices.pop()
                if not found or self.tries > MOST_TRIES:
                    return None
                found.pop()
                continue
            found.append(choices[-1].pop(0))
            choices.append(self._candidates(found))
        return None

    def _candidates(self, found: list[int]) -> list[int]:
        """Atoms of the other that fit the next place, the one at the right distances first."""
        if len(found) == len(self.sequence):
            return []
        atom, placed = self.sequence[len(found)], self.sequence[: len(found)]
        fits = self.their_colours == self.colours[atom]
        fits[found] = False
        if found:
            fits &= (self.theirs[:, found] == self.ours[atom, placed]).all(axis=1)
        chosen = np.flatnonzero(fits)
        change = np.abs(
            self.their_distances[np.ix_(chosen, np.array(found, dtype=np.int64))]
            - self.distances[atom, placed]
        )
        return [int(k) for k in chosen[np.argsort(change.sum(axis=1), kind="stable")]]


def _bonds(atoms: Atoms) -> np.ndarray:
    """Which atoms are bonded, bool, shape [N, N]."""
    bonded = np.zeros((len(atoms), len(atoms)), dtype=bool)
    i, j, _ = covalent_bonds(atoms)
    bonded[i, j] = bonded[j, i] = True
    return bonded


def _colours(
    structure: Atoms, other: Atoms, ours: np.ndarray, theirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that differ where elements or neighbourhoods do, of both alike (Weisfeiler-Leman)."""
    colours = np.concatenate([structure.numbers, other.numbers])
    n = len(structure)
    neighbours = [np.flatnonzero(row) for row in ours] + [np.flatnonzero(row) + n for row in theirs]
    for _ in range(n):
        seen = [(colours[k], *sorted(colours[neighbours[k]])) for k in range(2 * n)]
        names = {one: number for number, one in enumerate(sorted(set(seen)))}
        finer = np.array([names[one] for one in seen])
        if len(names) == len(set(colours)):
            break
        colours = finer
    return colours[:n], colours[n:]


def _sequence(bonded: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Atoms in an order in which each is bonded to one before it, rare ones first."""
    count = {colour: int((colours == colour).sum()) for colour in set(colours.tolist())}
    rarity = np.array([count[colour] for colour in colours.tolist()])
    left, sequence = set(range(len(colours))), list[int]()
    while left:
        beside = [k for k in left if sequence and bonded[k, sequence].any()]
        sequence.append(min(beside or left, key=lambda k: (rarity[k], k)))
        left.remove(sequence[-1])
    return np.array(sequence, dtype=np.int64)
