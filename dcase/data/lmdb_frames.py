"""Frames in LMDB files as the Open Catalyst Project publishes them, read one by one.

Each file holds pickled PyTorch Geometric ``Data`` objects under the keys ``b"0"``, ``b"1"``, ...
(and often their number under ``b"length"``). The pickles are read by
:mod:`dcase.data.restricted_pickle`, which runs nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcase.data.dataset import AtomicDataset, DatasetInfo, spans_its_periodic_directions
from dcase.data.lmdb_pages import LmdbPages
from dcase.data.restricted_pickle import load_fields
from dcase.errors import DataError

OC20_THEORY = "RPBE (OC20)"
OC22_THEORY = "PBE+U (OC22)"
_ENERGY = ("y", "energy")
_FORCES = ("force", "forces")


class LmdbFile:
    """An LMDB file of frames, open for reading; close it, or use it in a ``with``.

    Args:
        path: The file, or a folder with a ``data.mdb``.

    Raises:
        DataError: If it cannot be read, is truncated or damaged, or is no LMDB file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._pages = LmdbPages(self.path / "data.mdb" if self.path.is_dir() else self.path)
        try:
            self._numbers = self._find_numbers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._pages.close()

    def __len__(self) -> int:
        return len(self._numbers)

    def _find_numbers(self) -> Sequence[int]:
        """The keys that are numbers, ascending; not one frame is read for it."""
        count = len(self._pages)
        count -= self._pages.get(b"length") is not None
        if count < 1:
            raise DataError(f"{self.path} has no frames")
        if self._pages.get(b"%d" % (count - 1)) is not None and self._pages.get(b"0"):
            return range(count)
        keys = [key for key in self._pages if key.isdigit()]
        if not keys:
            raise DataError(f"{self.path} has no frames under the keys 0, 1, ...")
        return sorted(map(int, keys))

    def blob(self, index: int) -> bytes:
        """The pickle of frame ``index``, counted from 0 without gaps.

        Raises:
            DataError: If it is not there, or damaged.
        """
        number = self._numbers[index]
        found = self._pages.get(b"%d" % number)
        if found is None:
            raise DataError(f"{self.path}: entry {number} is missing; fetch the file again")
        return found

    def where(self, index: int) -> str:
        """Names frame ``index`` in error messages."""
        return f"{self.path}: entry {self._numbers[index]}"


