"""Notice within one step that a simulation has blown up, and say how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.neighborlist import natural_cutoffs, neighbor_list

NON_METALS = frozenset({1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54})
"""Elements whose bonds are covalent: a metal's neighbours may change without anything breaking."""

BOND_FACTOR = 1.2
"""Two atoms are bonded below this times the sum of their covalent radii.

At 1.0 the 1.09 A of a C-H bond would be no bond (0.76 + 0.31 A).
"""


def covalent_bonds(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bonds between non-metals in a structure.

    Returns:
        ``(i, j, shift)``: ``(B,)`` and ``(B,)`` indices with i < j (or the image of an atom itself
        left out), and ``(B, 3)`` whole cell vectors so that the bond is
        ``r_j - r_i + shift @ cell``.
    """
    cutoffs = natural_cutoffs(atoms, mult=BOND_FACTOR)
    i, j, shift = neighbor_list("ijS", atoms, cutoffs)
    covalent = np.isin(atoms.numbers, list(NON_METALS))
    keep = (i < j) & covalent[i] & covalent[j]
    return i[keep], j[keep], shift[keep]


BLOCK = 1024
"""Frames looked at together, so that a long trajectory never has to fit in memory."""


def frame_blocks(positions: Any, frames: int | None = None) -> Iterator[np.ndarray]:
    """The frames of an array or of an open file, ``(F, N, 3)``, some at a time.

    Args:
        positions: Anything with a length and slices.
        frames: Only so many, from the first on.
    """
    end = len(positions) if frames is None else frames
    for first in range(0, end, BLOCK):
        yield np.asarray(positions[first : min(first + BLOCK, end)], dtype=np.float64)


def bond_lengths(
    positions: np.ndarray, bonds: tuple[np.ndarray, np.ndarray, np.ndarray], cell: np.ndarray
) -> np.ndarray:
    """Lengths of ``bonds``.

    Args:
        positions: ``(..., N, 3)`` A, not wrapped since the bonds were found.
        bonds: From ``covalent_bonds``.
        cell: ``(3, 3)`` A.

    Returns:
        ``(..., B)`` A.
    """
    i, j, shift = bonds
    vectors = positions[..., j, :] - positions[..., i, :] + shift @ cell
    return np.sqrt(np.einsum("...k,...k->...", vectors, vectors))


class BlowUpWatch:
    """Looks at every step for signs that the simulation has left physics.

    Args:
        reference: Structure whose covalent bonds must hold.
        bond_stretch_A: Longest allowed stretch over the reference length, A; None: any.
        max_temperature_K: Highest allowed temperature, K.
    """

    def __init__(
        self, reference: Atoms, bond_stretch_A: float | None, max_temperature_K: float
    ) -> None:
        self.max_temperature_K = max_temperature_K
        self.bond_stretch_A = bond_stretch_A
        self.cell = np.array(reference.cell)
        self.symbols = [chemical_symbols[z] for z in reference.numbers]
        self.bonds = covalent_bonds(reference)
        self.lengths = bond_lengths(reference.get_positions(), self.bonds, self.cell)

    def look(
        self, positions: np.ndarray, potential: float, kinetic: float, temperature_K: float
    ) -> str:
        """What is wrong, as in "bond C3-H10 broke (1.09 -> 1.62 A)", or "" if nothing is.

        Args:
            positions: ``(N, 3)`` A.
            potential: Potential energy, eV.
            kinetic: Kinetic energy, eV.
            temperature_K: Kinetic temperature, K.
        """
        if not np.isfinite(positions).all():
            return "positions are not finite numbers"
        if not np.isfinite(potential):
            return "the energy is not a finite number"
        if not np.isfinite(kinetic):  # only forces change momenta
            return "the forces are not finite numbers"
        if self.bond_stretch_A is not None and len(self.lengths):
            now = bond_lengths(positions, self.bonds, self.cell)
            stretch = now - self.lengths
            worst = int(np.argmax(stretch))
            if stretch[worst] > self.bond_stretch_A:
                i, j = int(self.bonds[0][worst]), int(self.bonds[1][worst])
                return (
                    f"bond {self.symbols[i]}{i}-{self.symbols[j]}{j} broke "
                    f"({self.lengths[worst]:.2f} -> {now[worst]:.2f} A)"
                )
        if temperature_K > self.max_temperature_K:
            return (
                f"the temperature rose to {_kelvin(temperature_K)} K "
                f"(limit {self.max_temperature_K:.0f} K)"
            )
        return ""


def _kelvin(value: float) -> str:
    return f"{value:.0f}" if value < 1e6 else f"{value:.2g}"
