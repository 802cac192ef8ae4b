"""Labelled frames from a file of any kind: every command that takes frames reads them here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ase.io.formats import string2index

from dcase.data.dataset import AtomicDataset
from dcase.errors import OptionError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; what is None or "" is taken as the file has it.

    Attributes:
        labels: Label set of an .npz that holds two, ``"md17"`` or ``"rmd17"``.
        energy_key: Key of the energy; not for .npz and .lmdb.
        forces_key: Key of the forces; not for .npz and .lmdb.
        stress_key: Key of the stress (or of virials, where "viri" is in its name); not for .npz and
            .lmdb.
        virial_key: Key of virials in the unit of energies, W = -stress * volume, whatever its name.
        energy_unit: Unit of energies, :data:`dcase.units.ENERGY_UNITS`; else what the file says,
            else eV (an .npz that does not say: kcal/mol, as MD17's).
        length_unit: Unit of positions and cells, :data:`dcase.units.LENGTH_UNITS`; else A.
        forces_unit: ``"ENERGY/LENGTH"``, a minus in front: gradients; else from the other two.
        stress_unit: :data:`dcase.units.STRESS_UNITS`, a minus in front: positive in compression;
            else from the units of energy and length.
        theory: Level of theory of the labels.
    """

    labels: str | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    forces_unit: str | None = None
    stress_unit: str | None = None
    theory: str | None = None


def read_frames(
    path: str | os.PathLike[str],
    reading: Reading | None = None,
    *,
    index: str = ":",
    need: Sequence[str] = (),
    notify: Callable[[str], None] | None = None,
) -> AtomicDataset:
    """Labelled frames from an MD17-style .npz, an OC22/OC20 .lmdb, or anything else through ASE.

    Args:
        path: The file.
        reading: Keys, units, and what else the file does not say.
        index: Frames, in ASE's notation.
        need: Labels that every frame must have, from "energy", "forces", "stress".
        notify: Gets a line about each label that is there and cannot be used.

    Raises:
        OptionError: If something asked for does not apply to this kind of file.
        DataError: If the file cannot be read, or a needed label is missing.
    """
    reading = reading or Reading()
    path = Path(path)
    check_applies(path, reading)
    kind = path.suffix
    if kind == ".npz":
        dataset = _npz(path, reading, index, notify)
    elif kind == ".lmdb":
        dataset = _lmdb(path, index, need)
    else:
        from dcase.data.atoms_files import read_atoms
        from dcase.units import Units

        units = Units(
            reading.energy_unit or "eV", reading.length_unit or "A", reading.forces_unit or "",
            reading.stress_unit or "",
        )  # fmt: skip
        dataset = read_atoms(
            path, energy_key=reading.energy_key, forces_key=reading.forces_key,
            stress_key=reading.stress_key, virial_key=reading.virial_key, index=index,
            need=need, units=units, notify=notify,
        )  # fmt: skip
    if reading.theory:
        dataset = replace(dataset, info=replace(dataset.info, level_of_theory=reading.theory))
    return dataset


def check_applies(path: str | os.PathLike[str], reading: Reading) -> None:
    """Whether everything asked for applies to this kind of file.

    Raises:
        OptionError: If it does not.
    """
    kind = Path(path).suffix
    if kind != ".npz" and reading.labels is not None:
        raise OptionError("--labels is for .npz files; use --energy-key and --forces-key")
    if kind in (".npz", ".lmdb") and (reading.energy_key or reading.forces_key):
        instead = "; use --labels" if kind == ".npz" else ""
        raise OptionError(f"--energy-key and --forces-key are not for {kind}{instead}")
    of_stress = (reading.stress_key, reading.virial_key, reading.stress_unit)
    if kind in (".npz", ".lmdb") and any(of_stress):
        raise OptionError(f"stress is not read from {kind}; use extxyz, .traj or .db")
    if reading.stress_key and reading.virial_key:
        raise OptionError("--stress-key and --virial-key exclude each other")
    if reading.virial_key and reading.stress_unit:
        raise OptionError("virials are in the unit of energies; use --energy-unit")
    if kind == ".lmdb" and (reading.energy_unit or reading.length_unit or reading.forces_unit):
        raise OptionError(f"{path}: an .lmdb of OC22 or OC20 is in eV and A; drop the units")


def _npz(
    path: Path, reading: Reading, index: str, notify: Callable[[str], None] | None
) -> AtomicDataset:
    from dcase.data.npz import read_npz

    dataset = read_npz(
        path, reading.labels, energy_unit=reading.energy_unit, length_unit=reading.length_unit,
        forces_unit=reading.forces_unit, notify=notify,
    )  # fmt: skip
    if index == ":":
        return dataset
    chosen = range(len(dataset))[_as_slice(index)]
    if not chosen:
        raise OptionError(f"--index {index} selects none of the {len(dataset)} frames of {path}")
    return dataset.subset(list(chosen))


def _lmdb(path: Path, index: str, need: Sequence[str]) -> AtomicDataset:
    from dcase.data.lmdb_frames import LmdbFile, read_lmdb

    with LmdbFile(path) as shard:
        chosen = range(len(shard))[_as_slice(index)]
    if not chosen:
        raise OptionError(f"--index {index} selects none of the frames of {path}")
    return read_lmdb(path, chosen, need=need)


def _as_slice(text: str) -> slice:
    try:
        found = string2index(text)
    except ValueError:
        found = text
    if isinstance(found, slice):
        return found
    if isinstance(found, int):
        return slice(found, found + 1 or None)
    raise OptionError(
        f"--index {text!r} is not understood; use ASE's notation: 5, :100, -50:, ::10"
    )
