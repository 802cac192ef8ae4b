"""Runs: the physics of each ensemble, blow-ups, what is written, what is left alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.io import read
from ase.md.verlet import VelocityVerlet
from md_models import PairSprings, spring_molecule
from md_validation import assert_canonical, samples

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.drift import analyse
from dcase.md_runs.loop.integrators import make_dynamics
from dcase.md_runs.loop.mechanics import degrees_of_freedom
from dcase.md_runs.simulate import MDSettings, run_md
from dcase.units import FS, KB


def drift_of(result):
    series = result.series()
    return analyse(
        series["time"],
        series["conserved_energy"],
        series["kinetic_energy"],
        n_atoms=result.n_atoms,
        n_dof=result.n_dof,
    )


@pytest.mark.physics
def test_verlet_runs_backwards_to_its_start():
    atoms = spring_molecule("CH3CH2OH")
    rng = np.random.default_rng(0)
    atoms.set_momenta(0.3 * rng.standard_normal((9, 3)))
    start = atoms.get_positions().copy()
    dynamics = VelocityVerlet(atoms, timestep=0.5 * FS)
    for _ in range(300):
        dynamics.step()
    assert np.abs(atoms.get_positions() - start).max() > 0.1
    atoms.set_momenta(-atoms.get_momenta())
    for _ in range(300):
        dynamics.step()
    assert np.abs(atoms.get_positions() - start).max() < 1e-9


@pytest.mark.physics
def test_nve_conserves_energy_momentum_and_angular_momentum(tmp_path):
    result = run_md(spring_molecule("CH3CH2OH"), MDSettings(steps=1500), tmp_path / "run")
    assert result.status == "finished"
    drift = drift_of(result)
    assert drift.conserved
    assert abs(drift.slope_mev_per_atom_ps) < 0.05
    assert drift.fluctuation_ratio < 0.05
    series = result.series()
    assert series["com_momentum"].max() < 1e-13
    assert series["angular_momentum"].max() < 1e-13
    assert np.array_equal(series["conserved_energy"], series["total_energy"])
    assert np.array_equal(series["step"], np.arange(1501))
    assert series["time"][-1] == 750.0


@pytest.mark.physics
def test_nve_of_a_crystal_keeps_its_momentum(tmp_path):
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.02, seed=1)
    copper.calc = EMT()
    settings = MDSettings(steps=150, timestep_fs=2.0, equilibrate=30)
    result = run_md(copper, settings, tmp_path / "run")
    assert result.n_dof == 9
    assert result.series()["com_momentum"].max() < 1e-13
    assert np.isnan(result.series()["angular_momentum"]).all()
    assert drift_of(result).fluctuation_ratio < 0.05


@pytest.mark.physics
# Of the other two the whole distribution is tested, in loop/test_md_thermostats.py.
@pytest.mark.parametrize(
    "ensemble",
    [
        pytest.param("langevin", marks=pytest.mark.slow),
        pytest.param("bussi", marks=pytest.mark.slow),
        "nose-hoover",
    ],
)
def test_thermostats_hold_the_temperature_of_the_right_degrees_of_freedom(ensemble):
    """<K> = n_dof kT / 2; with ASE's 3N instead of 3N - 6, methane would be 67 % too hot."""
    atoms = spring_molecule("CH4", morse=False)
    settings = MDSettings(
        ensemble=ensemble, timestep_fs=0.4, friction_per_fs=0.05, taut_fs=20.0, seed=3
    )
    rng = np.random.default_rng(3)
    from dcase.md_runs.loop.mechanics import draw_momenta, still

    draw_momenta(atoms, 300.0, rng)
    still(atoms, ensemble)
    dynamics = make_dynamics(atoms, settings, rng)
    kinetic = []
    for k in range(5000):
        dynamics.step()
        if k > 800:
            kinetic.append(atoms.get_kinetic_energy())
    expected = 0.5 * degrees_of_freedom(atoms, ensemble) * KB * 300.0
    assert np.mean(kinetic) == pytest.approx(expected, rel=0.15)


@pytest.mark.physics
@pytest.mark.parametrize("ensemble", ["bussi", "nose-hoover"])
def test_thermostats_conserve_what_they_should(tmp_path, ensemble):
    settings = MDSettings(ensemble=ensemble, steps=1500, equilibrate=300, timestep_fs=0.3)
    result = run_md(spring_molecule("CH4"), settings, tmp_path / "run")
    series = result.series()
    assert np.std(series["conserved_energy"]) < 0.05 * np.std(series["total_energy"])
    assert drift_of(result).conserved
    assert series["com_momentum"].max() < 1e-12
    assert series["angular_momentum"].max() < 1e-12


