"""Reports: keys, pictures, the page, and what they say about bad runs."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from md_models import spring_molecule
from rich.console import Console

from dcase.errors import OptionError, SimulationError
from dcase.md_runs.files.trajectory import read_positions, read_trajectory
from dcase.md_runs.report.report import write_report
from dcase.md_runs.report.summary import print_summary
from dcase.md_runs.simulate import MDSettings, dt_scan, run_md

PROMISED = {
    "steps",
    "timestep_fs",
    "temperature_K",
    "dtype",
    "device",
    "form",
    "seed",
    "model",
    "level_of_theory",
    "wall_time_s",
    "energy_drift",
    "dt_scan",
    "status",
    "ensemble",
    "mean_temperature_K",
    "mean_temperature_stderr_K",
    "n_atoms",
    "n_dof",
    "com_momentum",
    "angular_momentum",
    "versions",
    "ns_per_day",
    "ms_per_step",
}


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A good run with everything that a report can show."""
    out = tmp_path_factory.mktemp("report") / "run"
    settings = MDSettings(steps=800, equilibrate=300, seed=4)
    atoms = spring_molecule("CH3CH2OH")
    run_md(atoms, settings, out)
    start = read_trajectory(out, slice(0, 1))[0]
    start.calc = atoms.calc
    scan = dt_scan(start, settings)
    _, positions, _ = read_positions(out)
    report = write_report(out, dt_scan=scan, reference_positions=positions[::2])
    return out, report


def test_keys_are_there_and_documented(full):
    out, report = full
    stored = json.loads((out / "report.json").read_text())
    assert set(stored) == set(report)
    assert set(stored) >= PROMISED
    text = (Path(__file__).parents[3] / "docs" / "report-keys.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE))
    assert set(stored) | set(stored["energy_drift"]) | set(stored["dt_scan"][0]) <= documented


def test_numbers(full):
    _, report = full
    assert report["finished"]
    assert report["steps"] == 800
    assert report["duration_ps"] == pytest.approx(0.4)
    assert report["n_dof"] == 21
    assert report["model"] == "pairsprings"
    assert report["dtype"] == "float64"
    assert report["energy_drift"]["n_samples"] == 801
    assert len(report["dt_scan"]) == 3
    assert report["dt_scan_passed"]
    assert report["com_momentum"]["largest"] < 1e-13
    assert report["stability"]["collapsed"] is False
    assert report["stability"]["n_bonds"] == 8
    assert 0 < report["h_of_r"]["mae_times_10"] < 1.0
    assert report["ms_per_step"] == pytest.approx(1e3 * report["wall_time_s"] / 800)
    assert report["ns_per_day"] == pytest.approx(0.5e-6 * 86400e3 / report["ms_per_step"])


def test_pictures_and_page(full):
    out, report = full
    names = ["energies.png", "drift.png", "dt_scan.png", "h_of_r.png"]
    assert report["figures"] == names
    assert all(is_png(out / name) for name in names)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # nothing is fetched
    assert report["energy_drift"]["verdict"].split("(")[0] in page
    assert page.rstrip().endswith("</html>")


def test_summary_prints(full):
    _, report = full
    text = io.StringIO()
    print_summary(report, Console(file=text, width=100))
    for words in ("meV/atom/ps", "kT/ns/dof", "21 degrees of freedom", "ns/day", "falls as dt^2"):
        assert words in text.getvalue()
    restored = json.loads(json.dumps(report))  # as read from report.json
    print_summary(restored, Console(file=io.StringIO()))


def test_a_later_report_drops_pictures_that_do_not_belong_to_it(full):
    out, _ = full
    report = write_report(out)
    assert report["dt_scan"] is None
    assert report["h_of_r"] is None
    assert not (out / "dt_scan.png").exists()


@pytest.mark.physics
@pytest.mark.slow  # tests/md_runs/analysis/test_md_dt_scan.py
def test_a_force_that_is_no_gradient_is_flagged(tmp_path):
    atoms = spring_molecule("CH4", curl=0.02)
    settings = MDSettings(steps=800, equilibrate=100)
    run_md(atoms, settings, tmp_path)
    report = write_report(tmp_path, dt_scan=dt_scan(atoms, settings))
    assert report["energy_drift"]["verdict"].startswith("not conserved")
    assert report["dt_scan_passed"] is False
    assert "not the gradient" in report["dt_scan_verdict"]
    assert 'class="verdict bad"' in (tmp_path / "report.html").read_text()


def test_langevin_has_no_drift_to_report(tmp_path):
    settings = MDSettings(ensemble="langevin", steps=60, equilibrate=0)
    run_md(spring_molecule("CH4"), settings, tmp_path)
    report = write_report(tmp_path)
    assert report["energy_drift"]["verdict"].startswith("not applicable")
    assert math.isnan(report["energy_drift"]["slope_mev_per_atom_ps"])
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["energy_drift"]["slope_mev_per_atom_ps"] is None
    assert report["figures"] == ["energies.png"]
    print_summary(stored, Console(file=io.StringIO()))


def test_a_run_that_blew_up_is_reported_as_far_as_it_got(tmp_path):
    settings = MDSettings(
        steps=300, timestep_fs=5.0, equilibrate=0, force_timestep=True, bond_stretch_A=None
    )
    result = run_md(spring_molecule("CH4"), settings, tmp_path)
    report = write_report(tmp_path)
    assert report["status"] == result.status
    assert report["status"].startswith("stopped early")
    assert not report["energy_drift"]["verdict"].startswith(("no ", "significant but"))
    assert report["warnings"]
    assert is_png(tmp_path / "energies.png")


def test_a_run_that_ended_in_equilibration_is_reported(tmp_path):
    settings = MDSettings(steps=300, timestep_fs=5.0, force_timestep=True)
    run_md(spring_molecule("CH4"), settings, tmp_path)
    report = write_report(tmp_path)
    assert "during equilibration" in report["status"]
    assert report["steps"] == 0
    print_summary(report, Console(file=io.StringIO()))


class Described:
    """What a DCCalculator says about itself."""

    name = "painn <aspirin>"
    metadata = {"dataset": {"level_of_theory": "PBE+TS", "name": "md17"}}  # noqa: RUF012


def test_model_and_level_of_theory_of_a_potential(tmp_path):
    atoms = spring_molecule("H2O")
    atoms.calc.potential = Described()
    atoms.calc.dtype, atoms.calc.device = "torch.float32", "cpu"
    run_md(atoms, MDSettings(steps=20, equilibrate=0), tmp_path)
    report = write_report(tmp_path)
    assert report["model"] == "painn <aspirin>"
    assert report["level_of_theory"] == "PBE+TS"
    assert report["dtype"] == "float32"
    assert "painn &lt;aspirin&gt;" in (tmp_path / "report.html").read_text()


def test_no_run_and_a_reference_that_does_not_fit(tmp_path, full):
    with pytest.raises(SimulationError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(OptionError, match="do not fit 9 atoms"):
        write_report(full[0], reference_positions=np.zeros((4, 5, 3)))
