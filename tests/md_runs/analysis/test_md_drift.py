"""Drift analysis: the slope, its error against Monte Carlo, the verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.signal import lfilter

from dcase.errors import OptionError
from dcase.md_runs.analysis.drift import analyse, fit_line, mean_and_error
from dcase.statistics import autocorrelation_time
from dcase.units import KB


def ar1(rng, n, phi):
    """A stationary series with autocorrelation phi^k."""
    return lfilter([1.0], [1.0, -phi], rng.standard_normal(n + 500))[500:]


def series(slope_ev_ps=0.0, noise=0.0, n=2001, offset=0.0, n_dof=27, temperature=300.0):
    rng = np.random.default_rng(3)
    times = np.arange(n) * 1.0
    kinetic = 0.5 * n_dof * KB * temperature * (1 + 0.2 * np.sin(0.37 * times))
    total = offset + slope_ev_ps * times * 1e-3 + noise * rng.standard_normal(n)
    return times, total, kinetic


def test_known_slope_and_units():
    times, total, kinetic = series(slope_ev_ps=0.0003)
    drift = analyse(times, total, kinetic, n_atoms=9, n_dof=27, temperature_K=300.0)
    assert drift.slope_mev_per_atom_ps == pytest.approx(0.3 / 9, rel=1e-9)
    assert drift.max_deviation_mev_per_atom == pytest.approx(0.3 / 9 * 2.0, rel=1e-9)
    assert drift.duration_ps == pytest.approx(2.0)
    assert drift.drift_ratio == pytest.approx(0.0006 / np.std(kinetic), rel=1e-6)
    assert drift.rms_mev_per_atom < 1e-9


def test_one_kt_per_ns_per_dof_is_0_0776_mev_per_atom_ps():
    # Independent arithmetic: kT(300 K) = 25.852 meV, 3 dof per atom, 1000 ps per ns.
    per_atom = 3 * 25.852 / 1000
    assert per_atom == pytest.approx(0.0776, abs=1e-4)
    times, total, kinetic = series(slope_ev_ps=per_atom * 1e-3 * 9)
    drift = analyse(times, total, kinetic, n_atoms=9, n_dof=27, temperature_K=300.0)
    assert drift.slope_kt_per_ns_dof == pytest.approx(1.0, rel=1e-4)


def test_temperature_defaults_to_the_kinetic_one():
    times, total, kinetic = series(temperature=450.0)
    drift = analyse(times, total, kinetic, n_atoms=9, n_dof=27)
    assert drift.temperature_K == pytest.approx(450.0, rel=1e-2)


def test_a_large_offset_costs_no_digits():
    plain = analyse(*series(slope_ev_ps=1e-6), n_atoms=21, n_dof=57)
    far = analyse(*series(slope_ev_ps=1e-6, offset=-17638.0), n_atoms=21, n_dof=57)
    assert far.slope_mev_per_atom_ps == pytest.approx(plain.slope_mev_per_atom_ps, rel=1e-4)


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_autocorrelation_time_of_a_known_process(phi):
    rng = np.random.default_rng(1)
    found = np.mean([autocorrelation_time(ar1(rng, 20_000, phi)) for _ in range(10)])
    assert found == pytest.approx(0.5 * (1 + phi) / (1 - phi), rel=0.08)


@pytest.mark.physics
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.97])
def test_stated_slope_error_is_calibrated(phi):
    """Over many series the slope scatters by the stated error, and 2 sigma means 2 sigma."""
    rng = np.random.default_rng(7)
    times = np.arange(1500) * 0.5
    fits = [fit_line(times, ar1(rng, 1500, phi)) for _ in range(250)]
    slopes = np.array([f[1] for f in fits])
    errors = np.array([f[2] for f in fits])
    assert 0.9 < np.sqrt(np.mean(errors**2)) / slopes.std() < 1.4
    assert np.mean(np.abs(slopes) > 2 * errors) < 0.1


@pytest.mark.physics
def test_a_fast_oscillation_does_not_hide_a_slow_wander():
    rng = np.random.default_rng(5)
    times = np.arange(3000) * 0.5
    ratios = []
    for _ in range(150):
        wander = 0.1 * ar1(rng, 3000, 0.97)
        values = wander + 3.0 * np.cos(1.1 * np.arange(3000) + rng.uniform(0, 6.28))
        _, slope, error, _ = fit_line(times, values)
        ratios.append(slope / error)
    assert 0.6 < np.std(ratios) < 1.2


def test_white_noise_mistaken_for_independent_samples_would_fail():
    """The naive error is far too small for a correlated series: the test above has teeth."""
    rng = np.random.default_rng(7)
    times = np.arange(1500) * 0.5
    naive, slopes = [], []
    for _ in range(100):
        y = ar1(rng, 1500, 0.9)
        _, slope, _, _ = fit_line(times, y)
        x = times - times.mean()
        naive.append(math.sqrt(np.var(y) / (x @ x)))
        slopes.append(slope)
    assert np.mean(naive) < 0.4 * np.std(slopes)


@pytest.mark.parametrize(
    ("slope", "noise", "verdict"),
    [
        (0.0, 1e-4, "no significant drift (slope within 2 standard errors"),
        (1e-3, 1e-4, "significant but small"),
        (0.5, 1e-4, "not conserved"),
        (0.0, 0.3, "not conserved (the total energy wanders"),
    ],
)
def test_verdicts(slope, noise, verdict):
    drift = analyse(*series(slope_ev_ps=slope, noise=noise), n_atoms=9, n_dof=27)
    assert drift.verdict.startswith(verdict)
    assert drift.conserved == (not verdict.startswith("not"))


def test_non_finite_energy_fails_over_the_finite_part():
    times, total, kinetic = series(slope_ev_ps=1e-3)
    total[1000:] = np.nan
    kinetic[1500] = np.inf
    drift = analyse(times, total, kinetic, n_atoms=9, n_dof=27)
    assert drift.verdict == "failed: the energy is not a finite number after 999 fs"
    assert drift.n_samples == 1000
    assert drift.slope_mev_per_atom_ps == pytest.approx(1.0 / 9)


def test_non_finite_from_the_start():
    drift = analyse([0.0, 1.0], [np.nan, 1.0], [1.0, 1.0], n_atoms=1, n_dof=3)
    assert drift.verdict.startswith("failed")
    assert drift.n_samples == 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 9])
def test_short_series_get_no_judgement(n):
    times, total, kinetic = (values[:n] for values in series(slope_ev_ps=1.0))
    drift = analyse(times, total, kinetic, n_atoms=9, n_dof=27)
    assert drift.verdict == f"too short to judge ({n} samples; at least 10 are needed)"


def test_constant_energy_and_frozen_atoms():
    drift = analyse(np.arange(50.0), np.ones(50), np.zeros(50), n_atoms=3, n_dof=3)
    assert drift.slope_mev_per_atom_ps == 0.0
    assert drift.verdict.startswith("no significant drift")
    assert math.isnan(drift.drift_ratio)


def test_to_dict_has_the_promised_keys():
    found = analyse(*series(noise=1e-4), n_atoms=9, n_dof=27).to_dict()
    assert set(found) >= {
        "slope_mev_per_atom_ps",
        "slope_stderr_mev_per_atom_ps",
        "slope_kt_per_ns_dof",
        "rms_mev_per_atom",
        "max_deviation_mev_per_atom",
        "drift_ratio",
        "verdict",
        "n_samples",
        "effective_samples",
        "duration_ps",
    }
    json.dumps(found)


def test_lengths_must_agree():
    with pytest.raises(OptionError, match="same length"):
        analyse([0.0, 1.0], [0.0], [0.0], n_atoms=1, n_dof=3)


@pytest.mark.physics
def test_error_of_a_mean_is_calibrated():
    rng = np.random.default_rng(2)
    found = [mean_and_error(ar1(rng, 2000, 0.9)) for _ in range(200)]
    means, errors = np.array(found).T
    assert 0.9 < np.sqrt(np.mean(errors**2)) / means.std() < 1.2
