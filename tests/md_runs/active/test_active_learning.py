"""Active learning: each stage, the whole loop, and that a run killed anywhere comes to the same."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.io import read
from md_ensembles import ensemble_molecule
from processes import die_at_write, finish, start

from dcase.data.atoms_files import read_atoms
from dcase.data.selection import SEPARATION_A, fingerprint
from dcase.errors import DataError, OptionError
from dcase.md_runs.active.curve import curve_figure, load_curve, points
from dcase.md_runs.active.frames import rattled
from dcase.md_runs.active.labels import Labeller, check_labels, find_labeller, label_frames
from dcase.md_runs.active.loop import TRUSTED, ActiveLearning
from dcase.md_runs.active.sampling import Sample, choose, choose_starts, sample
from dcase.md_runs.active.settings import ActiveSettings
from dcase.md_runs.active.start import Start
from dcase.md_runs.active.training import training_for
from dcase.plotting import png
from dcase.potentials.calculator import DCCalculator
from dcase.potentials.fitting.recipe import load_recipe
from dcase.training.settings import TrainSettings

SETTINGS = ActiveSettings(
    rounds=2,
    per_round=3,
    members=2,
    walkers=3,
    steps=40,
    temperatures_K=(400.0, 800.0),
    timestep_fs=3.0,
    frame_every=5,
    max_uncertainty_eV_A=5.0,
    training_steps=12,
)
RECIPE = load_recipe(
    "default",
    {"model.size": "tiny", "training.batch_size": 4, "acceleration.filter_table": 0},
)
EMT_LABELS = Labeller("emt", EMT, "EMT")


def copper():
    """Four atoms near their minimum."""
    return Atoms("Cu4", [[0, 0, 0], [2.35, 0, 0], [1.2, 2.05, 0], [1.2, 0.7, 1.95]])


def learn(out, settings=SETTINGS, labeller=EMT_LABELS, start=None, **options):
    start = start or Start(structure=copper(), count=6, rattle_A=0.15)
    return ActiveLearning(start, labeller, RECIPE, settings, out, **options).run()


def weights(path):
    from dcase.potentials.ensemble import load_model

    return load_model(path).state_dict()


def assert_same(one, two):
    """The same labels, curve and weights, to the last bit."""
    assert (one / "labelled.extxyz").read_bytes() == (two / "labelled.extxyz").read_bytes()
    curves = [json.loads((out / "learning_curve.json").read_text()) for out in (one, two)]
    assert curves[0] == curves[1]
    first, second = weights(one / "ensemble.pt"), weights(two / "ensemble.pt")
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("active") / "whole"
    told = []
    test = rattled(copper(), 9, 0.2, 99)[1:]
    for frame in test:
        frame.calc = EMT()
    path = out.parent / "test.extxyz"
    from ase.io import write

    for frame in test:
        frame.get_forces()
    write(path, test)
    return learn(out, test=read_atoms(path), notify=told.append), told, read_atoms(path)


# ---------------------------------------------------------------------------------- the loop


def test_every_round_adds_labels_and_measures_errors(whole):
    result, told, _ = whole
    assert result.status == "finished"
    rows = result.curve["rounds"]
    assert [row["labels"] for row in rows] == [6, 9, 12]
    assert [row.get("labelled") for row in rows] == [3, 3, None]
    assert all(row["errors"]["n_frames"] == 8 for row in rows)
    assert all(row["errors"]["forces_mae_mev_angstrom"] > 0 for row in rows)
    assert result.curve["errors_on"] == "the test set"
    assert rows[0]["sampled_ps"] == pytest.approx(3 * 40 * 3e-3)
    assert rows[0]["frames"] == 3 * 8
    assert rows[0]["limit_eV_A"] == 5.0
    root = result.folder.root
    assert json.loads((root / "learning_curve.json").read_text()) == result.curve
    assert (root / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert sum("training 2 members" in line for line in told) == 3


def test_labels_are_the_labellers(whole):
    result, *_ = whole
    frames = read(result.folder.labelled, ":")
    assert len(frames) == 12
    assert sum("uncertainty_eV_A" in frame.info for frame in frames) == 6
    for frame in frames:
        energy, forces = frame.get_potential_energy(), frame.get_forces()
        frame.calc = EMT()
        assert energy == pytest.approx(frame.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(forces, frame.get_forces(), atol=1e-7)


def test_chosen_frames_are_the_most_uncertain_of_the_sample_and_no_two_alike(whole):
    result, *_ = whole
    first = result.folder.round(0)
    ensemble = DCCalculator(str(first.ensemble))
    chosen = read(first.labelled, ":")
    u = [frame.info["uncertainty_eV_A"] for frame in chosen]
    assert u == sorted(u, reverse=True)
    for frame in chosen:  # it is what the ensemble says of them
        frame.calc = ensemble
        frame.get_forces()
        spread = np.linalg.norm(ensemble.results["forces_std"], axis=1).max()
        assert spread == pytest.approx(frame.info["uncertainty_eV_A"], rel=1e-3)
    marks = [fingerprint(frame) for frame in [*chosen, *read(result.folder.first, ":")]]
    for k in range(3):
        others = [m for j, m in enumerate(marks) if j != k]
        assert min(marks[k].distance(m) for m in others) > SEPARATION_A / 2


def test_the_ensemble_is_one_to_use(whole):
    result, *_ = whole
    calc = DCCalculator(str(result.folder.ensemble))
    assert len(calc.potential) == 2
    assert calc.potential.level_of_theory == "EMT"
    assert calc.potential.metadata["active_learning"] == {
        "round": 2, "labels": 12, "strategy": "uncertainty",
    }  # fmt: skip


@pytest.mark.slow
def test_random_selection_draws_from_the_same_sampling(whole, tmp_path):
    result, *_ = whole
    settings = replace(SETTINGS, strategy="random", rounds=1)
    other = learn(tmp_path / "random", settings)
    one, two = result.curve["rounds"][0], other.curve["rounds"][0]
    for key in ("sampled_ps", "frames", "limit_eV_A", "labels"):
        assert one[key] == two[key]
    mine, theirs = (row["uncertainty_of_labelled_eV_A"] for row in (one, two))
    assert len(mine) == len(theirs)
    assert np.mean(mine) > np.mean(theirs)


# -------------------------------------------------------------------------------- resuming


class Interrupter:
    """Presses Ctrl-C in a stage, after so many calls of its progress."""

    def __init__(self, stage, calls):
        self.stage, self.left = stage, calls

    @contextmanager
    def bar(self, title):
        def progress(*_):
            self.left -= title.endswith(self.stage)
            if self.left == 0:
                raise KeyboardInterrupt

        yield progress


def interrupted(out, **options):
    """What a run that was interrupted says; "" if it came to its end."""
    try:
        learn(out, **options)
    except KeyboardInterrupt as stop:
        return str(stop)
    return ""


@pytest.mark.slow
def test_interrupted_everywhere_comes_to_the_same(whole, tmp_path):
    """Ctrl-C again and again: in training, sampling and labelling, a little later each time."""
    result, _, test = whole
    out = tmp_path / "parts"
    said = []
    for attempt in range(40):
        stage, calls = (("training", 15), ("sampling", 2), ("labels", 2))[attempt % 3]
        press = Interrupter(stage, calls + attempt % 2)
        said.append(interrupted(out, test=test, resume=attempt > 0, bar=press.bar))
        if not said[-1]:
            break
    assert said[-1] == ""
    for stage in (
        "training the ensemble of round 2",
        "sampling in round 1",
        "labelling in round 0",
    ):
        assert sum(text.startswith(f"stopped while {stage};") for text in said) >= 1
    assert all("the same command with --resume goes on" in text for text in said[:-1])
    assert_same(out, result.folder.root)


def work(out, test, resume, die_at):
    """Target of a process: a run that dies at a write."""
    die_at_write(die_at)
    learn(out, test=read_atoms(test), resume=resume)


@pytest.mark.slow  # kills at the first writes: tests/runs
def test_kill_at_random_writes(whole, tmp_path):
    result, *_ = whole
    out, rng = tmp_path / "killed", np.random.default_rng(0)
    test = result.folder.root.parent / "test.extxyz"
    for attempt in range(3):
        # Later in each: what was done is not written again.
        process = start(work, out, test, attempt > 0, rng.integers(10, 40))
        assert finish(process) == -signal.SIGKILL
    learn(out, test=read_atoms(test), resume=True)
    assert_same(out, result.folder.root)
    assert not list(out.rglob(".*"))


@pytest.mark.slow
def test_more_rounds_equal_a_longer_run(whole, tmp_path):
    result, _, test = whole
    learn(tmp_path, replace(SETTINGS, rounds=1), test=test)
    learn(tmp_path, SETTINGS, test=test, resume=True)
    assert_same(tmp_path, result.folder.root)


def test_resuming_a_finished_run_labels_and_trains_nothing(whole):
    result, _, test = whole
    before = {p: p.stat().st_mtime_ns for p in result.folder.root.rglob("*.pt")}

    def no_labels():
        raise AssertionError("labelled again")

    again = learn(
        result.folder.root, labeller=Labeller("emt", no_labels, "EMT"), test=test, resume=True
    )
    assert again.curve == result.curve
    final = (result.folder.ensemble, result.folder.place.record)
    changed = [p for p, t in before.items() if p not in final and p.stat().st_mtime_ns != t]
    assert changed == []


def test_a_folder_is_taken_only_by_its_own_run(whole, tmp_path):
    result, _, test = whole
    root = result.folder.root
    with pytest.raises(OptionError, match="already exists and holds a run"):
        learn(root, test=test)
    with pytest.raises(OptionError, match="per_round was 3, now 4"):
        learn(root, replace(SETTINGS, per_round=4), test=test, resume=True)
    with pytest.raises(OptionError, match="other test set"):
        learn(root, resume=True)
    with pytest.raises(OptionError, match="already has 2 rounds and cannot be cut to 1"):
        learn(root, replace(SETTINGS, rounds=1), test=test, resume=True)
    with pytest.raises(OptionError, match="nothing to resume"):
        learn(tmp_path / "nothing", resume=True)
    with pytest.raises(OptionError, match="exclude each other"):
        learn(root, resume=True, overwrite=True)


@pytest.mark.slow
def test_overwriting_is_not_deleting_a_folder(tmp_path):
    settings = replace(SETTINGS, rounds=1)
    learn(tmp_path, settings)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "round-notes").mkdir()
    learn(tmp_path, replace(settings, rounds=0, seed=1), overwrite=True)
    assert not (tmp_path / "round-01").exists()
    assert (tmp_path / "round-00").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "round-notes").exists()


# ---------------------------------------------------------------------------- what goes wrong


class Failing:
    """A labeller whose every third calculation does not converge."""

    def __init__(self, every=3):
        self.calls, self.every = 0, every

    def __call__(self):
        self.calls += 1
        if self.calls % self.every == 0:
            raise CalculationFailed("SCF not converged\nin 250 cycles")
        return EMT()


@pytest.mark.slow
def test_frames_that_cannot_be_labelled_are_replaced(tmp_path):
    start = Start(labelled=labelled_start(tmp_path), name="start")
    told = []
    result = learn(
        tmp_path / "run",
        replace(SETTINGS, rounds=1),
        Labeller("emt", Failing(), "EMT"),
        start,
        notify=told.append,
    )
    row = result.curve["rounds"][0]
    assert row["labelled"] == 3
    assert any("left out: CalculationFailed: SCF not converged in 250" in n for n in row["notes"])
    assert any("left out" in line for line in told)
    assert len(read(result.folder.labelled, ":")) == len(start.labelled) + 3


@pytest.mark.slow
def test_a_labeller_that_always_fails_is_an_error_and_tried_again_on_resume(tmp_path):
    start = Start(labelled=labelled_start(tmp_path), name="start")
    out, settings = tmp_path / "run", replace(SETTINGS, rounds=1)
    calls = []

    def licence_expired():
        calls.append(1)
        if len(calls) > 1:  # the first one checks the labels of the start
            raise RuntimeError("no licence")
        return EMT()

    broken = Labeller("emt", licence_expired, "EMT")
    with pytest.raises(DataError, match=r"could not label any of 5 frames.*RuntimeError: no lic"):
        learn(out, settings, broken, start)
    assert list((out / "round-00" / "labels").iterdir()) == []
    assert learn(out, settings, EMT_LABELS, start, resume=True).curve["rounds"][0]["labelled"] == 3


def test_forces_beyond_the_limit_are_left_out(tmp_path):
    near = copper()
    near.positions[1] = near.positions[0] + [1.2, 0, 0]
    frames = [copper(), near, copper()]
    kept, notes = label_frames(frames, EMT_LABELS, tmp_path, 3, max_force_eV_A=20.0)
    assert len(kept) == 2
    assert notes[0].startswith("frame 1 left out: a force of ")
    everything, _ = label_frames(frames, EMT_LABELS, tmp_path, 3)  # the limit may change
    assert len(everything) == 3


def test_labels_of_other_frames_are_not_mistaken_for_ours(tmp_path):
    frames = rattled(copper(), 3, 0.1, 0)
    label_frames(frames, EMT_LABELS, tmp_path, 3)
    (tmp_path / "001.json").write_text("{")
    moved = rattled(copper(), 3, 0.1, 1)
    for ask in (frames, moved):
        kept, _ = label_frames(ask, EMT_LABELS, tmp_path, 3)
        for frame, labelled in zip(ask, kept, strict=True):
            frame.calc = EMT()
            assert labelled.get_potential_energy() == frame.get_potential_energy()


def test_walkers_that_blow_up_lose_the_frame_they_broke_in(tmp_path):
    atoms = ensemble_molecule()
    settings = replace(SETTINGS, timestep_fs=4.0, steps=300, walkers=2, temperatures_K=(2000.0,))
    starts = [atoms.copy(), atoms.copy()]
    samples, facts = sample(starts, atoms.calc, settings, 0, 1e9, tmp_path)
    assert facts["walkers_broken"] == 2
    assert facts["walkers_uncertain"] == 0
    assert all("walker" in note and "stopped early" in note for note in facts["notes"])
    assert facts["frames"] == len(samples)
    for one in samples:
        assert np.isfinite(one.atoms.positions).all()
        bonds = one.atoms.get_distances(0, [1, 2, 3, 4])
        assert bonds.max() < 1.09 + 0.5 + 1e-6


def test_walkers_stop_where_the_ensemble_disagrees_and_keep_that_frame(tmp_path):
    atoms = ensemble_molecule()
    settings = replace(SETTINGS, timestep_fs=0.5, steps=400, walkers=2)
    samples, facts = sample([atoms, atoms.copy()], atoms.calc, settings, 0, 0.2, tmp_path)
    assert facts["walkers_uncertain"] == 2
    assert facts["notes"] == []
    for walker in (0, 1):
        mine = [one for one in samples if one.walker == walker]
        assert [one.uncertainty > 0.2 for one in mine] == [False] * (len(mine) - 1) + [True]
        assert all(one.step % 5 == 0 for one in mine[:-1])
        assert mine[0].step > 0
    calls = atoms.calc.members[0].calls
    again, _ = sample([atoms, atoms.copy()], atoms.calc, settings, 0, 0.2, tmp_path)
    assert atoms.calc.members[0].calls == calls  # nothing is simulated twice
    assert [one.uncertainty for one in again] == [one.uncertainty for one in samples]


def test_walkers_take_the_temperatures_in_turn(tmp_path):
    atoms = ensemble_molecule()
    settings = replace(SETTINGS, timestep_fs=0.5, steps=10, walkers=3)
    sample([atoms] * 3, atoms.calc, settings, 0, 50.0, tmp_path)
    found = [
        json.loads((tmp_path / f"walker-{k:02d}" / "state" / "simulation.json").read_text())[
            "settings"
        ]
        for k in range(3)
    ]
    assert [f["temperature_K"] for f in found] == [400.0, 800.0, 400.0]
    assert len({f["seed"] for f in found}) == 3


def test_no_walker_leaves_its_start(tmp_path):
    tight = replace(SETTINGS, max_uncertainty_eV_A=1e-6)
    with pytest.raises(DataError, match=r"no walker of round 0 left its start.*max-uncertainty"):
        learn(tmp_path, tight)


@pytest.mark.slow
def test_no_frame_above_the_limit_ends_the_run_if_asked(tmp_path):
    settings = replace(SETTINGS, rounds=4, until_trusted=True, max_uncertainty_eV_A=1e3)
    result = learn(tmp_path, settings)
    assert result.status == TRUSTED
    assert [row["labels"] for row in result.curve["rounds"]] == [6, 9]
    again = learn(tmp_path, settings, resume=True)
    assert again.curve == result.curve
    assert DCCalculator(str(result.folder.ensemble)).potential.metadata["active_learning"][
        "labels"
    ] == 9  # fmt: skip


def labelled_start(folder, shift=0.0, count=6):
    frames = rattled(copper(), count, 0.15, 5)
    labelled, _ = label_frames(frames, EMT_LABELS, folder / "start", count)
    for frame in labelled:
        frame.calc.results["energy"] += shift
    from ase.io import write

    write(folder / "start.extxyz", labelled)
    return read_atoms(folder / "start.extxyz")


def test_labels_of_another_method_are_refused(tmp_path):
    start = Start(labelled=labelled_start(tmp_path, shift=0.5), name="start.extxyz")
    words = r"the labels of start\.extxyz are not those of the labeller \(EMT\).*differ by 0\.5 eV"
    with pytest.raises(DataError, match=words):
        learn(tmp_path / "run", start=start)
    one, two = (frame for frame in list(start.labelled)[:2])
    check_labels(one, one, EMT_LABELS, "start")
    with pytest.raises(DataError, match="not those"):
        check_labels(one, two, EMT_LABELS, "start")


def test_a_start_of_labelled_frames(tmp_path):
    data = labelled_start(tmp_path)
    start = Start(labelled=data, count=4, name="start")
    result = learn(tmp_path / "run", replace(SETTINGS, rounds=0), start=start)
    assert [row["labels"] for row in result.curve["rounds"]] == [4]
    drawn = read(result.folder.first, ":")
    all_energies = data.energies.tolist()
    assert {frame.get_potential_energy() for frame in drawn} <= set(all_energies)
    with pytest.raises(DataError, match="has 6 frames, not the 9 asked for"):
        Start(labelled=data, count=9, name="start")
    with pytest.raises(DataError, match="energies and forces are needed"):
        Start(labelled=replace(data, forces=None))
    with pytest.raises(OptionError, match="either labelled frames or a structure"):
        Start()
    with pytest.raises(OptionError, match="at least 2 first frames"):
        Start(structure=copper(), count=1)


# ------------------------------------------------------------------------------- the parts


def pool(count, seed=0, near=0.2):
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        atoms = copper()
        atoms.positions += near * rng.standard_normal((4, 3))
        made.append(Sample(atoms, float(rng.random()), 0, k))
    return made


def test_choosing_by_uncertainty_and_at_random():
    samples = pool(60)
    settings = replace(SETTINGS, per_round=6)
    best = choose(samples, [], settings, 0)
    assert len(best) == 9  # and a reserve
    assert best[0].uncertainty == max(one.uncertainty for one in samples)
    known = [fingerprint(best[0].atoms)]
    assert best[0] not in choose(samples, known, settings, 0)
    random = replace(settings, strategy="random")
    drawn = choose(samples, [], random, 0)
    assert len({one.step for one in drawn}) == 9
    assert drawn == choose(samples, [], random, 0)
    assert drawn != choose(samples, [], random, 1)
    assert drawn != choose(samples, [], replace(random, seed=1), 0)


def test_frames_that_are_all_alike_are_still_enough():
    samples = pool(30, near=0.01)
    assert len(choose(samples, [], replace(SETTINGS, per_round=6), 0)) >= 6
    assert len(choose(samples[:2], [], replace(SETTINGS, per_round=6), 0)) == 2


def stretched(amount):
    """A frame whose uncertainty grows with the stretch, and that uncertainty."""
    atoms = ensemble_molecule()
    atoms.positions[1] *= 1.0 + amount
    atoms.get_forces()
    return atoms, float(np.linalg.norm(atoms.calc.results["forces_std"], axis=1).max())


def starts_of(frames, forces, settings):
    calc = ensemble_molecule().calc
    starts, limit = choose_starts(frames, forces, calc, settings, 0)
    return [next(k for k, f in enumerate(frames) if f is start) for start in starts], limit


def test_starts_are_different_frames_the_ensemble_is_sure_of():
    frames = [stretched(amount)[0] for amount in (0.0, 0.3, 0.001, 0.2, 0.002)]
    limit = stretched(0.05)[1]
    for walkers, most in ((1, 1), (3, 1), (6, 2), (7, 3)):
        settings = replace(SETTINGS, walkers=walkers, max_uncertainty_eV_A=limit)
        chosen, used = starts_of(frames, np.ones((1, 3)), settings)
        assert used == limit
        assert len(chosen) == walkers
        assert set(chosen) <= {0, 2, 4}
        assert max(chosen.count(k) for k in chosen) == most
    # Sure of none: the least uncertain, under the limit given.
    settings = replace(SETTINGS, walkers=2, max_uncertainty_eV_A=1e-9)
    chosen, used = starts_of(frames[1:], np.ones((1, 3)), settings)
    assert (set(chosen), used) == ({1, 3}, 1e-9)


def test_limit_by_default_is_half_of_the_median_force():
    frames, spread = zip(*(stretched(amount) for amount in (0.1, 0.02, 0.05)), strict=True)
    forces = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 900.0, 0.0]])
    automatic = replace(SETTINGS, max_uncertainty_eV_A=None, walkers=2)
    _, limit = starts_of(frames, forces, automatic)
    assert limit == 2.5  # whatever the largest one is
    chosen, limit = starts_of(frames, 1e-6 * forces, automatic)  # no start is within that
    assert set(chosen) == {1, 2}
    assert limit == pytest.approx(1.5 * spread[2])


def test_rattled_frames():
    frames = rattled(copper(), 5, 0.2, 3)
    moved = [np.sqrt(((f.positions - copper().positions) ** 2).mean()) for f in frames]
    assert moved[0] == 0.0
    assert moved[4] == pytest.approx(0.2, rel=0.5)
    assert (np.diff(moved) > 0).sum() >= 3
    same = rattled(copper(), 5, 0.2, 3)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(frames, same, strict=True))


@pytest.mark.parametrize(("n_train", "batch", "epochs"), [(20, 10, 50), (21, 10, 33), (3, 0, 100)])
def test_training_of_as_many_steps_whatever_the_labels(n_train, batch, epochs):
    given = TrainSettings(batch_size=batch, epochs=7)
    assert training_for(given, 100, n_train).epochs == epochs
    assert training_for(given, None, n_train).epochs == 7


def test_members_are_validated_at_their_end_unless_the_recipe_needs_more():
    for given, often in (
        (TrainSettings(epochs=40), 40),
        (TrainSettings(epochs=40, schedule="plateau"), 1),
        (TrainSettings(epochs=40, early_stopping=5, validate_every=2), 2),
    ):
        assert training_for(given, None, 20).validate_every == often


def test_members_keep_their_last_weights(whole):
    result, *_ = whole
    reports = list(result.folder.round(1).members.glob("*.run/report.json"))
    assert len(reports) == 2
    for path in reports:
        report = json.loads(path.read_text())
        assert report["best_epoch"] == report["epochs"]
        assert report["validation"]["n_frames"] == 1


LABELLER = """
from ase.calculators.emt import EMT

