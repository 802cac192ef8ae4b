"""A killed, interrupted or extended run gives the rows of an uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from md_models import spring_molecule
from processes import count_writes, die_at_write, finish, start

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.files.trajectory import read_trajectory
from dcase.md_runs.loop import engine
from dcase.md_runs.simulate import MDSettings, recover, run_md


def settings_of_worker(ensemble, steps):
    return MDSettings(
        ensemble=ensemble,
        steps=steps,
        equilibrate=150,
        checkpoint_every=40,
        traj_every=7,
        log_every=3,
    )


def work(out, ensemble, resume, steps, die_at=0, press_at=0):
    """Target of a process: a run that dies at a write, or gets Ctrl-C at a call of its forces."""
    engine.SAVE_SECONDS = 0.0
    die_at_write(die_at)

    def press(calls):
        if calls == press_at:
            os.kill(os.getpid(), signal.SIGINT)

    atoms = spring_molecule("CH4", on_call=press)
    result = run_md(atoms, settings_of_worker(ensemble, steps), out, resume=resume)
    assert result.status == ("interrupted" if press_at else "finished")


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def assert_same(first, second):
    one, two = datasets(first / "trajectory.h5"), datasets(second / "trajectory.h5")
    assert set(one) == set(two)
    for name in one:
        assert np.array_equal(one[name], two[name], equal_nan=True), name
    ends = [(folder / "final.extxyz").read_text() for folder in (first, second)]
    assert ends[0] == ends[1]


# NVE is killed in tests/runs.
@pytest.mark.parametrize("ensemble", [pytest.param("nve", marks=pytest.mark.slow), "langevin"])
def test_kill_at_random_writes(tmp_path, monkeypatch, ensemble):
    """Kill -9 in the first run and in each resumed one; then the last one is let through."""
    steps = 900
    out, settings = tmp_path / "killed", settings_of_worker(ensemble, steps)
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    total = count_writes(
        monkeypatch, lambda: run_md(spring_molecule("CH4"), settings, tmp_path / "whole")
    )
    rng = np.random.default_rng(len(ensemble))
    for attempt in range(3):
        # A quarter of the run at most; the first writes of all are those of the run's folder.
        die_at = rng.integers(8, total // 4)
        process = start(work, out, ensemble, attempt > 0, steps, die_at)
        assert finish(process) == -signal.SIGKILL
        facts = recover(out)  # a killed run can be read ...
        assert facts["status"] == "killed"
    result = run_md(spring_molecule("CH4"), settings, out, resume=True)  # ... and resumed
    assert result.status == "finished"
    assert_same(out, tmp_path / "whole")
    steps_seen = [a.info["step"] for a in read_trajectory(out)]
    assert steps_seen == list(range(0, steps + 1, 7))
    assert not list(out.rglob(".*"))  # no temporary files are left behind


def test_ctrl_c_ends_cleanly_and_resumes(tmp_path):
    out = tmp_path / "interrupted"
    process = start(work, out, "bussi", False, 4000, 0, 700)
    assert finish(process) == 0
    assert 0 < len(read_trajectory(out)) < 4000 / 7
    done = read_trajectory(out)[-1].info["step"]
    settings = settings_of_worker("bussi", done + 50)
    run_md(spring_molecule("CH4"), settings, out, resume=True)
    run_md(spring_molecule("CH4"), settings, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def argon():
    """A hot droplet whose atoms leave the skin of ASE's neighbour list again and again."""
    rng = np.random.default_rng(1)
    grid = np.array([(i, j, k) for i in range(2) for j in range(2) for k in range(2)]) * 3.9
    atoms = Atoms("Ar8", grid + 0.1 * rng.standard_normal(grid.shape))
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=7.0, smooth=True)
    return atoms


@pytest.mark.parametrize(
    "ensemble",
    [
        pytest.param("nve", marks=pytest.mark.slow),
        "langevin",
        pytest.param("bussi", marks=pytest.mark.slow),
        "nose-hoover",
    ],
)
def test_extended_run_equals_a_long_one_with_a_calculator_that_remembers(tmp_path, ensemble):
    settings = MDSettings(
        ensemble=ensemble,
        timestep_fs=5.0,
        temperature_K=90.0,
        steps=230,
        equilibrate=30,
        checkpoint_every=50,
    )
    run_md(argon(), settings, tmp_path / "whole")
    run_md(argon(), replace(settings, steps=90), tmp_path / "parts")
    run_md(argon(), replace(settings, steps=160), tmp_path / "parts", resume=True)
    result = run_md(argon(), settings, tmp_path / "parts", resume=True)
    assert result.finished
    assert_same(tmp_path / "whole", tmp_path / "parts")


class Stop(Exception):
    """Raised from the calculator."""


