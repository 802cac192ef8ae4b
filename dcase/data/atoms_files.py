"""Labelled frames from any file that ASE reads: extxyz, .traj, .db, ..."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.db import connect
from ase.io.formats import UnknownFileTypeError, string2index
from ase.stress import full_3x3_to_voigt_6_stress

from dcase.data.dataset import (
    SMALLEST_VOLUME,
    AtomicDataset,
    DatasetInfo,
    spans_its_periodic_directions,
)
from dcase.data.npz import file_sha256
from dcase.errors import DataError, OptionError
from dcase.files import check_readable, reason
from dcase.units import Units

LABELS = ("energy", "forces", "stress")
_UNREAD = "unread_"


def read_atoms(
    path: str | os.PathLike[str],
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
    stress_key: str | None = None,
    virial_key: str | None = None,
    need: Sequence[str] = ("energy", "forces"),
    index: str | int | slice = ":",
    units: Units | None = None,
    notify: Callable[[str], None] | None = None,
) -> AtomicDataset:
    """Read frames with labels through ASE.

    Each label is looked for in this order, in every frame alike:

    1. the explicit key, if one is given, and then nowhere else: in ``atoms.info``, the key-value
       pairs and data of a .db row, ``atoms.arrays``, and the calculator's results;
    2. ``REF_energy``, ``REF_forces``, ``REF_stress`` (then ``REF_virials``);
    3. the calculator's results, where ASE puts the ``energy``, ``forces`` and ``stress`` of extxyz,
       .traj and .db; ``free_energy`` only where there is no ``energy``;
    4. ``energy``, ``forces``, ``stress`` (then ``virials``, ``virial``) left in info or arrays.

    Forces are taken as the file has them: constraints such as FixAtoms do not zero them (as
    ``get_forces(apply_constraint=False)``), but are kept as ``AtomicDataset.fixed`` and
    ``free_axes`` (FixCartesian, FixScaled, FixedPlane, FixedLine). Stress may be
    Voigt (xx, yy, zz, yz, xz, xy), 3x3 or nine numbers, in eV/A^3 with ASE's sign (positive =
    tension); a key with "viri" in its name holds virials W in eV, and stress = -W / volume.
    Frames that are not periodic, or whose cell has no volume, have none (NaN), whatever the file
    says. Energies are eV, forces eV/A, unless ``units`` says otherwise.

    Args:
        path: The file.
        energy_key: Where the energy is, instead of the places above.
        forces_key: The same for forces.
        stress_key: The same for stress or virials.
        virial_key: The same for virials, whatever their key is called; instead of ``stress_key``.
        need: Labels that every frame must have, from "energy", "forces", "stress". A label with
            an explicit key is needed as well. Others are read if all frames have them, whole and
            of a meaning, and else left out; the stress if all periodic frames have it.
        index: Which frames, as in ``ase.io.read``, e.g. ``":100"``; for a .db also a query.
        units: Of the numbers in the file; default: eV and A.
        notify: Gets a line about each label that some frames have and that is left out.

    Raises:
        OptionError: If ``need`` or ``index`` cannot be understood.
        DataError: If the file is missing or unreadable, or a frame lacks a needed label; the
            message names the frame and the keys it has.
    """
    path = Path(path)
    explicit = {"energy": energy_key, "forces": forces_key, "stress": stress_key or virial_key}
    virials = virial_key is not None
    if isinstance(need, str) or not set(need) <= set(LABELS):
        raise OptionError(f"need must be a list of {', '.join(LABELS)}, got {need!r}")
    needed = set(need) | {label for label, key in explicit.items() if key is not None}
    frames = _frames(path, index)
    units = units or Units()
    for number, atoms in enumerate(frames):
        if units.length_A != 1.0:
            atoms.set_cell(atoms.cell.array * units.length_A)
            atoms.positions *= units.length_A
        if not spans_its_periodic_directions(atoms.cell.array, atoms.pbc):
            raise DataError(f"{path}: frame {number} is periodic, but its cell has no volume")

    found: dict[str, list[Any] | None] = {}
    for label in LABELS:
        values: list[Any] = []
        useless: list[str] = []  # why, frame by frame
        real = 0  # values that are no NaN
        for number, atoms in enumerate(frames):
            none = label == "stress" and not _can_have_stress(atoms)
            if none:
                values.append(np.full(6, np.nan))
            try:
                value = _label(path, number, atoms, label, explicit[label], units, virials)
            except DataError as error:
                if label in needed and not none:
                    raise
                useless.append(str(error).removeprefix(f"{path}: "))
                continue
            if none:
                if value is not None:
                    useless.append(f"frame {number}: stress of a system that is not periodic")
                continue
            if value is not None:
                values.append(value)
                real += 1
            elif label in needed:
                raise DataError(
                    f"{path}: frame {number} has no "
                    + (f"{label} under the key {explicit[label]!r}" if explicit[label] else label)
                    + f"; it has {_keys(atoms)}"
                )
        found[label] = values if len(values) == len(frames) else None
        if not real:
            found[label] = None
            if label in needed:
                raise DataError(f"{path}: no frame can have a stress: none is periodic")
        if found[label] is None and (real or useless) and notify is not None:
            why = useless[0] if useless else f"{len(frames) - len(values)} frames have none"
            more = f", and {len(useless) - 1} more" if len(useless) > 1 else ""
            notify(f"{path}: {label} not used ({why}{more})")

    structures = AtomicDataset.from_frames(frames, labels=[k for k in explicit.values() if k])
    energy, forces, stress = (found[label] for label in LABELS)
    return AtomicDataset(
        numbers=structures.numbers,
        positions=structures.positions,
        ptr=structures.ptr,
        energies=None if energy is None else np.array(energy, dtype=np.float64),
        forces=None if forces is None else np.concatenate(forces).astype(np.float64),
        cells=structures.cells,
        pbc=structures.pbc,
        stress=None if stress is None else np.stack(stress).astype(np.float64),
        info=DatasetInfo(
            path.stem, source=str(path), label_unit=units.energy, sha256=file_sha256(path)
        ),
        fixed=structures.fixed,
        free_axes=structures.free_axes,
        tags=structures.tags,
        states=structures.states,
    )


def _can_have_stress(atoms: ase.Atoms) -> bool:
    return bool(atoms.pbc.any()) and abs(atoms.cell.volume) > SMALLEST_VOLUME


def _frames(path: Path, index: str | int | slice) -> list[ase.Atoms]:
    check_readable(path)  # also keeps out ASE's bundle folders, which may hold pickles
    database = path.suffix in (".db", ".json")
    chosen = string2index(index) if isinstance(index, str) and _is_index(index) else index
    if isinstance(chosen, str) and not database:
        raise OptionError(f"index {index!r} is not like ':', ':100' or '-1'")
    try:
        read = _rows(path, chosen) if database else ase.io.read(path, index=chosen)
    except UnknownFileTypeError as error:
        raise DataError(
            f"{path}: ASE does not know this kind of file; use extxyz, .traj or .db"
        ) from error
    except (IndexError, StopIteration) as error:
        raise DataError(f"{path} has no frames at index {index!r}") from error
    except MemoryError as error:
        raise DataError(f"{path} is damaged, or does not fit in memory") from error
    except ValueError as error:
        if "special 3x3 matrix" not in str(error):
            raise _damaged(path, error) from error
        # ASE reads no frame at all where one stress is a word or a pressure.
        read = _without_stress(path, chosen)
    except Exception as error:  # ASE's readers raise whatever their parsing stumbles on
        raise _damaged(path, error) from error
    frames = read if isinstance(read, list) else [read]
    if not frames:
        raise DataError(f"{path} has no frames at index {index!r}")
    for number, atoms in enumerate(frames):
        if len(atoms) == 0:
            raise DataError(f"{path}: frame {number} has no atoms")
    return frames


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: ASE cannot read it, it may be damaged ({reason(error)[:160]})")


def _without_stress(path: Path, chosen: str | int | slice) -> list[ase.Atoms] | ase.Atoms:
    """Frames of an extxyz whose stress or virial is no 3x3 matrix, these under another name."""
    text = path.read_text(encoding="utf-8", errors="replace")
    renamed = re.sub(r"(?<![\w])(stress|virial)(?=\s*=)", rf"{_UNREAD}\1", text)
    try:
        return ase.io.read(io.StringIO(renamed), index=chosen, format="extxyz")
    except Exception as error:
        raise _damaged(path, error) from error


def _is_index(text: str) -> bool:
    """Whether a string is an index or slice; else it can only be a database query."""
    return re.fullmatch(r"-?\d*(:(-?\d*)){0,2}", text) is not None and text not in ("", "-")


def _rows(path: Path, chosen: str | int | slice) -> list[ase.Atoms] | ase.Atoms:
    """Frames of an ASE database with their columns and data, which ``ase.io.read`` leaves out."""
    with connect(path, use_lock_file=False) as database:
        rows = database.select(chosen if isinstance(chosen, str) else None)
        frames = [row.toatoms(add_additional_information=True) for row in rows]
    return frames if isinstance(chosen, str) else frames[chosen]


def _places(atoms: ase.Atoms) -> list[dict[str, Any]]:
    """Everything a frame carries by name: info, .db pairs, .db data, arrays, calculator."""
    info = atoms.info
    return [
        {k: v for k, v in info.items() if k not in ("key_value_pairs", "data")},
        info.get("key_value_pairs") or {},
        info.get("data") or {},
        {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")},
        _results(atoms),
    ]


def _results(atoms: ase.Atoms) -> dict[str, Any]:
    """The calculator's results, without constraints applied."""
    results = getattr(atoms.calc, "results", None) or {}
    return {key: value for key, value in results.items() if value is not None}


