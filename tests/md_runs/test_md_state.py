"""What the structure carries stands in all that is simulated, relaxed, chosen, labelled."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixedPlane
from ase.io import read
from md_ensembles import ensemble_molecule
from md_models import spring_molecule

from dcase.data.atoms_files import read_atoms
from dcase.data.state import total_charge, unpaired_electrons
from dcase.errors import DataError, ElectronsWarning, OptionError
from dcase.md_runs.active.labels import Labeller, label_frames
from dcase.md_runs.active.loop import ActiveLearning
from dcase.md_runs.active.settings import ActiveSettings
from dcase.md_runs.active.start import Start
from dcase.md_runs.files.publish import recover
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder
from dcase.md_runs.files.trajectory import read_trajectory
from dcase.md_runs.relax import relax
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.report.replica_report import write_replica_report
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.create import create_potential
from dcase.potentials.electrons import electrons_line, trained_electrons
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.fitting.recipe import load_recipe

SHORT = MDSettings(steps=20, equilibrate=0, traj_every=5, timestep_fs=0.25)


def spoilt(atoms: Atoms) -> Atoms:
    """The same as a cation with an isotope, a held atom, and labels of another method."""
    atoms.info.update(charge=1, multiplicity=2, config_type="ion", REF_energy=-99.0)
    atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 7.0)
    masses = atoms.get_masses()
    masses[1] = 2.014
    atoms.set_masses(masses)
    atoms.set_tags(np.arange(len(atoms)))
    atoms.set_constraint([FixAtoms([0]), FixedPlane(2, [0, 0, 1])])
    return atoms


def assert_as_given(frame: Atoms, *, held: bool = True) -> None:
    assert total_charge(frame) == 1
    assert unpaired_electrons(frame) == 1
    assert frame.info["config_type"] == "ion"
    assert frame.get_masses()[1] == pytest.approx(2.014, abs=1e-8)
    assert frame.get_tags().tolist() == list(range(len(frame)))
    assert "REF_energy" not in frame.info
    assert "REF_forces" not in frame.arrays
    if held:
        assert [type(c) for c in frame.constraints] == [FixAtoms, FixedPlane]


def test_frames_of_a_run_carry_the_state_of_its_start(tmp_path):
    atoms = spoilt(spring_molecule("CH4"))
    result = run_md(atoms, SHORT, tmp_path / "run")
    frames = read_trajectory(tmp_path / "run")
    assert len(frames) == 5
    for frame in frames:
        assert_as_given(frame)
        assert np.array_equal(frame.positions[0], atoms.positions[0])
    velocities = frames[-1].get_velocities()
    assert np.allclose(velocities, result.atoms.get_velocities(), atol=1e-12, rtol=0)
    assert_as_given(Checkpoint.load(RunFolder(tmp_path / "run").checkpoint).start)
    assert atoms.info["REF_energy"] == -99.0  # the caller's stay as they are


def test_a_resumed_or_recovered_run_has_it_too(tmp_path):
    atoms = spoilt(spring_molecule("CH4"))
    run_md(atoms, SHORT, tmp_path / "run")
    longer = MDSettings(**{**SHORT.to_dict(), "steps": 30})
    run_md(spoilt(spring_molecule("CH4")), longer, tmp_path / "run", resume=True)
    frames = read_trajectory(tmp_path / "run")
    assert len(frames) == 7
    assert_as_given(frames[-1])
    folder = RunFolder(tmp_path / "run")
    facts = folder.read_run()
    folder.write_run({**facts, "status": "running"})  # as a killed run leaves it
    folder.trajectory.unlink()
    recover(folder.root)
    assert_as_given(read_trajectory(folder.root)[-1])


def test_final_and_relaxed_frames_hold_the_potentials_results_and_no_older_label(tmp_path):
    atoms = spoilt(spring_molecule("CH4"))
    atoms.rattle(0.05, seed=3)
    result = run_md(atoms, SHORT, tmp_path / "run")
    relax(atoms, fmax=1e-3, out=tmp_path / "relaxed")
    paths = [tmp_path / "run" / "final.extxyz"]
    paths += [tmp_path / "relaxed" / f"{name}.extxyz" for name in ("relaxed", "relaxation")]
    for path in paths:
        raw = read(path, ":")[-1]
        assert not {"REF_energy", "REF_forces"} & {*raw.info, *raw.arrays}
        assert raw.info["dcase_model"] == "pairsprings"
        frame = read_atoms(path).frame(-1)
        assert_as_given(frame)
        own = frame.copy()
        own.set_constraint()
        own.calc = spring_molecule("CH4").calc
        labels = frame.calc.results
        assert labels["energy"] == pytest.approx(own.get_potential_energy(), abs=1e-6)
        assert np.allclose(labels["forces"], own.get_forces(), atol=1e-5, rtol=0)
    assert result.status == "finished"


def test_frames_worth_labelling_carry_it_and_no_label(tmp_path):
    atoms = spoilt(ensemble_molecule("CH4"))
    settings = MDSettings(
        steps=40, equilibrate=0, max_uncertainty_eV_A=1e-3, on_uncertain="flag", seed=2
    )
    run_md(atoms, settings, tmp_path / "run")
    dataset = read_atoms(tmp_path / "run" / "selected.extxyz", need=())
    assert len(dataset) >= 1
    assert dataset.energies is None
    for frame in dataset:
        assert_as_given(frame)


def test_replicas_carry_it(tmp_path):
    ion = Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [-0.2, 0.95, 0]], masses=[16, 2.014, 1.008])
    ion.info.update(charge=1, REF_energy=-99.0)
    ion.calc = DCCalculator(create_potential(elements="HO", size="tiny", seed=0), dtype="float64")
    settings = MDSettings(steps=4, equilibrate=0, timestep_fs=0.1, bond_stretch_A=None)
    run_replicas(ion, settings, 2, tmp_path / "run")
    write_replica_report(tmp_path / "run", "finished")
    frames = read(tmp_path / "run" / "final.extxyz", ":")
    for frame in frames:
        assert total_charge(frame) == 1
        assert frame.get_masses()[1] == pytest.approx(2.014, abs=1e-8)
        assert "REF_energy" not in frame.info


# ------------------------------------------------------------------------------ labelling


class Charged(EMT):
    """EMT, and 10 eV an elementary charge as its atoms say it."""

    def calculate(self, atoms=None, *rest):
        super().calculate(atoms, *rest)
        for name in ("energy", "free_energy"):
            self.results[name] += 10.0 * round(float(self.atoms.get_initial_charges().sum()), 6)


def copper(**info) -> Atoms:
    atoms = Atoms("Cu4", [[0, 0, 0], [2.35, 0, 0], [1.2, 2.05, 0], [1.2, 0.7, 1.95]])
    atoms.info.update(info)
    return atoms


def test_an_ion_sampled_by_active_learning_is_labelled_and_trained_as_the_ion(tmp_path):
    settings = ActiveSettings(
        rounds=1, per_round=2, members=2, walkers=2, steps=20, temperatures_K=(400.0,),
        timestep_fs=3.0, frame_every=5, max_uncertainty_eV_A=5.0, training_steps=4,
    )  # fmt: skip
    recipe = load_recipe(
        "default",
        {"model.size": "tiny", "training.batch_size": 4, "acceleration.filter_table": 0},
    )
    ion = spoilt(copper())
    ion.set_masses(None)
    start = Start(structure=ion, count=4, rattle_A=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ElectronsWarning)  # it is the system that was trained on
        result = ActiveLearning(
            start, Labeller("charged", Charged, "EMT"), recipe, settings, tmp_path / "run"
        ).run()
    labelled = read_atoms(tmp_path / "run" / "labelled.extxyz")
    assert len(labelled) == 6
    for frame in labelled:
        assert total_charge(frame) == 1
        assert frame.get_tags().tolist() == [0, 1, 2, 3]
        assert [type(c) for c in frame.constraints] == [FixAtoms, FixedPlane]
        neutral = frame.copy()
        neutral.set_constraint()
        neutral.calc = EMT()
        expected = neutral.get_potential_energy() + 10.0
        assert frame.calc.results["energy"] == pytest.approx(expected, abs=1e-5)
    assert trained_electrons(result.ensemble) == {
        "charges": [1.0], "unpaired": [1], "stated": True,
    }  # fmt: skip


def test_a_label_of_the_neutral_is_not_taken_for_that_of_the_ion(tmp_path):
    labeller = Labeller("charged", Charged, "EMT")
    energies = [
        label_frames([copper(**info)], labeller, tmp_path, 1)[0][0].get_potential_energy()
        for info in ({}, {"charge": 1}, {"charge": 1}, {})
    ]
    assert np.diff(energies).tolist() == pytest.approx([10.0, 0.0, -10.0], abs=1e-9)
    with pytest.raises(DataError, match="impossible for its 115 electrons"):
        label_frames([copper(charge=1, multiplicity=1)], labeller, tmp_path, 1)


def test_xtb_labels_a_sampled_ion_as_the_ion(tmp_path):
    pytest.importorskip("tblite.ase")
    from dcase.data.xtb import xtb_calculator
    from dcase.md_runs.active.labels import find_labeller

    ion = Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [-0.2, 0.95, 0]])
    bare = ion.copy()
    ion.info["charge"] = 1
    (labelled,), _ = label_frames([ion], find_labeller(), tmp_path, 1)
    bare.set_initial_charges([1, 0, 0])
    bare.calc = xtb_calculator(0.01)
    energy = labelled.get_potential_energy()
    assert energy == pytest.approx(bare.get_potential_energy(), abs=1e-6)
    bare.set_initial_charges([0, 0, 0])
    assert energy - bare.get_potential_energy() > 5.0  # the ionisation of water


# ------------------------------------------------------------------------------ another charge


def potential(electrons, seed=0):
    made = create_potential(elements="HO", size="tiny", seed=seed)
    if electrons is not None:
        made.metadata["electrons"] = electrons
    return made


NEUTRAL = {"charges": [0.0], "unpaired": [], "stated": False}
CATION = {"charges": [1.0], "unpaired": [1], "stated": True}


def water(**info) -> Atoms:
    atoms = Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [-0.2, 0.95, 0]])
    atoms.info.update(info)
    return atoms


def test_a_potential_says_once_that_it_was_trained_on_another_charge():
    atoms = water(charge=1)
    atoms.calc = DCCalculator(potential(NEUTRAL))
    with pytest.warns(ElectronsWarning, match=r"charge 0 \(none was given\), the structure has 1"):
        atoms.get_potential_energy()
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True  # searched for anew, said no more
    atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("trained", "info"),
    [
        (None, {"charge": 1}),  # a checkpoint of before
        (NEUTRAL, {}),
        (NEUTRAL, {"charge": 0, "multiplicity": 1}),
        (CATION, {"charge": 1}),
        (CATION, {"charge": 1, "multiplicity": 2}),
    ],
)
def test_the_same_charge_is_silent(trained, info):
    assert electrons_line(potential(trained), water(**info)) == ""


def test_spin_counts_where_both_say_it_and_ensembles_know_all_their_members():
    line = electrons_line(potential(CATION), water(charge=1, multiplicity=4))
    assert "1 unpaired electrons, the structure has 3" in line
    both = Ensemble([potential(NEUTRAL), potential(CATION, 1)])
    assert electrons_line(both, water(charge=1)) == ""
    assert "trained on total charge 0, 1, the structure has -1" in electrons_line(
        both, water(charge=-1)
    )


def test_a_run_keeps_it_in_its_report(tmp_path):
    atoms = water(charge=1)
    atoms.calc = DCCalculator(potential(NEUTRAL), dtype="float64")
    settings = MDSettings(
        steps=2, equilibrate=0, timestep_fs=0.1, bond_stretch_A=None, max_temperature_K=1e6
    )
    with pytest.warns(ElectronsWarning):
        run_md(atoms, settings, tmp_path / "run")
    assert "total charge" in RunFolder(tmp_path / "run").read_run()["warnings"][-1]
    relax(atoms, steps=1, out=tmp_path / "relaxed")
    stored = json.loads((tmp_path / "relaxed" / "relax.json").read_text())
    assert "total charge" in stored["warnings"][0]


# ------------------------------------------------------------------------------ momenta


def test_momenta_are_kept_to_the_last_bit(tmp_path):
    """One hydrogen kicked, the whole moving and turning: nothing is taken out or drawn."""
    atoms = spring_molecule("CH4")
    velocities = np.tile([0.02, 0, 0], (5, 1))
    velocities[4] += [0, 0.2, 0]
    atoms.set_velocities(velocities)
    settings = MDSettings(steps=5, equilibrate=0, keep_momenta=True)
    result = run_md(atoms, settings, tmp_path / "run")
    series = result.series()
    assert series["kinetic_energy"][0] == atoms.get_kinetic_energy()
    first = read_trajectory(tmp_path / "run")[0].get_momenta()
    assert np.allclose(first, atoms.get_momenta(), atol=1e-12, rtol=0)
    assert np.ptp(series["com_momentum"]) < 1e-10
    assert series["com_momentum"][0] > 0.01
    assert not result.warnings


def test_kept_momenta_and_an_equilibration_exclude_each_other(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.set_momenta(np.ones((5, 3)))
    settings = MDSettings(steps=5, equilibrate=10, keep_momenta=True)
    with pytest.raises(OptionError, match="10 steps of equilibration exclude each other"):
        run_md(atoms, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_momenta_that_are_not_there_are_missed(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.arrays.pop("momenta", None)
    atoms.arrays["velo"] = np.ones((5, 3))
    settings = MDSettings(steps=5, equilibrate=0, keep_momenta=True)
    told = []
    result = run_md(atoms, settings, tmp_path / "run", notify=told.append)
    (warning,) = result.warnings
    assert "holds no momenta, so every atom starts at rest" in warning
    assert "'velo'" in warning
    assert any(warning in line for line in told)
    assert result.series()["kinetic_energy"][0] == 0.0
