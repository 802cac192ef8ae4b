"""The compiled loop: ASE's trajectory to the last bit, and ASE's loop wherever it cannot go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from md_validation import assert_canonical, samples
from potential_models import crystal, ethanol, lively

from dcase import DCCalculator
from dcase.data.molecules import structure
from dcase.errors import OptionError
from dcase.md_runs.files.trajectory import read_series
from dcase.md_runs.loop import compiled_blocks as blocks
from dcase.md_runs.loop.batch_forces import BatchForces
from dcase.md_runs.loop.compiled_blocks import verlet_blocks
from dcase.md_runs.loop.mechanics import draw_momenta
from dcase.md_runs.loop.watch import BlowUpWatch
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md
from dcase.potentials.calculator import DCCalculatorError
from dcase.potentials.ensemble import Ensemble
from dcase.potentials.kernels.atom_kernel import available
from dcase.units import FS, KB

pytestmark = pytest.mark.skipif(
    not available(torch.float64), reason="no C compiler works here: there is no compiled loop"
)
ANY = {"bond_stretch_A": None, "max_temperature_K": 1e9}  # untrained potentials blow up


def simulated(atoms: Atoms, *, dtype="float64", skin=0.3, kelvin=300.0, **options) -> Atoms:
    potential = lively(filter_knots=48, dtype=torch.float64, **options)
    atoms.calc = DCCalculator(potential, dtype=dtype, skin=skin, allow_isolated=True)
    draw_momenta(atoms, kelvin, np.random.default_rng(1))
    return atoms


def langevin(atoms, seed=5):
    return Langevin(
        atoms, timestep=0.5 * FS, temperature_K=500.0, friction=0.02 / FS, fixcm=False,
        rng=np.random.default_rng(seed),
    )  # fmt: skip


def loop(atoms, dynamics=None):
    watch = BlowUpWatch(atoms, None, 1e9)
    found = verlet_blocks(atoms, 0.5, watch, 3 * len(atoms), dynamics=dynamics)
    assert found is not None
    return found


def ase_trajectory(atoms, steps, make=lambda atoms: VelocityVerlet(atoms, timestep=0.5 * FS)):
    atoms = with_own_calculator(atoms)
    dynamics, forces, states = make(atoms), None, []
    for _ in range(steps):
        forces = dynamics.step(forces)
        states.append(
            (
                atoms.positions.copy(),
                atoms.get_momenta(),
                (atoms.get_potential_energy(), atoms.get_kinetic_energy()),
            )
        )
    return [np.array(column) for column in zip(*states, strict=True)]


def with_own_calculator(atoms):
    copy = atoms.copy()
    copy.calc = atoms.calc.copy()
    return copy


def follow(atoms, compiled, steps):
    """All steps in blocks, each begun where the last one ended."""
    x, p, f = atoms.positions, atoms.get_momenta(), atoms.get_forces()
    found = []
    while sum(map(len, found)) < steps:
        block = compiled.advance(x, p, f, min(37, steps - sum(map(len, found))))
        assert len(block) > 0
        x, p, f = block.positions[-1], block.momenta[-1], block.forces
        found.append(block)
    return [
        np.concatenate([getattr(b, name) for b in found])
        for name in ("positions", "momenta", "energies")
    ]


@pytest.mark.physics
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_the_trajectory_is_that_of_ase_to_the_last_bit(make, dtype):
    atoms = simulated(make(), dtype=dtype)
    wanted = ase_trajectory(atoms, 300)
    compiled = loop(atoms)
    found = follow(atoms, compiled, 300)
    # Of a molecule all pairs are listed; the crystal's list is left behind again and again.
    assert compiled.searches == 1 if make is ethanol else compiled.searches > 5
    assert np.ptp(found[0], axis=0).max() > 1.0
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-12, atol=1e-12)


@pytest.mark.physics
@pytest.mark.parametrize("make", [ethanol, crystal])
def test_langevin_dynamics_is_that_of_ase_to_the_last_bit(make):
    atoms = simulated(make())
    wanted = ase_trajectory(atoms, 200, langevin)
    dynamics = langevin(atoms)
    compiled = loop(atoms, dynamics)
    found = follow(atoms, compiled, 200)
    assert compiled.searches == 1 if make is ethanol else compiled.searches > 3
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


@pytest.mark.physics
def test_free_atoms_forget_their_velocities_and_are_canonical():
    """Langevin in the compiled loop: <v(0) v(t)> / <v^2> = exp(-gamma t), K of 3N kT/2."""
    n, friction, kelvin = 343, 0.02, 500.0
    apart = 20.0 * np.array(list(np.ndindex(7, 7, 7)))  # none in another's reach
    atoms = Atoms(f"C{n}", apart)
    atoms = simulated(atoms, kelvin=kelvin)
    compiled = loop(atoms, langevin(atoms))
    momenta = [atoms.get_momenta()]
    x, forces = atoms.positions, np.zeros((n, 3))
    for _ in range(40):
        block = compiled.advance(x, momenta[-1], forces, 40)
        assert len(block) == 40
        assert not block.forces.any()
        x = block.positions[-1]
        momenta.append(block.momenta[-1])
    p = np.array(momenta) / np.sqrt(12.011 * KB * kelvin)  # of variance 1
    for lag in (1, 2, 4):
        kept = np.mean(p[lag:] * p[:-lag])
        assert kept == pytest.approx(np.exp(-friction * 0.5 * 40 * lag), abs=0.025)
    assert np.mean(p**2) == pytest.approx(1.0, abs=0.03)
    assert np.mean(p**4) == pytest.approx(3.0, abs=0.2)


@pytest.mark.slow
@pytest.mark.physics
def test_langevin_in_the_compiled_loop_is_canonical(tmp_path):
    """Of a molecule with a trained potential, at two temperatures."""
    found = []
    for kelvin in (300.0, 360.0):
        atoms = structure("aspirin")
        atoms.calc = DCCalculator("aspirin_irelu.pt")
        settings = MDSettings(
            ensemble="langevin", temperature_K=kelvin, steps=60_000, equilibrate=4000,
            friction_per_fs=0.05, log_every=20, traj_every=10_000, checkpoint_every=2000,
        )  # fmt: skip
        rows = read_series(run_md(atoms, settings, tmp_path / str(kelvin)).out)
        energies = rows["kinetic_energy"], rows["potential_energy"]
        found.append(samples(*energies, n_atoms=21, temperature_K=kelvin, every_fs=10.0))
    assert_canonical(*found)


def test_random_numbers_are_those_of_the_steps_done():
    """A block that ends early leaves the generator as if no more had been asked for."""
    atoms = simulated(ethanol(), kelvin=0.0)
    dynamics, alone = langevin(atoms), langevin(atoms)
    hottest = BlowUpWatch(atoms, None, 30.0)
    compiled = verlet_blocks(atoms, 0.5, hottest, 3 * len(atoms), dynamics=dynamics)
    state = atoms.positions, atoms.get_momenta(), atoms.get_forces()
    block = compiled.advance(*state, 200)
    assert 0 < len(block) < 200
    alone.rng.standard_normal((len(block), 2, len(atoms), 3))
    assert dynamics.rng.standard_normal() == alone.rng.standard_normal()


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_an_ensemble_is_the_same_in_both_loops(ensemble, tmp_path, monkeypatch):
    atoms = simulated(ethanol())
    settings = MDSettings(steps=60, equilibrate=33, checkpoint_every=25, ensemble=ensemble, **ANY)
    ours, theirs = runs(atoms, settings, tmp_path, monkeypatch)
    np.testing.assert_array_equal(ours.atoms.positions, theirs.atoms.positions)
    a, b = read_series(ours.out), read_series(theirs.out)
    np.testing.assert_allclose(a["conserved_energy"], b["conserved_energy"], rtol=1e-12)


def test_an_image_of_an_atom_stays_in_reach():
    """A fast atom crosses a cell that is hardly longer than the cutoff."""
    atoms = Atoms("CH", [(0, 0, 0), (2.0, 2.0, 2.0)], cell=[4.5, 4.4, 4.3], pbc=True)
    atoms = simulated(atoms, skin=0.2, kelvin=3000.0)
    wanted = ase_trajectory(atoms, 200)
    found = follow(atoms, loop(atoms), 200)
    assert np.ptp(found[0][:, 1], axis=0).max() > 4.5
    np.testing.assert_array_equal(found[0], wanted[0])


def test_atoms_of_other_masses():
    atoms = ethanol()
    atoms.set_masses(np.linspace(1.0, 40.0, len(atoms)))
    atoms = simulated(atoms)
    np.testing.assert_array_equal(follow(atoms, loop(atoms), 50)[0], ase_trajectory(atoms, 50)[0])


def without_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "verlet_blocks", lambda *arguments, **options: None)


def runs(atoms, settings, tmp_path, monkeypatch):
    """The same run with and without the compiled loop."""
    ours = run_md(with_own_calculator(atoms), settings, tmp_path / "compiled")
    without_blocks(monkeypatch)
    theirs = run_md(with_own_calculator(atoms), settings, tmp_path / "ase")
    return ours, theirs


def test_a_run_is_the_same_run(tmp_path, monkeypatch):
    """Series, frames, checkpoints: also with numbers that do not divide one another."""
    atoms = simulated(ethanol())
    settings = MDSettings(
        steps=95, equilibrate=20, log_every=3, traj_every=7, checkpoint_every=30, **ANY
    )
    used = []
    advance = blocks.VerletBlocks.advance

    def counted(self, *arguments):
        used.append(arguments[-1])
        return advance(self, *arguments)

    monkeypatch.setattr(blocks.VerletBlocks, "advance", counted)
    ours, theirs = runs(atoms, settings, tmp_path, monkeypatch)
    assert used == [19, 29, 29, 29, 4]  # of equilibration, and between checkpoints
    assert ours.status == theirs.status == "finished"
    np.testing.assert_array_equal(ours.atoms.positions, theirs.atoms.positions)
    np.testing.assert_array_equal(ours.atoms.get_momenta(), theirs.atoms.get_momenta())
    a, b = read_series(ours.out), read_series(theirs.out)
    assert a["step"].tolist() == list(range(0, 96, 3))
    for name, values in b.items():
        np.testing.assert_allclose(a[name], values, rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_run_is_resumed_exactly(tmp_path):
    atoms = simulated(crystal())
    settings = {"equilibrate": 0, "checkpoint_every": 25, **ANY}
    whole = run_md(with_own_calculator(atoms), MDSettings(steps=100, **settings), tmp_path / "a")
    run_md(with_own_calculator(atoms), MDSettings(steps=50, **settings), tmp_path / "b")
    parts = run_md(
        with_own_calculator(atoms), MDSettings(steps=100, **settings), tmp_path / "b", resume=True
    )
    np.testing.assert_array_equal(parts.atoms.positions, whole.atoms.positions)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timestep_fs": 6.0, "force_timestep": True}, "stopped early"),
        ({"max_temperature_K": 300.0}, "the temperature rose"),
        ({"bond_stretch_A": 0.02, "max_temperature_K": 1e9}, "broke"),
    ],
)
def test_a_blow_up_is_noticed_at_the_same_step(settings, words, tmp_path, monkeypatch):
    atoms = simulated(ethanol())
    ours, theirs = runs(
        atoms, MDSettings(steps=2000, equilibrate=0, **settings), tmp_path, monkeypatch
    )
    assert words in ours.status
    assert ours.status == theirs.status
    assert ours.steps == theirs.steps
    np.testing.assert_array_equal(ours.atoms.positions, theirs.atoms.positions)


def test_an_atom_that_flies_away(tmp_path, monkeypatch):
    atoms = Atoms("CHO", [(0, 0, 0), (1.1, 0, 0), (0, 3.9, 0)])
    atoms = simulated(atoms, kelvin=0.0)
    atoms.set_momenta([(0, 0, 0), (0, 0, 0), (0, 60.0, 0)])
    atoms.calc.allow_isolated = False
    settings = MDSettings(steps=500, equilibrate=0, keep_momenta=True, **ANY)
    ours, theirs = runs(atoms, settings, tmp_path, monkeypatch)
    assert "no neighbour within the cutoff" in ours.status
    assert (ours.status, ours.steps) == (theirs.status, theirs.steps)


class Restrained(DCCalculator):
    """Springs to where the atoms were, beside the potential."""

    home = ethanol(0.0).positions

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        away = self.atoms.positions - self.home
        self.results["energy"] += 1.5 * (away**2).sum()
        self.results["forces"] = self.results["forces"] - 3.0 * away
        self.results["free_energy"] = self.results["energy"]


def test_what_a_subclass_adds_to_the_forces_is_there(tmp_path):
    atoms = simulated(ethanol(0.0))
    ends = []
    for optimize in (None, False):
        copy = atoms.copy()
        copy.calc = Restrained(atoms.calc.potential, dtype="float64", optimize=optimize)
        settings = MDSettings(steps=100, equilibrate=0, keep_momenta=True, **ANY)
        ends.append(run_md(copy, settings, tmp_path / str(optimize)).atoms.positions)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    with pytest.raises(OptionError, match="no subclass"):
        BatchForces(copy.calc, atoms.numbers, atoms.cell.array, atoms.pbc)


@pytest.mark.parametrize(
    ("seconds_a_step", "most"), [(1e-5, blocks.MOST_STEPS), (0.1, 5), (30.0, 1)]
)
def test_blocks_of_slow_potentials_are_short(seconds_a_step, most, monkeypatch):
    atoms = simulated(ethanol())
    compiled = loop(atoms)
    spent = property(lambda self: seconds_a_step * self.steps_done)
    monkeypatch.setattr(blocks.VerletBlocks, "model_seconds", spent)
    for _ in range(2):  # also the first, before which nobody knows how long a step takes
        block = compiled.advance(atoms.positions, atoms.get_momenta(), atoms.get_forces(), 500)
        assert len(block) == most


def test_where_there_is_no_compiled_loop(monkeypatch):
    atoms = simulated(ethanol())
    watch = BlowUpWatch(atoms, None, 1e9)

    def there_is(atoms=atoms, dynamics=None):
        return verlet_blocks(atoms, 0.5, watch, 27, dynamics=dynamics) is not None

    assert there_is()
    assert there_is(dynamics=langevin(atoms))
    assert not there_is(dynamics=Bussi(atoms, 0.5 * FS, temperature_K=300.0, taut=50 * FS))
    held = with_own_calculator(atoms)
    held.set_constraint(FixAtoms([0]))
    assert not there_is(held)
    for options in ({"skin": 0.0}, {"optimize": False}):
        plain = atoms.copy()
        plain.calc = DCCalculator(atoms.calc.potential, **options)
        assert not there_is(plain)
    members = atoms.copy()
    members.calc = DCCalculator(Ensemble([atoms.calc.potential, lively(filter_knots=48)]))
    assert there_is(members)
    other = lively(filter_knots=48, cutoff=4.5)
    members.calc = DCCalculator(Ensemble([atoms.calc.potential, other]))
    assert not there_is(members)
    monkeypatch.setattr(blocks, "load_library", lambda *names, **options: None)
    assert not there_is()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_block_ends_before_an_atom_is_alone(allowed):
    """Where the calculator refuses it; the caller's step then says so."""
    potential = lively(filter_knots=48, dtype=torch.float64)
    atoms = ethanol()
    away = atoms.positions[8] - atoms.positions.mean(axis=0)
    away /= np.linalg.norm(away)
    atoms.positions[8] += away * (potential.cutoff - 2.5)
    momenta = np.zeros((9, 3))
    momenta[8] = 4.0 * away
    atoms.set_momenta(momenta)
    atoms.calc = DCCalculator(potential, dtype="float64", allow_isolated=allowed)

    def is_alone(positions):
        return np.linalg.norm(positions[:8] - positions[8], axis=1).min() >= potential.cutoff

    block = loop(atoms).advance(atoms.positions, momenta, atoms.get_forces(), 60)
    end = block.positions[-1]
    assert not is_alone(atoms.positions)
    if allowed:
        assert len(block) == 60
        assert is_alone(end)
        return
    assert 0 < len(block) < 60
    assert not is_alone(end)
    atoms.positions[:], momenta[:] = end, block.momenta[-1]
    atoms.set_momenta(momenta)
    with pytest.raises(DCCalculatorError, match="no neighbour within the cutoff"):
        VelocityVerlet(atoms, 0.5 * FS).run(1)


def test_bonds_over_a_boundary_are_as_long_as_they_are():
    """In a cell that cuts the molecule: neither broken as given, nor whole when they break."""
    atoms = simulated(crystal(), kelvin=50.0)
    atoms.positions += 0.5 * atoms.cell.array.sum(axis=0) - atoms.positions[0]
    atoms.positions -= 0.5 * atoms.cell.array[0]
    atoms.wrap()
    watch = BlowUpWatch(atoms, 0.5, 1e9)
    across = (watch.bonds[2] != 0).any(axis=1)
    assert across.any()
    assert not across.all()
    state = atoms.positions, atoms.get_momenta(), atoms.get_forces()
    compiled = verlet_blocks(atoms, 0.05, watch, 27)
    assert len(compiled.advance(*state, 4)) == 4
    tight = BlowUpWatch(atoms, 0.5, 1e9)
    bond = int(np.flatnonzero(across)[0])
    tight.lengths[bond] -= 0.6  # as if it had been that much shorter
    assert len(verlet_blocks(atoms, 0.05, tight, 27).advance(*state, 4)) == 0