def _keys(atoms: ase.Atoms) -> str:
    names = ("info", "key-value pairs", "data", "arrays", "calculator")
    listed = [
        f"{name}: {', '.join(sorted(map(str, place)))}"
        for name, place in zip(names, _places(atoms), strict=True)
        if place
    ]
    return "; ".join(listed)[:300] or "no labels at all"


def _label(
    path: Path,
    number: int,
    atoms: ase.Atoms,
    label: str,
    explicit: str | None,
    units: Units,
    virials: bool,
) -> np.ndarray | float | None:
    """A label of one frame in eV, eV/A or eV/A^3, or None if the frame has none."""
    *elsewhere, results = _places(atoms)
    ref = {"energy": ["REF_energy"], "forces": ["REF_forces"]}.get(
        label, ["REF_stress", "REF_virials"]
    )
    calculated = {"energy": ["energy", "free_energy"]}.get(label, [label])
    plain = {"stress": ["stress", "virials", "virial"]}.get(label, [label])
    if label == "stress":
        plain += [f"{_UNREAD}stress", f"{_UNREAD}virial"]
    searched: list[tuple[str, list[dict[str, Any]]]]
    if explicit is not None:
        searched = [(explicit, [*elsewhere, results])]
    else:
        searched = [(key, elsewhere) for key in ref]
        searched += [(key, [results]) for key in calculated]
        searched += [(key, elsewhere) for key in plain]
    for key, places in searched:
        for place in places:
            if key in place:
                where = f"{path}: frame {number}"
                return _shaped(where, atoms, label, key, place[key], units, virials)
    return None


