"""The dt^2 law, and the fingerprints of force fields that break it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from md_models import spring_molecule

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.analysis.drift import dt_scan_table
from dcase.md_runs.analysis.dt_scan import white_noise
from dcase.md_runs.simulate import MDSettings, dt_scan

QUICK = MDSettings(equilibrate=200)


def ratios(scan):
    return [entry["ratio_to_next"] for entry in scan.entries[:-1]]


@pytest.mark.physics
@pytest.mark.parametrize(
    ("name", "morse"),
    [
        ("H2O", True),
        pytest.param("CH4", False, marks=pytest.mark.slow),
        pytest.param("CH3CH2OH", True, marks=pytest.mark.slow),
        pytest.param("CH3CH2OH", False, marks=pytest.mark.slow),
    ],
)
def test_energy_error_falls_as_dt_squared(name, morse):
    scan = dt_scan(spring_molecule(name, morse=morse), MDSettings(equilibrate=300))
    assert ratios(scan) == pytest.approx([4.0, 4.0], abs=0.2)
    assert scan.passed
    assert scan.interpretation.startswith("the energy error falls as dt^2")
    assert [e["timestep_fs"] for e in scan.entries] == [0.5, 0.25, 0.125]
    assert scan.entries[-1]["ratio_to_next"] is None


@pytest.mark.physics
def test_a_force_with_a_curl_is_flagged():
    scan = dt_scan(spring_molecule("CH4", curl=0.02), QUICK)
    assert not scan.passed
    assert "not the gradient of the energy" in scan.interpretation


@pytest.mark.physics
def test_an_energy_with_jumps_is_flagged():
    scan = dt_scan(spring_molecule("CH4", kick=0.005), QUICK)
    assert not scan.passed
    assert "jumps or kinks" in scan.interpretation


@pytest.mark.physics
@pytest.mark.slow
def test_a_truncated_lennard_jones_is_flagged_and_a_smooth_one_is_not():
    line = np.array([[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0], [3.7, 3.8, 0.2], [1.9, 1.9, 3.2]])
    settings = MDSettings(timestep_fs=10.0, temperature_K=25.0, equilibrate=150)
    results = {}
    for smooth in (False, True):
        atoms = Atoms("Ar5", line)
        # The cut at 5.2 A passes through distances of this cluster.
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.2, ro=3.6, smooth=smooth)
        results[smooth] = dt_scan(atoms, settings, duration_fs=3000.0)
    assert not results[False].passed
    assert ratios(results[True]) == pytest.approx([4.0, 4.0], abs=0.4)


@pytest.mark.physics
def test_rounding_is_told_from_bad_forces():
    scan = dt_scan(spring_molecule("CH4", rounding=2e-3), QUICK)
    assert scan.passed
    assert "rounding" in scan.interpretation


def test_momenta_of_the_structure_are_used_and_left_alone():
    atoms = spring_molecule("H2O")
    atoms.set_momenta(np.random.default_rng(0).standard_normal((3, 3)))
    before = atoms.get_positions().copy(), atoms.get_momenta().copy()
    first = dt_scan(atoms, MDSettings(seed=1), (1.0, 0.5), duration_fs=20.0)
    second = dt_scan(atoms, MDSettings(seed=2), (1.0, 0.5), duration_fs=20.0)
    assert first.to_list() == second.to_list()
    assert np.array_equal(atoms.get_positions(), before[0])
    assert np.array_equal(atoms.get_momenta(), before[1])


def test_options_are_checked():
    atoms = spring_molecule("H2O")
    with pytest.raises(OptionError, match="at least two"):
        dt_scan(atoms, MDSettings(), (1.0,))
    with pytest.raises(OptionError, match="whole number"):
        dt_scan(atoms, MDSettings(equilibrate=0), (1.0, 0.7))
    with pytest.raises(SimulationError, match="stability limit"):
        dt_scan(atoms, MDSettings(equilibrate=0, timestep_fs=8.0))
    atoms.calc = None
    with pytest.raises(OptionError, match="no calculator"):
        dt_scan(atoms, MDSettings())


def test_progress_reaches_the_end():
    seen = []
    dt_scan(
        spring_molecule("H2O"),
        MDSettings(equilibrate=0),
        (1.0, 0.5),
        duration_fs=20.0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (120, 120)


@pytest.mark.parametrize(
    ("rms", "passed", "words"),
    [
        ((1.6, 0.4, 0.1), True, "falls as dt"),
        ((1.6, 0.8, 0.4), False, "more slowly"),
        ((1.6, 0.4, 0.39), False, "levels off"),
        ((1.6, 0.2, 0.02), False, "faster"),
        ((0.0, 0.0, 0.0), True, "does not change"),
        ((1.6, float("nan"), 0.1), False, "failed"),
    ],
)
def test_reading_of_the_table(rms, passed, words):
    # Out of order on purpose, and under the short key.
    entries = [{"timestep_fs": dt, "rms": r} for dt, r in zip((1.0, 0.5, 0.25), rms, strict=True)]
    scan = dt_scan_table(entries[::-1])
    assert [e["timestep_fs"] for e in scan.entries] == [1.0, 0.5, 0.25]
    assert scan.passed is passed
    assert words in scan.interpretation


def test_ratios_follow_uneven_steps():
    scan = dt_scan_table([{"timestep_fs": dt, "rms": dt**2} for dt in (0.9, 0.3, 0.1)])
    assert ratios(scan) == pytest.approx([9.0, 9.0])
    assert scan.passed
    assert not dt_scan_table([{"timestep_fs": 1.0, "rms": 1.0}]).passed


def test_white_noise_is_told_from_motion():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 20, 4000)
    assert white_noise(np.sin(x) + 0.01 * rng.standard_normal(4000)) == pytest.approx(0.01, rel=0.1)
    assert white_noise(np.sin(x)) < 1e-6
    assert white_noise(np.sin(x) + (x > 7)) < 1e-6
