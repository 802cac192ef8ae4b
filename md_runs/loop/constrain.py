"""Bonds of fixed length: ASE's RATTLE, solved for all bonds at once.

ASE's integrators do RATTLE with any constraint that corrects positions and momenta (Andersen, J.
Comput. Phys. 52, 24 (1983)), and ``ase.constraints.FixBondLengths`` is that constraint for bonds.
``BondConstraint`` is that class with another solver, for three reasons found with ASE 3.29. Its
sweeps over one bond at a time, each with its own minimum image, cost 31 ms per step for the 21
bonds of aspirin, where the potential takes 2.8 ms. Its tolerance of 1e-13 is below the rounding of
positions 10 000 A from the origin, where it ends in "Did not converge". And it finds a bond's image
anew each time, which is the wrong one in a cell of less than two bond lengths.

Here the multipliers of all bonds come from Newton's method on the dense matrix ``J M^-1 J^T``
(M-SHAKE; Kraeutler, van Gunsteren and Huenenberger, J. Comput. Chem. 22, 501 (2001)), which is
right for a molecule's tens of bonds; its cost grows with the cube of their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixBondLengths
from ase.data import chemical_symbols
from ase.geometry import find_mic

from dcase.data.held import free_axes, other_constraints, projectors
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.choices import CONSTRAINTS
from dcase.md_runs.loop.watch import bond_lengths, covalent_bonds, frame_blocks

TOLERANCE = 1e-13
"""Relative error of a squared length at which Newton's iteration stops."""

MAX_ITERATIONS = 50
"""Newton needs 3 to 6 of them; where 50 do not do, there is no solution."""

RANK_TOLERANCE = 1e-7
"""Singular values below this share of the largest are those of redundant constraints."""


