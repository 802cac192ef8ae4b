"""GFN2-xTB through tblite, and start structures from SMILES through rdkit (extra ``xtb``)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import BFGS

from dcase.data.molecules import find_molecule, structure
from dcase.data.state import bare, hand_over, unpaired_electrons
from dcase.errors import DataError, MissingExtraError

BOND_SCALE = 1.3
"""Two atoms are bonded below 1.3 times the sum of their covalent radii; with this no bond of the
1000 rMD17 frames (500 K) of any molecule appears or goes."""


def tblite_installed() -> bool:
    """Whether GFN2-xTB can be computed here."""
    try:
        import tblite.ase  # noqa: F401
    except ImportError:
        return False
    return True


def xtb_calculator(accuracy: float = 1.0, atoms: ase.Atoms | None = None) -> Any:
    """A fresh GFN2-xTB calculator for ASE.

    Args:
        accuracy: tblite's accuracy: smaller is tighter (1 leaves 2e-4 eV/A of noise in forces,
            0.01 about 2e-6).
        atoms: Whose charge and spin it is told (:mod:`dcase.data.state`); None: the initial charges
            and magnetic moments of whatever it is asked for.

    Raises:
        DataError: If charge and spin are impossible together.
        MissingExtraError: If tblite is not installed.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingExtraError(
            "GFN2-xTB needs the package tblite: pip install 'dcase[xtb]'"
        ) from error
    calculator = TBLite(method="GFN2-xTB", accuracy=accuracy, verbosity=0)
    return calculator if atoms is None else hand_over(atoms, calculator)


def bonds(atoms: ase.Atoms) -> frozenset[tuple[int, int]]:
    """Pairs of bonded atoms (i < j) by distance, see :data:`BOND_SCALE`."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=BOND_SCALE))
    return frozenset((int(i), int(j)) for i, j in zip(first, second, strict=True) if i < j)


def relax(atoms: ase.Atoms, fmax: float, steps: int = 500, accuracy: float = 0.1) -> float:
    """Relax ``atoms`` in place with GFN2-xTB (fmax in eV/A); returns the energy in eV."""
    atoms.calc = xtb_calculator(accuracy, atoms)
    BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps)
    energy = float(atoms.get_potential_energy())
    atoms.calc = None
    return energy


def smiles_conformers(smiles: str, n_conformers: int, seed: int) -> list[ase.Atoms]:
    """Conformers of a SMILES by rdkit's ETKDG, hydrogens added, MMFF-relaxed where it applies.

    Formal charges and unpaired electrons go into ASE's initial charges and magnetic moments, where
    tblite reads them.

    Raises:
        MissingExtraError: If rdkit is not installed.
        DataError: If the SMILES cannot be understood, is several molecules, or cannot be embedded.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
    except ImportError as error:
        raise MissingExtraError(
            "building a molecule from SMILES needs the package rdkit: pip install 'dcase[xtb]'"
        ) from error
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise DataError(
            f"{smiles!r} is neither a known molecule, nor a file, nor a SMILES string "
            "(`dcase data list` shows the molecules)"
        )
    if len(Chem.GetMolFrags(molecule)) > 1:
        raise DataError(f"SMILES {smiles!r} holds several molecules; give one")
    molecule = Chem.AddHs(molecule)
    with rdBase.BlockLogs():
        ids = list(
            rdDistGeom.EmbedMultipleConfs(molecule, n_conformers, randomSeed=seed % (2**31 - 1))
        )
        if ids and rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule)
    if not ids:
        raise DataError(f"rdkit found no 3-D structure for SMILES {smiles!r}; give an xyz file")
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    charges = [atom.GetFormalCharge() for atom in molecule.GetAtoms()]
    unpaired = [atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()]
    conformers = []
    for index in ids:
        atoms = ase.Atoms(numbers, molecule.GetConformer(index).GetPositions())
        if any(charges):
            atoms.set_initial_charges(charges)
        if any(unpaired):
            atoms.set_initial_magnetic_moments(unpaired)
        conformers.append(atoms)
    return conformers


