"""Pictures are drawn from any data that can occur, without global state."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from dcase.md_runs.analysis.drift import analyse
from dcase.md_runs.report.figures import (
    MANY_POINTS,
    distances_figure,
    drift_figure,
    dt_scan_figure,
    energies_figure,
    parity_figure,
)
from dcase.plotting import png, save

pytestmark = pytest.mark.pictures


def labels(figure):
    return [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel()) if text]


@pytest.mark.parametrize("n", [1, 2, 50, 5000])
def test_run_figures_of_any_length(n):
    times = np.arange(n) * 1.0
    kinetic = 1.0 + 0.1 * np.sin(times)
    series = {
        "time": times,
        "potential_energy": -kinetic,
        "kinetic_energy": kinetic,
        "total_energy": np.zeros(n),
        "temperature": 300 * kinetic,
    }
    figure = energies_figure(series, n_atoms=3, temperature_K=300.0)
    assert png(figure).startswith(b"\x89PNG")
    assert "energy (meV/atom)" in labels(figure)
    assert ("time (ps)" if n > 2000 else "time (fs)") in labels(figure)
    drift = analyse(times, 1e-6 * times, kinetic, n_atoms=3, n_dof=3)
    figure = drift_figure(times, 1e-6 * times, drift, n_atoms=3, name="total energy")
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("n", [801, 990, 1199, 7777])
def test_no_part_of_a_long_series_is_left_out(n):
    values = np.zeros(n)
    values[-1] = 5.0
    drift = analyse(np.arange(n), values, np.ones(n), n_atoms=1, n_dof=3)
    (ax,) = drift_figure(np.arange(n), values, drift, n_atoms=1, name="total energy").axes
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(5000.0)
    assert band[:, 0].max() * (1e3 if n > 2000 else 1) > 0.99 * n


def test_run_figures_with_nothing_finite():
    bad = np.full(20, np.nan)
    drift = analyse(np.arange(20.0), bad, bad, n_atoms=3, n_dof=3)
    assert png(drift_figure(np.arange(20.0), bad, drift, n_atoms=3, name="total energy"))
    series = dict.fromkeys(
        ("potential_energy", "kinetic_energy", "total_energy", "temperature"), bad
    )
    assert png(energies_figure({"time": np.arange(20.0), **series}, n_atoms=3, temperature_K=1.0))


def test_scan_figure_shows_ratios():
    entries = [
        {"timestep_fs": 1.0, "rms_mev_per_atom": 4.0, "ratio_to_next": 4.0},
        {"timestep_fs": 0.5, "rms_mev_per_atom": 1.0, "ratio_to_next": None},
    ]
    figure = dt_scan_figure(entries)
    assert "÷ 4.00" in [text.get_text() for text in figure.axes[0].texts]
    assert png(figure)
    entries[0]["rms_mev_per_atom"] = float("nan")
    assert png(dt_scan_figure(entries))


def test_distances_figure():
    r = np.linspace(0, 10, 500)
    assert png(distances_figure(r, np.exp(-((r - 2) ** 2)), None))
    assert png(distances_figure(r, np.zeros(500), np.exp(-((r - 2) ** 2)), error=0.1))


@pytest.mark.parametrize("n", [0, 1, 100, MANY_POINTS + 1])
def test_parity(n, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(n)
    figure = parity_figure(x, x + 0.1, "eV/Å", quantity="force component")
    assert "predicted force component (eV/Å)" in labels(figure)
    if n:
        assert "MAE  0.1 eV/Å" in figure.axes[0].texts[0].get_text()
    save(figure, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 1000


def test_parity_of_total_energies_keeps_their_differences():
    x = -17638.0 + np.array([0.0, 0.1, 0.2])
    figure = parity_figure(x, x + 0.01, "eV", centre=True)
    assert figure.axes[0].get_xlim()[1] < 0.2


def test_same_data_same_bytes_and_no_global_state():
    before = dict(mpl.rcParams)
    x = np.arange(5.0)
    assert png(parity_figure(x, x, "eV")) == png(parity_figure(x, x, "eV"))
    assert dict(mpl.rcParams) == before
    code = (
        "import sys, dcase.md_runs.report.report, dcase.md_runs.simulate, dcase.md_runs.relax\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