class BondConstraint(FixBondLengths):
    """Distances between pairs of atoms, held at their lengths in the structure given.

    Args:
        atoms: Structure with the lengths to be held.
        bonds: ``(i, j, shift)`` as from ``watch.covalent_bonds``; B of them.

    Attributes:
        pairs: ``(B, 2)`` indices.
        shifts: ``(B, 3)`` whole cell vectors; positions must not be wrapped meanwhile.
        bondlengths: ``(B,)`` A.
        rank: Degrees of freedom taken: fewer than B where some follow from the others.
    """

    def __init__(self, atoms: Atoms, bonds: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        i, j, shifts = bonds
        lengths = bond_lengths(atoms.get_positions(), bonds, np.array(atoms.cell))
        super().__init__(np.stack([i, j], axis=1), bondlengths=lengths)
        self.shifts = np.asarray(shifts, dtype=np.float64)
        self._symbols = [chemical_symbols[z] for z in atoms.numbers]
        self._offsets = self.shifts @ np.array(atoms.cell)  # (B, 3) A
        self._incidence = _incidence(self.pairs, len(atoms))
        self._weights = 1.0 / atoms.get_masses()  # (N,)
        # (B, B): the inverse masses that two bonds share, with the sign of their directions
        self._coupling = (self._incidence * self._weights) @ self._incidence.T
        self.rank = len(_row_space(_jacobian(self.pairs, self.vectors(atoms.positions), atoms)))

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """``r_j - r_i`` of every bond, ``(B, 3)`` A, for positions ``(N, 3)`` A."""
        return positions[self.pairs[:, 1]] - positions[self.pairs[:, 0]] + self._offsets

    def __deepcopy__(self, memo: dict[int, Any]) -> BondConstraint:
        """The constraint itself: it never changes, and calculators copy their atoms every step."""
        return self

    def get_removed_dof(self, atoms: Atoms) -> int:
        """Degrees of freedom taken away: the rank of the constraints."""
        return self.rank

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        """Bring ``new`` back to the lengths, in place, along the bonds of ``atoms`` (SHAKE).

        Raises:
            SimulationError: If no multiplier does it: the time step is too large.
        """
        if not np.isfinite(new).all():
            raise SimulationError("positions are not finite numbers")
        before = self.vectors(atoms.positions)
        start = self.vectors(new)
        squares = self.bondlengths**2
        multipliers = np.zeros(len(squares))
        now = start
        for _ in range(MAX_ITERATIONS):
            excess = 0.5 * (np.einsum("bk,bk->b", now, now) - squares)
            if np.max(np.abs(excess) / squares) < TOLERANCE:
                new += self._moves(multipliers, before)
                return
            # derivative of the excess of bond b with the multiplier of bond c
            matrix = (now @ before.T) * self._coupling
            multipliers = multipliers - self._solve(matrix, excess)
            now = start + self._coupling @ (multipliers[:, None] * before)
            if not np.isfinite(now).all():
                break
        raise self._lost(start)

    def adjust_momenta(self, atoms: Atoms, momenta: np.ndarray) -> None:
        """Take from ``momenta``, in place, what would stretch a bond (second half of RATTLE).

        The projection is orthogonal in the kinetic energy, so that what is left of a
        Maxwell-Boltzmann draw is the canonical distribution of the motions that remain.
        """
        along = self.vectors(atoms.positions)
        velocities = momenta * self._weights[:, None]
        stretch = np.einsum("bk,bk->b", self._incidence @ velocities, along)
        multipliers = self._solve((along @ along.T) * self._coupling, stretch)
        momenta -= self._incidence.T @ (multipliers[:, None] * along)

    def index_shuffle(self, atoms: Atoms, ind: Any) -> None:
        """A part of the atoms is not held: ASE drops the constraint there.

        Raises:
            NotImplementedError: Always; it is how ASE is told.
        """
        raise NotImplementedError("bonds are held in whole structures only")

    def largest_violation(self, positions: Any) -> float:
        """Largest |length - held length| in A over positions ``(F, N, 3)`` A, or a file's."""
        bonds = (self.pairs[:, 0], self.pairs[:, 1], self._offsets)
        worst = [
            float(np.max(np.abs(bond_lengths(part, bonds, np.eye(3)) - self.bondlengths)))
            for part in frame_blocks(positions)
        ]
        return max(worst, default=float("nan"))

    def names(self) -> list[str]:
        """Bonds as people write them: ``C3-H10``."""
        return [f"{self._symbols[i]}{i}-{self._symbols[j]}{j}" for i, j in self.pairs]

    def _moves(self, multipliers: np.ndarray, along: np.ndarray) -> np.ndarray:
        forces = self._incidence.T @ (multipliers[:, None] * along)
        return np.asarray(forces * self._weights[:, None])

    def _solve(self, matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
        try:
            if self.rank == len(right):
                return np.linalg.solve(matrix, right)
            # Redundant: any of the solutions moves the atoms alike; the smallest one is taken.
            return np.linalg.lstsq(matrix, right, rcond=RANK_TOLERANCE)[0]
        except np.linalg.LinAlgError:
            return np.full(len(right), np.nan)

    def _lost(self, vectors: np.ndarray) -> SimulationError:
        lengths = np.sqrt(np.einsum("bk,bk->b", vectors, vectors))
        worst = int(np.argmax(np.abs(lengths - self.bondlengths)))
        return SimulationError(
            f"the lengths of the constrained bonds cannot be restored ({self.names()[worst]} went "
            f"from {self.bondlengths[worst]:.2f} to {lengths[worst]:.2f} A in one step)"
        )


def constrained(atoms: Atoms, kind: str) -> BondConstraint | None:
    """The constraint that ``kind`` asks for, at the lengths of ``atoms``; None for ``none``.

    Bonds are those of ``watch.covalent_bonds``: between non-metals, below 1.2 times the sum of the
    covalent radii.

    Raises:
        OptionError: For another kind, no such bond, or a structure with constraints of its own.
    """
    if kind not in CONSTRAINTS:
        raise OptionError(f"constrain must be one of {', '.join(CONSTRAINTS)}, not {kind!r}")
    if kind == "none":
        return None
    if len(atoms.constraints) > 0:
        raise OptionError(
            f"constrain={kind} cannot be combined with the constraints that the structure has: "
            "remove those, or use none"
        )
    i, j, shift = covalent_bonds(atoms)
    if kind == "bonds-to-hydrogen":
        keep = (atoms.numbers[i] == 1) | (atoms.numbers[j] == 1)
        i, j, shift = i[keep], j[keep], shift[keep]
    if len(i) == 0:
        what = "bond to hydrogen" if kind == "bonds-to-hydrogen" else "covalent bond"
        raise OptionError(
            f"constrain={kind}: {atoms.get_chemical_formula()} has no {what}; use none"
        )
    return BondConstraint(atoms, (i, j, shift))


def constrain(atoms: Atoms, kind: str) -> BondConstraint | None:
    """Hold bonds of ``atoms`` (changed) as ``constrained`` says; returns the constraint.

    Momenta the atoms have lose what would stretch a bond.

    Raises:
        OptionError: As ``constrained``.
    """
    held = constrained(atoms, kind)
    if held is not None:
        atoms.set_constraint(held)
        if atoms.has("momenta"):
            atoms.set_momenta(atoms.get_momenta())
    return held


def only_bonds(atoms: Atoms) -> bool:
    """Whether all constraints are distances between atoms, which push equally and oppositely.

    Such constraints leave momentum and angular momentum alone, unlike fixed atoms. Restraints are
    part of the potential and not looked at.
    """
    bonds = all(isinstance(c, FixBondLengths) for c in other_constraints(atoms))
    return bonds and free_axes(atoms) is None


def normal_space(atoms: Atoms) -> np.ndarray:
    """Directions the fixed bonds forbid, in mass-weighted coordinates ``sqrt(m) r``.

    Args:
        atoms: With any number of ``FixBondLengths``; of the other constraints only those count that
            take directions from single atoms: nothing is forbidden twice.

    Returns:
        ``(R, 3N)`` orthonormal rows; R is the rank, redundant constraints counted once.
    """
    parts = [_jacobian(c.pairs, _vectors(c, atoms), atoms) for c in _held(atoms)]
    if not parts:
        return np.zeros((0, 3 * len(atoms)))
    rows, axes = np.concatenate(parts), free_axes(atoms)
    if axes is not None:
        vectors = rows.reshape(len(rows), -1, 3)
        rows = np.einsum("nij,bnj->bni", projectors(axes), vectors).reshape(len(rows), -1)
    return _row_space(rows)


def tension(atoms: Atoms, forces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pull the fixed bonds withstand at rest.

    Args:
        atoms: With ``FixBondLengths``.
        forces: ``(N, 3)`` eV/A, without constraints.

    Returns:
        ``(incidence, mu)``: ``(B, N)`` with -1 at i and 1 at j, and ``(B,)`` multipliers in eV/A^2
        so that the constraint force is ``-incidence.T @ (mu * d)`` for bond vectors ``d``.
    """
    held = _held(atoms)
    if not held:
        return np.zeros((0, len(atoms))), np.zeros(0)
    incidence = np.concatenate([_incidence(c.pairs, len(atoms)) for c in held])
    along = np.concatenate([_vectors(c, atoms) for c in held])
    weights = 1.0 / atoms.get_masses()
    matrix = (along @ along.T) * ((incidence * weights) @ incidence.T)
    pull = np.einsum("bk,bk->b", incidence @ (forces * weights[:, None]), along)
    return incidence, np.linalg.lstsq(matrix, pull, rcond=RANK_TOLERANCE)[0]


def _held(atoms: Atoms) -> list[Any]:
    return [c for c in atoms.constraints if isinstance(c, FixBondLengths)]


def _vectors(constraint: Any, atoms: Atoms) -> np.ndarray:
    if isinstance(constraint, BondConstraint):
        return constraint.vectors(atoms.positions)
    i, j = np.asarray(constraint.pairs).T
    return np.asarray(find_mic(atoms.positions[j] - atoms.positions[i], atoms.cell, atoms.pbc)[0])


def _incidence(pairs: np.ndarray, n_atoms: int) -> np.ndarray:
    """``(B, N)``: -1 at the first atom of a bond, 1 at the second."""
    matrix = np.zeros((len(pairs), n_atoms))
    bonds = np.arange(len(pairs))
    matrix[bonds, pairs[:, 0]] -= 1.0
    matrix[bonds, pairs[:, 1]] += 1.0
    return matrix


def _jacobian(pairs: np.ndarray, vectors: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Mass-weighted gradients of the lengths, ``(B, 3N)``, each of length one."""
    root = np.sqrt(atoms.get_masses())
    rows = _incidence(np.asarray(pairs), len(atoms)) / root
    rows = np.einsum("bn,bk->bnk", rows, vectors).reshape(len(rows), -1)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _row_space(rows: np.ndarray) -> np.ndarray:
    _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(vectors[sizes > RANK_TOLERANCE * max(1.0, sizes[0])])
