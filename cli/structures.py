"""What a command works on: structures, labelled frames, and where its results go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
import ase.io
import click
import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.frames import Reading, check_applies, read_frames
from dcase.data.molecules import find_molecule, structure
from dcase.data.state import bare
from dcase.errors import DataError, OptionError
from dcase.files import check_readable
from dcase.potentials.graphs.graph import half_neighbour_list
from dcase.potentials.potential import Potential


def load_structure(given: str | None, potential: Potential) -> tuple[ase.Atoms, str]:
    """Atoms, and where they came from.

    Args:
        given: A file that ASE reads (its last frame), the name of an MD17 molecule, or None: the
            molecule that the potential was trained on.
        potential: Asked for that molecule.

    Raises:
        DataError: If there is no such file or molecule, it cannot be read, its positions are not
            numbers, or most of its atoms are out of reach of all others.
    """
    if given is None:
        trained_on = molecule_of(potential)
        if trained_on is None:
            raise DataError(
                "the potential was not trained on a molecule that dcase knows; give a structure "
                "with --structure FILE"
            )
        return structure(trained_on), f"{trained_on} (shipped geometry)"
    path = Path(given)
    if path.exists():
        check_readable(path)
        try:
            atoms = ase.io.read(path)
        except Exception as error:  # ASE's readers raise all sorts
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{path}: cannot be read as a structure ({reason})") from error
        assert isinstance(atoms, ase.Atoms)
        if len(atoms) == 0:
            raise DataError(f"{path}: holds no atoms")
        finite = np.isfinite(atoms.positions).all(axis=1)
        if not finite.all():
            raise DataError(f"{path}: the position of atom {int(np.argmin(finite))} is not finite")
        _refuse_mostly_alone(atoms, str(path), potential)
        return bare(atoms), str(path)  # what a calculation said of it before is not wanted
    if find_molecule(given) is not None:
        return structure(given), f"{given} (shipped geometry)"
    raise DataError(f"{given}: no such file, and no molecule of that name")


def _refuse_mostly_alone(atoms: ase.Atoms, where: str, potential: Potential | None) -> None:
    """An atom may be alone; that most are is a sign of another unit of length."""
    if potential is None or len(atoms) == 1:
        return
    system = (atoms.positions, potential.cutoff, atoms.cell.array, atoms.pbc)
    count = len(atoms) - len(np.unique(half_neighbour_list(*system)[0]))
    if 2 * count > len(atoms):
        raise DataError(
            f"{where}: {count} of {len(atoms)} atoms have no neighbour within the cutoff of "
            f"{potential.cutoff:g} A; are the positions in Angstrom?"
        )


def molecule_of(potential: Potential) -> str | None:
    """The molecule that a potential was trained on, if dcase knows it."""
    name = potential.metadata.get("dataset", {}).get("molecule") or ""
    return name if find_molecule(name) else None


def load_frames(file: str, reading: Reading, **options: Any) -> AtomicDataset:
    """:func:`dcase.data.frames.read_frames`; an option that does not apply is a matter of usage.

    Raises:
        UsageError: If an option does not apply to this kind of file.
    """
    try:
        check_applies(file, reading)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    return read_frames(file, reading, **options)