def good():
    return EMT()

def nothing():
    return None

def needs(argument):
    return EMT()

number = 3
"""


def test_labellers_of_users(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(LABELLER)
    found = find_labeller(f"{path}:good")
    assert isinstance(found.factory(), EMT)
    assert found.theory == f"{path}:good"
    assert find_labeller("ase.calculators.emt:EMT", "effective medium").theory == "effective medium"
    for name, words in (
        ("vasp", "must be xtb, module:function or file.py:function"),
        (f"{path}:absent", "has no function 'absent'"),
        (f"{path}:number", "has no function 'number'"),
        (f"{path}:nothing", "must return an ASE calculator, not NoneType"),
        (f"{path}:needs", r"needs\(\) failed: TypeError"),
        (f"{tmp_path / 'absent.py'}:good", "no such file"),
        ("no.such.module:good", "cannot import no.such.module: ModuleNotFoundError"),
    ):
        with pytest.raises(OptionError, match=words):
            find_labeller(name)


def test_xtb_labels(tmp_path):
    pytest.importorskip("tblite")
    from dcase.data.generate import LABEL_ACCURACY
    from dcase.data.molecules import structure
    from dcase.data.xtb import xtb_calculator

    frames = rattled(structure("ethanol"), 2, 0.05, 0)
    labeller = find_labeller()
    assert labeller.theory == "GFN2-xTB"
    labelled, _ = label_frames(frames, labeller, tmp_path, 2)
    for frame, given in zip(frames, labelled, strict=True):
        frame.calc = xtb_calculator(LABEL_ACCURACY)
        assert given.get_potential_energy() == pytest.approx(frame.get_potential_energy(), abs=1e-9)


def curve(strategy, errors, labels=(10, 20, 30)):
    return {
        "strategy": strategy,
        "errors_on": "the test set",
        "rounds": [
            {"labels": n, "errors": {"forces_mae_mev_angstrom": e, "energy_mae_mev": 2 * e}}
            for n, e in zip(labels, errors, strict=True)
        ],
    }


@pytest.mark.pictures
def test_curves_of_several_runs_are_drawn_with_their_mean():
    runs = [curve("uncertainty", (90, 50, 30)), curve("uncertainty", (70, 40, 20))]
    runs.append(curve("random", (80, 60, 50)))
    figure = curve_figure(runs)
    assert png(figure).startswith(b"\x89PNG")
    ax = figure.axes[0]
    named = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    mean = named["most uncertain frames (2 seeds)"]
    assert mean.get_ydata().tolist() == [80.0, 45.0, 25.0]
    assert named["random frames"].get_xdata().tolist() == [10, 20, 30]
    assert ax.get_xlabel() == "labelled frames"
    assert "meV/Å" in ax.get_ylabel()


def test_what_is_no_curve_says_so(tmp_path, whole):
    result, *_ = whole
    assert load_curve(result.folder.root) == load_curve(result.folder.curve)
    assert list(points(load_curve(result.folder.root), "energy_mae_mev")) == [6, 9, 12]
    with pytest.raises(DataError, match=r"holds no learning_curve\.json"):
        load_curve(tmp_path)
    (tmp_path / "learning_curve.json").write_text("{}")
    with pytest.raises(DataError, match="is not a learning curve"):
        load_curve(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "best"},
        {"members": 1},
        {"per_round": 0},
        {"temperatures_K": (300.0, -1.0)},
        {"temperatures_K": ()},
        {"max_uncertainty_eV_A": float("nan")},
        {"validation": 1.0},
        {"training_steps": 0},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        ActiveSettings(**options)
