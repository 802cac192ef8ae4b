"""Replicas: each the trajectory that ASE would give, resumed exactly, stopped one by one."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet
from md_validation import assert_canonical, samples

from dcase import DCCalculator
from dcase.data.molecules import structure
from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.drift import analyse
from dcase.md_runs.files.journal import read_rows
from dcase.md_runs.files.replica_folder import ReplicaFolder
from dcase.md_runs.loop.batch_forces import BatchForces
from dcase.md_runs.loop.replica_batch import ReplicaBatch
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.report.replica_report import print_replica_summary, write_replica_report
from dcase.md_runs.settings import MDSettings
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.networks.registry import create_potential
from dcase.units import FS, KB

SHORT = {"steps": 40, "equilibrate": 20, "log_every": 2, "traj_every": 10, "checkpoint_every": 20}


@pytest.fixture(scope="module")
def calc():
    return DCCalculator("aspirin_irelu.pt", dtype="float64")


@pytest.fixture
def aspirin(calc):
    atoms = structure("aspirin")
    atoms.calc = calc
    return atoms


def series(folder):
    with h5py.File(folder / "replicas.h5") as file:
        return {name: file[name][()] for name in file}


@pytest.mark.physics
def test_replicas_follow_ase(aspirin, tmp_path):
    """Velocity Verlet of ASE from the same start, step for step, for every replica."""
    settings = MDSettings(steps=30, equilibrate=0, traj_every=1, log_every=1)
    status = run_replicas(aspirin, settings, 3, tmp_path / "r")
    write_replica_report(tmp_path / "r", status)
    found = series(tmp_path / "r")
    assert found["positions"].shape == (31, 3, 21, 3)
    for r in range(3):
        atoms = aspirin.copy()
        atoms.calc = DCCalculator("aspirin_irelu.pt", dtype="float64", optimize=False)
        # Momenta from the first two frames would lose digits: draw them as the replicas do.
        from dcase.md_runs.loop.mechanics import draw_momenta, still

        draw_momenta(atoms, 300.0, np.random.default_rng([0, r]))
        still(atoms, "nve")
        dynamics = VelocityVerlet(atoms, timestep=settings.timestep_fs * FS)
        for step in range(1, 31):
            dynamics.run(1)
            np.testing.assert_allclose(
                found["positions"][step, r],
                atoms.positions,
                atol=2e-6,  # stored in float32
            )
            energy = found["potential_energy"][step, r]
            assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
            kinetic = found["kinetic_energy"][step, r]
            assert kinetic == pytest.approx(atoms.get_kinetic_energy(), rel=1e-9)


def test_replicas_are_independent_and_seeded(aspirin, tmp_path):
    """A replica does not depend on how many there are beside it."""
    settings = MDSettings(**SHORT)
    for name, count in (("two", 2), ("twelve", 12)):
        run_replicas(aspirin, settings, count, tmp_path / name)
        write_replica_report(tmp_path / name, "finished")
    two, twelve = series(tmp_path / "two"), series(tmp_path / "twelve")
    np.testing.assert_allclose(
        twelve["potential_energy"][:, :2], two["potential_energy"], atol=1e-9
    )
    assert np.ptp(twelve["kinetic_energy"][-1]) > 0.01


def test_replicas_resume_exactly(aspirin, tmp_path):
    whole = MDSettings(**SHORT)
    run_replicas(aspirin, whole, 3, tmp_path / "whole")
    half = MDSettings(**{**SHORT, "steps": 20})
    run_replicas(aspirin, half, 3, tmp_path / "parts")
    run_replicas(aspirin, whole, 3, tmp_path / "parts", resume=True)
    one, two = (ReplicaFolder(tmp_path / name) for name in ("whole", "parts"))
    assert one.series.read_bytes() == two.series.read_bytes()
    assert one.frames.read_bytes() == two.frames.read_bytes()
    for key in ("x", "p"):
        np.testing.assert_array_equal(np.load(one.checkpoint)[key], np.load(two.checkpoint)[key])
    with pytest.raises(SimulationError, match="only steps may change"):
        run_replicas(
            aspirin, MDSettings(**{**SHORT, "timestep_fs": 0.4}), 3, tmp_path / "parts", resume=True
        )
    with pytest.raises(SimulationError, match="replicas was 3, now 4"):
        run_replicas(aspirin, whole, 4, tmp_path / "parts", resume=True)
    with pytest.raises(SimulationError, match="already exists and holds a run"):
        run_replicas(aspirin, whole, 3, tmp_path / "parts")
    run_replicas(aspirin, half, 2, tmp_path / "parts", overwrite=True)


def test_replicas_that_were_killed_go_on(aspirin, tmp_path):
    """Rows written after the last checkpoint are cut off and made again."""
    settings = MDSettings(**SHORT)
    run_replicas(aspirin, settings, 2, tmp_path / "whole")
    calls = []

    def kill(done, total):
        calls.append(done)
        if done >= 50:
            raise MemoryError

    with pytest.raises(MemoryError):
        run_replicas(aspirin, settings, 2, tmp_path / "killed", progress=kill)
    run_replicas(aspirin, settings, 2, tmp_path / "killed", resume=True)
    one, two = (ReplicaFolder(tmp_path / name) for name in ("whole", "killed"))
    assert one.series.read_bytes() == two.series.read_bytes()


def test_ctrl_c_keeps_every_step_of_replicas(aspirin, tmp_path, monkeypatch):
    """Also those since the last checkpoint; it is from there that the run goes on."""
    monkeypatch.setattr("dcase.md_runs.loop.replica_batch.replica_blocks", lambda *options: None)
    settings = MDSettings(**{**SHORT, "equilibrate": 0})

    def press(done, total):
        if done == 27:
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "stopped"
    assert run_replicas(aspirin, settings, 2, out, progress=press) == "interrupted"
    report = write_replica_report(out, "interrupted")
    assert report["steps"] == 27
    np.testing.assert_allclose(series(out)["time"], np.arange(0, 28, 2) * settings.timestep_fs)
    with pytest.raises(SimulationError, match="already has 27 steps and cannot be cut to 26"):
        run_replicas(aspirin, replace(settings, steps=26), 2, out, resume=True)
    run_replicas(aspirin, settings, 2, out, resume=True)
    run_replicas(aspirin, settings, 2, tmp_path / "whole")
    one, two = (ReplicaFolder(tmp_path / name) for name in ("whole", "stopped"))
    assert one.series.read_bytes() == two.series.read_bytes()
    assert not two.end.exists()


def test_frames_of_replicas_may_be_rarer_than_checkpoints(aspirin, tmp_path):
    settings = {**SHORT, "equilibrate": 0, "traj_every": 25, "checkpoint_every": 10}
    for steps in (40, 70):
        run_replicas(
            aspirin, MDSettings(**settings | {"steps": steps}), 1, tmp_path, resume=steps > 40
        )
        assert write_replica_report(tmp_path, "finished")["steps"] == steps
    np.testing.assert_allclose(series(tmp_path)["frame_time"], [0.0, 12.5, 25.0])


@pytest.fixture(autouse=True)
def report_every_step(monkeypatch):
    monkeypatch.setattr("dcase.md_runs.loop.replica_batch.PROGRESS_SECONDS", -1.0)


def test_a_replica_that_blows_up_does_not_stop_the_others(aspirin, tmp_path):
    """Bonds may stretch so little that the hottest replicas break the rule early."""
    told = []
    settings = MDSettings(**{**SHORT, "equilibrate": 0, "bond_stretch_A": 0.065})
    status = run_replicas(aspirin, settings, 10, tmp_path / "r", notify=told.append)
    report = write_replica_report(tmp_path / "r", status)
    stopped = [e for e in report["replicas_each"] if e["status"].startswith("stopped")]
    assert 0 < len(stopped) == report["n_stopped"] == len(told) < 10
    assert "bond" in stopped[0]["status"]
    assert "broke" in told[0]
    kept = series(tmp_path / "r")["potential_energy"]
    dead = np.array([e["replica"] - 1 for e in stopped])
    assert np.isnan(kept[-1, dead]).all()
    assert np.isfinite(np.delete(kept[-1], dead)).all()


@pytest.mark.skipif(not available(torch.float64), reason="no C compiler: there are no blocks")
def test_blocks_in_threads_are_the_steps_of_all_together(aspirin, tmp_path, monkeypatch):
    """Also of replicas that stop, at steps that blocks do not end on."""
    settings = MDSettings(
        steps=97, equilibrate=0, log_every=3, traj_every=7, checkpoint_every=40,
        bond_stretch_A=0.075,
    )  # fmt: skip
    kept, told = [], []
    threads = torch.get_num_threads()
    for name in ("blocks", "steps"):
        torch.set_num_threads(3 if name == "blocks" else 1)
        try:
            run_replicas(aspirin, settings, 12, tmp_path / name, notify=told.append)
        finally:
            torch.set_num_threads(threads)
        write_replica_report(tmp_path / name, "finished")
        kept.append(series(tmp_path / name))
        monkeypatch.setattr(
            "dcase.md_runs.loop.replica_batch.replica_blocks", lambda *arguments: None
        )
    assert len(told) % 2 == 0
    assert 0 < len(told) // 2 < 12
    assert sorted(told[: len(told) // 2]) == sorted(told[len(told) // 2 :])
    blocks, steps = kept
    assert blocks.keys() == steps.keys()
    for name, values in steps.items():
        np.testing.assert_allclose(blocks[name], values, atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.pictures
def test_report_of_replicas(aspirin, tmp_path, capsys):
    settings = MDSettings(**{**SHORT, "steps": 60, "log_every": 1})
    status = run_replicas(aspirin, settings, 4, tmp_path / "r")
    report = write_replica_report(tmp_path / "r", status)
    stored = json.loads((tmp_path / "r/report.json").read_text())
    assert stored["replicas"] == 4
    found = series(tmp_path / "r")
    each = [
        analyse(
            found["time"], (found["potential_energy"] + found["kinetic_energy"])[:, r],
            found["kinetic_energy"][:, r], n_atoms=21, n_dof=57,
        ).slope_mev_per_atom_ps
        for r in range(4)
    ]  # fmt: skip
    assert [e["slope_mev_per_atom_ps"] for e in report["replicas_each"]] == pytest.approx(each)
    assert report["slope_mev_per_atom_ps"] == pytest.approx(np.mean(each))
    assert report["slope_stderr_mev_per_atom_ps"] == pytest.approx(np.std(each, ddof=1) / 2)
    assert len(read(tmp_path / "r/final.extxyz", ":")) == 4
    assert (tmp_path / "r/drift.png").stat().st_size > 10_000
    from rich.console import Console

    print_replica_summary(report, Console(width=120))
    assert "4 replicas of C9H8O4" in capsys.readouterr().out


def other(**options):
    return create_potential(elements="HO", size="tiny", seed=2, **options).with_dtype(torch.float64)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(
    "options", [{"filter_knots": 32}, {"architecture": "dimenet++"}], ids=["compiled", "torch"]
)
def test_forces_of_many_are_those_of_one(periodic, options):
    atoms = molecule("H2O")
    atoms = Atoms(atoms.numbers, atoms.positions)
    if periodic:
        atoms.set_cell([[4.3, 0.2, 0], [0, 4.6, 0.1], [0.3, 0, 4.4]])
        atoms.pbc = True
    calc = DCCalculator(other(**options), dtype="float64")
    batch = BatchForces(calc, atoms.numbers, atoms.cell.array, atoms.pbc)
    rng = np.random.default_rng(0)
    positions = atoms.positions + rng.normal(0, 0.05, (11, 3, 3))
    for _ in range(3):  # with pairs that were found before atoms moved
        energies, forces = batch(positions, np.arange(11))
        for r in range(11):
            one = atoms.copy()
            one.positions = positions[r]
            calc.calculate(one)
            assert energies[r] == pytest.approx(calc.results["energy"], abs=1e-10)
            np.testing.assert_allclose(forces[r], calc.results["forces"], atol=1e-10)
        positions = positions + rng.normal(0, 0.15, positions.shape)


def test_forces_of_what_is_not_a_number_and_of_atoms_flown_apart():
    atoms = molecule("H2O")
    calc = DCCalculator(other(filter_knots=32), dtype="float64", allow_isolated=False)
    batch = BatchForces(calc, atoms.numbers, atoms.cell.array, atoms.pbc)
    positions = np.repeat(atoms.positions[None], 3, axis=0)
    positions[0, 1, 0], positions[1, 2] = np.nan, 100.0
    energies, forces = batch(positions, np.arange(3))
    assert np.isnan(energies[:2]).all()
    assert np.isfinite(energies[2])
    assert np.isfinite(forces[2]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ensemble": "bussi"}, "replicas run NVE"),
        ({"constrain": "all-bonds"}, "cannot hold bonds"),
        ({"max_uncertainty_eV_A": 0.1}, "single copy"),
        ({"keep_momenta": True}, "draw their own momenta"),
    ],
)
def test_replicas_refuse_what_they_cannot_do(aspirin, tmp_path, change, words):
    with pytest.raises(OptionError, match=words):
        run_replicas(aspirin, MDSettings(**{**SHORT, **change}), 2, tmp_path / "r")
    assert not (tmp_path / "r").exists()


class Springs(BatchForces):
    """Every atom on a spring to where it was, in place of a potential: closed forms hold."""

    stiffness, home = 5.0, structure("aspirin").positions

    def __call__(self, positions, which):
        away = positions - self.home
        return 0.5 * self.stiffness * (away**2).sum(axis=(1, 2)), -self.stiffness * away


@pytest.mark.physics
def test_the_equilibration_of_replicas_has_its_temperature_and_forgets_at_its_friction(
    aspirin, tmp_path, monkeypatch
):
    """<K> = 3N kT/2, var K = 3N (kT)^2/2, and the springs are as hot; BAOAB at 0.5 fs."""
    monkeypatch.setattr("dcase.md_runs.loop.replica_batch.BatchForces", Springs)
    monkeypatch.setattr(Springs, "stiffness", 0.0)
    settings = MDSettings(
        steps=1, equilibrate=400, temperature_K=400.0, friction_per_fs=0.05, bond_stretch_A=None
    )
    batch = ReplicaBatch(aspirin, settings, 60, ReplicaFolder(tmp_path), None)
    batch.evaluate(batch.alive)  # cold: no momenta, no stretch
    heat, n = KB * 400.0, 63
    for _ in range(20):
        batch.langevin()
    # Cold at first; the kinetic energy of free atoms goes to its value as 1 - exp(-2 gamma t).
    risen = batch.kinetic(batch.alive).mean() / (0.5 * n * heat)
    assert risen == pytest.approx(1.0 - np.exp(-2 * 0.05 * 10.0), abs=0.04)
    monkeypatch.setattr(Springs, "stiffness", 5.0)
    batch.x[:] = Springs.home
    batch.evaluate(batch.alive)
    kinetic, stretched = [], []
    for step in range(400):
        batch.langevin()
        if step >= 200 and step % 20 == 0:
            kinetic.append(batch.kinetic(batch.alive))
            stretched.append(batch.e.copy())
    assert np.mean(kinetic) == pytest.approx(0.5 * n * heat, rel=0.03)
    assert np.mean(stretched) == pytest.approx(0.5 * n * heat, rel=0.05)
    assert np.var(kinetic) == pytest.approx(0.5 * n * heat**2, rel=0.25)


@pytest.mark.physics
def test_the_equilibration_of_replicas_is_canonical(aspirin, tmp_path, monkeypatch):
    """On springs, at two temperatures; every 25 fs half of the velocities is forgotten 3 times."""
    monkeypatch.setattr("dcase.md_runs.loop.replica_batch.BatchForces", Springs)
    found = []
    for kelvin in (300.0, 330.0):
        settings = MDSettings(
            steps=1, equilibrate=400, temperature_K=kelvin, friction_per_fs=0.08, seed=3,
            bond_stretch_A=None,
        )  # fmt: skip
        batch = ReplicaBatch(aspirin, settings, 60, ReplicaFolder(tmp_path), None)
        batch.evaluate(batch.alive)
        kinetic, potential = [], []
        for step in range(1000):
            batch.langevin()
            if step >= 200 and step % 50 == 0:
                kinetic.append(batch.kinetic(batch.alive))
                potential.append(batch.e.copy())
        energies = np.concatenate(kinetic), np.concatenate(potential)
        found.append(samples(*energies, n_atoms=21, temperature_K=kelvin))
    assert_canonical(*found, independent=True)


@pytest.mark.slow
@pytest.mark.physics
def test_replicas_begin_with_the_temperature_of_what_moves(aspirin, tmp_path):
    """With the potential: K of 3N - 6 degrees of freedom, its mean and its spread over replicas."""
    settings = MDSettings(steps=200, equilibrate=400, friction_per_fs=0.05, log_every=200)
    run_replicas(aspirin, settings, 100, tmp_path)
    rows = read_rows(ReplicaFolder(tmp_path).series, 201)
    first = rows[0, 101:]
    heat = KB * 300.0
    assert first.mean() == pytest.approx(0.5 * 57 * heat, rel=0.06)
    assert first.var() == pytest.approx(0.5 * 57 * heat**2, rel=0.45)
    assert rows[-1, 101:].mean() == pytest.approx(0.5 * 57 * heat, rel=0.06)


@pytest.mark.physics
def test_noise_goes_on_over_a_resume(aspirin, tmp_path, monkeypatch):
    """Free atoms keep their temperature; noise that began anew would repeat itself, and add up.

    With ``keep = exp(-gamma t)`` kept of the momenta up to the resume and ``p = keep p + noise``
    twice, the same noise would have ``<p^2> = m kT (1 + 2 keep (1 - keep^2))``: 77 % too hot.
    """
    monkeypatch.setattr("dcase.md_runs.loop.replica_batch.BatchForces", Springs)
    monkeypatch.setattr(Springs, "stiffness", 0.0)
    settings = MDSettings(
        steps=1, equilibrate=100, temperature_K=400.0, friction_per_fs=0.02, bond_stretch_A=None
    )
    for resume in (False, True):
        batch = ReplicaBatch(aspirin, settings, 40, ReplicaFolder(tmp_path), None)
        batch.resume() if resume else batch.start()
        for _ in range(55):
            batch.langevin()
        batch.checkpoint()
        batch.close()
    assert batch.kinetic(batch.alive).mean() == pytest.approx(1.5 * 21 * KB * 400.0, rel=0.1)


def test_stopped_replicas_stay_stopped_over_a_resume(aspirin, tmp_path):
    settings = MDSettings(**{**SHORT, "equilibrate": 0, "bond_stretch_A": 0.065})
    run_replicas(aspirin, settings, 10, tmp_path / "r")
    before = write_replica_report(tmp_path / "r", "finished")
    longer = MDSettings(**{**SHORT, "equilibrate": 0, "bond_stretch_A": 0.065, "steps": 60})
    run_replicas(aspirin, longer, 10, tmp_path / "r", resume=True)
    after = write_replica_report(tmp_path / "r", "finished")
    stopped = [e["replica"] for e in before["replicas_each"] if "stopped" in e["status"]]
    assert stopped
    for r in stopped:
        one, two = (report["replicas_each"][r - 1]["status"] for report in (before, after))
        assert one == two
    assert np.isnan(series(tmp_path / "r")["potential_energy"][-1, np.array(stopped) - 1]).all()
    # Means are over those that went through.
    kinetic = series(tmp_path / "r")["kinetic_energy"]
    whole = [e["replica"] - 1 for e in after["replicas_each"] if "stopped" not in e["status"]]
    mean = 2.0 * kinetic[:, whole].mean() / (57 * KB)
    assert after["temperature_K"] == pytest.approx(mean)
