"""Frames of a run as files, and the first frames of one that starts from a structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.selection import Fingerprint, fingerprint
from dcase.data.state import CONSTRAINTS_KEY, FrameState, bare, for_extxyz
from dcase.errors import DataError
from dcase.files import atomic_path


def write_frames(path: Path, frames: Sequence[Atoms]) -> None:
    """Write an extxyz file atomically."""
    with atomic_path(path) as temporary:
        write(temporary, [for_extxyz(frame) for frame in frames], format="extxyz")


def read_structures(path: Path) -> list[Atoms]:
    """Frames of an extxyz file with all their state, without calculators."""
    frames = joined([path])
    for frame in frames:
        frame.calc = None
        FrameState.of(frame).put_on(frame)  # constraints that extxyz has no column for
        frame.info.pop(CONSTRAINTS_KEY, None)
    return frames


def read_labelled(paths: Sequence[Path], info: DatasetInfo) -> AtomicDataset:
    """Labelled frames of several files as one dataset, in this order."""
    parts = [read_atoms(path) for path in paths]
    return AtomicDataset.concatenate(parts, info)


def joined(paths: Sequence[Path]) -> list[Atoms]:
    """Frames of several extxyz files with all they carry."""
    frames: list[Atoms] = []
    for path in paths:
        found = read(path, index=":", format="extxyz")
        frames += found if isinstance(found, list) else [found]
    return frames


def info_of(theory: str, molecule: str) -> DatasetInfo:
    """Where the frames of an active learning run come from."""
    return replace(
        DatasetInfo("active learning"), level_of_theory=theory, molecule=molecule, source=""
    )


def fingerprints_of(dataset: AtomicDataset) -> list[Fingerprint]:
    """Of every frame."""
    return [fingerprint(atoms) for atoms in dataset]


def rattled(structure: Atoms, count: int, amplitude_A: float, seed: int) -> list[Atoms]:
    """Copies of a structure with normally distributed displacements.

    The first is the structure itself, the last has displacements of ``amplitude_A`` (standard
    deviation of a coordinate), and those between grow evenly.

    Args:
        structure: Its calculator, momenta and labels are not copied; all its state is.
        count: Frames wanted.
        amplitude_A: A.
        seed: Of the displacements.
    """
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        frame = bare(structure)
        frame.arrays.pop("momenta", None)
        share = number / (count - 1) if count > 1 else 0.0
        frame.positions += share * amplitude_A * rng.standard_normal(frame.positions.shape)
        frames.append(frame)
    return frames


def rounded(frames: Sequence[Atoms], path: Path) -> list[Atoms]:
    """Write frames and read them back: their positions are then those in the file, to the last bit.

    Raises:
        DataError: If there are none.
    """
    if not frames:
        raise DataError(f"no frames for {path}")
    write_frames(path, frames)
    return read_structures(path)
