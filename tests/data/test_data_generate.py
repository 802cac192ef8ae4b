import json
import os
import signal
import sys
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import molecule
from processes import die_at_write, finish, start

from dcase.data import generate as module
from dcase.data import generate_state
from dcase.data.decorrelation import align, lag_one
from dcase.data.generate import generate
from dcase.data.generate_state import state_path
from dcase.data.molecules import structure
from dcase.data.npz import read_npz
from dcase.data.xtb import start_structure
from dcase.errors import DataError, MissingExtraError, OptionError, RunError
from dcase.statistics import autocorrelation_time

KCAL = units.kcal / units.mol
SHORT = {"interval": 5.0, "equilibrate": 10.0, "walkers": 2, "seed": 7}


one_thread = pytest.mark.skipif(
    os.environ.get("OMP_NUM_THREADS") != "1" and (os.cpu_count() or 1) > 1,
    reason="tblite repeats bit for bit on one thread only: set OMP_NUM_THREADS=1 (make test does)",
)


@pytest.fixture
def xtb():
    pytest.importorskip("tblite", reason="GFN2-xTB needs tblite")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    pytest.importorskip("tblite", reason="GFN2-xTB needs tblite")
    pytest.importorskip("rdkit", reason="SMILES need rdkit")
    return generate("O", 12, out=tmp_path_factory.mktemp("whole") / "w.npz", **SHORT)


def contents(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def same(first, second):
    first, second = contents(first), contents(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.dtype == second[key].dtype
        np.testing.assert_array_equal(value, second[key], err_msg=key)


def test_the_file_is_md17_like(uninterrupted):
    arrays = contents(uninterrupted)
    assert arrays["R"].dtype == arrays["F"].dtype == np.float32
    assert arrays["E"].dtype == np.float64
    assert arrays["z"].tolist() == [8, 1, 1]
    assert arrays["walker"].tolist() == [0] * 6 + [1] * 6
    assert str(arrays["theory"]) == "GFN2-xTB"
    metadata = json.loads(str(arrays["metadata"]))
    assert metadata["temperature_K"] == 500.0
    assert metadata["interval_fs"] == 5.0
    assert set(metadata["lag_1_autocorrelation"]) == {"energies", "forces", "positions"}
    data = read_npz(uninterrupted)
    assert (data.info.name, data.info.level_of_theory) == ("xtb", "GFN2-xTB")


def test_labels_are_those_of_the_stored_coordinates(uninterrupted):
    atoms = read_npz(uninterrupted).frame(3)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = module.xtb_calculator(accuracy=0.001)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-7)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=5e-6)
    assert contents(uninterrupted)["E"][3] == pytest.approx(energy / KCAL)


def test_forces_are_the_slope_of_the_energy(uninterrupted):
    atoms = read_npz(uninterrupted).frame(0)
    force = atoms.get_forces()[1, 0]
    energies = []
    for step in (-1e-3, 1e-3):
        moved = atoms.copy()
        moved.positions[1, 0] += step
        moved.calc = module.xtb_calculator(accuracy=0.001)
        energies.append(moved.get_potential_energy())
    assert -(energies[1] - energies[0]) / 2e-3 == pytest.approx(force, abs=1e-3)


@pytest.mark.parametrize("stop_at", [0, 1, 5, 6, 9])
@one_thread
def test_resuming_after_ctrl_c_changes_nothing(uninterrupted, tmp_path, stop_at):
    out = tmp_path / "w.npz"
    steps = 0

    def interrupt(done, total):
        nonlocal steps
        steps += 1
        if done == stop_at and steps > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        generate("O", 12, out=out, progress=interrupt, **SHORT)
    assert state_path(out).exists()
    assert not out.exists()
    seen = []
    generate("O", 12, out=out, progress=lambda done, total: seen.append(done), **SHORT)
    assert seen[0] == stop_at
    assert not state_path(out).exists()
    same(uninterrupted, out)


def work(out, resume, die_at):
    """Target of a process: sampling that is saved after every segment, and dies at a write."""
    now = [0.0]

    def later(done, total):
        now[0] += 2 * module.SAVE_EVERY

    module.time = SimpleNamespace(monotonic=lambda: now[0])
    die_at_write(die_at)
    generate("O", 12, out=out, resume=resume, progress=later, **SHORT)


