"""Whose folder a simulation's is: refusals that change nothing, folders that go away, damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.io import read
from md_models import spring_molecule

from dcase import DCCalculator
from dcase.errors import DcaseError, RunError, SimulationError
from dcase.md_runs.files.identity import calculator_fingerprint, structure_fingerprints
from dcase.md_runs.files.journal import Journal, read_rows, read_sums, sums_of
from dcase.md_runs.files.run_folder import RunFolder
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.relax import relax
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.report.replica_report import write_replica_report
from dcase.md_runs.report.report import write_report
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import recover, run_md
from dcase.potentials.networks.registry import create_potential
from dcase.runs import read_record

SETTINGS = MDSettings(
    steps=20, equilibrate=0, checkpoint_every=10, traj_every=5, force_timestep=True,
    temperature_K=50.0, timestep_fs=0.1,
)  # fmt: skip
LONGER = replace(SETTINGS, steps=40)


def network(seed=0):
    return create_potential(elements="HO", size="tiny", seed=seed, filter_knots=32)


@pytest.fixture(scope="module")
def potentials():
    return [network(0), network(1)]


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def water(potential, dtype="float64"):
    atoms = spring_molecule("H2O")
    atoms.set_cell([9.0, 9.0, 9.0])
    atoms.calc = DCCalculator(potential, dtype=dtype)
    return atoms


def single(atoms, settings, out, **options):
    return run_md(atoms, settings, out, **options)


def replicas(atoms, settings, out, **options):
    return run_replicas(atoms, settings, 2, out, **options)


RUNS = {"md": single, "md replicas": replicas}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_is_not_cut(tmp_path, potentials, kind):
    """What else a resume refuses is in the conformance test of all kinds of run."""
    RUNS[kind](water(potentials[0]), SETTINGS, tmp_path / "run")
    before = content(tmp_path)
    with pytest.raises(SimulationError, match="cannot be cut to 10"):
        RUNS[kind](water(potentials[0]), replace(LONGER, steps=10), tmp_path / "run", resume=True)
    assert content(tmp_path) == before
    RUNS[kind](water(potentials[0]), LONGER, tmp_path / "run", resume=True)


def test_kept_momenta_and_constraints_belong_to_the_start(tmp_path):
    def start(kick, fixed):
        atoms = spring_molecule("CH4")
        atoms.set_momenta(np.full((5, 3), kick))
        atoms.set_constraint(FixAtoms([fixed]))
        return atoms

    kept = replace(SETTINGS, keep_momenta=True)
    run_md(start(0.1, 0), kept, tmp_path / "run")
    longer = replace(LONGER, keep_momenta=True)
    for other, words in (((0.2, 0), "momenta"), ((0.1, 1), "constraints")):
        with pytest.raises(SimulationError, match=f"other {words}"):
            run_md(start(*other), longer, tmp_path / "run", resume=True)
    assert run_md(start(0.1, 0), longer, tmp_path / "run", resume=True).finished
    # Where they are drawn, those of the structure do not matter.
    run_md(start(0.1, 0), SETTINGS, tmp_path / "drawn")
    assert run_md(start(0.3, 0), LONGER, tmp_path / "drawn", resume=True).finished


def test_fingerprints_of_calculators(potentials):
    same = [calculator_fingerprint(DCCalculator(potentials[0], dtype=d)) for d in
            ("float32", "float64")]  # fmt: skip
    assert same[0] == same[1] != calculator_fingerprint(DCCalculator(potentials[1]))
    scaled = network(0)
    scaled.set_scale(replace(scaled.scale, constant=2.0))
    assert calculator_fingerprint(DCCalculator(scaled)) != same[0]
    one = LennardJones(sigma=3.4, epsilon=0.01)
    assert calculator_fingerprint(one) == calculator_fingerprint(
        LennardJones(sigma=3.4, epsilon=0.01)
    )
    for options in ({"sigma": 3.5, "epsilon": 0.01}, {"sigma": 3.4, "epsilon": 0.02}):
        assert calculator_fingerprint(LennardJones(**options)) != calculator_fingerprint(one)
    one.parameters["strange"] = object()
    assert calculator_fingerprint(one)


def test_fingerprints_of_structures_are_of_the_content():
    one, two = spring_molecule("H2O"), spring_molecule("H2O")
    assert structure_fingerprints(one) == structure_fingerprints(two)
    two.set_momenta(np.ones((3, 3)))
    assert structure_fingerprints(one) == structure_fingerprints(two)
    assert structure_fingerprints(one, momenta=True) != structure_fingerprints(two, momenta=True)


def test_a_start_that_cannot_be_replaces_nothing(tmp_path):
    atoms = spring_molecule("CH4")
    run_md(atoms, replace(SETTINGS, force_timestep=False), tmp_path / "run")
    before = content(tmp_path)
    wild = replace(SETTINGS, timestep_fs=5.0, force_timestep=False)
    with pytest.raises(SimulationError, match="stability limit"):
        run_md(atoms, wild, tmp_path / "run", overwrite=True)
    assert content(tmp_path) == before
    with pytest.raises(SimulationError, match="stability limit"):
        run_md(atoms, wild, tmp_path / "new")
    assert not (tmp_path / "new").exists()


KILLED = """
import os, signal, sys
from md_models import spring_molecule
from dcase.md_runs.simulate import MDSettings, run_md
import dcase.md_runs.loop.engine as engine
engine.SAVE_SECONDS = 0.0
def die(done, total):
    if done > 60:
        os.kill(os.getpid(), signal.SIGKILL)
