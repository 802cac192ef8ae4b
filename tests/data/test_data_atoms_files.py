from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.units import GPa

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset
from dcase.data.stress_check import stress_doubts
from dcase.errors import DataError, OptionError
from dcase.units import Units

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = [
    pytest.mark.data,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"the real OC20 and OC22 frames: not in {REAL}"),
]


def crystal(seed=0, n=2):
    """Rattled copper cells with EMT labels."""
    frames = []
    for i in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed + i)
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def labelled(**results):
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, **results) if results else None
    return atoms


FORCES = np.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_formats_keep_every_label(tmp_path, name):
    frames = crystal()
    ase.io.write(tmp_path / name, frames)
    data = read_atoms(tmp_path / name, need=("energy", "forces", "stress"))
    for i, atoms in enumerate(frames):
        results = atoms.calc.results
        assert data.energies[i] == pytest.approx(results["energy"], abs=1e-7)
        np.testing.assert_allclose(data.frame(i).get_forces(), results["forces"], atol=1e-7)
        np.testing.assert_allclose(data.stress[i], results["stress"], atol=1e-9)
        np.testing.assert_allclose(data.cells[i], atoms.cell.array, atol=1e-7)
        assert data.pbc[i].all()
    assert (data.info.name, data.info.label_unit) == ("a", "eV")
    assert len(data.info.sha256) == 64


@pytest.mark.parametrize("name", ["a.extxyz", "a.traj", "a.db"])
def test_constraints_do_not_zero_forces(tmp_path, name):
    frames = crystal()
    wanted = [atoms.calc.results["forces"].copy() for atoms in frames]
    for atoms in frames:
        atoms.set_constraint(FixAtoms(indices=[0, 1]))
    assert (frames[0].get_forces()[:2] == 0).all()  # what ASE gives if it is not told
    ase.io.write(tmp_path / name, frames)
    np.testing.assert_allclose(
        read_atoms(tmp_path / name).forces, np.concatenate(wanted), atol=1e-7
    )


def test_ref_keys_win_over_the_calculator(tmp_path):
    atoms = labelled(energy=1.0, forces=FORCES)
    atoms.info["REF_energy"] = 2.0
    atoms.arrays["REF_forces"] = FORCES + 1
    ase.io.write(tmp_path / "a.extxyz", atoms)
    data = read_atoms(tmp_path / "a.extxyz")
    assert data.energies[0] == 2.0
    np.testing.assert_array_equal(data.forces, FORCES + 1)


def test_explicit_keys_win_over_all(tmp_path):
    atoms = labelled(energy=1.0, forces=FORCES)
    atoms.info |= {"REF_energy": 2.0, "dft_energy": 3.0}
    atoms.arrays |= {"REF_forces": FORCES + 1, "dft_forces": FORCES + 2}
    ase.io.write(tmp_path / "a.extxyz", atoms)
    path = tmp_path / "a.extxyz"
    data = read_atoms(path, energy_key="dft_energy", forces_key="dft_forces")
    assert data.energies[0] == 3.0
    np.testing.assert_array_equal(data.forces, FORCES + 2)
    # "energy" is where ASE put it, in the calculator.
    assert read_atoms(path, energy_key="energy").energies[0] == 1.0
    with pytest.raises(DataError, match="frame 0 has no energy under the key 'nope'") as error:
        read_atoms(path, energy_key="nope")
    assert "dft_energy" in str(error.value)


def test_free_energy_only_without_energy(tmp_path):
    ase.io.write(tmp_path / "a.traj", labelled(energy=1.0, free_energy=0.9, forces=FORCES))
    assert read_atoms(tmp_path / "a.traj").energies[0] == 1.0
    ase.io.write(tmp_path / "b.traj", labelled(free_energy=0.9, forces=FORCES))
    assert read_atoms(tmp_path / "b.traj").energies[0] == 0.9


def test_database_columns(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "a.db") as db:
        db.write(molecule("H2O"), dft_energy=5.0, data={"dft_forces": FORCES})
    data = read_atoms(tmp_path / "a.db", energy_key="dft_energy", forces_key="dft_forces")
    assert data.energies[0] == 5.0
    np.testing.assert_array_equal(data.forces, FORCES)


@pytest.mark.parametrize("broken", [0, 2])
def test_a_missing_label_names_the_frame_and_its_keys(tmp_path, broken):
    frames = [labelled(energy=1.0, forces=FORCES) for _ in range(3)]
    frames[broken].calc = SinglePointCalculator(frames[broken], energy=1.0)
    frames[broken].info["config"] = "x"
    ase.io.write(tmp_path / "a.traj", frames)
    with pytest.raises(DataError, match=f"frame {broken} has no forces") as error:
        read_atoms(tmp_path / "a.traj")
    assert "calculator: energy" in str(error.value)
    assert "info: config" in str(error.value)
    assert "\n" not in str(error.value)
    # Fine where forces are not needed: then they are no labels at all.
    data = read_atoms(tmp_path / "a.traj", need=("energy",))
    assert data.forces is None
    assert data.energies is not None


