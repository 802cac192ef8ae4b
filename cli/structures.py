"""What a command works on: structures, labelled frames, and where its results go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import click
import numpy as np

from dcase.data.dataset import AtomicDataset
from dcase.data.molecules import find_molecule, structure
from dcase.errors import DataError, OptionError
from dcase.files import check_readable
from dcase.potentials.potential import Potential


def load_structure(given: str | None, potential: Potential) -> tuple[ase.Atoms, str]:
    """Atoms, and where they came from.

    Args:
        given: A file that ASE reads (its last frame), the name of an MD17 molecule, or None: the
            molecule that the potential was trained on.
        potential: Asked for that molecule.

    Raises:
        DataError: If there is no such file or molecule, it cannot be read, or its positions are not
            numbers.
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
        return atoms, str(path)
    if find_molecule(given) is not None:
        return structure(given), f"{given} (shipped geometry)"
    raise DataError(f"{given}: no such file, and no molecule of that name")


def molecule_of(potential: Potential) -> str | None:
    """The molecule that a potential was trained on, if dcase knows it."""
    name = potential.metadata.get("dataset", {}).get("molecule") or ""
    return name if find_molecule(name) else None


def load_frames(
    file: str,
    *,
    labels: str | None = None,
    energy_key: str | None = None,
    forces_key: str | None = None,
    index: str = ":",
    need: Sequence[str] = (),
) -> AtomicDataset:
    """Labelled frames from an MD17/rMD17 .npz, an OC22/OC20 .lmdb, or anything else through ASE.

    Args:
        file: The file.
        labels: Label set of an .npz that holds two.
        energy_key: Key of the energy; not for .npz and .lmdb.
        forces_key: Key of the forces; not for .npz and .lmdb.
        index: Frames, in ASE's notation.
        need: Labels that every frame of a file other than .npz must have.

    Raises:
        UsageError: If an option does not apply to this kind of file.
        DataError: If the file cannot be read.
        OptionError: If ``index`` cannot be understood.
    """
    kind = Path(file).suffix
    if kind != ".npz" and labels is not None:
        raise click.UsageError("--labels is for .npz files; use --energy-key and --forces-key")
    if kind in (".npz", ".lmdb") and (energy_key is not None or forces_key is not None):
        instead = "; use --labels" if kind == ".npz" else ""
        raise click.UsageError(f"--energy-key and --forces-key are not for {kind}{instead}")
    if kind == ".lmdb":
        from dcase.data.lmdb_frames import LmdbFile, read_lmdb

        with LmdbFile(file) as shard:
            chosen = range(len(shard))[_as_slice(index)]
        if not chosen:
            raise OptionError(f"--index {index} selects none of the frames of {file}")
        return read_lmdb(file, chosen, need=need)
    if kind != ".npz":
        from dcase.data.atoms_files import read_atoms

        return read_atoms(
            file, energy_key=energy_key, forces_key=forces_key, index=index, need=need
        )
    from dcase.data.npz import read_npz

    dataset = read_npz(file, labels)
    if index == ":":
        return dataset
    chosen = range(len(dataset))[_as_slice(index)]
    if not chosen:
        raise OptionError(f"--index {index} selects none of the {len(dataset)} frames of {file}")
    return dataset.subset(list(chosen))


def _as_slice(text: str) -> slice:
    from ase.io.formats import string2index

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
