"""MD17-style npz files: the original layout, rMD17's, and the files dcase generates."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.symbols import Symbols

from dcase.archives import damage
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.held import marks
from dcase.data.molecules import (
    MD17_THEORY,
    MOLECULES,
    RMD17_THEORY,
    XTB_THEORY,
    Molecule,
    find_molecule,
)
from dcase.data.state import FrameState
from dcase.errors import DataError, OptionError
from dcase.files import check_readable
from dcase.units import ENERGY_UNITS, LENGTH_UNITS, Units, unit_name

LABEL_SETS = ("md17", "rmd17")


def read_npz(
    path: str | os.PathLike[str],
    labels: str | None = None,
    *,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    forces_unit: str | None = None,
    notify: Callable[[str], None] | None = None,
) -> AtomicDataset:
    """Read frames of one molecule from an MD17-style npz.

    Layouts that are understood, recognised by their keys (n frames of N atoms):

    ========  ===================================  ===========================================
    quantity  MD17, sGDML and dcase's own files    rMD17
    ========  ===================================  ===========================================
    numbers   ``z`` [N]                            ``nuclear_charges`` [N]
    A         ``R`` [n, N, 3]                      ``coords`` [n, N, 3]
    energy    ``E`` [n] or [n, 1]                  ``energies`` [n]; ``old_energies``: MD17's
    forces    ``F`` [n, N, 3]                      ``forces`` [n, N, 3]; ``old_forces``: MD17's
    ========  ===================================  ===========================================

    Energies are kcal/mol and lengths A unless sGDML's keys ``e_unit`` and ``r_unit``, or the
    caller, say otherwise. sGDML's ``lattice`` (lattice vectors as columns) makes the
    frames periodic, its ``theory`` is kept. ``fixed`` (1: held) [N] or [n, N], or with a last axis
    of x, y, z, marks held atoms, and ``free_axes`` [N, 3, 3] or [n, N, 3, 3] free directions as
    :func:`dcase.data.held.free_axes` has them. Pickled objects are never loaded, so a hostile file
    cannot run code.

    Args:
        path: The file.
        labels: ``"md17"`` or ``"rmd17"`` picks the labels of an rMD17 file (None: rMD17's own). A
            file that has not the labels that are asked for is refused.
        energy_unit: Of a file that does not say it, see :class:`dcase.units.Units`.
        length_unit: The same for positions.
        forces_unit: The same for forces; None: energy over length.
        notify: Gets a line if a unit is taken by custom, because nobody says it.

    Returns:
        The frames, in eV and A, with the provenance filled in.

    Raises:
        OptionError: If ``labels`` is neither, or a unit is unknown.
        DataError: If the file is missing, damaged, lacks keys, or has wrong shapes or NaN.
    """
    path = Path(path)
    if labels is not None and labels not in LABEL_SETS:
        raise OptionError(f"labels must be 'md17' or 'rmd17', got {labels!r}")
    with _opened(path) as file:
        keys = set(file.files)
        if {"nuclear_charges", "coords"} <= keys:
            arrays, name, theory = _rmd17(path, file, labels)
            units = _units(path, file, energy_unit, length_unit, forces_unit, None)
        elif {"R", "z"} <= keys:
            arrays, name, theory = _md17(path, file, labels)
            known = theory in (MD17_THEORY, XTB_THEORY)
            told = None if known else notify
            units = _units(path, file, energy_unit, length_unit, forces_unit, told)
        else:
            raise DataError(
                f"{path} is not an MD17 or rMD17 file: it has the keys {_listed(keys)}, "
                "expected R, z, E, F or coords, nuclear_charges, energies, forces"
            )
        said = _text(file, "name")
        lattice = _array(path, file, "lattice") if "lattice" in keys else None
        electrons = _electrons(path, file)
        fixed, axes = marks(_axes(path, file, *arrays[1].shape[:2]))
    numbers, positions, energies, forces = arrays
    molecule = _guess(said, path.stem, numbers)
    dataset = AtomicDataset.from_arrays(
        numbers,
        positions * units.length_A,
        energies * units.energy_eV,
        forces * units.forces_eV_A,
        DatasetInfo(
            name=name,
            molecule="" if molecule is None else molecule.full_name,
            level_of_theory=theory,
            source=str(path),
            label_unit=units.energy,
            sha256=file_sha256(path),
        ),
    )
    if electrons:
        dataset = replace(dataset, states=(FrameState(electrons),) * len(dataset))
    dataset = replace(dataset, fixed=fixed, free_axes=axes)
    if lattice is None or not lattice.any():
        return dataset
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise DataError(f"{path}: 'lattice' has shape {lattice.shape}, expected 3x3 finite numbers")
    # sGDML's lattice vectors are columns.
    cell = lattice.astype(np.float64).T * units.length_A
    return replace(
        dataset,
        cells=np.tile(cell, (len(dataset), 1, 1)),
        pbc=np.ones((len(dataset), 3), dtype=bool),
    )


def _electrons(path: Path, file: Any) -> dict[str, float]:
    """Charge and multiplicity of all frames, as ``dcase data generate`` writes them."""
    found = {}
    for name in ("charge", "multiplicity"):
        if name in file.files:
            value = _array(path, file, name)
            if value.size == 1 and value.dtype.kind in "iuf":
                found[name] = value.item()
    return found


def _axes(path: Path, file: Any, n_frames: int, n_atoms: int) -> np.ndarray | None:
    """Free directions of the atoms of all frames, [n_frames * n_atoms, 3, 3], where the file says.

    Raises:
        DataError: If they are not of these atoms, or not orthonormal.
    """
    key = next((key for key in ("free_axes", "fixed") if key in file.files), None)
    if key is None:
        return None
    axes = _array(path, file, key, kinds="biuf")
    if key == "fixed":
        if axes.shape in ((n_atoms,), (n_frames, n_atoms)) and axes.shape != (n_atoms, 3):
            axes = np.stack([axes] * 3, axis=-1)
        if axes.shape[-1:] == (3,):
            axes = np.stack([(axes == 0) * unit for unit in np.eye(3)], axis=-2)
    if axes.shape not in ((n_atoms, 3, 3), (n_frames, n_atoms, 3, 3)):
        raise DataError(f"{path}: {key!r} does not fit {n_frames} frames of {n_atoms} atoms")
    axes = axes.astype(np.float64)
    some = np.asarray(axes.any(axis=-1))
    if not np.allclose(axes @ np.swapaxes(axes, -1, -2), np.eye(3) * some[..., None]):
        raise DataError(f"{path}: {key!r} must hold orthonormal rows, or rows of zeros")
    return np.broadcast_to(axes, (n_frames, n_atoms, 3, 3)).reshape(-1, 3, 3).copy()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def same_formula(numbers: np.ndarray, molecule: Molecule) -> bool:
    """Whether atomic numbers are those of a molecule, in any order."""
    wanted: Mapping[str, int] = Symbols.fromsymbols(molecule.formula).formula.count()
    return Counter(Symbols(np.asarray(numbers, dtype=int))) == Counter(wanted)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The npz, open. The handle is ours, because numpy forgets to close that of a damaged file."""
    check_readable(path)
    wrong = damage(path) if zipfile.is_zipfile(path) else ""
    if wrong:
        raise DataError(f"{path} is damaged or cut short ({wrong}); fetch or make it again")
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(open(path, "rb"))
            file = np.load(handle, allow_pickle=False)
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{path} is damaged or cut short; fetch or make it again") from error
        except Exception as error:  # numpy raises whatever its parsing stumbles on
            raise DataError(f"{path} is not an npz file (pickles are not loaded)") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds a single array, not an npz with R, z, E, F")
        yield stack.enter_context(file)


def _array(path: Path, file: Any, key: str, kinds: str = "iuf") -> np.ndarray:
    """One numeric array of the file."""
    if key not in file.files:
        raise DataError(f"{path} has no key {key!r}, only {_listed(file.files)}")
    try:
        value: np.ndarray = file[key]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key!r} holds pickled Python objects, which are never loaded; "
                "save plain arrays"
            ) from error
        raise DataError(f"{path}: {key!r} is damaged; fetch or make the file again") from error
    except Exception as error:  # zipfile, zlib and numpy raise whatever they stumble on
        raise DataError(
            f"{path}: {key!r} is damaged or cut short; fetch or make the file again"
        ) from error
    if value.dtype.kind not in kinds:
        raise DataError(f"{path}: {key!r} holds {value.dtype}, not real numbers")
    return value


