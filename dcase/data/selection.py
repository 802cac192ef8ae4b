"""Which frames are worth labelling: the most uncertain ones that are not like each other.

Frames are compared by their interatomic distances: for every pair of elements the distances are
sorted, so that the order of equal atoms, translations, rotations and mirror images do not matter.
Two frames are as far apart as the root mean square difference of these lists, in Angstrom. Between
random frames of ethanol at 500 K (GFN2-xTB) it is 0.04 to 0.3 A, typically 0.12 A; between
neighbouring steps of a trajectory 0.01 A.

Sorted distances do not tell everything apart: there are different structures, mirror images the
plainest among them, with equal lists. For not labelling the same frame twice that is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np
from ase.geometry import find_mic

from dcase.errors import OptionError

SEPARATION_A = 0.05
"""Frames nearer to each other than this are taken for the same, A: of random pairs of frames of a
small molecule one in a hundred is."""

MOST_DISTANCES = 256
"""Distances kept of a pair of elements: of more, so many evenly spaced quantiles."""


@dataclass(frozen=True)
class Fingerprint:
    """What tells frames apart.

    Attributes:
        composition: Atomic numbers, ascending.
        values: Sorted distances, pair of elements by pair of elements, A, shape [n_values].
    """

    composition: tuple[int, ...]
    values: np.ndarray

    def distance(self, other: Fingerprint) -> float:
        """Root mean square difference, A; infinite between different compositions."""
        if self.composition != other.composition:
            return float("inf")
        if len(self.values) == 0:  # single atoms
            return 0.0
        return float(np.sqrt(np.mean((self.values - other.values) ** 2)))


class Fingerprinter:
    """Fingerprints of frames of one system.

    Periodic systems are compared by their minimum-image distances. The cost grows with the square
    of the number of atoms.

    Args:
        template: Elements, cell and periodicity.
    """

    def __init__(self, template: ase.Atoms) -> None:
        self.composition = tuple(sorted(int(z) for z in template.numbers))
        self.cell = template.cell if template.pbc.any() else None
        self.pbc = template.pbc
        i, j = np.triu_indices(len(template), k=1)
        z = template.numbers
        low, high = np.minimum(z[i], z[j]), np.maximum(z[i], z[j])
        kind = low.astype(np.int64) * 1000 + high
        order = np.argsort(kind, kind="stable")
        self.i, self.j = i[order], j[order]
        _, counts = np.unique(kind, return_counts=True)
        ends = np.cumsum(counts)
        self.groups = [slice(int(e - n), int(e)) for e, n in zip(ends, counts, strict=True)]

    def __call__(self, positions: np.ndarray) -> Fingerprint:
        """The fingerprint of ``positions``, shape [n_atoms, 3], A."""
        vectors = positions[self.j] - positions[self.i]
        if self.cell is not None and len(vectors):
            vectors, _ = find_mic(vectors, self.cell, self.pbc)
        distances = np.sqrt(np.einsum("pk,pk->p", vectors, vectors))
        parts = [_thinned(np.sort(distances[group])) for group in self.groups]
        return Fingerprint(self.composition, np.concatenate(parts) if parts else np.zeros(0))


def _thinned(values: np.ndarray) -> np.ndarray:
    if len(values) <= MOST_DISTANCES:
        return values
    places = np.linspace(0.0, len(values) - 1.0, MOST_DISTANCES)
    return np.interp(places, np.arange(len(values)), values)


def fingerprint(atoms: ase.Atoms) -> Fingerprint:
    """The fingerprint of one structure; for many of one system use :class:`Fingerprinter`."""
    return Fingerprinter(atoms)(atoms.get_positions())


def select_frames(
    scores: Sequence[float] | np.ndarray,
    fingerprints: Sequence[Fingerprint],
    count: int,
    min_distance: float = SEPARATION_A,
    *,
    known: Sequence[Fingerprint] = (),
) -> list[int]:
    """Greedy selection: the highest scores first, leaving out what is like a frame already chosen.

    Args:
        scores: Of the frames, e.g. their uncertainty in eV/A, shape [n_frames]; NaN is last.
        fingerprints: Of the frames.
        count: Frames wanted at most.
        min_distance: Frames nearer than this to a chosen or known one are left out, A; 0 leaves
            out none.
        known: Frames that need not be chosen again, e.g. those with labels.

    Returns:
        Indices, by falling score; fewer than ``count`` where the frames are too much alike.

    Raises:
        OptionError: If there are not as many scores as fingerprints, or ``count`` is negative.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) != len(fingerprints):
        raise OptionError(f"{len(scores)} scores do not fit {len(fingerprints)} fingerprints")
    if count < 0:
        raise OptionError(f"the number of frames to select must not be negative, got {count}")
    chosen: list[int] = []
    taken = _Taken(known)
    for index in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"):
        if len(chosen) >= count:
            break
        candidate = fingerprints[index]
        if taken.nearest(candidate) < min_distance:
            continue
        chosen.append(int(index))
        taken.add(candidate)
    return chosen


