"""Frames with labels, kept as a few contiguous arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from dcase.data.held import constraints_of, free_axes, marks
from dcase.data.state import CONSTRAINTS_KEY, FrameState, bare, electrons_of
from dcase.errors import DataError

SMALLEST_VOLUME = 1e-6
"""Of a cell that there can be a stress of, A^3."""


@dataclass(frozen=True)
class DatasetInfo:
    """Where the frames come from; written into every checkpoint and report.

    Attributes:
        name: Dataset name, e.g. ``"md17"``, ``"rmd17"``, ``"xtb"``, or a file's stem.
        molecule: Full molecule name, or ``""`` where that makes no sense.
        level_of_theory: Method of the labels, e.g. ``"PBE+vdW-TS"`` or ``"GFN2-xTB"``.
        source: The file or URL that was read.
        label_unit: The energy unit of the file (labels in memory are always eV, eV/A).
        sha256: Checksum of the file that was read, or ``""``.
        quantity: What ``AtomicDataset.energies`` holds: ``"energy"``, or another property of whole
            systems by a name of :data:`dcase.potentials.quantity.QUANTITIES`, in its unit.
    """

    name: str
    molecule: str = ""
    level_of_theory: str = "unknown"
    source: str = ""
    label_unit: str = "eV"
    sha256: str = ""
    quantity: str = "energy"

    def to_dict(self) -> dict[str, str]:
        """Plain strings, for checkpoints and JSON."""
        return asdict(self)


@dataclass(frozen=True)
class AtomicDataset:
    """Structures and labels, in eV and Angstrom, frames concatenated along atoms.

    Attributes:
        numbers: Atomic numbers, int64, shape [n_atoms_total].
        positions: Angstrom, float64, shape [n_atoms_total, 3].
        ptr: Frame f owns atoms ``ptr[f]:ptr[f+1]``, int64, shape [n_frames + 1].
        energies: Total energies in eV, or the property that ``info.quantity`` names, float64, shape
            [n_frames], or None.
        forces: eV/A, float64, shape [n_atoms_total, 3], or None.
        cells: Lattice vectors as rows, A, shape [n_frames, 3, 3], or None if no frame is periodic.
        pbc: Periodic directions, bool, shape [n_frames, 3], or None if no frame is periodic.
        stress: Voigt xx, yy, zz, yz, xz, xy in eV/A^3, positive in tension, shape [n_frames, 6],
            NaN where a frame has none (it is not periodic), or None: no frame has.
        info: Provenance.
        fixed: Atoms held in place in the calculation that gave the labels, bool, shape
            [n_atoms_total], or None if none is. Their forces are no result of a relaxation: losses
            and errors of forces leave them out.
        free_axes: Where some are held in part: the orthonormal directions in which each atom may
            move, as rows, zeros for what is held, float64, shape [n_atoms_total, 3, 3]. Components
            of forces along held directions are left out likewise. None: ``fixed`` says all.
        tags: ASE's tags (OC20 and OC22: 0 below the surface, 1 surface, 2 adsorbate), int64, shape
            [n_atoms_total], or None.
        states: What else the frames carry (charge, spin, ``info``, masses, momenta, constraints,
            the user's own arrays), one for each frame, or None if none carries anything.
        atom_references: Published energies of the free atoms by atomic number, eV (or the unit of
            the property), or None.
    """

    numbers: np.ndarray
    positions: np.ndarray
    ptr: np.ndarray
    energies: np.ndarray | None = None
    forces: np.ndarray | None = None
    cells: np.ndarray | None = None
    pbc: np.ndarray | None = None
    stress: np.ndarray | None = None
    info: DatasetInfo = field(default_factory=lambda: DatasetInfo("unnamed"))
    fixed: np.ndarray | None = None
    free_axes: np.ndarray | None = None
    tags: np.ndarray | None = None
    states: tuple[FrameState, ...] | None = None
    atom_references: dict[int, float] | None = None

    def __post_init__(self) -> None:
        n_frames, n_atoms = len(self), len(self.numbers)
        if n_frames == 0:
            raise DataError(f"{self._where()}: the dataset has no frames")
        expected = {
            "positions": (n_atoms, 3),
            "energies": (n_frames,),
            "forces": (n_atoms, 3),
            "cells": (n_frames, 3, 3),
            "pbc": (n_frames, 3),
            "stress": (n_frames, 6),
            "fixed": (n_atoms,),
            "free_axes": (n_atoms, 3, 3),
            "tags": (n_atoms,),
        }
        if self.ptr[0] != 0 or self.ptr[-1] != n_atoms or (np.diff(self.ptr) <= 0).any():
            raise DataError(f"{self._where()}: frames and atoms do not match up (empty frame?)")
        if n_atoms and (self.numbers.min() < 1 or self.numbers.max() > 118):
            raise DataError(f"{self._where()}: atomic numbers must lie between 1 and 118")
        if self.states is not None and len(self.states) != n_frames:
            raise DataError(f"{self._where()}: {len(self.states)} states for {n_frames} frames")
        for key, shape in expected.items():
            value = getattr(self, key)
            if value is None:
                continue
            if value.shape != shape:
                raise DataError(f"{self._where()}: {key} has shape {value.shape}, expected {shape}")
            if key == "stress":
                self._check_stress()
            elif not np.isfinite(value).all():
                bad = np.flatnonzero(~np.isfinite(value).reshape(len(value), -1).all(axis=1))[0]
                frame = (
                    int(np.searchsorted(self.ptr, bad, side="right") - 1)
                    if len(value) == n_atoms and n_atoms != n_frames
                    else int(bad)
                )
                raise DataError(f"{self._where()}: {key} of frame {frame} is NaN or infinite")

    def _check_stress(self) -> None:
        assert self.stress is not None
        finite = np.isfinite(self.stress)
        bad = np.flatnonzero(~finite.all(axis=1) & ~np.isnan(self.stress).all(axis=1))
        if len(bad):
            raise DataError(f"{self._where()}: stress of frame {bad[0]} is NaN or infinite")
        without = np.ones(len(self), dtype=bool)
        if self.cells is not None and self.pbc is not None:
            volumes = np.abs(np.linalg.det(self.cells))
            without = ~self.pbc.any(axis=1) | (volumes < SMALLEST_VOLUME)
        wrong = np.flatnonzero(finite.all(axis=1) & without)
        if len(wrong):
            raise DataError(
                f"{self._where()}: frame {wrong[0]} has a stress, but is not periodic or has no "
                "volume"
            )

    @property
    def stressed(self) -> np.ndarray:
        """Which frames have a label of stress, bool, shape [n_frames]."""
        if self.stress is None:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(np.isfinite(self.stress).all(axis=1))

    def _where(self) -> str:
        return self.info.source or self.info.name

    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return [int(z) for z in np.unique(self.numbers)]

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms in each frame, shape [n_frames]."""
        return np.diff(self.ptr)

    @property
    def directions(self) -> np.ndarray | None:
        """What ``fixed`` and ``free_axes`` leave, as :func:`dcase.data.held.free_axes`, or None."""
        return self._directions_of(slice(None))

    def _directions_of(self, atoms: slice) -> np.ndarray | None:
        axes = None if self.free_axes is None else self.free_axes[atoms]
        if self.fixed is None:
            return axes
        return np.asarray((np.eye(3) if axes is None else axes) * ~self.fixed[atoms, None, None])

    def free_components(self, vectors: np.ndarray) -> np.ndarray:
        """What vectors of atoms, shape [n_atoms_total, 3], have along free directions.

        Returns:
            The rows of atoms not held in place, shape [n_free_atoms, 3]; with ``free_axes`` the
            components along all free directions, shape [n_free_components].
        """
        if self.free_axes is None:
            return vectors if self.fixed is None else vectors[~self.fixed]
        axes = np.asarray(self.directions)
        return np.asarray(np.einsum("nij,nj->ni", axes, vectors)[axes.any(axis=2)])

    def free_forces(self) -> np.ndarray | None:
        """Forces along free directions, eV/A, as :meth:`free_components` has them, or None."""
        return None if self.forces is None else self.free_components(self.forces)

    def largest_free_force(self) -> np.ndarray:
        """Largest component of the free part of each atom's force, eV/A, shape [n_atoms_total].

        Raises:
            DataError: If there are no forces.
        """
        if self.forces is None:
            raise DataError(f"{self._where()}: the frames have no forces")
        forces, axes = self.forces, self.directions
        if axes is not None:
            forces = np.einsum("nki,nkj,nj->ni", axes, axes, forces)
        return np.asarray(np.abs(forces).max(axis=1))

    def without_fixed(self) -> AtomicDataset:
        """The same without the marks of atoms held in place: their forces count like any others."""
        states = self.states
        if states is not None:
            states = tuple(FrameState(one.info, one.arrays) for one in states)
        return replace(self, fixed=None, free_axes=None, states=states)

    def electrons(self) -> dict[str, Any]:
        """Total charges and spins of the frames, see :func:`dcase.data.state.electrons_of`.

        Raises:
            DataError: If a frame contradicts itself about its charge.
        """
        return electrons_of(self.numbers, self.ptr, self.states)

    def frame(self, index: int) -> ase.Atoms:
        """Frame ``index`` as ASE atoms, its labels in a SinglePointCalculator.

        Atoms that are held in place get ASE's FixAtoms, those held in part FixCartesian, FixedPlane
        or FixedLine; their labels are kept all the same (``get_forces(apply_constraint=False)``).
        """
        index = range(len(self))[index]
        atoms_of = slice(int(self.ptr[index]), int(self.ptr[index + 1]))
        atoms = ase.Atoms(
            numbers=self.numbers[atoms_of],
            positions=self.positions[atoms_of],
            cell=None if self.cells is None else self.cells[index],
            pbc=None if self.pbc is None else self.pbc[index],
            tags=None if self.tags is None else self.tags[atoms_of],
        )
        if (axes := self._directions_of(atoms_of)) is not None:
            atoms.set_constraint(constraints_of(axes))
        if self.states is not None:
            self.states[index].put_on(atoms)
        labels: dict[str, Any] = {}
        if self.energies is not None:
            labels["energy"] = float(self.energies[index])
        if self.forces is not None:
            labels["forces"] = self.forces[atoms_of].copy()
        if self.stress is not None and np.isfinite(self.stress[index]).all():
            labels["stress"] = self.stress[index].copy()
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms

    def __iter__(self) -> Iterator[ase.Atoms]:
        return (self.frame(i) for i in range(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray) -> AtomicDataset:
        """The frames ``indices``, in that order (a copy)."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) == 0:
            raise DataError(f"{self._where()}: an empty selection of frames was asked for")
        counts = self.n_atoms[indices]
        ptr = np.concatenate([[0], np.cumsum(counts)])
        # Atom a of new frame f is old atom ptr_old[f] + (a - ptr_new[f]).
        atoms = np.repeat(self.ptr[indices] - ptr[:-1], counts) + np.arange(ptr[-1])

        def pick(value: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
            return None if value is None else value[index]

        return replace(
            self,
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            ptr=ptr,
            energies=pick(self.energies, indices),
            forces=pick(self.forces, atoms),
            cells=pick(self.cells, indices),
            pbc=pick(self.pbc, indices),
            stress=pick(self.stress, indices),
            fixed=pick(self.fixed, atoms),
            free_axes=pick(self.free_axes, atoms),
            tags=pick(self.tags, atoms),
            states=None if self.states is None else tuple(self.states[k] for k in indices),
        )

    @staticmethod
    def from_arrays(
        numbers: np.ndarray,
        positions: np.ndarray,
        energies: np.ndarray | None = None,
        forces: np.ndarray | None = None,
        info: DatasetInfo | None = None,
    ) -> AtomicDataset:
        """Many frames of one molecule.

        Args:
            numbers: Shape [n_atoms].
            positions: A, shape [n_frames, n_atoms, 3].
            energies: eV, shape [n_frames] or [n_frames, 1].
            forces: eV/A, shape [n_frames, n_atoms, 3].
            info: Provenance.

        Raises:
            DataError: If shapes disagree or values are not finite.
        """
        info = info or DatasetInfo("unnamed")
        where = info.source or info.name
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3):
            raise DataError(
                f"{where}: positions have shape {positions.shape}, "
                f"expected [frames, {len(numbers)}, 3]"
            )
        if forces is not None and np.shape(forces) != positions.shape:
            raise DataError(
                f"{where}: forces have shape {np.shape(forces)}, positions {positions.shape}"
            )
        n_frames, n_atoms, _ = positions.shape
        if energies is not None:
            energies = np.asarray(energies, dtype=np.float64)
            if energies.size != n_frames:
                raise DataError(f"{where}: {energies.size} energies for {n_frames} frames")
            energies = energies.reshape(n_frames)
        return AtomicDataset(
            numbers=np.tile(np.asarray(numbers, dtype=np.int64), n_frames),
            positions=positions.reshape(-1, 3),
            ptr=np.arange(n_frames + 1, dtype=np.int64) * n_atoms,
            energies=energies,
            forces=None if forces is None else np.asarray(forces, dtype=np.float64).reshape(-1, 3),
            info=info,
        )

    @staticmethod
    def from_frames(
        frames: Iterable[ase.Atoms],
        info: DatasetInfo | None = None,
        *,
        labels: Sequence[str] = (),
    ) -> AtomicDataset:
        """ASE frames: structures, tags, what constraints hold, and their state (see ``states``).

        Keys of ``info`` and ``arrays`` that name labels are left out (``state.is_label``), and so
        are ``labels``. For labels see :mod:`dcase.data.atoms_files`.
        """
        frames = list(frames)
        if not frames:
            raise DataError("no frames given")
        periodic = any(atoms.pbc.any() for atoms in frames)
        fixed, axes = _held(frames)
        states = tuple(FrameState.of(a, without=("tags",), labels=labels) for a in frames)
        tagged = any(atoms.has("tags") for atoms in frames)
        return AtomicDataset(
            numbers=np.concatenate([a.numbers for a in frames]).astype(np.int64),
            positions=np.concatenate([a.positions for a in frames]).astype(np.float64),
            ptr=np.concatenate([[0], np.cumsum([len(a) for a in frames])]).astype(np.int64),
            cells=np.stack([a.cell.array for a in frames]) if periodic else None,
            pbc=np.stack([a.pbc for a in frames]) if periodic else None,
            info=info or DatasetInfo("frames"),
            fixed=fixed,
            free_axes=axes,
            tags=np.concatenate([a.get_tags() for a in frames]).astype(np.int64)
            if tagged
            else None,
            states=states if any(states) else None,
        )

    @staticmethod
    def concatenate(parts: Sequence[AtomicDataset], info: DatasetInfo) -> AtomicDataset:
        """Several datasets as one, in this order.

        A label that one of them lacks is dropped, but for the stress of what is not periodic. Where
        only some are periodic, have fixed atoms or tags, the others are not periodic, have none,
        have 0.

        Raises:
            DataError: If there are no parts.
        """
        if not parts:
            raise DataError("no frames given")

        def joined(name: str, blank: _Blank | None = None) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            if all(v is None for v in values) or (blank is None and any(v is None for v in values)):
                return None
            return np.concatenate(
                [
                    blank(part) if value is None and blank is not None else value
                    for part, value in zip(parts, values, strict=True)
                ]
            )

        counts = np.concatenate([part.n_atoms for part in parts])
        return AtomicDataset(
            numbers=np.concatenate([part.numbers for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            ptr=np.concatenate([[0], np.cumsum(counts)]),
            energies=joined("energies"),
            forces=joined("forces"),
            cells=joined("cells", lambda part: np.zeros((len(part), 3, 3))),
            pbc=joined("pbc", lambda part: np.zeros((len(part), 3), dtype=bool)),
            stress=joined("stress", lambda part: np.full((len(part), 6), np.nan))
            if all(p.stress is not None or p.pbc is None or not p.pbc.any() for p in parts)
            else None,
            info=info,
            fixed=joined("fixed", lambda part: np.zeros(len(part.numbers), dtype=bool)),
            free_axes=joined(
                "free_axes", lambda part: np.tile(np.eye(3), (len(part.numbers), 1, 1))
            ),
            tags=joined("tags", lambda part: np.zeros(len(part.numbers), dtype=np.int64)),
            states=tuple(s for part in parts for s in part.states or [FrameState()] * len(part))
            if any(part.states is not None for part in parts)
            else None,
        )

    def fingerprint(self) -> str:
        """SHA-256 of structures and labels, to tell two datasets apart."""
        digest = hashlib.sha256()
        for value in (
            self.numbers,
            self.ptr,
            self.positions,
            self.energies,
            self.forces,
            self.cells,
            self.pbc,
            self.stress,
        ):
            digest.update(b"-" if value is None else np.ascontiguousarray(value).tobytes())
        # Of later date; without them the sum is what it always was.
        for name in ("fixed", "tags", "free_axes"):
            value = getattr(self, name)
            if value is not None:
                digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
        for number, state in enumerate(self.states or ()):
            if identity := state.identity():
                digest.update(f"{number} {identity}".encode())
        return digest.hexdigest()


def spans_its_periodic_directions(cell: np.ndarray, pbc: np.ndarray) -> bool:
    """Whether the vectors of periodic directions are there, and not all in one plane.

    Args:
        cell: Lattice vectors as rows, A, shape [3, 3]; that of another direction may be zero.
        pbc: Periodic directions, bool, shape [3].
    """
    vectors = cell[np.asarray(pbc, dtype=bool)]
    if len(vectors) == 0:
        return True
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(lengths).all() and lengths.min() > 1e-6):
        return False
    return bool(np.linalg.svd(vectors / lengths[:, None], compute_uv=False).min() > 1e-9)


_Blank = Callable[[AtomicDataset], np.ndarray]


def _held(frames: Sequence[ase.Atoms]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``fixed`` and ``free_axes`` of frames; None where none says anything."""
    found = [free_axes(bare(a) if CONSTRAINTS_KEY in a.info else a) for a in frames]
    if all(axes is None for axes in found):
        return None, None
    axes = np.concatenate(
        [
            np.tile(np.eye(3), (len(atoms), 1, 1)) if one is None else one
            for atoms, one in zip(frames, found, strict=True)
        ]
    )
    return marks(axes)