@pytest.mark.parametrize("part", ["before a sync", "before a rename"])
@one_thread
def test_resuming_after_kill_9_changes_nothing(uninterrupted, tmp_path, part):
    out = tmp_path / "w.npz"
    # Each save is a sync and a rename: after the record, the eighth save is that of frame 6 or 7.
    process = start(work, out, True, 17 if part == "before a sync" else 18)
    assert finish(process) == -signal.SIGKILL
    assert not out.exists()
    assert state_path(out).exists()
    seen = []
    generate("O", 12, out=out, progress=lambda done, total: seen.append(done), **SHORT)
    assert 3 <= seen[0] <= 8
    same(uninterrupted, out)


def test_a_finished_file_is_left_alone(uninterrupted):
    before = uninterrupted.stat().st_mtime_ns
    assert generate("O", 12, out=uninterrupted, **SHORT) == uninterrupted
    assert uninterrupted.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="made with n_frames = 12, now it is 13"):
        generate("O", 13, out=uninterrupted, **SHORT)
    with pytest.raises(DataError, match="temperature_K = 500"):
        generate("O", 12, out=uninterrupted, temperature=300.0, **SHORT)


def test_foreign_and_damaged_files_are_not_replaced_unasked(xtb, tmp_path):
    out = tmp_path / "w.npz"
    out.write_bytes(b"my thesis")
    with pytest.raises(DataError, match="not made by dcase"):
        generate("eth", 2, out=out, **SHORT)
    assert out.read_bytes() == b"my thesis"
    generate("eth", 2, out=out, resume=False, **SHORT)
    assert len(read_npz(out)) == 2
    out.unlink()

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate("eth", 2, out=out, progress=interrupt, **SHORT)
    with pytest.raises(RunError, match="n_frames was 2, now 3"):
        generate("eth", 3, out=out, **SHORT)
    state_path(out).write_bytes(b"PK garbage")
    with pytest.raises(DataError, match="damaged; start anew"):
        generate("eth", 2, out=out, **SHORT)


def test_seeds_and_walkers_are_independent(uninterrupted, tmp_path):
    other = generate("O", 12, out=tmp_path / "a.npz", **{**SHORT, "seed": 8})
    assert not np.array_equal(contents(other)["R"], contents(uninterrupted)["R"])
    frames = contents(uninterrupted)["R"]
    assert not np.array_equal(frames[0], frames[6])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    generate("O", 1, out=tmp_path / "b.npz", **SHORT)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_the_interval_is_measured(xtb, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PILOT_STEPS", 600)
    out = generate("eth", 3, out=tmp_path / "a.npz", equilibrate=20.0, walkers=1)
    metadata = json.loads(str(contents(out)["metadata"]))
    tau = metadata["energy_autocorrelation_time_fs"]
    assert 1.0 < tau < 100.0
    assert 4 * tau <= metadata["interval_fs"] <= 4 * tau + 0.5


@pytest.mark.slow
@pytest.mark.physics
def test_the_temperature_is_the_one_asked_for(xtb, tmp_path):
    # Water, 150 frames 10 fs apart: 9 momenta each; the error of the mean is some five percent.
    start = molecule("H2O")
    out = generate(start, 150, out=tmp_path / "a.npz", temperature=300.0, interval=10.0, walkers=1)
    metadata = json.loads(str(contents(out)["metadata"]))
    assert metadata["mean_kinetic_temperature_K"] == pytest.approx(300, rel=0.15)


def test_reacted_segments_are_dropped_with_a_note(xtb, tmp_path, monkeypatch):
    true_walk, calls = module._Sampler.walk, []

    def walk(self, atoms, rng, steps, energies):
        calls.append(1)
        return true_walk(self, atoms, rng, steps, energies) and len(calls) != 4

    monkeypatch.setattr(module._Sampler, "walk", walk)
    out = generate("eth", 4, out=tmp_path / "a.npz", **{**SHORT, "walkers": 1})
    metadata = json.loads(str(contents(out)["metadata"]))
    assert len(metadata["dropped"]) == 1
    assert "before frame 2" in metadata["dropped"][0]
    assert len(read_npz(out)) == 4


def test_a_molecule_that_falls_apart(xtb, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FAILURES", 4)
    options = {**SHORT, "equilibrate": 25.0}
    with pytest.raises(DataError, match="changed its bonds .* lower the temperature"):
        generate(molecule("H2O2"), 5, out=tmp_path / "a.npz", temperature=30000.0, **options)


def test_sources(xtb, tmp_path):
    ase.io.write(tmp_path / "mine.xyz", structure("ethanol"))
    options = {**SHORT, "walkers": 1, "equilibrate": 0.0}
    out = generate(tmp_path / "mine.xyz", 1, out=tmp_path / "a.npz", **options)
    assert str(contents(out)["name"]) == "mine"
    out = generate("salicylic_acid", 1, out=tmp_path / "b.npz", **options)
    assert read_npz(out).info.molecule == "salicylic acid"
    with pytest.raises(DataError, match="no such file"):
        generate("none.xyz", 1, out=tmp_path / "c.npz")
    crystal = molecule("H2O", cell=[5, 5, 5], pbc=True)
    with pytest.raises(DataError, match="periodic"):
        generate(crystal, 1, out=tmp_path / "c.npz")
    (tmp_path / "bad.xyz").write_text("3\n\nO 0 0 0\n")
    with pytest.raises(DataError, match="ASE cannot read"):
        generate(tmp_path / "bad.xyz", 1, out=tmp_path / "c.npz")
    # Another structure of the same name is not taken for the first.
    atoms = structure("ethanol")
    atoms.rattle(0.05, seed=1)
    ase.io.write(tmp_path / "mine.xyz", atoms)
    with pytest.raises(DataError, match="structure"):
        generate(tmp_path / "mine.xyz", 1, out=tmp_path / "a.npz", **options)


@pytest.mark.parametrize("smiles", ["not a molecule", "C1CC", "O.O", ""])
def test_smiles_that_are_no_good(xtb, tmp_path, smiles):
    pytest.importorskip("rdkit", reason="SMILES need rdkit")
    with pytest.raises(DataError) as error:
        generate(smiles, 1, out=tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"n_frames": 0},
        {"temperature": 0.0},
        {"timestep": 5.0},
        {"friction": 0.0},
        {"friction": 2.0},
        {"interval": 0.1},
        {"equilibrate": -1.0},
        {"walkers": 0},
        {"seed": -1},
        {"out": "frames.xyz"},
    ],
)
def test_impossible_options(options):
    with pytest.raises(OptionError):
        generate("ethanol", **({"n_frames": 1, "out": "a.npz"} | options))


