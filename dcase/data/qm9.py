"""QM9: 130 831 relaxed molecules of C, H, N, O and F with up to 9 heavy atoms, and 16 properties.

Labels: Ramakrishnan, Dral, Rupp and von Lilienfeld, Sci. Data 1, 140022 (2014), B3LYP/6-31G(2df,p).
They come from the PyPI package ``qm9pack`` (the whole set as .csv files) or from the authors'
archive on figshare. Either is read once; the arrays are then kept in the cache folder.

The archive has 133 885 molecules; the authors list 3 054 of them as failing a consistency check
(their structure is no longer that of the SMILES they started from). As everybody does, these are
left out; ``qm9pack`` has them left out already.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.download import cache_folder
from dcase.data.qm9_files import (
    COLUMNS,
    Molecules,
    fetch_archive,
    qm9pack_folder,
    read_archive,
    read_cache,
    read_qm9pack,
    write_cache,
)
from dcase.errors import DataError, OptionError
from dcase.units import ENERGY_UNITS

THEORY = "B3LYP/6-31G(2df,p)"
SOURCES = ("auto", "qm9pack", "figshare")
N_TRAIN, N_VAL = 110_000, 10_000  # SchNet's split (arXiv:1706.08566, section 5.1)
HARTREE = ENERGY_UNITS["Hartree"]


@dataclass(frozen=True)
class Target:
    """A property of QM9.

    Attributes:
        name: The name that papers use.
        column: Where it is in the files.
        unit: Unit in memory and in reports.
        factor: From the files' unit to that one.
        text: What it is.
        atomised: Less the energies of the free atoms.
    """

    name: str
    column: str
    unit: str
    factor: float
    text: str
    atomised: bool = False


_ENERGIES = {
    "U0": "internal energy at 0 K",
    "U": "internal energy at 298.15 K",
    "H": "enthalpy at 298.15 K",
    "G": "free energy at 298.15 K",
}

TARGETS = {
    target.name: target
    for target in (
        Target("mu", "mu", "Debye", 1.0, "dipole moment"),
        Target("alpha", "alpha", "a0^3", 1.0, "isotropic polarizability"),
        Target("homo", "homo", "eV", HARTREE, "energy of the highest occupied orbital"),
        Target("lumo", "lumo", "eV", HARTREE, "energy of the lowest unoccupied orbital"),
        Target("gap", "gap", "eV", HARTREE, "gap between them"),
        Target("r2", "r2", "a0^2", 1.0, "electronic spatial extent"),
        Target("zpve", "zpve", "eV", HARTREE, "zero-point vibrational energy"),
        *(Target(name, name, "eV", HARTREE, text) for name, text in _ENERGIES.items()),
        Target("Cv", "Cv", "cal/mol/K", 1.0, "heat capacity at 298.15 K"),
        *(
            Target(f"{name}_atom", name, "eV", HARTREE, f"{text}, less that of the atoms", True)
            for name, text in _ENERGIES.items()
        ),
    )
}

# Free atoms in Hartree (Cv: cal/mol/K), from atomref.txt of the archive.
_FREE_ATOMS = {
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
    "Cv": {1: 2.981, 6: 2.981, 7: 2.981, 8: 2.981, 9: 2.981},
}


def get_target(name: str) -> Target:
    """A target by name; upper and lower case do not matter where that is clear.

    Raises:
        OptionError: If there is no such target.
    """
    if name in TARGETS:
        return TARGETS[name]
    alike = [target for known, target in TARGETS.items() if known.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    raise OptionError(f"QM9 has no target {name!r}; it has: {', '.join(TARGETS)}")


def atom_references(target: str) -> dict[int, float]:
    """The published values of the free atoms by atomic number, in the target's unit.

    Args:
        target: U0, U, H, G or Cv; of any other target they are all 0.

    Raises:
        OptionError: If there is no such target.
    """
    chosen = get_target(target)
    table = {} if chosen.atomised else _FREE_ATOMS.get(chosen.column, {})
    return {z: table.get(z, 0.0) * chosen.factor for z in (1, 6, 7, 8, 9)}


def load_qm9(
    target: str = "U0",
    source: str | os.PathLike[str] = "auto",
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    notify: Callable[[str], None] | None = None,
    progress: bool = True,
) -> AtomicDataset:
    """All molecules of QM9 with one of their properties.

    Args:
        target: One of :data:`TARGETS`.
        source: ``"qm9pack"``: the installed package of that name; ``"figshare"``: the authors'
            archive, downloaded if need be; ``"auto"``: what is in the cache, else the package,
            else the download; anything else: an archive ``dsgdb9nsd.xyz.tar.bz2`` or a folder with
            its files, read as it is (with ``uncharacterized.txt`` beside it, if it is there, left
            out).
        cache_dir: See :func:`dcase.data.download.cache_folder`.
        notify: Called with one line when there is something to know.
        progress: Show on stderr how the reading goes.

    Returns:
        The molecules in the order of their numbers, the property as ``energies`` in the unit of the
        target, which ``info.quantity`` names.

    Raises:
        OptionError: If there is no such target.
        DataError: If nothing can be had, or a file is damaged.
        MissingExtraError: If ``"qm9pack"`` is asked for and not installed.
    """
    chosen = get_target(target)
    molecules, where = _molecules(source, cache_folder(cache_dir) / "qm9", notify, progress)
    values = molecules.properties[chosen.column] * chosen.factor
    if chosen.atomised:
        free = np.zeros(119)
        for z, energy in atom_references(chosen.column).items():
            free[z] = energy
        values = values - np.add.reduceat(free[molecules.numbers], molecules.ptr[:-1])
    return AtomicDataset(
        numbers=molecules.numbers.astype(np.int64),
        positions=molecules.positions,
        ptr=molecules.ptr,
        energies=values,
        info=DatasetInfo(
            name="qm9",
            level_of_theory=THEORY,
            source=where,
            label_unit="Hartree" if chosen.unit == "eV" else chosen.unit,
            quantity=chosen.name,
        ),
        atom_references=atom_references(chosen.name),
    )


def _molecules(
    source: str | os.PathLike[str],
    folder: Path,
    notify: Callable[[str], None] | None,
    progress: bool,
) -> tuple[Molecules, str]:
    """The molecules, and where they are from."""
    if source not in SOURCES:
        return read_archive(Path(source), progress=progress), str(source)
    caches = {name: folder / f"{name}.npz" for name in ("qm9pack", "figshare")}
    wanted = list(caches) if source == "auto" else [str(source)]
    for name in wanted:
        if caches[name].is_file():
            return read_cache(caches[name]), f"{name} ({caches[name]})"
    if source == "qm9pack" or (source == "auto" and qm9pack_folder(needed=False)):
        found, name = read_qm9pack(progress=progress), "qm9pack"
    else:
        try:
            found = read_archive(fetch_archive(folder, progress=progress), progress=progress)
        except DataError as error:
            raise DataError(
                f"{error}; or install the data as a package: pip install qm9pack"
            ) from error
        name = "figshare"
    try:
        write_cache(caches[name], found)
    except DataError as error:
        if notify:
            notify(f"{error}; it will be read anew next time")
    return found, name


__all__ = [
    "COLUMNS",
    "TARGETS",
    "Target",
    "atom_references",
    "get_target",
    "load_qm9",
]
