"""Runs of ensembles: the uncertainty of every step, its limit, frames worth labelling, resuming."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import signal
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixedLine
from ase.io import read
from md_ensembles import SpringEnsemble, ensemble_molecule
from md_models import spring_molecule
from processes import count_writes, die_at_write, finish, start
from rich.console import Console

from dcase.data.selection import SEPARATION_A, fingerprint
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.files.run_folder import SERIES, Checkpoint
from dcase.md_runs.files.trajectory import read_positions, read_series
from dcase.md_runs.loop import engine
from dcase.md_runs.loop.uncertainty import WARNING
from dcase.md_runs.report.report import write_report
from dcase.md_runs.report.summary import print_summary
from dcase.md_runs.simulate import MDSettings, recover, run_md

SETTINGS = MDSettings(steps=300, equilibrate=40, checkpoint_every=50, timestep_fs=0.5, seed=2)
FLAG = replace(SETTINGS, max_uncertainty_eV_A=0.23, on_uncertain="flag", max_selected=6)
STOP = replace(FLAG, on_uncertain="stop")


def datasets(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def assert_same_run(one, two):
    first, second = datasets(one / "trajectory.h5"), datasets(two / "trajectory.h5")
    assert set(first) == set(second)
    for name in first:
        assert np.array_equal(first[name], second[name], equal_nan=True), name
    for name in ("final.extxyz", "selected.extxyz"):
        assert (one / name).exists() == (two / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.fixture(scope="module")
def flagged(tmp_path_factory):
    """A run that is beyond the limit now and then; also how it looked without a limit."""
    folder = tmp_path_factory.mktemp("flagged")
    result = run_md(ensemble_molecule(), FLAG, folder / "flag")
    run_md(ensemble_molecule(), SETTINGS, folder / "free")
    assert result.finished
    return folder / "flag", folder / "free"


# ---------------------------------------------------------------------- what is measured


@pytest.mark.physics
def test_uncertainty_of_a_spring_of_uncertain_stiffness(tmp_path):
    """F = -k (r - r0), so that u(t) = std(k) |r(t) - r0| for both atoms."""
    atoms = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]])
    atoms.calc = SpringEnsemble([(0, 1)], [1.13], depths=(3.0, 5.0, 4.0))
    settings = MDSettings(steps=200, equilibrate=0, timestep_fs=0.5, traj_every=1)
    run_md(atoms, settings, tmp_path)
    _, positions, _ = read_positions(tmp_path)
    stretch = np.linalg.norm(positions[:, 1] - positions[:, 0], axis=1) - 1.13
    expected = np.std(atoms.calc.stiffness, ddof=1) * np.abs(stretch)
    assert expected.max() > 10 * expected.min()
    np.testing.assert_allclose(read_series(tmp_path)["uncertainty"], expected, rtol=1e-9)


@pytest.mark.physics
def test_what_pulls_at_held_atoms_is_no_uncertainty(tmp_path):
    """The same spring on a line at 60 degrees to it: half of u, and none of the atom in place."""
    atoms = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]])
    atoms.set_constraint([FixAtoms([0]), FixedLine(1, (0.5, np.sqrt(0.75), 0))])
    atoms.calc = SpringEnsemble([(0, 1)], [1.13], depths=(3.0, 5.0, 4.0))
    settings = MDSettings(steps=1, equilibrate=0, timestep_fs=0.5, temperature_K=0.0)
    run_md(atoms, settings, tmp_path)
    wanted = 0.5 * np.std(atoms.calc.stiffness, ddof=1) * 0.07
    np.testing.assert_allclose(read_series(tmp_path)["uncertainty"][:1], [wanted], rtol=1e-9)


def test_without_an_ensemble_nothing_is_different(tmp_path, flagged):
    run_md(spring_molecule("CH4", morse=False), SETTINGS, tmp_path)
    series = read_series(tmp_path)
    assert set(series) == {"time", *SERIES}
    assert (tmp_path / "state" / "series.f64").stat().st_size == 301 * 8 * len(SERIES)
    with np.load(tmp_path / "state" / "checkpoint.npz") as stored:
        assert not [name for name in stored.files if "uncertainty" in name]
    report = write_report(tmp_path)
    assert report["uncertainty"] is None
    assert not (tmp_path / "uncertainty.png").exists()
    # The mean of the members is that single potential, but for rounding.
    mean = read_series(flagged[1])
    np.testing.assert_allclose(series["potential_energy"], mean["potential_energy"], atol=1e-6)


def test_flagging_changes_nothing_but_what_is_kept(flagged):
    flag, free = flagged
    one, two = datasets(flag / "trajectory.h5"), datasets(free / "trajectory.h5")
    for name in two:
        assert np.array_equal(one[name], two[name], equal_nan=True), name
    assert (flag / "final.extxyz").read_bytes() == (free / "final.extxyz").read_bytes()
    assert (flag / "selected.extxyz").exists()
    assert not (free / "selected.extxyz").exists()


@pytest.mark.slow
def test_statistics_are_of_every_step_recorded_or_not(tmp_path, flagged):
    u = read_series(flagged[0])["uncertainty"]
    above = u > 0.23
    assert 0.02 < above.mean() < 0.9
    found = write_report(flagged[0])["uncertainty"]
    assert found == {
        "mean_eV_A": pytest.approx(u.mean(), rel=1e-12),
        "max_eV_A": u.max(),
        "limit_eV_A": 0.23,
        "share_above": above.mean(),
        "steps": 301,
        "selected": found["selected"],
        "on_uncertain": "flag",
    }
    run_md(ensemble_molecule(), replace(FLAG, log_every=9), tmp_path)
    assert len(read_series(tmp_path)["uncertainty"]) == 34
    assert write_report(tmp_path)["uncertainty"] == found


# ------------------------------------------------------------------------ frames kept


def test_selected_frames_are_the_most_uncertain_and_no_two_alike(flagged):
    out, _ = flagged
    frames = read(out / "selected.extxyz", ":")
    u = [frame.info["uncertainty_eV_A"] for frame in frames]
    assert 1 < len(frames) <= 6
    assert len(frames) == write_report(out)["uncertainty"]["selected"]
    assert u == sorted(u, reverse=True)
    assert min(u) > 0.23
    series = read_series(out)
    for frame in frames:
        step = frame.info["step"]
        assert frame.info["time_fs"] == pytest.approx(0.5 * step)
        if step >= 0:
            assert frame.info["uncertainty_eV_A"] == pytest.approx(series["uncertainty"][step])
    assert max(u) >= series["uncertainty"].max() * (1 - 1e-7)
    for one, two in itertools.combinations(frames, 2):
        assert fingerprint(one).distance(fingerprint(two)) >= SEPARATION_A - 1e-6
    # They are what they say: the ensemble disagrees as much about them.
    calc = ensemble_molecule().calc
    for frame in frames:
        assert not frame.has("momenta")
        frame.calc = calc
        frame.get_forces()
        spread = np.linalg.norm(calc.results["forces_std"], axis=1).max()
        assert spread == pytest.approx(frame.info["uncertainty_eV_A"], rel=1e-5)


def test_a_stop_is_at_the_first_step_beyond(tmp_path):
    settings = replace(SETTINGS, equilibrate=0)
    run_md(ensemble_molecule(), settings, tmp_path / "free")
    u = read_series(tmp_path / "free")["uncertainty"]
    limit = float(np.quantile(u, 0.9))
    first = int(np.argmax(u > limit))
    assert first % 4  # a step that is recorded only because it is the last
    settings = replace(settings, max_uncertainty_eV_A=limit, log_every=4)
    told = []
    tmp_path = tmp_path / "stop"
    result = run_md(ensemble_molecule(), settings, tmp_path, notify=told.append)
    assert result.status == (
        f"stopped early: the uncertainty rose to {u[first]:.3g} eV/A (limit {limit:g} eV/A) "
        f"at step {first}"
    )
    assert result.steps == first
    series = read_series(tmp_path)
    assert (series["step"][-1], series["uncertainty"][-1]) == (first, u[first])
    assert any(result.status in line for line in told)
    (frame,) = read(tmp_path / "selected.extxyz", ":")
    np.testing.assert_allclose(frame.positions, result.atoms.positions, atol=1e-8)
    with pytest.raises(SimulationError, match=r"label the frames of selected\.extxyz"):
        run_md(ensemble_molecule(), settings, tmp_path, resume=True)
    report = write_report(tmp_path)
    assert report["status"] == result.status
    assert report["uncertainty"]["on_uncertain"] == "stop"
    assert report["uncertainty"]["selected"] == 1


@pytest.mark.parametrize("equilibrate", [0, 40])
def test_a_start_beyond_the_limit_stops_at_once(tmp_path, equilibrate):
    atoms = ensemble_molecule()
    atoms.positions[1] += 0.2  # far from the rest lengths, where all members agree on no force
    settings = replace(STOP, max_uncertainty_eV_A=0.3, equilibrate=equilibrate)
    result = run_md(atoms, settings, tmp_path)
    assert result.steps == 0
    where = "at step 0" if equilibrate == 0 else "during equilibration"
    assert result.status.endswith(f"(limit 0.3 eV/A) {where}")
    assert len(read(tmp_path / "selected.extxyz", ":")) == 1
    write_report(tmp_path)
    # Killed before it could say so: the resumed run comes to the same.
    facts = json.loads((tmp_path / "state" / "simulation.json").read_text())
    (tmp_path / "state" / "simulation.json").write_text(json.dumps({**facts, "status": "running"}))
    before = (tmp_path / "selected.extxyz").read_bytes()
    again = run_md(atoms, settings, tmp_path, resume=True)
    assert again.status == result.status
    assert (tmp_path / "selected.extxyz").read_bytes() == before


def test_no_step_beyond_the_limit_leaves_no_file(tmp_path):
    result = run_md(ensemble_molecule(), replace(STOP, max_uncertainty_eV_A=50.0), tmp_path)
    assert result.finished
    assert not (tmp_path / "selected.extxyz").exists()
    found = write_report(tmp_path)["uncertainty"]
    assert (found["share_above"], found["selected"]) == (0.0, 0)
    assert not write_report(tmp_path)["warnings"]


def test_a_spread_that_is_no_number_is_beyond_any_limit(tmp_path):
    atoms = ensemble_molecule()
    settings = replace(STOP, max_uncertainty_eV_A=50.0)
    atoms.calc.broken = True
    result = run_md(atoms, settings, tmp_path)
    assert "the uncertainty rose to nan eV/A" in result.status
    assert not (tmp_path / "selected.extxyz").exists()


# ---------------------------------------------------------------------------- resuming


def work(out, resume, settings, die_at):
    """Target of a process: a run that dies at a write."""
    engine.SAVE_SECONDS = 0.0
    die_at_write(die_at)
    run_md(ensemble_molecule(), settings, out, resume=resume)


@pytest.mark.parametrize("mode", [pytest.param("flag", marks=pytest.mark.slow), "stop"])
def test_kill_at_random_writes(tmp_path, monkeypatch, mode):
    """Kill -9 three times, then let it through: frames kept and statistics as if undisturbed."""
    settings = replace(
        FLAG, steps=600, ensemble="langevin", on_uncertain=mode, checkpoint_every=40, log_every=3
    )
    if mode == "stop":
        free = replace(settings, max_uncertainty_eV_A=None)
        run_md(ensemble_molecule(), replace(free, log_every=1), tmp_path / "free")
        u = read_series(tmp_path / "free")["uncertainty"]
        settings = replace(settings, max_uncertainty_eV_A=float(np.partition(u, -3)[-3]))
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)  # so that there are writes to die at
    out, rng, runs = tmp_path / "killed", np.random.default_rng(5), []
    total = count_writes(
        monkeypatch,
        lambda: runs.append(run_md(ensemble_molecule(), settings, tmp_path / "whole")),
    )
    (whole,) = runs
    kept = out / "selected.extxyz"
    for attempt in range(3):
        die_at = rng.integers(8, max(total // 4, 9))
        process = start(work, out, attempt > 0, settings, die_at)
        assert finish(process) == -signal.SIGKILL
        facts = recover(out)
        assert facts["status"] == "killed"
        # What is kept can be read before anything is resumed.
        assert kept.exists() == bool(facts["uncertainty"]["selected"])
    run_md(ensemble_molecule(), settings, out, resume=True)
    assert_same_run(out, tmp_path / "whole")
    assert (kept.exists(), whole.finished) == (True, mode == "flag")
    one, two = write_report(out), write_report(tmp_path / "whole")
    for key in ("uncertainty", "status", "warnings", "steps"):
        assert one[key] == two[key]
    assert not list(out.rglob(".*"))


@pytest.mark.slow
def test_extended_run_equals_a_long_one_and_warns_once(tmp_path, flagged):
    for steps in (130, 277, 300):
        settings = replace(FLAG, steps=steps)
        run_md(ensemble_molecule(), settings, tmp_path, resume=steps > 130)
    assert_same_run(tmp_path, flagged[0])
    assert write_report(tmp_path)["uncertainty"] == write_report(flagged[0])["uncertainty"]
    warnings = [text for text in write_report(tmp_path)["warnings"] if text.startswith(WARNING)]
    assert len(warnings) == 1
    u = read_series(tmp_path)["uncertainty"]
    assert f"in {100 * (u > 0.23).mean():.3g} % of the steps" in warnings[0]


def test_resume_without_journals_keeps_the_uncertainty(tmp_path, flagged):
    run_md(ensemble_molecule(), replace(FLAG, steps=200), tmp_path)
    for name in ("series.f64", "frames.f64"):
        (tmp_path / "state" / name).unlink()
    run_md(ensemble_molecule(), FLAG, tmp_path, resume=True)
    assert_same_run(tmp_path, flagged[0])


def test_a_run_from_before_there_were_uncertainties_resumes(tmp_path):
    run_md(spring_molecule("CH4"), replace(SETTINGS, steps=100), tmp_path / "old")
    path = tmp_path / "old" / "state" / "simulation.json"
    facts = json.loads(path.read_text())
    for name in ("max_uncertainty_eV_A", "on_uncertain", "max_selected"):
        del facts["settings"][name]
    path.write_text(json.dumps(facts))
    assert write_report(tmp_path / "old")["uncertainty"] is None
    assert run_md(spring_molecule("CH4"), SETTINGS, tmp_path / "old", resume=True).finished
    run_md(spring_molecule("CH4"), SETTINGS, tmp_path / "new")
    assert_same_run(tmp_path / "old", tmp_path / "new")


def test_resume_with_another_limit_is_refused(tmp_path):
    run_md(ensemble_molecule(), replace(FLAG, steps=50), tmp_path)
    other = replace(FLAG, max_uncertainty_eV_A=0.7)
    with pytest.raises(SimulationError, match=r"max_uncertainty_eV_A was 0\.23, now 0\.7"):
        run_md(ensemble_molecule(), other, tmp_path, resume=True)


# ---------------------------------------------------------------- reports and refusals


def test_report_of_an_ensemble(flagged):
    out, _ = flagged
    report = write_report(out)
    assert "uncertainty.png" in report["figures"]
    assert (out / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "How far the members of the ensemble disagree" in page
    assert "the potential is not to be trusted there" in page
    text = (Path(__file__).parents[3] / "docs" / "report-keys.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE))
    assert set(report["uncertainty"]) <= documented
    console = Console(record=True, width=200, file=io.StringIO())
    print_summary(json.loads((out / "report.json").read_text()), console)
    printed = console.export_text()
    assert re.search(r"uncertainty +forces to \d.*% of the steps above 0\.23 eV/A, \d", printed)


def test_report_of_a_run_that_stopped_in_its_equilibration(tmp_path):
    settings = replace(STOP, max_uncertainty_eV_A=0.05)
    assert "during equilibration" in run_md(ensemble_molecule(), settings, tmp_path).status
    report = write_report(tmp_path)
    assert report["uncertainty"]["steps"] == 0
    assert math.isnan(report["uncertainty"]["mean_eV_A"])
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["uncertainty"]["max_eV_A"] is None
    print_summary(stored, Console(file=io.StringIO()))


def test_a_single_potential_is_refused_and_an_earlier_run_kept(tmp_path):
    run_md(spring_molecule("CH4"), replace(SETTINGS, steps=20), tmp_path / "run")
    before = (tmp_path / "run" / "trajectory.h5").read_bytes()
    with pytest.raises(OptionError, match="needs an ensemble, and this is a single potential"):
        run_md(spring_molecule("CH4"), STOP, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "trajectory.h5").read_bytes() == before
    with pytest.raises(OptionError, match="needs an ensemble"):
        run_md(spring_molecule("CH4"), STOP, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_overwriting_removes_the_frames_of_the_earlier_run(tmp_path):
    run_md(ensemble_molecule(), FLAG, tmp_path)
    assert (tmp_path / "selected.extxyz").exists()
    run_md(ensemble_molecule(), SETTINGS, tmp_path, overwrite=True)
    assert not (tmp_path / "selected.extxyz").exists()
    assert Checkpoint.load(tmp_path / "state" / "checkpoint.npz").uncertainty


@pytest.mark.parametrize(
    "options",
    [
        {"max_uncertainty_eV_A": 0.0},
        {"max_uncertainty_eV_A": float("nan")},
        {"on_uncertain": "ignore"},
        {"max_selected": 0},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        MDSettings(**options)