def _checked(path: Path, file: Any, names: tuple[str, str, str, str]) -> Arrays:
    """Numbers, positions, energies, forces as float64 with checked shapes (units of the file)."""
    z, r, e, f = names
    # Every key is looked for before the first, possibly large, array is read.
    for key in names:
        if key not in file.files:
            raise DataError(f"{path} has no key {key!r}, only {_listed(file.files)}")
    numbers, positions = _array(path, file, z), _array(path, file, r)
    energies, forces = _array(path, file, e), _array(path, file, f)
    if numbers.ndim != 1 or not (numbers == np.round(numbers)).all():
        raise DataError(f"{path}: {z!r} must be a list of atomic numbers, shape [atoms]")
    if positions.ndim != 3 or positions.shape[1:] != (len(numbers), 3):
        raise DataError(
            f"{path}: {r!r} has shape {positions.shape}, expected [frames, {len(numbers)}, 3]"
        )
    n_frames = len(positions)
    if energies.shape not in ((n_frames,), (n_frames, 1)):
        raise DataError(f"{path}: {e!r} has shape {energies.shape}, expected [{n_frames}]")
    if forces.shape != positions.shape:
        raise DataError(f"{path}: {f!r} has shape {forces.shape}, expected {positions.shape}")
    return (
        numbers.astype(np.int64),
        positions.astype(np.float64),
        energies.astype(np.float64).reshape(n_frames),
        forces.astype(np.float64),
    )