def test_missing_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dcase\[xtb\]'"):
        generate("ethanol", 1, out=tmp_path / "a.npz")
    monkeypatch.setitem(sys.modules, "rdkit", None)
    from dcase.data.xtb import smiles_conformers

    with pytest.raises(MissingExtraError, match=r"pip install 'dcase\[xtb\]'"):
        smiles_conformers("CCO", 1, 0)


def test_formal_charges_reach_tblite():
    pytest.importorskip("rdkit", reason="SMILES need rdkit")
    from dcase.data.xtb import smiles_conformers

    (atoms,) = smiles_conformers("C[NH3+]", 1, 0)
    assert atoms.get_initial_charges().sum() == 1


def test_progress_bar(xtb, tmp_path, capfd):
    with generate_state.progress_callback(True, 3, "sampling") as report:
        report(3, 3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "3/3" in err


def test_autocorrelation_time_of_known_processes():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20000)
    assert autocorrelation_time(noise) == pytest.approx(0.5, abs=0.1)
    walk = np.zeros(20000)
    for i in range(1, len(walk)):
        walk[i] = 0.9 * walk[i - 1] + noise[i]
    # AR(1): 1/2 + sum 0.9^k = 1/2 + 0.9 / 0.1
    assert autocorrelation_time(walk) == pytest.approx(9.5, rel=0.15)
    assert autocorrelation_time(np.ones(10)) == 0.5
    assert lag_one(walk, np.zeros(20000, dtype=int)) == pytest.approx(0.9, abs=0.02)
    # Pairs of different walkers do not count.
    assert np.isnan(lag_one(walk[:5], np.arange(5)))


def test_alignment_undoes_rotations_but_not_reflections():
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    reference, vectors = rng.normal(size=(2, 6, 3))
    turns = Rotation.random(5, random_state=rng).as_matrix()
    frames = reference @ turns + rng.normal(size=(5, 1, 3))
    turned, turned_vectors = align(frames, reference, vectors @ turns)
    np.testing.assert_allclose(turned, np.tile(reference - reference.mean(0), (5, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(turned_vectors, np.tile(vectors, (5, 1, 1)), atol=1e-9)
    mirrored, _ = align(-reference[None], reference, vectors[None])
    assert np.abs(mirrored[0] - (reference - reference.mean(0))).max() > 0.1


def test_structures_that_are_held_are_not_sampled_as_free_ones():
    from ase.constraints import FixAtoms

    water = molecule("H2O")
    water.set_constraint(FixAtoms([0]))
    with pytest.raises(DataError, match="holds atoms in place or is restrained"):
        start_structure(water, 0)