def _shaped(
    where: str,
    atoms: ase.Atoms,
    label: str,
    key: str,
    value: Any,
    units: Units,
    virials: bool = False,
) -> np.ndarray | float:
    """``value`` as the label it is meant to be, in eV and A.

    Raises:
        DataError: If it has the wrong shape, is not numbers, or is not finite.
    """
    key = key.removeprefix(_UNREAD)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {key!r} does not hold numbers") from error
    if not np.isfinite(array).all():
        raise DataError(f"{where}: {key!r} is NaN or infinite")
    if label == "energy":
        if array.size != 1:
            raise DataError(f"{where}: {key!r} holds {array.size} numbers, expected one energy")
        return float(array.reshape(())) * units.energy_eV
    if label == "forces":
        if array.shape != (len(atoms), 3):
            raise DataError(f"{where}: {key!r} has shape {array.shape}, expected ({len(atoms)}, 3)")
        return array * units.forces_eV_A
    if array.size == 9:
        square = array.reshape(3, 3)
        if not np.allclose(square, square.T, rtol=1e-3, atol=1e-6):
            raise DataError(f"{where}: {key!r} is not a symmetric 3x3 matrix")
        array = full_3x3_to_voigt_6_stress(square)
    if array.shape != (6,):
        raise DataError(f"{where}: {key!r} has shape {array.shape}, expected 6 numbers or 3x3")
    if virials or "viri" in key.lower():
        volume = abs(atoms.cell.volume)
        if volume < SMALLEST_VOLUME:
            raise DataError(f"{where}: {key!r} cannot become stress: the cell has no volume")
        return -array * units.energy_eV / volume
    return array * units.stress_eV_A3
