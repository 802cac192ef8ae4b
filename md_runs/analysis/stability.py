"""Whether a molecule stays one, and whether it moves as the reference does.

The metrics of Fu et al., "Forces are not enough", TMLR 2023 (arXiv 2210.07237), for molecules.
One departure: two atoms are bonded below 1.2 times the sum of their covalent radii (see
``watch.covalent_bonds``), and only non-metals form bonds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from dcase.errors import OptionError
from dcase.md_runs.loop.watch import bond_lengths, covalent_bonds, frame_blocks

COLLAPSE_A = 0.5
"""A molecule has collapsed when a bond is off its reference mean by more than this, Angstrom."""

BINS = 500
RANGE_A = (1e-6, 10.0)


@dataclass(frozen=True)
class Stability:
    """How long the bonds hold.

    Attributes:
        stable_ps: Time of the first frame with a broken bond, or of the last frame, ps.
        collapsed: Whether a bond broke.
        bond: Which, as in ``C3-H10``; empty if none.
        largest_deviation_A: Largest |length - reference| before the collapse, A.
        n_bonds: Bonds watched.
    """

    stable_ps: float
    collapsed: bool
    bond: str
    largest_deviation_A: float
    n_bonds: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def bond_stability(
    times_fs: np.ndarray,
    positions: Any,
    structure: Atoms,
    *,
    reference_positions: np.ndarray | None = None,
    threshold_A: float = COLLAPSE_A,
) -> Stability:
    """Time until the first bond is off its reference length by more than the threshold.

    Args:
        times_fs: ``(F,)`` fs.
        positions: ``(F, N, 3)`` A, not wrapped; an array, or an open file's.
        structure: Whose bonds are watched; N atoms.
        reference_positions: ``(M, N, 3)`` A, whose mean bond lengths are the reference; the lengths
            in ``structure`` by default.
        threshold_A: A.

    Raises:
        OptionError: If the shapes do not fit together.
    """
    _check(positions, structure)
    bonds = covalent_bonds(structure)
    cell = np.array(structure.cell)
    if reference_positions is None:
        reference = bond_lengths(structure.get_positions(), bonds, cell)
    else:
        _check(reference_positions, structure)
        parts = frame_blocks(reference_positions)
        sums = [bond_lengths(part, bonds, cell).sum(axis=0) for part in parts]
        reference = np.sum(sums, axis=0) / len(reference_positions)
    times = np.asarray(times_fs, dtype=np.float64)
    if len(times) != len(positions):
        raise OptionError(f"{len(times)} times do not fit {len(positions)} frames")
    if len(reference) == 0 or len(positions) == 0:
        end = float(times[-1] - times[0]) * 1e-3 if len(times) else 0.0
        return Stability(end, False, "", 0.0, 0)
    largest, done = -math.inf, 0
    for part in frame_blocks(positions):
        deviation = np.abs(bond_lengths(part, bonds, cell) - reference)
        worst = deviation.max(axis=1)
        broken = np.flatnonzero(~(worst <= threshold_A))  # NaN counts as broken
        if len(broken):
            first = int(broken[0])
            which = int(np.argmax(np.nan_to_num(deviation[first], nan=math.inf)))
            i, j = int(bonds[0][which]), int(bonds[1][which])
            name = "-".join(f"{chemical_symbols[structure.numbers[k]]}{k}" for k in (i, j))
            before = max(largest, float(worst[:first].max(initial=-math.inf)))
            span = float(times[done + first] - times[0]) * 1e-3
            before = before if math.isfinite(before) else math.nan
            return Stability(span, True, name, before, len(reference))
        largest, done = max(largest, float(worst.max())), done + len(part)
    span = float(times[-1] - times[0]) * 1e-3
    return Stability(span, False, "", largest, len(reference))


def distance_distribution(
    positions: Any,
    *,
    frames: int | None = None,
    bins: int = BINS,
    range_A: tuple[float, float] = RANGE_A,
) -> tuple[np.ndarray, np.ndarray]:
    """h(r): density of all interatomic distances of a molecule.

    Args:
        positions: ``(F, N, 3)`` A, no periodic boundaries; N >= 2; an array, or an open file's.
        frames: Only so many, from the first on.
        bins: Number of bins.
        range_A: First and last edge, A.

    Returns:
        ``(bins,)`` bin centres in A and ``(bins,)`` densities in 1/A.

    Raises:
        OptionError: If there is no pair of atoms.
    """
    shape = np.shape(positions)
    if len(shape) != 3 or shape[1] < 2 or shape[0] == 0:
        raise OptionError("h(r) needs frames of at least two atoms: positions of shape (F, N, 3)")
    i, j = np.triu_indices(shape[1], k=1)
    edges = np.linspace(*range_A, bins + 1)
    counts = np.zeros(bins)
    block = max(1, 2_000_000 // len(i))  # distances held at a time
    for many in frame_blocks(positions, frames):
        for start in range(0, len(many), block):
            part = many[start : start + block]
            vectors = part[:, j] - part[:, i]
            distances = np.sqrt(np.einsum("fpk,fpk->fp", vectors, vectors))
            counts += np.histogram(distances, bins=edges)[0]
    total = counts.sum()
    density = counts / (total * np.diff(edges)) if total > 0 else counts
    return 0.5 * (edges[1:] + edges[:-1]), density


def distribution_error(density: np.ndarray, reference: np.ndarray) -> float:
    """``10 * mean |h - h_ref|``, the number the paper prints; 0 is perfect."""
    return float(10.0 * np.mean(np.abs(np.asarray(density) - np.asarray(reference))))


def _check(positions: Any, structure: Atoms) -> None:
    shape = np.shape(positions)
    if len(shape) != 3 or shape[1:] != (len(structure), 3):
        raise OptionError(
            f"positions of shape {shape} do not fit {len(structure)} atoms: "
            "(frames, atoms, 3) is needed"
        )