class _Taken:
    """Fingerprints by composition, to be compared with all at once."""

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self.rows: dict[tuple[int, ...], list[np.ndarray]] = {}
        for one in fingerprints:
            self.add(one)

    def add(self, one: Fingerprint) -> None:
        self.rows.setdefault(one.composition, []).append(one.values)

    def nearest(self, one: Fingerprint) -> float:
        rows = self.rows.get(one.composition)
        return float(_distances(np.stack(rows), one.values).min()) if rows else float("inf")


def _distances(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Root mean square differences, shape [n_rows]."""
    if len(values) == 0:
        return np.zeros(len(rows))
    return np.sqrt(np.mean((rows - values) ** 2, axis=1))


class Shortlist:
    """The same, one frame after another, in memory that does not grow.

    No two frames of the list are nearer than the separation, and the highest score ever offered is
    in it. A frame that gives way to a more uncertain one like it may itself have kept out a third;
    that one is not fetched back, so the list can differ a little from :func:`select_frames` on all
    frames. It depends on nothing but the offers and their order.

    Args:
        template: Elements, cell and periodicity.
        size: Frames kept at most.
        min_distance: A, see :func:`select_frames`.
    """

    def __init__(self, template: ase.Atoms, size: int, min_distance: float = SEPARATION_A) -> None:
        self.fingerprint = Fingerprinter(template)
        self.size, self.min_distance = size, min_distance
        self.scores = np.zeros(0)
        self.tags = np.zeros(0, dtype=np.int64)
        self.positions = np.zeros((0, len(template), 3))
        self._values = np.zeros((0, len(self.fingerprint(template.get_positions()).values)))

    def __len__(self) -> int:
        return len(self.scores)

    def offer(self, score: float, tag: int, positions: np.ndarray) -> bool:
        """Keep a frame if it belongs to the best.

        Args:
            score: Of the frame; a NaN is never kept.
            tag: To know it by, e.g. its step.
            positions: A, shape [n_atoms, 3].

        Returns:
            Whether it is kept.
        """
        if not np.isfinite(score) or self.size < 1:
            return False
        if len(self) >= self.size and score <= self.scores[-1]:
            return False
        values = self.fingerprint(positions).values
        near = _distances(self._values, values) < self.min_distance
        if bool((self.scores[near] >= score).any()):
            return False
        place = int(np.searchsorted(-self.scores[~near], -score, side="right"))

        def renewed(old: np.ndarray, new: Any) -> np.ndarray:
            return np.insert(old[~near], place, new, axis=0)[: self.size]

        self._values = renewed(self._values, values)
        self.tags = renewed(self.tags, tag)
        self.positions = renewed(self.positions, positions)
        self.scores = renewed(self.scores, score)
        return True

    def state(self) -> dict[str, np.ndarray]:
        """All that :meth:`restore` needs: ``scores``, ``tags``, ``positions``.

        The arrays stay as they are when further frames are offered.
        """
        return {"scores": self.scores, "tags": self.tags, "positions": self.positions}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go back to a stored state."""
        self.scores = np.array(state["scores"])
        self.tags = np.array(state["tags"])
        self.positions = np.array(state["positions"])
        if len(self):
            self._values = np.stack([self.fingerprint(frame).values for frame in self.positions])
        else:
            self._values = self._values[:0]