def relaxed_structure(
    smiles: str, *, n_conformers: int = 20, fmax: float = 0.005, seed: int = 0
) -> ase.Atoms:
    """The lowest GFN2-xTB minimum among ETKDG conformers of a SMILES.

    The files in ``dcase/data/structures`` were made by this function with its defaults
    (see :func:`write_structures`).

    Args:
        smiles: The molecule.
        n_conformers: Conformers to try.
        fmax: Largest force of the result, eV/A.
        seed: Seed of rdkit's embedding.

    Raises:
        MissingExtraError: If rdkit or tblite is missing.
        DataError: If the SMILES is of no use, see :func:`smiles_conformers`.
    """
    best, lowest = None, np.inf
    for atoms in smiles_conformers(smiles, n_conformers, seed):
        expected = bonds(atoms)
        energy = relax(atoms, fmax)
        if energy < lowest and bonds(atoms) == expected:
            best, lowest = atoms, energy
    if best is None:
        raise DataError(f"{smiles!r} changes its bonds when GFN2-xTB relaxes it; give an xyz file")
    best.positions -= best.get_center_of_mass()
    return best


def write_structures(folder: str | os.PathLike[str]) -> None:
    """Write ``<name>.xyz`` for every molecule dcase knows: how dcase/data/structures was made.

    Run as ``python -c "from dcase.data.xtb import write_structures;
    write_structures('dcase/data/structures')"``; takes a few minutes on one core.
    """
    from dcase.data.molecules import MOLECULES
    from dcase.files import atomic_path

    for molecule in MOLECULES:
        atoms = relaxed_structure(molecule.smiles)
        comment = f"{molecule.full_name}, GFN2-xTB minimum, fmax 0.005 eV/A, dcase.data.xtb"
        with atomic_path(Path(folder) / f"{molecule.name}.xyz") as path:
            ase.io.write(path, atoms, format="xyz", comment=comment)


def start_structure(
    source: str | os.PathLike[str] | ase.Atoms,
    seed: int,
    charge: int | None = None,
    multiplicity: int | None = None,
) -> tuple[str, ase.Atoms, str]:
    """A name, a GFN2-xTB-relaxed structure, and a checksum, for whatever the user gave.

    Args:
        source: A molecule name, a structure file that ASE reads, a SMILES string, or atoms;
            tried in this order.
        seed: Seed of the conformer search of a SMILES.
        charge: Total charge, e; None: what the source says.
        multiplicity: 2S + 1; None: what the source says.

    Returns:
        Name, structure, and the SHA-256 of the coordinates that were given ("" where the name
        says it all).

    Raises:
        DataError: If it is none of these, is periodic or constrained, falls apart when relaxed, or
            says another charge or an impossible multiplicity.
        MissingExtraError: If tblite or rdkit is missing.
    """
    if isinstance(source, ase.Atoms):
        name, atoms = source.get_chemical_formula(), bare(source)
    elif (molecule := find_molecule(str(source))) is not None:
        return molecule.name, _with_electrons(structure(molecule.name), charge, multiplicity), ""
    elif Path(source).is_file():
        name = Path(source).stem
        try:
            read = ase.io.read(Path(source))
        except Exception as error:  # ASE's readers raise whatever their parsing stumbles on
            raise DataError(f"{source}: ASE cannot read a structure from it ({error})") from error
        assert isinstance(read, ase.Atoms)
        atoms = bare(read)
    elif isinstance(source, os.PathLike) or str(source).endswith((".xyz", ".extxyz", ".pdb")):
        raise DataError(f"no such file: {source}")
    else:
        atoms = relaxed_structure(str(source), n_conformers=5, fmax=0.05, seed=seed)
        return str(source), _with_electrons(atoms, charge, multiplicity), ""
    if atoms.constraints:
        raise DataError(
            f"{name} holds atoms in place or is restrained, and sampling moves all of them freely: "
            "take the constraints off"
        )
    if atoms.pbc.any():
        raise DataError(f"{name} is periodic; only molecules can be sampled (set pbc to false)")
    atoms = _with_electrons(atoms, charge, multiplicity)
    checksum = hashlib.sha256(atoms.positions.tobytes()).hexdigest()
    atoms.calc = None
    atoms.set_constraint()
    expected = bonds(atoms)
    relax(atoms, fmax=0.05)
    if bonds(atoms) != expected:
        raise DataError(f"{name} changes its bonds when GFN2-xTB relaxes it; check the structure")
    return name, atoms, checksum


def _with_electrons(atoms: ase.Atoms, charge: int | None, multiplicity: int | None) -> ase.Atoms:
    """The atoms with this charge and multiplicity, once they are possible."""
    if charge is not None:
        atoms.info["charge"] = charge
    if multiplicity is not None:
        atoms.info["multiplicity"] = multiplicity
        atoms.info.pop("spin", None)
    unpaired_electrons(atoms)
    return atoms
