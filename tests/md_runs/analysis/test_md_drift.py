"""Drift analysis: the slope, its error against Monte Carlo, the verdicts."""

from __future__ import annotations

import json
import math

import h5py
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


def oscillation(rng, n, omega):
    """A cosine of any phase."""
    return np.cos(omega * np.arange(n) + rng.uniform(0, 2 * np.pi))


KNOWN = {
    "independent": lambda rng: ar1(rng, 1500, 0.0),
    "few": lambda rng: ar1(rng, 40, 0.0),
    "tau 1.5": lambda rng: ar1(rng, 1500, 0.5),
    "tau 9.5": lambda rng: ar1(rng, 1500, 0.9),
    "tau 33": lambda rng: ar1(rng, 3000, 0.97),
    "alternating": lambda rng: ar1(rng, 1500, -0.8),
    "two times": lambda rng: ar1(rng, 5000, 0.5) + 0.05 * ar1(rng, 5000, 0.98),
    "wander under oscillation": lambda rng: (
        0.1 * ar1(rng, 3000, 0.97) + 3.0 * oscillation(rng, 3000, 1.1)
    ),
    "noise on oscillation": lambda rng: ar1(rng, 3000, 0.0) + 1.5 * oscillation(rng, 3000, 0.1),
}


# One of each kind; the others are slow.
OFTEN = ("independent", "few", "tau 9.5", "wander under oscillation")


@pytest.mark.physics
@pytest.mark.parametrize(
    "process",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in KNOWN],
)
def test_stated_slope_error_is_calibrated(process):
    """Over many series the slope scatters by the stated error: 1 sigma means 68 %, 2 mean 95 %."""
    rng = np.random.default_rng(7)
    slopes, errors = [], []
    for _ in range(500):
        values = KNOWN[process](rng)
        times = np.arange(len(values)) * 0.5
        _, slope, error, _ = fit_line(times, values + 0.3 * times)
        slopes.append(slope - 0.3)
        errors.append(error)
    slopes, errors = np.array(slopes), np.array(errors)
    assert 0.95 < np.sqrt(np.mean(errors**2) / np.mean(slopes**2)) < 1.15
    assert 0.62 < np.mean(np.abs(slopes) < errors) < 0.75
    assert 0.92 < np.mean(np.abs(slopes) < 2 * errors) < 0.98


@pytest.mark.physics
def test_oscillations_alone_are_no_drift():
    """Nothing slow moves: the slope is what the two ends leave, and the error says so."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(300):
        waves = (3.0, 1.1), (1.0, 0.7), (5.0, 2.1)
        values = sum(size * oscillation(rng, 2000, omega) for size, omega in waves)
        found.append(fit_line(np.arange(2000) * 0.5, values)[1:3])
    slopes, errors = np.array(found).T
    assert 0.95 < np.sqrt(np.mean(errors**2) / np.mean(slopes**2)) < 1.2
    assert np.all(np.abs(slopes) < 2 * errors)


@pytest.mark.parametrize("n", [17, 4097, 200_000])
def test_a_series_read_in_blocks_gives_the_same_numbers(tmp_path, monkeypatch, n):
    """An open file's series, whole or a block at a time, against NumPy on the whole of it."""
    rng = np.random.default_rng(4)
    times = np.arange(n) * 0.5
    kinetic = 1.0 + 0.1 * ar1(rng, n, 0.9)
    energy = -17638.0 + 1e-3 * ar1(rng, n, 0.99) + 1e-7 * times
    whole = analyse(times, energy, kinetic, n_atoms=21, n_dof=57).to_dict()
    mean = mean_and_error(kinetic)
    slope, intercept = np.polyfit(times - times.mean(), energy - energy.mean(), 1)
    rest = energy - energy.mean() - intercept - slope * (times - times.mean())
    assert whole["slope_mev_per_atom_ps"] == pytest.approx(slope * 1e6 / 21, rel=1e-6)
    assert whole["rms_mev_per_atom"] == pytest.approx(np.sqrt(np.mean(rest**2)) * 1e3 / 21)
    assert whole["drift_ratio"] == pytest.approx(abs(slope) * times[-1] / kinetic.std(), rel=1e-6)
    assert mean[0] == pytest.approx(kinetic.mean())
    with h5py.File(tmp_path / "series.h5", "w") as file:
        for name, values in (("t", times), ("e", energy), ("k", kinetic)):
            file[name] = values
        columns = file["t"], file["e"], file["k"]
        assert analyse(*columns, n_atoms=21, n_dof=57).to_dict() == whole
        assert mean_and_error(file["k"]) == mean
        monkeypatch.setattr("dcase.md_runs.analysis.correlated.BLOCK", 1000)
        parts = analyse(*columns, n_atoms=21, n_dof=57).to_dict()
        assert parts.pop("verdict") == whole.pop("verdict")
        assert parts == pytest.approx(whole, rel=1e-6)
        assert mean_and_error(file["k"]) == pytest.approx(mean, rel=1e-9)


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
@pytest.mark.parametrize(
    ("phi", "n"), [(0.0, 100), (0.9, 2000), pytest.param(0.97, 4000, marks=pytest.mark.slow)]
)
def test_error_of_a_mean_is_calibrated(phi, n):
    rng = np.random.default_rng(2)
    series = [ar1(rng, n, phi) + 2.0 * oscillation(rng, n, 0.8) for _ in range(500)]
    means, errors = np.array([mean_and_error(values) for values in series]).T
    assert 0.95 < np.sqrt(np.mean(errors**2) / np.mean(means**2)) < 1.15
    assert 0.62 < np.mean(np.abs(means) < errors) < 0.75
    assert 0.92 < np.mean(np.abs(means) < 2 * errors) < 0.98
