"""What a user's file says, and what the user says of it, is what is read."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree, kcal, kJ, mol

from dcase.data.frames import Reading, read_frames
from dcase.data.md17 import load_md17
from dcase.errors import DataError, OptionError
from dcase.units import Units


def labelled(atoms, k=0):
    rng = np.random.default_rng(k)
    atoms = atoms.copy()
    forces = rng.standard_normal((len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0 - k, forces=forces)
    return atoms


@pytest.fixture
def waters(tmp_path):
    """Three frames in eV and A, as a file and as what is in it."""
    frames = [labelled(molecule("H2O"), k) for k in range(3)]
    ase.io.write("waters.extxyz", frames)
    return frames


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("reading", "energy", "force", "length"),
    [
        (Reading(energy_unit="kcal/mol"), kcal / mol, kcal / mol, 1.0),
        (Reading(energy_unit="kJ/mol", length_unit="nm"), kJ / mol, kJ / mol / 10.0, 10.0),
        (Reading(energy_unit="hartree", length_unit="bohr"), Hartree, Hartree / Bohr, Bohr),
        (Reading(energy_unit="Ha", forces_unit="Hartree/Bohr"), Hartree, Hartree / Bohr, 1.0),
        (Reading(energy_unit="Ry", length_unit="A"), Hartree / 2, Hartree / 2, 1.0),
        (Reading(forces_unit="-eV/A"), 1.0, -1.0, 1.0),
        (Reading(forces_unit="-kcal/mol/A"), 1.0, -kcal / mol, 1.0),
    ],
)
def test_units_on_the_way_in(waters, reading, energy, force, length):
    found = read_frames("waters.extxyz", reading)
    raw = read_frames("waters.extxyz")
    np.testing.assert_allclose(found.energies, energy * raw.energies, rtol=1e-12)
    np.testing.assert_allclose(found.forces, force * raw.forces, rtol=1e-12)
    np.testing.assert_allclose(found.positions, length * raw.positions, rtol=1e-12)


def test_cells_and_stress_have_units_too():
    atoms = bulk("Cu", cubic=True)
    stress = np.array([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((4, 3)), stress=stress)
    ase.io.write("cu.extxyz", atoms)
    found = read_frames("cu.extxyz", Reading(energy_unit="Hartree", length_unit="Bohr"))
    np.testing.assert_allclose(found.cells[0], Bohr * atoms.cell.array)
    np.testing.assert_allclose(found.stress[0], Hartree / Bohr**3 * stress)
    atoms.calc = None
    atoms.info = {"energy": 1.0, "REF_virials": np.diag([1.0, 2.0, 3.0])}
    ase.io.write("virials.extxyz", atoms)
    found = read_frames("virials.extxyz", Reading(energy_unit="Hartree", length_unit="Bohr"))
    volume = atoms.cell.volume * Bohr**3
    np.testing.assert_allclose(found.stress[0, :3], -np.array([1, 2, 3]) * Hartree / volume)


@pytest.mark.parametrize(
    "wrong",
    [{"energy": "furlong"}, {"length": "mile"}, {"forces": "eV"}, {"forces": "eV/furlong"}],
)
def test_unknown_units(wrong):
    with pytest.raises(OptionError, match="unit"):
        Units(**wrong)


def test_units_of_an_npz_are_its_own_word():
    arrays = {"z": np.array([1, 1]), "R": np.random.default_rng(0).normal(size=(3, 2, 3)),
              "E": np.arange(3.0), "F": np.ones((3, 2, 3))}  # fmt: skip
    np.savez("own.npz", **arrays)
    said: list[str] = []
    found = read_frames("own.npz", notify=said.append)
    assert "does not say its energy unit: taken as kcal/mol" in said[0]
    np.testing.assert_allclose(found.energies, np.arange(3.0) * kcal / mol)
    said.clear()
    found = read_frames("own.npz", Reading(energy_unit="eV", length_unit="nm"), notify=said.append)
    assert not said
    np.testing.assert_allclose(found.energies, np.arange(3.0))
    np.testing.assert_allclose(found.forces, 0.1)
    np.testing.assert_allclose(found.positions.reshape(3, 2, 3), 10 * arrays["R"])
    np.savez("says.npz", **arrays, e_unit="eV", r_unit="Bohr")
    found = read_frames("says.npz", notify=said.append)
    assert not said
    assert found.info.label_unit == "eV"
    np.testing.assert_allclose(found.positions.reshape(3, 2, 3), Bohr * arrays["R"])
    with pytest.raises(DataError, match="says its energy unit is eV, not Hartree"):
        read_frames("says.npz", Reading(energy_unit="Hartree"))


def test_sgdml_lattices_are_columns():
    lattice = np.array([[4.0, 1.0, 0.0], [0.0, 5.0, 2.0], [0.0, 0.0, 6.0]])  # columns: a, b, c
    positions = np.tile(np.array([[0.0, 0, 0], [2, 2, 2]]), (2, 1, 1))
    np.savez("crystal.npz", z=np.array([29, 29]), R=positions,
             E=np.zeros(2), F=np.zeros((2, 2, 3)), e_unit="eV", r_unit="Ang", lattice=lattice,
             theory="PBE")  # fmt: skip
    found = read_frames("crystal.npz")
    np.testing.assert_array_equal(found.frame(1).cell.array[1], [1.0, 5.0, 0.0])
    assert found.frame(1).pbc.all()
    assert found.info.level_of_theory == "PBE"
    np.savez("flat.npz", z=np.array([29]), R=np.zeros((1, 1, 3)), E=np.zeros(1),
             F=np.zeros((1, 1, 3)), lattice=np.eye(2))  # fmt: skip
    with pytest.raises(DataError, match="'lattice' has shape"):
        read_frames("flat.npz")


def test_theory_is_the_users(waters):
    assert read_frames("waters.extxyz", Reading(theory="CCSD(T)")).info.level_of_theory == "CCSD(T)"


def test_options_that_do_not_apply(waters):
    with pytest.raises(OptionError, match="--labels is for .npz"):
        read_frames("waters.extxyz", Reading(labels="md17"))
    with pytest.raises(OptionError, match="not for .lmdb"):
        read_frames("a.lmdb", Reading(energy_key="e"))
    with pytest.raises(OptionError, match="is in eV and A"):
        read_frames("a.lmdb", Reading(energy_unit="Ry"))


def test_any_molecule_by_md17s_loader():
    atoms = molecule("H2COH")
    np.savez("own.npz", z=atoms.numbers, R=np.stack([atoms.positions] * 2), E=np.zeros(2),
             F=np.zeros((2, len(atoms), 3)), e_unit="eV")  # fmt: skip
    assert len(load_md17("hydroxymethyl", "own.npz")) == 2
    with pytest.raises(DataError, match="is not ethanol"):
        load_md17("ethanol", "own.npz")
    with pytest.raises(OptionError, match="files of one's own"):
        load_md17("ethanol", "xtb", reading=Reading(energy_unit="eV"))


# ------------------------------------------------------------------- labels that nobody needs


def block(extra, columns="", lattice=""):
    head = f'{lattice}Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 {extra} pbc="F F F"'
    rows = [f"{s} {0.8 * i} 0 {0.1 * i} {columns or '0.1 0.2 0.3'}" for i, s in enumerate("OHH")]
    return "\n".join(["3", head, *rows]) + "\n"


ZEROS, NANS = " ".join(["0.0"] * 9), " ".join(["nan"] * 9)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (f'virial="{ZEROS}"', "'virial' cannot become stress: the cell has no volume, and 1 more"),
        (f'virials="{ZEROS}"', "'virials' cannot become stress"),
        (f'stress="{NANS}"', "'stress' is NaN or infinite"),
        ("stress=1.25", "'stress' has shape (), expected 6 numbers"),
        ("stress=n/a", "'stress' does not hold numbers"),
        (f'stress="{ZEROS}"', "stress of a system that is not periodic"),
    ],
)
def test_stress_of_no_use_is_left_out_with_a_notice(extra, why):
    with open("a.extxyz", "w") as file:
        file.write(2 * block(extra))
    said: list[str] = []
    found = read_frames("a.extxyz", need=("energy", "forces"), notify=said.append)
    assert found.stress is None
    np.testing.assert_array_equal(found.energies, -1.5)
    np.testing.assert_array_equal(found.forces, np.tile([0.1, 0.2, 0.3], (6, 1)))
    [line] = said
    assert line.startswith("a.extxyz: stress not used (frame 0")
    assert why in line


def test_a_label_is_left_out_or_refused_by_need():
    with open("a.extxyz", "w") as file:
        file.write(block("") + block("", "nan 0 0") + block(""))
    said: list[str] = []
    found = read_frames("a.extxyz", need=("energy",), notify=said.append)
    assert found.forces is None
    assert len(found.energies) == 3
    assert said == ["a.extxyz: forces not used (frame 1: 'forces' is NaN or infinite)"]
    with pytest.raises(DataError, match="frame 1: 'forces' is NaN"):
        read_frames("a.extxyz", need=("energy", "forces"))


def test_a_label_of_some_frames_only_is_named():
    frames = [labelled(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), k) for k in range(3)]
    frames[1].calc = None
    ase.io.write("a.traj", frames)
    said: list[str] = []
    assert read_frames("a.traj", notify=said.append).energies is None
    assert said[0] == "a.traj: energy not used (1 frames have none)"
