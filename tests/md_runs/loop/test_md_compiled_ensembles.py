"""Ensembles of potentials in the compiled loop: ASE's trajectory, uncertainties and stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from potential_models import crystal, ethanol, lively

from dcase import DCCalculator
from dcase.md_runs.files.journal import read_rows
from dcase.md_runs.files.replica_folder import ReplicaFolder
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.loop import compiled_blocks as blocks
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.mechanics import draw_momenta, still
from dcase.md_runs.loop.uncertainty import uncertainty_of
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.replicas import run_replicas
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DCCalculatorError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.potentials.kernels.tables import CLOSEST
from dcase.units import FS

pytestmark = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler works here: there is no compiled loop"
)
ANY = {"bond_stretch_A": None, "max_temperature_K": 1e9}  # untrained potentials blow up


def alike(**options) -> Ensemble:
    """Three SchNets of one kind."""
    options = {"filter_knots": 48, "dtype": torch.float64, **options}
    return Ensemble([lively(seed=seed, **options) for seed in (3, 4, 5)])


def unlike() -> Ensemble:
    """Architectures, elements, scales and forms of filters that have nothing in common."""
    return Ensemble(
        [
            lively(filter_knots=48, force=0.3, seed=3),
            lively(activation="ssp", force=0.2, seed=4, elements=["O", "N", "C", "H"]),
            lively("cgcnn", "silu", force=0.1, seed=5),
            lively("dimenet++", "silu", force=0.3, seed=6, elements=["C", "H", "O"]),
            lively("painn", "silu", force=0.2, seed=7),
        ]
    )


def simulated(atoms: Atoms, model, *, dtype="float64", kelvin=300.0) -> Atoms:
    atoms.calc = DCCalculator(model, dtype=dtype, skin=0.1)
    draw_momenta(atoms, kelvin, np.random.default_rng(1))
    return atoms


def with_own_calculator(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    copy.calc = atoms.calc.copy()
    return copy


def verlet(atoms):
    return VelocityVerlet(atoms, timestep=0.5 * FS)


def langevin(atoms):
    return Langevin(
        atoms, timestep=0.5 * FS, temperature_K=500.0, friction=0.02 / FS, fixcm=False,
        rng=np.random.default_rng(5),
    )  # fmt: skip


def loop(atoms, dynamics=None, **options):
    watch = BlowUpWatch(atoms, None, 1e9)
    found = verlet_blocks(atoms, 0.5, watch, 3 * len(atoms), dynamics=dynamics, **options)
    assert found is not None
    return found


def by_ase(atoms, steps, make=verlet):
    """Positions, momenta, energies and uncertainties of every step."""
    atoms = with_own_calculator(atoms)
    dynamics, forces, states = make(atoms), None, []
    for _ in range(steps):
        forces = dynamics.step(forces)
        energies = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        uncertainty = uncertainty_of(atoms.calc)
        states.append((atoms.positions.copy(), atoms.get_momenta(), energies, uncertainty))
    return [np.array(column) for column in zip(*states, strict=True)]


def by_blocks(atoms, compiled, steps):
    """The same, in blocks, each begun where the last one ended."""
    x, p, f = atoms.positions, atoms.get_momenta(), atoms.get_forces()
    found, done = [], 0
    while done < steps:
        block = compiled.advance(x, p, f, min(17, steps - done))
        assert len(block) > 0
        x, p, f = block.positions[-1], block.momenta[-1], block.forces
        found.append(block)
        done += len(block)
    names = ("positions", "momenta", "energies", "uncertainties")
    return [np.concatenate([getattr(block, name) for block in found]) for name in names]


@pytest.mark.physics
@pytest.mark.parametrize("make", [verlet, langevin])
@pytest.mark.parametrize("system", [ethanol, crystal])
@pytest.mark.parametrize("members", [alike, unlike])
def test_an_ensembles_trajectory_is_that_of_ase_to_the_last_bit(members, system, make):
    """And the uncertainty of every step."""
    if members is alike:
        steps, atoms = 120, simulated(system(), members())
    else:  # which soon tear the molecule to pieces
        steps, atoms = 30, simulated(system(), members(), dtype="float32", kelvin=100.0)
    wanted = by_ase(atoms, steps, make)
    compiled = loop(atoms, make(atoms))
    found = by_blocks(atoms, compiled, steps)
    assert compiled.searches == 1 if system is ethanol else compiled.searches > 2
    assert np.ptp(found[0], axis=0).max() > 0.1
    assert wanted[3].min() > 0.01
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found[3], wanted[3])


@pytest.mark.physics
@pytest.mark.parametrize("count", [2, 3, 4])
def test_so_many_times_the_same_member_is_that_member(count):
    """To the last bit where a sum of so many equal numbers is rounded as they are."""
    one = lively(filter_knots=48, dtype=torch.float64)
    single = simulated(ethanol(), one)
    several = simulated(ethanol(), Ensemble([one] * count))
    block = loop(single).advance(
        single.positions, single.get_momenta(), single.get_forces(), 1
    )  # the first tells how long a step takes
    assert block.uncertainties is None
    x, p, f = block.positions[-1], block.momenta[-1], block.forces
    for _ in range(3):
        wanted, found = (loop(atoms).advance(x, p, f, 60) for atoms in (single, several))
        assert len(found) == len(wanted) == 60
        rounding = 1e-10 if count == 3 else 0.0
        np.testing.assert_allclose(found.positions, wanted.positions, rtol=0, atol=rounding)
        np.testing.assert_allclose(found.momenta, wanted.momenta, rtol=0, atol=rounding)
        np.testing.assert_allclose(found.energies, wanted.energies, rtol=1e-12)
        assert found.uncertainties.max() <= rounding
        x, p, f = wanted.positions[-1], wanted.momenta[-1], wanted.forces


@pytest.mark.physics
def test_the_mean_of_members_conserves_energy():
    """Half the time step, a quarter of the fluctuation of the total energy."""
    widths = []
    for timestep in (0.2, 0.1):
        atoms = simulated(ethanol(0.0), alike(activation="ssp"), kelvin=100.0)
        compiled = verlet_blocks(atoms, timestep, BlowUpWatch(atoms, None, 1e9), 27)
        x, p, f = atoms.positions, atoms.get_momenta(), atoms.get_forces()
        total = []
        for _ in range(round(40.0 / timestep / 50)):
            block = compiled.advance(x, p, f, 50)
            x, p, f = block.positions[-1], block.momenta[-1], block.forces
            total.append(block.energies.sum(axis=1))
        total = np.concatenate(total)
        widths.append(total.std())
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_a_run_of_an_ensemble_is_resumed_exactly(ensemble, tmp_path):
    """With the uncertainties counted, and the frames kept."""
    atoms = simulated(crystal(), alike())
    settings = {
        "ensemble": ensemble, "equilibrate": 11, "checkpoint_every": 20, "log_every": 1, "seed": 3,
        "max_uncertainty_eV_A": 1.0, "on_uncertain": "flag", "max_selected": 5, **ANY,
    }  # fmt: skip
    for out, parts in (("whole", (90,)), ("again", (90,)), ("parts", (35, 90))):
        for steps in parts:
            run_md(
                with_own_calculator(atoms), MDSettings(steps=steps, **settings), tmp_path / out,
                resume=steps != parts[0],
            )  # fmt: skip
    whole = left_by(tmp_path / "whole")
    assert len(whole["tags"]) > 1
    for name in ("again", "parts"):
        other = left_by(tmp_path / name)
        assert other.keys() == whole.keys()
        for key, values in whole.items():
            np.testing.assert_array_equal(other[key], values, err_msg=key)


def left_by(out) -> dict[str, np.ndarray]:
    saved = Checkpoint.load(RunFolder(out).checkpoint)
    found = {"x": saved.positions, "p": saved.momenta, "e": saved.potential_energy}
    return {**found, **saved.uncertainty, **read_series(out)}


# --------------------------------------------------------------------------- what the watch sees


def runs(atoms, settings, tmp_path, monkeypatch):
    """The same run with and without the compiled loop, and how many steps of it were compiled."""
    steps = []
    advance = blocks.VerletBlocks.advance

    def counted(self, *arguments):
        block = advance(self, *arguments)
        steps.append(len(block))
        return block

    with monkeypatch.context() as patch:
        patch.setattr(blocks.VerletBlocks, "advance", counted)
        ours = run_md(with_own_calculator(atoms), settings, tmp_path / "compiled")
        patch.setattr(blocks, "verlet_blocks", lambda *arguments, **options: None)
        theirs = run_md(with_own_calculator(atoms), settings, tmp_path / "ase")
    return ours, theirs, sum(steps)


@pytest.mark.parametrize("limit", [0.5, 0.8, 0.97])
def test_a_run_stops_at_the_same_step(limit, tmp_path, monkeypatch):
    """At the first step beyond the limit, which is in the middle of a block."""
    atoms = simulated(ethanol(), alike())
    free = MDSettings(steps=120, equilibrate=0, checkpoint_every=50, log_every=1, **ANY)
    ours, theirs, compiled = runs(atoms, free, tmp_path / "free", monkeypatch)
    u = read_series(ours.out)["uncertainty"]
    assert compiled == 120 - 3  # all but those after checkpoints
    np.testing.assert_array_equal(u, read_series(theirs.out)["uncertainty"])
    most = float(u[0] + limit * (u.max() - u[0]))
    first = int(np.argmax(u > most))
    assert first % 50 > 1
    settings = MDSettings(**{**free.to_dict(), "max_uncertainty_eV_A": most, "log_every": 7})
    ours, theirs, compiled = runs(atoms, settings, tmp_path / "stop", monkeypatch)
    assert compiled > 0
    assert ours.status == theirs.status
    assert f"the uncertainty rose to {u[first]:.3g} eV/A" in ours.status
    assert ours.steps == theirs.steps == first
    np.testing.assert_array_equal(ours.atoms.positions, theirs.atoms.positions)
    same_files(ours.out, theirs.out)


def test_a_run_stops_in_the_equilibration(tmp_path, monkeypatch):
    atoms = simulated(ethanol(), alike())
    settings = MDSettings(
        steps=10, equilibrate=200, max_uncertainty_eV_A=1.2 * uncertainty_at_the_start(atoms), **ANY
    )
    ours, theirs, compiled = runs(atoms, settings, tmp_path, monkeypatch)
    assert compiled > 0
    assert ours.status.endswith("during equilibration")
    assert ours.status == theirs.status
    np.testing.assert_array_equal(ours.atoms.positions, theirs.atoms.positions)
    same_files(ours.out, theirs.out)


def uncertainty_at_the_start(atoms) -> float:
    atoms.get_forces()
    return uncertainty_of(atoms.calc)


@pytest.mark.parametrize("form", ["nve", "langevin"])
def test_a_flagged_run_counts_and_keeps_the_same_steps(form, tmp_path, monkeypatch):
    atoms = simulated(crystal(), alike())
    settings = MDSettings(
        ensemble=form, steps=150, equilibrate=25, checkpoint_every=40, log_every=3, traj_every=7,
        max_uncertainty_eV_A=1.5 * uncertainty_at_the_start(atoms), on_uncertain="flag",
        max_selected=6, **ANY,
    )  # fmt: skip
    ours, theirs, compiled = runs(atoms, settings, tmp_path, monkeypatch)
    assert compiled > 150
    one, two = left_by(ours.out), left_by(theirs.out)
    _, steps, above, *_ = one["numbers"]
    assert 0 < above < steps == 121  # those of the last checkpoint
    assert one["step"].tolist() == list(range(0, 151, 3))
    assert len(one["tags"]) > 1
    for key in ("numbers", "uncertainty", "tags", "scores", "positions", "x", "p"):
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)
    assert ours.warnings == theirs.warnings
    assert any("the uncertainty was above" in text for text in ours.warnings)
    same_files(ours.out, theirs.out)


def same_files(ours, theirs) -> None:
    """Frames worth labelling, and what became of the uncertainty."""
    assert len(read(ours / "selected.extxyz", ":")) > 0
    assert (ours / "selected.extxyz").read_bytes() == (theirs / "selected.extxyz").read_bytes()
    facts = [RunFolder(out).read_run()["uncertainty"] for out in (ours, theirs)]
    assert facts[0] == facts[1]


def test_told_once_that_steps_are_flagged(tmp_path, monkeypatch):
    atoms = simulated(ethanol(), alike())
    settings = MDSettings(
        steps=60, equilibrate=0, log_every=1, on_uncertain="flag",
        max_uncertainty_eV_A=1.003 * uncertainty_at_the_start(atoms), **ANY,
    )  # fmt: skip
    told = []
    run_md(atoms, settings, tmp_path, notify=told.append)
    u = read_series(tmp_path)["uncertainty"]
    first = int(np.argmax(u > settings.max_uncertainty_eV_A))
    flagged = [line for line in told if "such steps are flagged" in line]
    assert len(flagged) == 1
    assert f"the uncertainty rose to {u[first]:.3g} eV/A" in flagged[0]
    assert f"at step {first};" in flagged[0]


# ------------------------------------------------------------------ what every member may refuse


@pytest.mark.physics
def test_the_loop_stops_before_atoms_are_too_close_for_any_member():
    """One of them is in a table that does not reach so far; the others are not."""
    exact = lively(filter_knots=48, activation="silu", dtype=torch.float64)
    tabled = lively(activation="silu", dtype=torch.float64, seed=4)
    for members in ([exact, tabled], [tabled, exact]):
        atoms = ethanol(0.0)
        towards = atoms.positions[3] - atoms.positions[8]
        towards /= np.linalg.norm(towards)
        atoms.positions[8] = atoms.positions[3] - 0.6 * towards
        momenta = np.zeros((9, 3))
        momenta[8] = 5.0 * towards
        atoms.set_momenta(momenta)
        atoms.calc = DCCalculator(Ensemble(members), dtype="float64", optimize=True)
        assert sorted(k.nearest for k in atoms.calc.deployed.kernels) == [0.0, CLOSEST]
        compiled = loop(atoms)
        block = compiled.advance(atoms.positions, momenta, atoms.get_forces(), 200)
        apart = np.linalg.norm(block.positions[:, 8] - block.positions[:, 3], axis=1)
        assert 0 < len(block) < 200
        assert CLOSEST <= apart.min() < 0.6
        last = atoms.copy()
        last.positions[:] = block.positions[-1]
        atoms.calc.calculate(last)
        np.testing.assert_allclose(block.forces, atoms.calc.results["forces"], rtol=1e-12)
        # The next step is the calculator's, with the member's network in PyTorch.
        verlet(last)
        again = compiled.advance(block.positions[-1], block.momenta[-1], block.forces, 200)
        assert len(again) == 0


@pytest.mark.parametrize("allowed", [False, True])
def test_a_block_ends_before_an_atom_is_alone(allowed):
    atoms = ethanol()
    away = atoms.positions[8] - atoms.positions.mean(axis=0)
    away /= np.linalg.norm(away)
    atoms.positions[8] += 1.5 * away
    momenta = np.zeros((9, 3))
    momenta[8] = 4.0 * away
    atoms.set_momenta(momenta)
    atoms.calc = DCCalculator(alike(), dtype="float64", allow_isolated=allowed)
    block = loop(atoms).advance(atoms.positions, momenta, atoms.get_forces(), 60)
    if allowed:
        assert len(block) == 60
        return
    assert 0 < len(block) < 60
    atoms.positions[:] = block.positions[-1]
    atoms.set_momenta(block.momenta[-1])
    with pytest.raises(DCCalculatorError, match="no neighbour within the cutoff"):
        verlet(atoms).run(1)


# --------------------------------------------------------------------------------------- replicas


@pytest.mark.physics
def test_replicas_of_an_ensemble_are_its_runs(tmp_path):
    atoms = simulated(crystal(), alike())
    settings = MDSettings(steps=80, equilibrate=0, log_every=1, checkpoint_every=30, **ANY)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run_replicas(with_own_calculator(atoms), settings, 3, tmp_path / "r") == "finished"
    finally:
        torch.set_num_threads(threads)
    folder = ReplicaFolder(tmp_path / "r")
    saved, rows = folder.latest(), np.array(read_rows(folder.series, 7))
    for r in range(3):
        one = with_own_calculator(atoms)
        draw_momenta(one, settings.temperature_K, np.random.default_rng([settings.seed, r]))
        still(one, "nve")
        kept = MDSettings(**{**settings.to_dict(), "keep_momenta": True})
        result = run_md(one, kept, tmp_path / str(r))
        np.testing.assert_allclose(saved.x[r], result.atoms.positions, atol=1e-9)
        np.testing.assert_allclose(saved.p[r], result.atoms.get_momenta(), atol=1e-8)
        energies = read_series(result.out)["potential_energy"]
        np.testing.assert_allclose(rows[:, 1 + r], energies, rtol=1e-12)


def test_replicas_of_an_ensemble_resume_exactly(tmp_path):
    atoms = simulated(ethanol(), alike())
    settings = {"equilibrate": 5, "log_every": 2, "checkpoint_every": 20, **ANY}
    for out, parts in (("whole", (60,)), ("parts", (33, 60))):
        for steps in parts:
            run_replicas(
                with_own_calculator(atoms), MDSettings(steps=steps, **settings), 2, tmp_path / out,
                resume=steps != parts[0],
            )  # fmt: skip
    one, two = (ReplicaFolder(tmp_path / name) for name in ("whole", "parts"))
    assert one.series.read_bytes() == two.series.read_bytes()
    for key in ("x", "p", "e"):
        np.testing.assert_array_equal(getattr(one.latest(), key), getattr(two.latest(), key))