def test_structures_only(tmp_path):
    ase.io.write(tmp_path / "a.xyz", [labelled(), labelled()])
    data = read_atoms(tmp_path / "a.xyz", need=())
    assert len(data) == 2
    assert data.energies is None
    assert data.cells is None
    with pytest.raises(DataError, match="no labels at all"):
        read_atoms(tmp_path / "a.xyz")


def test_molecules_and_crystals_of_different_size(tmp_path):
    frames = [labelled(energy=1.0, forces=FORCES), *crystal(n=1)]
    ase.io.write(tmp_path / "a.traj", frames)
    data = read_atoms(tmp_path / "a.traj")
    assert data.n_atoms.tolist() == [3, 4]
    assert data.pbc.tolist() == [[False] * 3, [True] * 3]
    assert data.stressed.tolist() == [False, True]  # the molecule has none
    assert read_atoms(tmp_path / "a.traj", need=("stress",)).stressed.tolist() == [False, True]
    with pytest.raises(DataError, match="no frame can have a stress: none is periodic"):
        read_atoms(tmp_path / "a.traj", need=("stress",), index=":1")
    frames[1].calc = None
    ase.io.write(tmp_path / "a.traj", frames)
    with pytest.raises(DataError, match="frame 1 has no stress"):
        read_atoms(tmp_path / "a.traj", need=("stress",))
    assert read_atoms(tmp_path / "a.traj", need=()).stress is None


def test_stress_conventions(tmp_path):
    (atoms,) = crystal(n=1)
    xx, yy, zz, yz, xz, xy = voigt = atoms.calc.results["stress"].copy()
    square = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    bare = atoms.copy()
    forms = {
        "REF_stress": square,
        "my_stress": voigt,
        "flat": square.ravel(),
        "REF_virials": -square * atoms.get_volume(),
        "virial_voigt": -voigt * atoms.get_volume(),
    }
    for key, value in forms.items():
        frame = bare.copy()
        frame.info[key] = value
        ase.io.write(tmp_path / "a.extxyz", frame)
        given = None if key.startswith("REF") else key
        data = read_atoms(tmp_path / "a.extxyz", need=("stress",), stress_key=given)
        np.testing.assert_allclose(data.stress[0], voigt, atol=1e-9, err_msg=key)
    for unit, size in (("GPa", 1 / GPa), ("kbar", 10 / GPa), ("-kbar", -10 / GPa)):
        frame = bare.copy()
        frame.info |= {"other": voigt * size, "w": -voigt * atoms.get_volume()}
        ase.io.write(tmp_path / "a.extxyz", frame)
        file, units = tmp_path / "a.extxyz", Units(stress=unit)
        data = read_atoms(file, need=(), stress_key="other", units=units)
        np.testing.assert_allclose(data.stress[0], voigt, rtol=1e-7, err_msg=unit)
        same = read_atoms(file, need=(), virial_key="w")  # a name that says nothing
        np.testing.assert_allclose(same.stress, data.stress, rtol=1e-7)


def test_the_sign_of_virials_is_that_of_the_energy(tmp_path):
    """Stress from virials must be dE/dstrain / V, checked by stretching the crystal."""
    (atoms,) = crystal(n=1)
    atoms.calc = EMT()
    energies = []
    for strain in (-1e-4, 1e-4):
        stretched = atoms.copy()
        stretched.set_cell(atoms.cell.array * [1 + strain, 1, 1], scale_atoms=True)
        stretched.calc = EMT()
        energies.append(stretched.get_potential_energy())
    virial_xx = -(energies[1] - energies[0]) / 2e-4
    atoms.calc = None
    atoms.info["REF_virials"] = np.diag([virial_xx, 0.0, 0.0])
    ase.io.write(tmp_path / "a.extxyz", atoms)
    atoms.calc = EMT()
    data = read_atoms(tmp_path / "a.extxyz", need=("stress",))
    assert data.stress[0, 0] == pytest.approx(atoms.get_stress()[0], rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("energy", [1.0, 2.0], "one energy"),
        ("energy", float("nan"), "NaN"),
        ("energy", "high", "not hold numbers"),
        ("forces", np.zeros(3), "expected .4, 3."),
        ("forces", np.full((4, 3), np.nan), "NaN"),
        ("stress", np.zeros(5), "6 numbers or 3x3"),
        ("stress", np.arange(9.0), "not a symmetric"),
    ],
)
def test_labels_of_wrong_shape(tmp_path, key, value, message):
    from dcase.data.atoms_files import _shaped
    from dcase.units import Units

    atoms = bulk("Cu", cubic=True)
    with pytest.raises(DataError, match=message):
        _shaped("a.traj: frame 0", atoms, key, key, value, Units())