def test_langevin_conserves_nothing_and_says_so(tmp_path):
    settings = MDSettings(ensemble="langevin", steps=50, equilibrate=0)
    result = run_md(spring_molecule("CH4"), settings, tmp_path / "run")
    assert result.n_dof == 15
    assert np.isnan(result.series()["conserved_energy"]).all()


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("ensemble", ["langevin", "bussi", "nose-hoover"])
def test_ensembles_are_canonical(ensemble):
    """Kinetic energies of n_dof degrees of freedom, and potential ones of two temperatures."""
    from dcase.md_runs.loop.mechanics import draw_momenta, still

    found = []
    for kelvin in (300.0, 400.0):
        atoms = spring_molecule("CH4", depth=0.8)
        settings = MDSettings(
            ensemble=ensemble, timestep_fs=0.4, friction_per_fs=0.05, taut_fs=30.0,
            temperature_K=kelvin,
        )  # fmt: skip
        rng = np.random.default_rng(11)
        draw_momenta(atoms, kelvin, rng)
        still(atoms, ensemble)
        dynamics = make_dynamics(atoms, settings, rng)
        energies = []
        for k in range(60_000):
            dynamics.step()
            if k > 4000 and k % 20 == 0:
                energies.append((atoms.get_kinetic_energy(), atoms.get_potential_energy()))
        removed = 3 * len(atoms) - degrees_of_freedom(atoms, ensemble)
        found.append(
            samples(
                *np.transpose(energies), n_atoms=len(atoms), removed=removed,
                temperature_K=kelvin, every_fs=20 * settings.timestep_fs,
            )
        )  # fmt: skip
    assert_canonical(*found)


def test_same_seed_same_run_and_global_random_numbers_are_left_alone(tmp_path):
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    numpy_before, python_before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
    settings = MDSettings(ensemble="langevin", steps=40, equilibrate=20)
    atoms = spring_molecule("CH4")
    positions = atoms.get_positions().copy()
    runs = [
        run_md(atoms, replace(settings, seed=seed), tmp_path / f"{k}").series()["total_energy"]
        for k, seed in enumerate((4, 4, 5))
    ]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert str(np.random.get_state()) == numpy_before  # noqa: NPY002
    assert random.getstate() == python_before
    assert np.array_equal(atoms.get_positions(), positions)  # the caller's atoms do not move
    assert not atoms.has("momenta") or not atoms.get_momenta().any()


def test_kept_momenta_are_the_start(tmp_path):
    atoms = spring_molecule("CH4")
    atoms.set_momenta(np.random.default_rng(0).standard_normal((5, 3)) * 0.2)
    settings = MDSettings(steps=10, equilibrate=0, keep_momenta=True)
    result = run_md(atoms, settings, tmp_path / "run")
    assert result.series()["kinetic_energy"][0] == atoms.get_kinetic_energy()


def test_intervals_and_files(tmp_path):
    settings = MDSettings(steps=100, equilibrate=10, log_every=4, traj_every=15)
    result = run_md(spring_molecule("CH4"), settings, tmp_path / "run")
    assert result.series()["step"].tolist() == list(range(0, 101, 4))
    for name in ("trajectory.h5", "final.extxyz", "log.txt"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    final = read(tmp_path / "run" / "final.extxyz")
    assert final.info["step"] == 100
    assert np.allclose(final.get_momenta(), result.atoms.get_momenta(), atol=1e-7)
    assert np.isfinite(final.get_forces()).all()
    assert "finished after 100 steps" in (tmp_path / "run" / "log.txt").read_text()


class Breaking(PairSprings):
    """Lets go of the first pair after a number of calls, pushing it apart."""

    def __init__(self, *args, after, how, **options):
        super().__init__(*args, **options)
        self.after, self.how = after, how

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.calls < self.after:
            return
        if self.how == "nan":
            self.results["forces"][0] = np.nan
        elif self.how == "energy":
            self.results["energy"] = self.results["free_energy"] = np.nan
        elif self.how == "heat":
            self.results["forces"] = self.results["forces"] + 40.0 * np.sign(
                self.atoms.get_velocities()
            )
        else:
            i, j = self.pairs[0]
            axis = self.atoms.positions[j] - self.atoms.positions[i]
            self.results["forces"][j] = 5.0 * axis
            self.results["forces"][i] = -5.0 * axis


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "the forces are not finite numbers at step"),
        ("energy", "the energy is not a finite number at step"),
        ("bond", "bond C0-H1 broke (1.09 -> 1.6"),
        ("heat", "the temperature rose to"),
    ],
)
def test_blow_up_stops_early_and_keeps_everything(tmp_path, how, words):
    source = spring_molecule("CH4").calc
    atoms = spring_molecule("CH4")
    atoms.calc = Breaking(source.pairs, source.lengths, depth=1.5, after=200, how=how)
    told = []
    settings = MDSettings(
        steps=3000,
        equilibrate=0,
        bond_stretch_A=None if how == "heat" else 0.5,
        max_temperature_K=1e7 if how == "bond" else None,
    )
    result = run_md(atoms, settings, tmp_path / "run", notify=told.append)
    assert result.status.startswith("stopped early: ")
    assert words in result.status
    assert not result.finished
    assert 150 < result.steps < 500
    series = result.series()
    assert series["step"][-1] == result.steps
    assert np.isfinite(series["total_energy"][:-1]).all()
    assert np.isfinite(read(tmp_path / "run" / "final.extxyz").positions).all()
    assert any(result.status in line for line in told)
    with pytest.raises(SimulationError, match="would only repeat it"):
        run_md(atoms, settings, tmp_path / "run", resume=True)


