"""The ten molecules of MD17 and rMD17: names, files, levels of theory and start structures."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import ase
import ase.io

from dcase.errors import DataError

MD17_URL = "http://www.quantum-machine.org/gdml/data/npz/"
RMD17_URL = "https://figshare.com/ndownloader/files/23950376"
RMD17_ARCHIVE = "rmd17.tar.bz2"
MD17_THEORY = "PBE+vdW-TS"
"""MD17's labels: PBE with Tkatchenko-Scheffler dispersion, FHI-aims."""
RMD17_THEORY = "PBE/def2-SVP"
XTB_THEORY = "GFN2-xTB"


@dataclass(frozen=True)
class Molecule:
    """One molecule of MD17.

    Attributes:
        name: The name dcase uses, e.g. ``"salicylic"``.
        full_name: The chemical name, e.g. ``"salicylic acid"``.
        aliases: Other names that are understood, lower case.
        smiles: SMILES; its structure file was made from it.
        formula: Formula in Hill order, e.g. ``"C9H8O4"``.
        md17_file: File name on the MD17 server (not all follow one pattern).
        n_md17: Frames in the MD17 file, or 0 where not known here.
    """

    name: str
    full_name: str
    aliases: tuple[str, ...]
    smiles: str
    formula: str
    md17_file: str
    n_md17: int = 0

    @property
    def md17_url(self) -> str:
        """Where the MD17 npz is."""
        return MD17_URL + self.md17_file

    @property
    def rmd17_member(self) -> str:
        """The path of this molecule inside the rMD17 archive."""
        return f"rmd17/npz_data/rmd17_{self.name}.npz"


MOLECULES: tuple[Molecule, ...] = (
    Molecule(
        "aspirin",
        "aspirin",
        ("asp", "acetylsalicylic acid"),
        "CC(=O)Oc1ccccc1C(=O)O",
        "C9H8O4",
        "md17_aspirin.npz",
        211762,
    ),
    Molecule(
        "azobenzene",
        "azobenzene",
        ("azo",),
        "c1ccccc1/N=N/c1ccccc1",
        "C12H10N2",
        "azobenzene_dft.npz",
    ),
    # benzene2017 is the set of the first MD17 paper; benzene2018 has other labels.
    Molecule(
        "benzene",
        "benzene",
        ("ben", "benzene2017"),
        "c1ccccc1",
        "C6H6",
        "md17_benzene2017.npz",
        627983,
    ),
    Molecule("ethanol", "ethanol", ("eth",), "CCO", "C2H6O", "md17_ethanol.npz", 555092),
    # MD17's malonaldehyde is the dialdehyde, not the enol.
    Molecule(
        "malonaldehyde",
        "malonaldehyde",
        ("mal", "malondialdehyde"),
        "O=CCC=O",
        "C3H4O2",
        "md17_malonaldehyde.npz",
        993237,
    ),
    Molecule(
        "naphthalene",
        "naphthalene",
        ("nap", "naph", "naphtalene"),
        "c1ccc2ccccc2c1",
        "C10H8",
        "md17_naphthalene.npz",
        326250,
    ),
    Molecule(
        "paracetamol",
        "paracetamol",
        ("par", "acetaminophen"),
        "CC(=O)Nc1ccc(O)cc1",
        "C8H9NO2",
        "paracetamol_dft.npz",
    ),
    Molecule(
        "salicylic",
        "salicylic acid",
        ("sal", "salicylic acid"),
        "O=C(O)c1ccccc1O",
        "C7H6O3",
        "md17_salicylic.npz",
        320231,
    ),
    Molecule("toluene", "toluene", ("tol",), "Cc1ccccc1", "C7H8", "md17_toluene.npz", 442790),
    Molecule(
        "uracil", "uracil", ("ura",), "O=c1cc[nH]c(=O)[nH]1", "C4H4N2O2", "md17_uracil.npz", 133770
    ),
)
"""All molecules that dcase knows by name, alphabetically."""


def molecule_names() -> list[str]:
    """The names dcase uses, alphabetically."""
    return [molecule.name for molecule in MOLECULES]


def find_molecule(name: str) -> Molecule | None:
    """The molecule called ``name`` (full name or abbreviation, any case), or None."""
    wanted = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    for molecule in MOLECULES:
        if wanted in (molecule.name, molecule.full_name, *molecule.aliases):
            return molecule
    return None


def get_molecule(name: str) -> Molecule:
    """The molecule called ``name``: full name or abbreviation, any case, ``_`` for a space.

    Raises:
        DataError: If there is no such molecule; the message lists the names.
    """
    molecule = find_molecule(name)
    if molecule is None:
        raise DataError(
            f"unknown molecule {name!r}: the names are {', '.join(molecule_names())} "
            "(the first three letters will do)"
        )
    return molecule


def structure(name: str) -> ase.Atoms:
    """The GFN2-xTB minimum of a molecule (lowest conformer that was found), in Angstrom.

    Made by :func:`dcase.data.generate.relaxed_structure` (maximal force 0.005 eV/A).

    Raises:
        DataError: If the molecule is unknown.
    """
    molecule = get_molecule(name)
    file = resources.files("dcase.data.structures") / f"{molecule.name}.xyz"
    if not file.is_file():
        raise DataError(f"{file} is missing: the installation of dcase is damaged, reinstall it")
    with file.open(encoding="utf-8") as handle:
        atoms = ase.io.read(handle, format="xyz")
    assert isinstance(atoms, ase.Atoms)
    return atoms