def _rmd17(path: Path, file: Any, labels: str | None) -> tuple[Arrays, str, str]:
    keys = set(file.files)
    if labels == "md17":
        if not {"old_energies", "old_forces"} <= keys:
            raise DataError(
                f"{path} has no MD17 labels (old_energies, old_forces), only {_listed(keys)}"
            )
        names = ("nuclear_charges", "coords", "old_energies", "old_forces")
        return _checked(path, file, names), "md17", MD17_THEORY
    names = ("nuclear_charges", "coords", "energies", "forces")
    return _checked(path, file, names), "rmd17", RMD17_THEORY


def _md17(path: Path, file: Any, labels: str | None) -> tuple[Arrays, str, str]:
    theory = _text(file, "theory")
    if theory.lower() in ("", "unknown"):
        # Nobody else writes these names; any other file keeps its theory to itself.
        stem = path.stem.lower()
        known = stem.startswith("md17_") or path.name.lower() in {m.md17_file for m in MOLECULES}
        theory = MD17_THEORY if known or labels == "md17" else "unknown"
    generated = theory == XTB_THEORY
    if labels == "rmd17" or (labels == "md17" and generated):
        raise DataError(
            f"{path} has no {labels} labels: its only labels are of level of theory {theory}"
        )
    if generated:
        name = "xtb"
    else:
        name = "md17" if labels == "md17" or theory == MD17_THEORY else path.stem
    return _checked(path, file, ("z", "R", "E", "F")), name, theory


def _units(
    path: Path,
    file: Any,
    energy: str | None,
    length: str | None,
    forces: str | None,
    notify: Callable[[str], None] | None,
) -> Units:
    """Units of the file: its own word, else the caller's, else MD17's custom."""
    said = {"energy": _text(file, "e_unit"), "length": _text(file, "r_unit")}
    chosen = {}
    for what, given, known, custom in (
        ("energy", energy, ENERGY_UNITS, "kcal/mol"),
        ("length", length, LENGTH_UNITS, "A"),
    ):
        own = None
        if said[what]:
            try:
                own = unit_name(said[what], known)
            except OptionError as error:
                raise DataError(f"{path}: {error}") from error
        if given is not None:
            given = unit_name(given, known)
            if own not in (None, given):
                raise DataError(f"{path} says its {what} unit is {own}, not {given}; drop one")
        elif own is None and notify is not None and what == "energy":
            notify(f"{path} does not say its energy unit: taken as {custom} (--energy-unit)")
        chosen[what] = own or given or custom
    return Units(chosen["energy"], chosen["length"], forces or "")


def _text(file: Any, key: str) -> str:
    """A string the file says about itself, or "" if it does not, or not as plain text."""
    if key not in file.files:
        return ""
    try:
        value = file[key]
    except ValueError:
        return ""  # a pickled name in an old file: do without (the checksums were right)
    if value.dtype.kind not in "SU" or value.size != 1:
        return ""
    text = value.reshape(-1)[0]
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _guess(said: str, stem: str, numbers: np.ndarray) -> Molecule | None:
    """The molecule by the file's own word or its name, if the atoms agree."""
    words = [said, *re.split(r"[\W_]+", stem)]
    for word in words:
        molecule = find_molecule(word) if len(word) > 3 else None  # "sal" may mean anything
        if molecule is not None and same_formula(numbers, molecule):
            return molecule
    return None


def _listed(keys: Any) -> str:
    return ", ".join(sorted(keys)) or "none"
