"""The files QM9 comes in: ``qm9pack``'s tables, the authors' archive, and our own cache."""

from __future__ import annotations

import csv
import importlib.util
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from ase.data import atomic_numbers

from dcase.archives import read_arrays
from dcase.data.download import fetch
from dcase.errors import DataError, DcaseError, MissingExtraError
from dcase.files import atomic_path

# The authors' archive (doi:10.6084/m9.figshare.c.978904) and the list of what they advise against.
ARCHIVE_URL = "https://ndownloader.figshare.com/files/3195389"
ARCHIVE = "dsgdb9nsd.xyz.tar.bz2"
UNCHARACTERIZED_URL = "https://ndownloader.figshare.com/files/3195404"
UNCHARACTERIZED = "uncharacterized.txt"

# The properties in the order of the second line of an .xyz file, after "gdb <number>" and the three
# rotational constants: our name, and that of qm9pack's column.
COLUMNS = {
    "mu": "Dipole_debye",
    "alpha": "Polarizability_bohr3",
    "homo": "HOMO_au",
    "lumo": "LUMO_au",
    "gap": "HOMO_LUMO_gap_au",
    "r2": "R2_bohr2",
    "zpve": "ZPVE_au",
    "U0": "InternalEnergy_0K_au",
    "U": "InternalEnergy_298K_au",
    "H": "Enthalphy_298K_au",
    "G": "GibbsFreeEnergy_298K_au",
    "Cv": "Heatcapacity_Cv_cal_mol_K",
}
_TOTAL = 133_885


@dataclass(frozen=True)
class Molecules:
    """QM9 as arrays, in the units of its files (Hartree, Debye, a0^3, a0^2, cal/mol/K, A).

    Attributes:
        index: The authors' number of each molecule, 1 to 133 885, ascending, shape [n].
        numbers: Atomic numbers, uint8, shape [n_atoms_total].
        positions: A, float64, shape [n_atoms_total, 3].
        ptr: Molecule m owns atoms ``ptr[m]:ptr[m+1]``, shape [n + 1].
        properties: By name of :data:`COLUMNS`, float64, shape [n] each.
    """

    index: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    ptr: np.ndarray
    properties: dict[str, np.ndarray]

    def subset(self, keep: np.ndarray) -> Molecules:
        """The molecules ``keep`` (numbers of rows)."""
        counts = np.diff(self.ptr)[keep]
        ptr = np.concatenate([[0], np.cumsum(counts)])
        atoms = np.repeat(self.ptr[keep] - ptr[:-1], counts) + np.arange(ptr[-1])
        return replace(
            self,
            index=self.index[keep],
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            ptr=ptr,
            properties={name: values[keep] for name, values in self.properties.items()},
        )


# index, atomic numbers, positions [n, 3] as nested lists, the 12 properties
_Row = tuple[int, list[int], list[list[float]], list[float]]


def qm9pack_folder(*, needed: bool = True) -> Path | None:
    """The folder with qm9pack's tables; the package itself is not imported (it wants pandas).

    Raises:
        MissingExtraError: If it is needed and not installed.
    """
    spec = importlib.util.find_spec("qm9pack")
    for place in (spec.submodule_search_locations if spec else None) or ():
        if list((Path(place) / "data").glob("qm9_part*.csv")):
            return Path(place) / "data"
    if needed:
        raise MissingExtraError("QM9 from PyPI needs qm9pack: pip install 'dcase[qm9]'")
    return None


def read_qm9pack(folder: Path | None = None, *, progress: bool = True) -> Molecules:
    """The tables of the package ``qm9pack`` (225 MB of text: about 20 s).

    Args:
        folder: Where they are; None: in the installed package.
        progress: Show on stderr how it goes.

    Raises:
        MissingExtraError: If it is not installed.
        DataError: If a table is damaged.
    """
    folder = folder or qm9pack_folder()
    assert folder is not None
    tables = sorted(folder.glob("qm9_part*.csv"))
    with _counting(progress) as count:
        return _collect((row for table in tables for row in _table(table)), str(folder), count)