@dataclass(frozen=True)
class _Frame:
    """One frame; shapes as in AtomicDataset."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray | None
    pbc: np.ndarray
    energy: float | None
    forces: np.ndarray | None
    fixed: np.ndarray | None
    tags: np.ndarray | None
    theory: str


def read_lmdb(
    path: str | os.PathLike[str],
    chosen: Sequence[int] | np.ndarray | None = None,
    *,
    need: Sequence[str] = ("energy", "forces"),
) -> AtomicDataset:
    """Frames of an LMDB file of the Open Catalyst Project, in eV and A.

    ==========  ============================================================================
    quantity    field
    ==========  ============================================================================
    numbers     ``atomic_numbers`` [n]
    positions   ``pos`` [n, 3], A
    cell        ``cell`` [1, 3, 3] or [3, 3], A; periodic in all directions unless ``pbc`` says
                otherwise; without it the frame is a molecule
    energy      ``y``, else ``energy``, eV (OC22: the total energy; OC20: relative to the clean
                slab and gas-phase references)
    forces      ``force``, else ``forces`` [n, 3], eV/A
    fixed       ``fixed`` [n], not 0: held in place
    tags        ``tags`` [n]
    ==========  ============================================================================

    Frames with the mark ``oc22`` are of OC22 (1) or OC20 (0); that gives the level of theory.

    Args:
        path: The file.
        chosen: Which frames, in this order; None: all. Only these are read.
        need: Labels that every frame must have; others are kept if all frames have them.

    Returns:
        The frames; ``info.sha256`` is a checksum of their pickles.

    Raises:
        DataError: If the file or a frame is missing, damaged or refused, or lacks a needed label.
    """
    digest = hashlib.sha256()
    frames = []
    with LmdbFile(path) as file:
        for index in range(len(file)) if chosen is None else chosen:
            blob = file.blob(int(index))
            digest.update(len(blob).to_bytes(8, "little") + blob)
            where = file.where(int(index))
            frames.append(_frame(load_fields(blob, where), where, need))
    if not frames:
        raise DataError(f"{path}: an empty selection of frames was asked for")
    theories = sorted({frame.theory for frame in frames})
    if len(theories) > 1:
        raise DataError(f"{path}: mixes {' and '.join(theories)}; their energies do not compare")
    return _dataset(frames, DatasetInfo(
        Path(path).stem, "", theories[0], str(path), "eV", digest.hexdigest()
    ))  # fmt: skip


def _frame(fields: dict[str, Any], where: str, need: Sequence[str]) -> _Frame:
    def array(names: Sequence[str], shape: tuple[int, ...]) -> np.ndarray | None:
        for name in names:
            if name not in fields:
                continue
            try:
                value = np.asarray(fields[name], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: {name!r} does not hold numbers") from error
            single = shape == (1,) and value.size == 1
            if not single and value.shape not in (shape, (1, *shape)):
                raise DataError(f"{where}: {name!r} has shape {value.shape}, expected {shape}")
            return value.reshape(shape)
        return None

    numbers = np.asarray(fields.get("atomic_numbers", ()))
    usable = numbers.ndim == 1 and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()
    if not usable or not len(numbers):
        raise DataError(f"{where}: has no usable atomic_numbers; it holds {_names(fields)}")
    n_atoms = len(numbers)
    positions = array(["pos"], (n_atoms, 3))
    if positions is None:
        raise DataError(f"{where}: has no pos; it holds {_names(fields)}")
    cell, told = array(["cell"], (3, 3)), array(["pbc"], (3,))
    pbc = np.full(3, cell is not None) if told is None else told != 0
    if not spans_its_periodic_directions(np.zeros((3, 3)) if cell is None else cell, pbc):
        raise DataError(f"{where}: is periodic, but its cell has no volume")
    energy, forces = array(_ENERGY, (1,)), array(_FORCES, (n_atoms, 3))
    for label, value, names in (("energy", energy, _ENERGY), ("forces", forces, _FORCES)):
        if value is None and label in need:
            raise DataError(
                f"{where}: has no {label} ({' or '.join(names)}); it holds "
                f"{_names(fields)}; dcase trains on S2EF frames of training and "
                "validation sets (published test sets carry no labels)"
            )
        if value is not None and not np.isfinite(value).all():
            raise DataError(f"{where}: {label} is NaN or infinite")
    fixed, tags = array(["fixed"], (n_atoms,)), array(["tags"], (n_atoms,))
    mark = array(["oc22"], (1,))
    return _Frame(
        numbers=numbers.astype(np.int64),
        positions=positions,
        cell=cell,
        pbc=pbc,
        energy=None if energy is None else float(energy[0]),
        forces=forces,
        fixed=None if fixed is None else fixed != 0,
        tags=None if tags is None else tags.astype(np.int64),
        theory="unknown" if mark is None else OC22_THEORY if mark[0] else OC20_THEORY,
    )


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(sorted(map(str, fields)))[:200] or "nothing"


def _dataset(frames: Sequence[_Frame], info: DatasetInfo) -> AtomicDataset:
    """Frames as contiguous arrays."""

    def joined(name: str, blank: Any) -> np.ndarray | None:
        values = [getattr(frame, name) for frame in frames]
        if all(value is None for value in values):
            return None
        return np.concatenate(
            [blank(f) if v is None else v for f, v in zip(frames, values, strict=True)]
        )

    complete = {
        name: all(getattr(frame, name) is not None for frame in frames)
        for name in ("energy", "forces")
    }
    periodic = any(frame.pbc.any() for frame in frames)
    fixed = joined("fixed", lambda frame: np.zeros(len(frame.numbers), dtype=bool))
    return AtomicDataset(
        numbers=np.concatenate([frame.numbers for frame in frames]),
        positions=np.concatenate([frame.positions for frame in frames]),
        ptr=np.concatenate([[0], np.cumsum([len(frame.numbers) for frame in frames])]),
        energies=np.array([frame.energy for frame in frames]) if complete["energy"] else None,
        forces=joined("forces", None) if complete["forces"] else None,
        cells=np.stack([np.zeros((3, 3)) if f.cell is None else f.cell for f in frames])
        if periodic
        else None,
        pbc=np.stack([frame.pbc for frame in frames]) if periodic else None,
        info=info,
        fixed=fixed if fixed is not None and fixed.any() else None,
        tags=joined("tags", lambda frame: np.zeros(len(frame.numbers), dtype=np.int64)),
    )