engine.PROGRESS_SECONDS = -1.0
run_md(spring_molecule("CH4"), MDSettings(steps=200, equilibrate=0, checkpoint_every=25),
       sys.argv[1], progress=die)
"""


def test_the_report_of_a_killed_run_while_it_is_gone_on_with(tmp_path):
    env = (
        {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}"}
        if ("PYTHONPATH" in os.environ)
        else {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    )
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], env=env)
    assert done.returncode == -signal.SIGKILL
    atoms, settings = spring_molecule("CH4"), MDSettings(
        steps=200, equilibrate=0, checkpoint_every=25
    )  # fmt: skip

    def look(done, total):
        if done < 100:
            with pytest.raises(RunError, match="at work"):
                write_report(tmp_path / "run")

    assert write_report(tmp_path / "run")["status"] == "killed"
    assert read_record(tmp_path / "run")["status"] == "killed"
    run_md(atoms, settings, tmp_path / "run", resume=True, progress=look)
    assert write_report(tmp_path / "run")["status"] == "finished"
    run_md(atoms, settings, tmp_path / "whole")
    for name in ("series.f64", "frames.f64"):
        one, two = (tmp_path / f / "state" / name for f in ("run", "whole"))
        assert one.read_bytes() == two.read_bytes()


# --------------------------------------------------------------------------------- older folders


@pytest.mark.parametrize("kind", RUNS)
def test_a_folder_of_an_earlier_dcase_is_reported_but_not_gone_on_with(tmp_path, potentials, kind):
    run, out = RUNS[kind], tmp_path / "run"
    run(water(potentials[0]), SETTINGS, out)
    (out / "run.json").unlink()
    for path in out.rglob("*.sum"):
        path.unlink()
    name = {"md": "simulation.json", "md replicas": "replicas.json"}[kind]
    facts = json.loads((out / "state" / name).read_text())
    (out / "state" / name).unlink()
    (out / "state" / name.replace("simulation", "run")).write_text(
        json.dumps({**facts, "format": 1})
    )
    before = content(tmp_path)
    with pytest.raises(RunError, match=r"no run\.json that says how it was made"):
        run(water(potentials[0]), LONGER, out, resume=True)
    with pytest.raises(RunError, match="already exists"):
        run(water(potentials[0]), LONGER, out)
    assert content(tmp_path) == before
    report = write_report(out) if kind == "md" else write_replica_report(out, "finished")
    assert report["steps"] == 20
    run(water(potentials[0]), LONGER, out, overwrite=True)


# --------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def finished(tmp_path_factory, potentials):
    folder = tmp_path_factory.mktemp("finished")
    for kind, run in RUNS.items():
        run(water(potentials[0]), SETTINGS, folder / kind)
    return folder


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("which", ["rows", "sums"])
@pytest.mark.parametrize("journal", [0, 1])
def test_a_changed_bit_of_a_journal_is_refused_in_one_line(
    tmp_path, finished, potentials, kind, which, journal
):
    names = ("series.f64", "frames.f64") if kind == "md" else ("replicas.f64", "replica_frames.f64")
    rng = np.random.default_rng(0)
    for trial in range(8):
        out = tmp_path / f"run{trial}"
        shutil.copytree(finished / kind, out)
        path = out / "state" / names[journal]
        path = sums_of(path) if which == "sums" else path
        data = bytearray(path.read_bytes())
        place = int(rng.integers(len(data)))
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        before = content(out)
        with pytest.raises(SimulationError, match="is damaged") as refused:
            RUNS[kind](water(potentials[0]), LONGER, out, resume=True)
        assert "\n" not in str(refused.value)
        assert content(out) == before


def outcome(attempt):
    """What an attempt is refused with; None if it is not."""
    try:
        attempt()
    except SimulationError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", RUNS)
def test_damaged_states_are_one_line_and_change_nothing(tmp_path, finished, potentials, kind):
    name = "checkpoint.npz" if kind == "md" else "replicas.npz"
    rng = np.random.default_rng(1)
    whole = (finished / kind / "state" / name).read_bytes()
    refused = 0
    for trial in range(30):
        out = tmp_path / f"run{trial}"
        shutil.copytree(finished / kind, out)
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[int(rng.integers(len(data))) :]
        elif trial % 3 == 1:
            for place in rng.integers(len(data), size=4):
                data[place] = int(rng.integers(256))
        else:
            place = int(rng.integers(len(data)))
            data[place : place + 20] = bytes(20)
        (out / "state" / name).write_bytes(data)
        before = content(out)
        said = outcome(lambda out=out: RUNS[kind](water(potentials[0]), LONGER, out, resume=True))
        if said is not None:
            refused += 1
            assert "\n" not in said
            assert content(out) == before
        # Else what was changed is nothing that is read, such as the time of an entry.
    assert refused > 15


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state/simulation.json", "{"),
        ("state/simulation.json", "[]"),
        ("state/simulation.json", '{"status": 1}'),
    ],
)
def test_damaged_facts(tmp_path, finished, potentials, name, text):
    shutil.copytree(finished / "md", tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    for attempt in (
        lambda: run_md(water(potentials[0]), LONGER, tmp_path / "run", resume=True),
        lambda: write_report(tmp_path / "run"),
        lambda: recover(tmp_path / "run"),
    ):
        with pytest.raises(SimulationError, match=r"simulation\.json is damaged"):
            attempt()


def test_journal_blocks(tmp_path):
    path = tmp_path / "x.f64"
    rows = np.arange(30.0).reshape(10, 3)
    journal = Journal(path, 3)
    for part in (rows[:4], rows[4:5], rows[5:]):
        journal.append(part)
        assert journal.flush() == journal.rows
    journal.close()
    assert [last for last, _ in read_sums(path, 3)] == [4, 5, 10]
    assert np.array_equal(read_rows(path, 3), rows)
    # A checkpoint in the middle of a block: the rest is cut off, and the sums still hold.
    journal = Journal(path, 3, 7)
    journal.append(rows[7:9])
    journal.flush()
    journal.close()
    assert [last for last, _ in read_sums(path, 3)] == [4, 5, 7, 9]
    assert np.array_equal(read_rows(path, 3), rows[:9])
    # What a kill leaves after a checkpoint is no damage: rows without a sum, half a sum.
    with open(path, "ab") as file:
        file.write(b"half a row")
    with open(sums_of(path), "ab") as file:
        file.write(b"half")
    assert np.array_equal(read_rows(path, 3, 7), rows[:9])
    with open(sums_of(path), "ab") as file:
        file.write(bytes(40))
    assert np.array_equal(read_rows(path, 3, 7), rows[:9])
    with pytest.raises(SimulationError, match="is damaged"):
        read_rows(path, 3, 10)
    journal = Journal(path, 3, 9)
    assert len(journal) == 9
    journal.close()
    assert np.array_equal(read_rows(path, 3), rows[:9])


@pytest.mark.parametrize("where", range(1, 5))
def test_an_interrupt_inside_a_flush_doubles_no_rows(tmp_path, monkeypatch, where):
    """Ctrl-C between any two of its calls to the system; the next flush is as if there was none."""
    path, rows, calls = tmp_path / "x.f64", np.arange(12.0).reshape(4, 3), []
    journal = Journal(path, 3)
    journal.append(rows[:1])
    journal.flush()
    journal.append(rows[1:])
    write, sync = os.pwrite, os.fsync

    def press(call):
        def pressed(*args):
            done = call(*args)
            calls.append(call)
            if len(calls) == where:
                raise KeyboardInterrupt
            return done

        return pressed

    monkeypatch.setattr(os, "pwrite", press(write))
    monkeypatch.setattr(os, "fsync", press(sync))
    with pytest.raises(KeyboardInterrupt):
        journal.flush()
    journal.flush()
    journal.flush()
    journal.close()
    assert np.array_equal(read_rows(path, 3), rows)


def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(tmp_path, monkeypatch):
    settings = replace(SETTINGS, steps=200)
    write, left = os.pwrite, [6000]

    def full(handle, data, offset):
        if len(data) > left[0]:
            done = write(handle, data[: left[0]], offset) if left[0] else 0
            left[0] = 0
            if done:
                return done
            raise OSError(28, "No space left on device")
        left[0] -= len(data)
        return write(handle, data, offset)

    monkeypatch.setattr("dcase.md_runs.loop.engine.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DcaseError, match=r"cannot write .*: No space left on device"):
        run_md(spring_molecule("CH4"), settings, tmp_path / "run")
    monkeypatch.setattr(os, "pwrite", write)
    assert run_md(spring_molecule("CH4"), settings, tmp_path / "run", resume=True).finished
    run_md(spring_molecule("CH4"), settings, tmp_path / "whole")
    one, two = (read_series(tmp_path / name) for name in ("run", "whole"))
    for name, values in two.items():
        np.testing.assert_array_equal(one[name], values)


# ----------------------------------------------------------------------------- replicas and relax


def test_the_last_structures_of_replicas_keep_everything_of_the_first(tmp_path, potentials):
    atoms = water(potentials[0])
    atoms.pbc = True
    atoms.info["origin"] = "a test"
    masses = atoms.get_masses()
    masses[2] = 2.014
    atoms.set_masses(masses)
    run_replicas(atoms, SETTINGS, 2, tmp_path / "run")
    write_replica_report(tmp_path / "run", "finished")
    with np.load(tmp_path / "run" / "state" / "replicas.npz") as saved:
        positions, momenta = saved["x"], saved["p"]
    for r, image in enumerate(read(tmp_path / "run" / "final.extxyz", ":")):
        np.testing.assert_allclose(image.cell.array, atoms.cell.array)
        assert image.pbc.all()
        np.testing.assert_allclose(image.get_masses(), masses)
        np.testing.assert_allclose(image.positions, positions[r], atol=1e-7)
        np.testing.assert_allclose(image.get_momenta(), momenta[r], atol=1e-7)
        assert np.abs(image.get_momenta()).max() > 0.01
        assert (image.info["origin"], image.info["replica"]) == ("a test", r + 1)


def test_a_relaxation_that_is_stopped_leaves_nothing(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.rattle(0.1, seed=2)
    relax(atoms, out=tmp_path / "r")

    def stop(done, total):
        raise KeyboardInterrupt

    for out in (tmp_path / "new", tmp_path / "r"):
        with pytest.raises(KeyboardInterrupt):
            relax(atoms, out=out, progress=stop, overwrite=True)
        assert not out.exists()  # nothing of it would be of use


def test_the_watch_ends_the_statistics(tmp_path):
    """Up to the step at which the watch stopped the run, which is in the series but no physics."""
    atoms = spring_molecule("CH4")
    settings = MDSettings(
        steps=300, timestep_fs=5.0, equilibrate=0, force_timestep=True, bond_stretch_A=None,
        max_temperature_K=1e4,
    )  # fmt: skip
    result = run_md(atoms, settings, tmp_path / "run")
    assert "the temperature rose" in result.status
    heat = read_series(tmp_path / "run")["temperature"]
    assert heat[-1] > 1e4 > heat[:-1].max()
    report = write_report(tmp_path / "run")
    assert report["mean_temperature_K"] == pytest.approx(heat[:-1].mean())
    assert report["energy_drift"]["n_samples"] == len(heat) - 1
    assert RunFolder(tmp_path / "run").read_run()["steps"] == len(heat) - 1


FULL_DISK = """
import resource, sys
from pathlib import Path
from dcase.errors import DcaseError
from dcase.md_runs.files.publish import publish
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder
from dcase.md_runs.report.replica_report import write_replica_report
single, many = RunFolder(Path(sys.argv[1])), sys.argv[2]
start = Checkpoint.load(single.checkpoint).start
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
for attempt in (
    lambda: publish(single, start, single.read_run()),
    lambda: write_replica_report(many, "finished"),
):
    try:
        attempt()
    except DcaseError as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [pytest.param(20_000, marks=pytest.mark.slow), 70_000])
def test_hdf5_files_on_a_full_disk(tmp_path, potentials, limit):
    """One line each and a process that ends as it should; HDF5 itself crashes then."""
    settings = replace(SETTINGS, steps=60, traj_every=1)
    for kind, run in RUNS.items():
        run(water(potentials[0]), settings, tmp_path / kind)
        before = content(tmp_path)
    arguments = [str(tmp_path / "md"), str(tmp_path / "md replicas"), str(limit)]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cannot write") and "File too large" in line for line in lines)
    after = content(tmp_path)
    assert {n: v for n, v in after.items() if n in before and not n.endswith(".json")} == {
        n: v for n, v in before.items() if not n.endswith(".json")
    }
    run_replicas(water(potentials[0]), replace(settings, steps=70), 2, tmp_path / "md replicas",
                 resume=True)  # fmt: skip
    assert write_replica_report(tmp_path / "md replicas", "finished")["steps"] == 70
