"""What a frame carries survives files and datasets; charge and spin; label-like keys."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedPlane, FixScaled, Hookean

from dcase.data.atoms_files import read_atoms
from dcase.data.dataset import AtomicDataset, DatasetInfo
from dcase.data.state import (
    FrameState,
    bare,
    for_extxyz,
    hand_over,
    is_label,
    stated_charge,
    total_charge,
    unpaired_electrons,
    with_results,
)
from dcase.errors import DataError


def hydroxide() -> Atoms:
    """A heavy hydroxide beside a water that is partly held, with all that Atoms can carry."""
    atoms = Atoms(
        "OHOHH",
        [[0, 0, 0], [0.97, 0, 0], [3, 0, 0], [3.6, 0.76, 0], [3.6, -0.76, 0]],
        cell=[9, 10, 11],
        pbc=[True, True, False],
        tags=[0, 1, 2, 2, 0],
        masses=[15.999, 2.014, 15.999, 1.008, 1.008],
    )
    atoms.set_initial_charges([-1, 0, 0, 0, 0])
    atoms.set_initial_magnetic_moments([0.5, 0, -0.5, 0, 0])
    atoms.set_momenta(np.arange(15.0).reshape(5, 3) / 7)
    atoms.new_array("residue", np.array([7, 7, 8, 8, 8]))
    atoms.info.update(charge=-1, multiplicity=1, config_type="ion", nested={"a": [1, 2]})
    atoms.set_constraint(
        [
            FixAtoms([0]),
            FixCartesian(2, [True, False, True]),
            FixScaled([3], [False, True, False]),
            FixedPlane(4, [0, 0, 1]),
            Hookean(0, 2, 5.0, 2.0),
        ]
    )
    return atoms


def assert_same_state(found: Atoms, given: Atoms, *, own: bool = True) -> None:
    names = ["numbers", "tags", "initial_charges", "initial_magmoms"]
    for name in [*names, "residue"] if own else names:
        assert np.array_equal(found.arrays[name], given.arrays[name]), name
    assert np.allclose(found.get_masses(), given.get_masses(), atol=1e-8, rtol=0)
    assert np.allclose(found.positions, given.positions, atol=1e-8, rtol=0)
    assert np.array_equal(found.cell.array, given.cell.array)
    assert np.array_equal(found.pbc, given.pbc)
    for name in ("charge", "multiplicity", "config_type"):
        assert found.info[name] == given.info[name], name
    assert list(found.info["nested"]["a"]) == [1, 2]
    ours, theirs = ([c.todict() for c in atoms.constraints] for atoms in (found, given))
    assert json.loads(json.dumps(ours, default=_plain)) == json.loads(
        json.dumps(theirs, default=_plain)
    )
    assert np.allclose(found.get_momenta(), given.get_momenta(), atol=1e-8, rtol=0)


def _plain(value):
    return value.tolist()


def labelled(atoms: Atoms) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((len(atoms), 3)))
    return atoms


# ------------------------------------------------------------------------------ round trips


def through_dataset(atoms, tmp_path):
    return AtomicDataset.from_frames([atoms]).frame(0)


def through_subset(atoms, tmp_path):
    water = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    parts = [AtomicDataset.from_frames([water]), AtomicDataset.from_frames([water, atoms])]
    whole = AtomicDataset.concatenate(parts, DatasetInfo("both"))
    assert whole.frame(0).info == {}
    return whole.subset([2, 0]).frame(0)


def through_file(suffix):
    def through(atoms, tmp_path):
        path = tmp_path / f"frames.{suffix}"
        ase.io.write(path, [for_extxyz(labelled(atoms))] * 2)
        return read_atoms(path).frame(1)

    return through


def through_text(atoms, tmp_path):
    found = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    FrameState.from_text(FrameState.of(atoms).to_text()).put_on(found)
    return found


def through_trajectory(atoms, tmp_path):
    from dcase.md_runs.files.trajectory import read_trajectory, write_trajectory
    from dcase.units import FS

    row = np.concatenate(
        [[0, 0, 0, 0], atoms.positions.ravel(), (atoms.get_velocities() * FS).ravel()]
    )
    write_trajectory(tmp_path / "t.h5", atoms, row[None], np.zeros((1, 8)), 0.5)
    return read_trajectory(tmp_path / "t.h5")[0]


def through_checkpoint(atoms, tmp_path):
    from dcase.md_runs.files.run_folder import structure_arrays, structure_from

    with open(tmp_path / "c.npz", "wb") as file:
        np.savez(file, allow_pickle=False, **structure_arrays(atoms))
    with np.load(tmp_path / "c.npz", allow_pickle=False) as stored:
        found = structure_from(stored)
    found.set_momenta(atoms.get_momenta(), apply_constraint=False)  # the checkpoint's own
    return found


def through_chosen_frames(atoms, tmp_path):
    from dcase.md_runs.active.frames import read_structures, write_frames

    write_frames(tmp_path / "chosen.extxyz", [atoms])
    return read_structures(tmp_path / "chosen.extxyz")[0]


def through_replicas(atoms, tmp_path):
    from ase.io.jsonio import decode

    from dcase.md_runs.files.replica_folder import _as_text

    found = Atoms.fromdict(decode(_as_text(atoms)))
    found.set_momenta(atoms.get_momenta(), apply_constraint=False)  # of each replica its own
    return found


@pytest.mark.parametrize(
    "way",
    [
        through_dataset,
        through_subset,
        through_file("extxyz"),
        through_text,
        through_trajectory,
        through_checkpoint,
        through_chosen_frames,
        through_replicas,
    ],
)
def test_everything_a_frame_carries_survives(way, tmp_path):
    assert_same_state(way(hydroxide(), tmp_path), hydroxide())


def test_ase_trajectories_keep_all_but_arrays_of_ones_own(tmp_path):
    found = through_file("traj")(hydroxide(), tmp_path)
    assert_same_state(found, hydroxide(), own=False)


def test_columns_of_a_database_are_state(tmp_path):
    from ase.db import connect

    with connect(tmp_path / "ions.db") as db:
        db.write(
            labelled(hydroxide()), charge_of_ion=-1, site="top", dft_energy=-2.0, data={"k": 1}
        )
    frame = read_atoms(tmp_path / "ions.db").frame(0)
    assert frame.info["site"] == "top"
    assert frame.info["k"] == 1
    assert "dft_energy" not in frame.info
    assert total_charge(frame) == -1
    assert len(frame.constraints) == 5


def test_without_fixed_drops_constraints_but_no_other_state():
    frame = AtomicDataset.from_frames([hydroxide()]).without_fixed().frame(0)
    assert frame.constraints == []
    assert total_charge(frame) == -1


def test_neutral_frames_without_anything_carry_nothing():
    water = Atoms("OH2", np.eye(3))
    dataset = AtomicDataset.from_frames([water, water])
    assert dataset.states is None
    assert dataset.electrons() == {"charges": [0.0], "unpaired": [], "stated": False}


def test_an_ion_is_another_dataset_than_the_molecule():
    water = Atoms("OH2", np.eye(3))
    ion, heavy, named = water.copy(), water.copy(), water.copy()
    ion.info["charge"] = 1
    heavy.set_masses([16, 2, 2])
    named.info["name"] = "water"
    prints = [AtomicDataset.from_frames([a]).fingerprint() for a in (water, ion, heavy, named)]
    assert len(set(prints[:3])) == 3
    assert prints[3] == prints[0]


# ------------------------------------------------------------------------------ label-like keys


@pytest.mark.parametrize(
    "name",
    ["REF_energy", "REF_forces", "REF_gap", "dft_energy", "forces", "virials", "MACE_stress",
     "TotEnergy", "free_energy", "atomic_energies", "dipole", "magmoms", "charges"],
)  # fmt: skip
def test_keys_of_labels_are_known(name):
    assert is_label(name)


@pytest.mark.parametrize(
    "name",
    ["charge", "spin", "multiplicity", "initial_charges", "initial_magmoms", "masses", "momenta",
     "tags", "config_type", "step", "name"],
)  # fmt: skip
def test_keys_of_state_are_no_labels(name):
    assert not is_label(name)


def test_a_bare_copy_has_no_label_and_the_original_keeps_its_own():
    atoms = labelled(hydroxide())
    atoms.info["REF_energy"] = -7.0
    atoms.arrays["REF_forces"] = np.ones((5, 3))
    clean = bare(atoms, labels=["residue"])
    assert clean.calc is None
    assert "REF_energy" not in clean.info
    assert not {"REF_forces", "residue"} & set(clean.arrays)
    assert atoms.info["REF_energy"] == -7.0
    assert "REF_forces" in atoms.arrays
    assert_same_state(bare(atoms), atoms)


def test_a_structure_of_ours_is_loaded_with_all_its_constraints(tmp_path):
    from dcase.cli.structures import load_structure
    from dcase.potentials.create import create_potential

    ase.io.write(tmp_path / "a.extxyz", for_extxyz(labelled(hydroxide())))
    potential = create_potential(elements="HO", size="tiny", seed=0)
    atoms, _ = load_structure(str(tmp_path / "a.extxyz"), potential)
    assert_same_state(atoms, hydroxide())
    assert atoms.calc is None


def test_labels_named_by_the_user_are_no_state_either(tmp_path):
    atoms = hydroxide()
    atoms.info["e_dft"] = -4.0
    atoms.arrays["f_dft"] = np.ones((5, 3))
    ase.io.write(tmp_path / "a.extxyz", for_extxyz(atoms))
    dataset = read_atoms(tmp_path / "a.extxyz", energy_key="e_dft", forces_key="f_dft")
    frame = dataset.frame(0)
    assert frame.get_potential_energy(apply_constraint=False) == -4.0
    assert "e_dft" not in frame.info
    assert "f_dft" not in frame.arrays


def test_results_are_the_calculators_whatever_constraints_do():
    from ase.calculators.emt import EMT

    atoms = Atoms("Cu3", [[0, 0, 0], [2.4, 0, 0], [0, 2.7, 0]])
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.info["REF_energy"] = 99.0
    atoms.set_constraint([FixAtoms([0]), Hookean(1, 2, 5.0, 1.0)])
    frame = with_results(atoms, atoms.calc, "emt")
    assert frame.calc.results["energy"] == pytest.approx(energy, abs=1e-12)
    assert np.allclose(frame.calc.results["forces"], forces, atol=1e-12, rtol=0)
    assert frame.info == {"dcase_model": "emt"}


# ------------------------------------------------------------------------------ charge and spin


def ion(**info) -> Atoms:
    atoms = Atoms("OH", [[0, 0, 0], [0.97, 0, 0]])
    atoms.info.update(info)
    return atoms


def test_the_charge_is_that_of_info_or_the_sum_of_the_initial_charges():
    assert stated_charge(ion()) is None
    assert total_charge(ion(charge=-1)) == -1
    atoms = ion()
    atoms.set_initial_charges([-0.8, -0.2001])
    assert total_charge(atoms) == -1
    atoms.info["charge"] = -1
    assert total_charge(atoms) == -1
    zeros = ion(charge=1)
    zeros.set_initial_charges([0, 0])  # what a column of zeros says is nothing
    assert total_charge(zeros) == 1


def test_two_charges_that_contradict_each_other_are_one_line(tmp_path):
    atoms = ion(charge=1)
    atoms.set_initial_charges([-1, 0])
    with pytest.raises(DataError, match=r'info\["charge"\] is 1, but the initial charges .* -1'):
        total_charge(atoms)
    with pytest.raises(DataError, match="frame 1: .* sum to -1"):
        AtomicDataset.from_frames([ion(charge=-1), atoms]).electrons()
    with pytest.raises(DataError, match="not a number"):
        total_charge(ion(charge="minus one"))


@pytest.mark.parametrize(
    ("info", "unpaired"),
    [
        ({}, None),
        ({"multiplicity": 2}, 1),
        ({"spin": 1}, 1),  # 2S, as PySCF has it
        ({"spin": 2}, 1),  # 2S + 1, as OMol25 has it: nine electrons cannot have two unpaired
        ({"charge": -1, "spin": 0}, 0),
        ({"charge": -1, "spin": 1}, 0),
        ({"charge": -1, "spin": 3}, 2),
        ({"charge": -1, "spin": 2}, 2),
        ({"multiplicity": 2, "spin": 1}, 1),
    ],
)
def test_spin_is_the_number_of_unpaired_electrons_or_the_multiplicity(info, unpaired):
    assert unpaired_electrons(ion(**info)) == unpaired


def test_magnetic_moments_say_the_spin_where_nothing_else_does():
    atoms = ion()
    atoms.set_initial_magnetic_moments([1.1, -0.1])
    assert unpaired_electrons(atoms) == 1


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"multiplicity": 1}, "impossible for its 9 electrons"),
        ({"charge": -1, "multiplicity": 2}, "impossible for its 10 electrons"),
        ({"spin": 0.5}, "not a whole number"),
        ({"spin": 0}, "impossible"),
        ({"multiplicity": 4, "spin": 1}, "contradict"),
    ],
)
def test_impossible_spins_are_one_line(info, said):
    with pytest.raises(DataError, match=said):
        unpaired_electrons(ion(**info))


class Takes:
    """A calculator that takes charge and multiplicity."""

    def __init__(self, **parameters):
        self.parameters = parameters

    def set(self, **changes):
        self.parameters |= changes


def test_calculators_get_charge_and_spin_where_they_take_them():
    calculator = hand_over(ion(charge=-1, multiplicity=3), Takes(charge=0, mult=1, uhf=0, xc="x"))
    assert calculator.parameters == {"charge": -1, "mult": 3, "uhf": 2, "xc": "x"}
    assert hand_over(ion(charge=-1), Takes(xc="x")).parameters == {"xc": "x"}
    assert hand_over(ion(), Takes(charge=-1)).parameters == {"charge": -1}  # the maker's choice
    with pytest.raises(DataError, match="has charge 1, but its calculator was made for charge -1"):
        hand_over(ion(charge=1), Takes(charge=-1))
    atoms = ion(charge=-1)
    hand_over(atoms, Takes())
    assert atoms.get_initial_charges().sum() == pytest.approx(-1, abs=1e-12)


def test_xtb_computes_the_ion_and_the_radical():
    pytest.importorskip("tblite.ase")
    from dcase.data.xtb import xtb_calculator

    def energy(atoms, told=True):
        atoms.calc = xtb_calculator(0.01, atoms if told else None)
        return atoms.get_potential_energy()

    moved = ion()
    moved.set_initial_charges([-1, 0])
    anion = energy(moved, told=False)  # tblite's own reading of initial charges
    assert energy(ion(charge=-1)) == pytest.approx(anion, abs=1e-6)
    assert energy(ion(charge=-1)) < energy(ion()) - 1.0
    assert energy(ion(charge=-1, spin=3)) > anion + 1.0  # the triplet lies above
    assert energy(ion(multiplicity=2)) == pytest.approx(energy(ion()), abs=1e-6)


def test_generated_frames_say_their_charge_and_are_those_of_the_ion(tmp_path):
    pytest.importorskip("tblite.ase")
    from dcase.data.generate import generate
    from dcase.data.npz import read_npz
    from dcase.data.xtb import xtb_calculator

    path = generate(
        ion(charge=-1), 2, interval=1.0, equilibrate=2.0, walkers=1, out=tmp_path / "ion.npz"
    )
    dataset = read_npz(path)
    assert dataset.electrons() == {"charges": [-1.0], "unpaired": [], "stated": True}
    frame = dataset.frame(0)
    label = frame.get_potential_energy()
    frame.calc = xtb_calculator(0.01, frame)
    assert frame.get_potential_energy() == pytest.approx(label, abs=1e-4)
    with pytest.raises(DataError, match="made with charge"):
        generate(ion(), 2, interval=1.0, equilibrate=2.0, walkers=1, charge=1, out=path)