def test_cells_without_volume(tmp_path):
    atoms = labelled(energy=1.0, forces=FORCES)
    atoms.pbc = True
    ase.io.write(tmp_path / "a.traj", atoms)
    with pytest.raises(DataError, match="periodic, but its cell has no volume"):
        read_atoms(tmp_path / "a.traj")


@pytest.mark.parametrize("ending", ["extxyz", "traj", "db"])
def test_a_slab_without_a_third_vector(tmp_path, ending):
    frames = []
    for seed in range(3):
        atoms = fcc111("Cu", (2, 2, 3))
        atoms.pbc = (True, True, False)
        atoms.info.clear()
        atoms.rattle(0.1, seed=seed)
        atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=atoms.positions)
        frames.append(atoms)
        if ending == "db":
            with connect(tmp_path / "a.db") as database:
                database.write(atoms)
    if ending != "db":
        ase.io.write(tmp_path / f"a.{ending}", frames)
    dataset = read_atoms(tmp_path / f"a.{ending}")
    assert not dataset.cells[:, 2].any()
    np.testing.assert_allclose(dataset.cells[:, :2], [frames[0].cell.array[:2]] * 3)
    assert (dataset.pbc == [True, True, False]).all()
    assert dataset.energies.tolist() == [0.0, 1.0, 2.0]


def test_index(tmp_path):
    ase.io.write(tmp_path / "a.traj", [labelled(energy=float(i), forces=FORCES) for i in range(5)])
    ase.io.write(tmp_path / "a.db", ase.io.read(tmp_path / "a.traj", ":"))
    for name in ("a.traj", "a.db"):
        assert read_atoms(tmp_path / name, index=":2").energies.tolist() == [0, 1]
        assert read_atoms(tmp_path / name, index=-1).energies.tolist() == [4]
    assert read_atoms(tmp_path / "a.db", index="id>3").energies.tolist() == [3, 4]
    for index in ("7", "7:"):
        with pytest.raises(DataError, match="no frames at index"):
            read_atoms(tmp_path / "a.traj", index=index)
    with pytest.raises(OptionError, match="'first'"):
        read_atoms(tmp_path / "a.traj", index="first")
    with pytest.raises(OptionError, match="need"):
        read_atoms(tmp_path / "a.traj", need="energy")


def test_files_that_are_no_good(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_atoms(tmp_path / "none.xyz")
    with pytest.raises(DataError, match="is a folder"):
        read_atoms(tmp_path)
    (tmp_path / "empty.xyz").touch()
    with pytest.raises(DataError, match="empty"):
        read_atoms(tmp_path / "empty.xyz")
    (tmp_path / "a.weird").write_text("hello")
    with pytest.raises(DataError, match="does not know this kind"):
        read_atoms(tmp_path / "a.weird")
    (tmp_path / "a.extxyz").write_text("3\nProperties=species:S:1:pos:R:3\nO 0 0 0\n")
    with pytest.raises(DataError, match="ASE cannot read it") as error:
        read_atoms(tmp_path / "a.extxyz")
    assert "\n" not in str(error.value)
    ase.io.write(tmp_path / "a.traj", crystal())
    content = (tmp_path / "a.traj").read_bytes()
    (tmp_path / "a.traj").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.traj"):
        read_atoms(tmp_path / "a.traj")


class TestRealFiles:
    pytestmark = needs_real

    def test_oc22(self):
        data = read_atoms(REAL / "oc22" / "oc22_train16.extxyz")
        assert len(data) == 16
        assert 44 <= data.n_atoms.min() <= data.n_atoms.max() <= 146
        assert data.pbc.all()
        first = ase.io.read(REAL / "oc22" / "oc22_train16.extxyz", index=0)
        assert data.energies[0] == first.calc.results["energy"]

    def test_oc20_fixed_atoms_keep_their_forces(self):
        path = REAL / "oc20" / "random1000194.traj"
        data = read_atoms(path)
        first = ase.io.read(path, index=0)
        fixed = first.constraints[0].index
        assert (first.get_forces()[fixed] == 0).all()
        forces = data.frame(0).get_forces(apply_constraint=False)
        assert (np.abs(forces[fixed]).sum(axis=1) > 0).all()
        np.testing.assert_array_equal(forces, first.get_forces(apply_constraint=False))
        assert len(data) == 61


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.0, None), (-1.0, "compression as positive"), (1 / GPa, "another unit"), (0.0, "zero")],
)
def test_sign_and_unit_of_stress_are_looked_at(factor, words):
    rng = np.random.default_rng(0)
    frames, stress = [], []
    for _ in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * rng.uniform(0.97, 1.03), scale_atoms=True)
        atoms.positions += 0.05 * rng.normal(size=(4, 3))
        atoms.calc = EMT()
        frames.append(atoms)
        stress.append(atoms.get_stress())
    data = replace(AtomicDataset.from_frames(frames), stress=factor * np.array(stress))
    doubts = stress_doubts(data)
    assert len(doubts) == (words is not None)
    assert words is None or words in doubts[0]