def test_too_large_a_time_step_is_refused_warned_of_and_forced(tmp_path):
    atoms = spring_molecule("CH4")
    with pytest.raises(SimulationError, match="past the stability limit"):
        run_md(atoms, MDSettings(timestep_fs=5.0, steps=10), tmp_path / "a")
    assert not (tmp_path / "a").exists() or not (tmp_path / "a" / "trajectory.h5").exists()
    told = []
    settings = MDSettings(timestep_fs=1.5, steps=5, equilibrate=0)
    result = run_md(atoms, settings, tmp_path / "b", notify=told.append)
    assert "is large" in result.warnings[0]
    assert told[0] == f"warning: {result.warnings[0]}"
    forced = MDSettings(timestep_fs=5.0, steps=300, equilibrate=0, force_timestep=True)
    assert run_md(atoms, forced, tmp_path / "c").status.startswith("stopped early")


def test_other_calculators_and_a_pair_of_atoms(tmp_path):
    from ase import Atoms

    atoms = Atoms("Ar2", [[0, 0, 0], [1.05, 0, 0]])
    atoms.calc = MorsePotential(epsilon=1.0, r0=1.0, rho0=6.0)
    result = run_md(
        atoms, MDSettings(steps=100, temperature_K=100.0, timestep_fs=1.0), tmp_path / "run"
    )
    assert result.finished
    assert result.n_dof == 1


def test_progress_counts_equilibration(tmp_path):
    seen = []
    run_md(
        spring_molecule("CH4"),
        MDSettings(steps=30, equilibrate=20),
        tmp_path / "run",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (50, 50)


@pytest.mark.parametrize(
    "options",
    [
        {"ensemble": "npt"},
        {"temperature_K": -1.0},
        {"temperature_K": 0.0, "ensemble": "bussi"},
        {"timestep_fs": 0.0},
        {"timestep_fs": float("nan")},
        {"steps": 0},
        {"steps": 1.5},
        {"equilibrate": -1},
        {"log_every": 0},
        {"bond_stretch_A": 0.0},
        {"friction_per_fs": float("inf")},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        MDSettings(**options)


def test_no_calculator_and_no_atoms(tmp_path):
    from ase import Atoms

    atoms = spring_molecule("H2O")
    atoms.calc = None
    with pytest.raises(OptionError, match="no calculator"):
        run_md(atoms, MDSettings(), tmp_path / "run")
    nothing = Atoms()
    nothing.calc = EMT()
    with pytest.raises(OptionError, match="no atoms"):
        run_md(nothing, MDSettings(), tmp_path / "run")


class Refusing(PairSprings):
    """A potential that refuses a structure, as DCCalculator does when atoms have flown apart."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.calls > 100:
            raise SimulationError("atom 3 (H) has no neighbour\nwithin the cutoff")


def test_a_potential_that_refuses_a_structure_stops_the_run_and_keeps_it(tmp_path):
    source = spring_molecule("CH4").calc
    atoms = spring_molecule("CH4")
    atoms.calc = Refusing(source.pairs, source.lengths, depth=1.5)
    result = run_md(atoms, MDSettings(steps=3000, equilibrate=0), tmp_path / "run")
    assert result.status == (f"stopped early: atom 3 (H) has no neighbour at step {result.steps}")
    assert result.series()["step"][-1] == result.steps - 1


def test_frozen_start_and_a_folder_that_cannot_be_made(tmp_path):
    frozen = MDSettings(temperature_K=0.0, steps=20)
    result = run_md(spring_molecule("CH4"), frozen, tmp_path / "run")
    assert result.finished
    assert np.abs(result.series()["kinetic_energy"]).max() < 1e-12
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SimulationError, match="cannot write to"):
        run_md(spring_molecule("CH4"), frozen, tmp_path / "file")