def _table(path: Path) -> Iterator[_Row]:
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = csv.reader(handle)
            header = next(rows)
            where = [header.index(c) for c in ("Index", "Elements", "XYZ_Ang", *COLUMNS.values())]
            for row in rows:
                index, elements, xyz, *values = (row[w] for w in where)
                # Numbers such as "0." are not JSON.
                numbers = [
                    atomic_numbers[s] for s in elements.strip("[]").replace("'", "").split(",")
                ]
                flat = [float(x) for x in xyz.replace("[", "").replace("]", "").split(",")]
                positions = [flat[a : a + 3] for a in range(0, len(flat), 3)]
                yield int(index), numbers, positions, [float(v) for v in values]
    except (ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise DataError(f"{path} is damaged: {error}; install qm9pack again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def fetch_archive(folder: Path, *, progress: bool = True) -> Path:
    """The authors' archive (86 MB) and list, downloaded once, in ``folder``.

    Raises:
        DataError: If they cannot be had.
    """
    options = {"cache_dir": folder, "progress": progress}
    fetch(UNCHARACTERIZED_URL, filename=UNCHARACTERIZED, **options)  # type: ignore[arg-type]
    return fetch(ARCHIVE_URL, filename=ARCHIVE, **options)  # type: ignore[arg-type]


def read_archive(path: Path, *, progress: bool = True) -> Molecules:
    """The authors' .xyz files, in a tar archive or a folder (the whole set: about a minute).

    The molecules of ``uncharacterized.txt`` in the same folder, if it is there, are left out.

    Args:
        path: The archive or folder.
        progress: Show on stderr how it goes.

    Raises:
        DataError: If there is nothing, or a file is damaged.
    """
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    beside = (path if path.is_dir() else path.parent) / UNCHARACTERIZED
    advised_against = read_uncharacterized(beside) if beside.is_file() else set()
    with _counting(progress) as count:
        files = _in_folder(path) if path.is_dir() else _in_tar(path)
        rows = (parse_xyz(text, name) for name, text in files)
        return _collect((r for r in rows if r[0] not in advised_against), str(path), count)


def read_uncharacterized(path: Path) -> set[int]:
    """Numbers of the molecules that the authors' list names.

    They are the first words of its lines, but for nine lines of heading and one at the end.

    Raises:
        DataError: If the list names none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    words = [line.split() for line in lines[9:-1]]
    found = {int(w[0]) for w in words if w and w[0].isdigit()}
    if not found:
        raise DataError(f"{path} names no molecules; delete it to fetch it again")
    return found


def parse_xyz(text: str, name: str = "file") -> _Row:
    """A file of the archive.

    Line 1: number of atoms; line 2: ``gdb <number>``, three rotational constants and the
    properties of :data:`COLUMNS`; then an atom a line, symbol, x, y, z in A and Mulliken charge.
    Small numbers are written as Mathematica does: ``1.2*^-6``.

    Raises:
        DataError: If it is none.
    """
    try:
        lines = text.replace("*^", "e").splitlines()
        n_atoms = int(lines[0])
        words = lines[1].split()
        index, values = int(words[1]), [float(v) for v in words[5 : 5 + len(COLUMNS)]]
        atoms = [line.split() for line in lines[2 : 2 + n_atoms]]
        numbers = [atomic_numbers[a[0]] for a in atoms]
        positions = [[float(x) for x in a[1:4]] for a in atoms]
        if words[0] != "gdb" or len(values) != len(COLUMNS) or len(atoms) != n_atoms:
            raise ValueError("lines are missing")
    except (ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else "lines are missing"
        raise DataError(f"{name} is not a file of QM9's archive: {reason}") from error
    return index, numbers, positions, values


def _in_folder(folder: Path) -> Iterator[tuple[str, str]]:
    files = sorted(folder.glob("dsgdb9nsd_*.xyz"))
    for file in files:
        yield str(file), file.read_text(encoding="utf-8")


def _in_tar(archive: Path) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                handle: IO[bytes] | None = None
                if member.isfile() and member.name.endswith(".xyz"):
                    handle = tar.extractfile(member)
                if handle is not None:
                    yield f"{member.name} in {archive}", handle.read().decode("utf-8")
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{archive} is damaged; delete it to fetch it again") from error
    except OSError as error:  # bz2 reports damage as an OSError without errno
        reason = f"cannot read {archive}: {error.strerror}" if error.errno else ""
        raise DataError(reason or f"{archive} is damaged; delete it to fetch it again") from error


def _collect(rows: Iterable[_Row], where: str, count: Callable[[int], None]) -> Molecules:
    """Rows as arrays, by ascending number."""
    index: list[int] = []
    numbers: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    values: list[list[float]] = []
    for i, z, x, v in rows:
        index.append(i)
        if len(x) != len(z) or any(len(r) != 3 for r in x):
            raise DataError(f"{where}: molecule {i} has not three coordinates for each atom")
        numbers.append(np.array(z, dtype=np.uint8))
        positions.append(np.array(x, dtype=np.float64))
        values.append(v)
        if len(index) % 1000 == 0:
            count(len(index))
    if not index:
        raise DataError(f"{where}: no molecules of QM9 there (dsgdb9nsd_*.xyz)")
    if len(set(index)) != len(index):
        raise DataError(f"{where}: molecules occur twice")
    table = np.array(values)
    found = Molecules(
        index=np.array(index),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        ptr=np.concatenate([[0], np.cumsum([len(z) for z in numbers])]).astype(np.int64),
        properties={name: table[:, c].copy() for c, name in enumerate(COLUMNS)},
    )
    order = np.argsort(found.index)
    return found if (np.diff(order) == 1).all() else found.subset(order)


@contextmanager
def _counting(progress: bool) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how many molecules are read."""
    from rich.console import Console

    console = Console(stderr=True, quiet=not progress)
    with console.status("reading QM9, once") as status:
        yield lambda n: status.update(f"reading QM9, once: {n} molecules of about {_TOTAL}")


def write_cache(path: Path, molecules: Molecules) -> None:
    """Keep the arrays, whole or not at all.

    Raises:
        DataError: If they cannot be written.
    """
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez(
                handle,
                index=molecules.index,
                numbers=molecules.numbers,
                positions=molecules.positions,
                ptr=molecules.ptr,
                **molecules.properties,  # type: ignore[arg-type]
            )
    except DcaseError as error:
        raise DataError(f"QM9 cannot be kept in the cache: {error}") from error


def read_cache(path: Path) -> Molecules:
    """Inverse of :func:`write_cache`.

    Raises:
        DataError: If the file is damaged.
    """
    try:
        file = read_arrays(path)
        return Molecules(
            index=file["index"],
            numbers=file["numbers"],
            positions=file["positions"],
            ptr=file["ptr"],
            properties={name: file[name] for name in COLUMNS},
        )
    except KeyError as error:
        raise DataError(f"{path} is damaged; delete it, it is made anew") from error