@pytest.mark.parametrize("call", [5, 80, 250])
def test_failing_calculator_loses_nothing(tmp_path, call):
    """An error of the calculator comes through as it is; the run resumes once it is mended."""
    settings = MDSettings(steps=300, equilibrate=0, checkpoint_every=50)
    atoms = spring_molecule("H2O")
    healthy = atoms.calc.calculate
    calls = 0

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > call + 40:
            raise Stop("out of memory")
        healthy(*args, **kwargs)

    atoms.calc.calculate = failing
    with pytest.raises(Stop, match="out of memory"):
        run_md(atoms, settings, tmp_path / "broken")
    assert recover(tmp_path / "broken")["status"] == "failed"
    result = run_md(spring_molecule("H2O"), settings, tmp_path / "broken", resume=True)
    assert result.finished
    run_md(spring_molecule("H2O"), settings, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "broken")


@pytest.fixture
def finished(tmp_path):
    settings = MDSettings(steps=60, equilibrate=20, checkpoint_every=30)
    run_md(spring_molecule("H2O"), settings, tmp_path / "run")
    return tmp_path / "run", settings


def test_resuming_a_finished_run_changes_nothing(finished):
    out, settings = finished
    before = datasets(out / "trajectory.h5")
    result = run_md(spring_molecule("H2O"), settings, out, resume=True)
    assert result.finished
    after = datasets(out / "trajectory.h5")
    assert all(np.array_equal(before[k], after[k], equal_nan=True) for k in before)


def test_resume_without_journals_takes_the_rows_from_the_trajectory(finished, tmp_path):
    out, settings = finished
    for name in ("series.f64", "frames.f64"):
        (out / "state" / name).unlink()
    longer = replace(settings, steps=110)
    run_md(spring_molecule("H2O"), longer, out, resume=True)
    run_md(spring_molecule("H2O"), longer, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


def test_an_existing_run_is_not_overwritten(finished):
    out, settings = finished
    before = (out / "trajectory.h5").read_bytes()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SimulationError, match="already exists and holds a run"):
        run_md(spring_molecule("H2O"), settings, out)
    assert (out / "trajectory.h5").read_bytes() == before
    run_md(spring_molecule("H2O"), replace(settings, seed=5), out, overwrite=True)
    assert (out / "trajectory.h5").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"  # overwriting a run is not deleting a folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timestep_fs": 0.25}, "timestep_fs was 0.5, now 0.25"),
        ({"ensemble": "bussi"}, "ensemble was 'nve', now 'bussi'"),
        ({"seed": 9}, "seed was 0, now 9"),
        ({"steps": 40}, "cannot be cut to 40"),
    ],
)
def test_resume_with_other_settings_is_refused(finished, change, words):
    out, settings = finished
    with pytest.raises(SimulationError, match=words):
        run_md(spring_molecule("H2O"), replace(settings, **change), out, resume=True)


def test_resume_with_another_structure_or_potential_is_refused(finished):
    out, settings = finished
    longer = replace(settings, steps=90)
    with pytest.raises(SimulationError, match="other elements; other positions"):
        run_md(spring_molecule("CH4"), longer, out, resume=True)
    moved = spring_molecule("H2O")
    moved.positions[0] += 0.01
    with pytest.raises(SimulationError, match="other positions"):
        run_md(moved, longer, out, resume=True)
    with pytest.raises(SimulationError, match="use the potential the run was started with"):
        run_md(spring_molecule("H2O", depth=3.0), longer, out, resume=True)
    assert run_md(spring_molecule("H2O"), longer, out, resume=True).finished


def test_nothing_to_resume_and_contradictions(tmp_path):
    atoms = spring_molecule("H2O")
    with pytest.raises(SimulationError, match="nothing to resume"):
        run_md(atoms, MDSettings(), tmp_path / "nothing", resume=True)
    with pytest.raises(OptionError, match="exclude each other"):
        run_md(atoms, MDSettings(), tmp_path, resume=True, overwrite=True)
    with pytest.raises(SimulationError, match="holds no run"):
        recover(tmp_path)


def test_damaged_checkpoint_and_journal_say_so(finished):
    out, settings = finished
    longer = replace(settings, steps=90)
    series = out / "state" / "series.f64"
    whole = series.read_bytes()
    series.write_bytes(whole[:100])
    with pytest.raises(SimulationError, match=r"series\.f64 is damaged: rows 0 to \d+"):
        run_md(spring_molecule("H2O"), longer, out, resume=True)
    series.write_bytes(whole + b"half a row")  # what a kill leaves: cut off and gone on from
    assert run_md(spring_molecule("H2O"), longer, out, resume=True).finished
    (out / "state" / "checkpoint.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(SimulationError, match="cannot read the checkpoint"):
        run_md(spring_molecule("H2O"), longer, out, resume=True)
