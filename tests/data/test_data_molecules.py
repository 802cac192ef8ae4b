import numpy as np
import pytest
from ase.formula import Formula

from dcase.data.molecules import MOLECULES, get_molecule, molecule_names, structure
from dcase.errors import DataError


def test_all_ten_molecules_of_rmd17():
    assert molecule_names() == [
        "aspirin",
        "azobenzene",
        "benzene",
        "ethanol",
        "malonaldehyde",
        "naphthalene",
        "paracetamol",
        "salicylic",
        "toluene",
        "uracil",
    ]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("asp", "aspirin"),
        ("AZO", "azobenzene"),
        ("Ben", "benzene"),
        ("eth", "ethanol"),
        ("mal", "malonaldehyde"),
        ("nap", "naphthalene"),
        ("par", "paracetamol"),
        ("sal", "salicylic"),
        ("salicylic acid", "salicylic"),
        ("Salicylic_Acid", "salicylic"),
        ("tol", "toluene"),
        ("ura", "uracil"),
        (" Uracil ", "uracil"),
    ],
)
def test_names_and_abbreviations(given, name):
    assert get_molecule(given).name == name


def test_aliases_are_unambiguous():
    words = [w for m in MOLECULES for w in {m.name, m.full_name, *m.aliases}]
    assert len(words) == len(set(words))


def test_unknown_molecule_lists_the_names():
    with pytest.raises(DataError) as error:
        get_molecule("caffeine")
    assert "caffeine" in str(error.value)
    assert all(name in str(error.value) for name in molecule_names())
    assert "\n" not in str(error.value)


def test_file_names_that_break_the_pattern():
    assert get_molecule("ben").md17_url.endswith("/md17_benzene2017.npz")
    assert get_molecule("azo").md17_url.endswith("/azobenzene_dft.npz")
    assert get_molecule("sal").md17_url.endswith("/md17_salicylic.npz")
    assert get_molecule("sal").rmd17_member == "rmd17/npz_data/rmd17_salicylic.npz"


@pytest.mark.parametrize("molecule", MOLECULES, ids=lambda m: m.name)
def test_structures(molecule):
    atoms = structure(molecule.name)
    assert atoms.get_chemical_formula("hill") == molecule.formula
    assert Formula(molecule.formula).count() == dict(atoms.symbols.formula.count())
    assert not atoms.pbc.any()
    distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
    assert 0.9 < distances.min() < 1.15  # an X-H bond


@pytest.mark.parametrize("molecule", MOLECULES, ids=lambda m: m.name)
def test_structures_are_xtb_minima_of_the_right_molecule(molecule):
    pytest.importorskip("tblite", reason="GFN2-xTB needs tblite")
    Chem = pytest.importorskip("rdkit.Chem", reason="comparing bonds needs rdkit")
    from dcase.data.xtb import bonds, xtb_calculator

    atoms = structure(molecule.name)
    atoms.calc = xtb_calculator(accuracy=0.1)
    # 0.005 when it was relaxed; the file keeps 8 decimals.
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.006
    known = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
    wanted = {tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in known.GetBonds()}
    assert bonds(atoms) == wanted
