"""From the folder of a run to its report: numbers, pictures, one page.

The keys of ``report.json`` are documented in ``docs/report-keys.md``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.files import atomic_path, write_json, write_text
from dcase.md_runs.analysis.drift import EnergyDrift, analyse, mean_and_error
from dcase.md_runs.analysis.dt_scan_verdict import DtScan
from dcase.md_runs.analysis.stability import (
    bond_stability,
    distance_distribution,
    distribution_error,
)
from dcase.md_runs.files.publish import recover
from dcase.md_runs.files.run_folder import (
    FIGURES,
    UNCERTAINTY,
    Checkpoint,
    RunFolder,
    series_columns,
)
from dcase.md_runs.files.trajectory import read_positions, read_series
from dcase.md_runs.loop.constrain import constrained
from dcase.md_runs.report import figures
from dcase.md_runs.report.html import render
from dcase.plotting import png

NOT_APPLICABLE = "not applicable: Langevin dynamics exchanges energy with its bath"


def write_report(
    out: str | Path,
    *,
    dt_scan: DtScan | None = None,
    reference_positions: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write ``report.json``, the PNG pictures and ``report.html`` into the folder of a run.

    A run that was killed is reported as far as it got (see ``finish.recover``).

    Args:
        out: Folder of a run.
        dt_scan: From ``scan.dt_scan``, to be reported with the run.
        reference_positions: ``(M, N, 3)`` A of the same molecule, same order of atoms: gives the
            reference bond lengths and h(r).

    Returns:
        What ``report.json`` holds (with NaN where the file has null).

    Raises:
        SimulationError: If the folder holds no run, or one killed before its first checkpoint.
        OptionError: If the reference does not fit the molecule.
    """
    folder = RunFolder(Path(out))
    report, pictures = _build(folder, dt_scan, reference_positions)
    images = {name: png(figure) for name, figure in pictures.items()}
    for name in FIGURES:
        if name in images:
            with atomic_path(folder.root / f"{name}.png") as path:
                path.write_bytes(images[name])
        else:  # of an earlier report: it would not belong to this one
            (folder.root / f"{name}.png").unlink(missing_ok=True)
    write_json(folder.report, report)
    write_text(folder.root / "report.html", render(report, images))
    return report


def _build(
    folder: RunFolder, scan: DtScan | None, reference: np.ndarray | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = recover(folder.root)
    settings = facts["settings"]
    series, times, positions = _data(folder)
    n_atoms, n_dof = int(facts["n_atoms"]), int(facts["n_dof"])
    ensemble, steps = settings["ensemble"], int(facts["steps"])
    drift = _drift(series, ensemble, n_atoms, n_dof)
    temperature, error = mean_and_error(series["temperature"])
    wall = float(facts["wall_time_s"])
    span_fs = steps * settings["timestep_fs"]
    pictures: dict[str, Any] = {}
    if len(series["time"]):
        pictures["energies"] = figures.energies_figure(
            series, n_atoms=n_atoms, temperature_K=settings["temperature_K"]
        )
    if ensemble != "langevin" and len(series["time"]):
        pictures["drift"] = figures.drift_figure(
            series["time"],
            series["conserved_energy"],
            drift,
            n_atoms=n_atoms,
            name="total energy" if ensemble == "nve" else "conserved energy",
        )
    spread = _uncertainty(facts)
    if spread is not None and len(series["time"]):
        pictures["uncertainty"] = figures.uncertainty_figure(
            series["time"], series[UNCERTAINTY], spread["limit_eV_A"]
        )
    if scan is not None:
        pictures["dt_scan"] = figures.dt_scan_figure(scan.entries)
    # The bonds of the structure given, not of a frame in which one may be stretched.
    given = Checkpoint.load(folder.checkpoint).start
    stability = bond_stability(times, positions, given, reference_positions=reference).to_dict()
    h_of_r = None
    if reference is not None and len(times) and n_atoms > 1 and not np.any(given.pbc):
        kept = positions[times - times[0] <= stability["stable_ps"] * 1e3]
        r, density = distance_distribution(kept)
        _, expected = distance_distribution(np.asarray(reference))
        mae = distribution_error(density, expected)
        h_of_r = {"mae_times_10": mae, "frames": len(kept), "reference_frames": len(reference)}
        pictures["h_of_r"] = figures.distances_figure(r, density, expected, error=mae)
    report = {
        "status": facts["status"],
        "finished": facts["status"] == "finished",
        "model": facts["model"],
        "level_of_theory": facts["level_of_theory"],
        "dtype": facts["dtype"],
        "device": facts["device"],
        "formula": facts["formula"],
        "n_atoms": n_atoms,
        "n_dof": n_dof,
        "constraints": _constraints(given, settings, positions),
        "ensemble": ensemble,
        "temperature_K": settings["temperature_K"],
        "timestep_fs": settings["timestep_fs"],
        "steps": steps,
        "steps_requested": settings["steps"],
        "duration_ps": span_fs * 1e-3,
        "equilibration_steps": settings["equilibrate"],
        "seed": settings["seed"],
        "mean_temperature_K": temperature,
        "mean_temperature_stderr_K": error,
        "energy_drift": drift.to_dict(),
        "uncertainty": spread,
        "dt_scan": None if scan is None else scan.to_list(),
        "dt_scan_verdict": None if scan is None else scan.interpretation,
        "dt_scan_passed": None if scan is None else scan.passed,
        "com_momentum": _extent(series["com_momentum"], "amu A/fs"),
        "angular_momentum": _extent(series["angular_momentum"], "amu A^2/fs"),
        "shortest_period_fs": facts["shortest_period_fs"],
        "stability": stability,
        "h_of_r": h_of_r,
        "wall_time_s": wall,
        "equilibration_wall_time_s": facts["equilibration_wall_time_s"],
        "ms_per_step": 1e3 * wall / steps if steps else math.nan,
        "ns_per_day": span_fs * 1e-6 / (wall / 86400.0) if wall > 0.0 else math.nan,
        "warnings": list(facts["warnings"]),
        "settings": settings,
        "versions": facts["versions"],
        "figures": [f"{name}.png" for name in FIGURES if name in pictures],
    }
    return report, pictures


def _data(folder: RunFolder) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Series, frame times and positions; empty where production never began."""
    if folder.trajectory.exists():
        times, positions, _ = read_positions(folder.root)
        return read_series(folder.root), times, positions
    n_atoms = len(Checkpoint.load(folder.checkpoint).start)
    nothing = {name: np.zeros(0) for name in ("time", *series_columns(True))}
    return nothing, np.zeros(0), np.zeros((0, n_atoms, 3))


def _drift(series: dict[str, np.ndarray], ensemble: str, n_atoms: int, n_dof: int) -> EnergyDrift:
    drift = analyse(
        series["time"],
        series["total_energy" if ensemble == "langevin" else "conserved_energy"],
        series["kinetic_energy"],
        n_atoms=n_atoms,
        n_dof=n_dof,
    )
    if ensemble != "langevin" or drift.verdict.startswith("failed"):
        return drift
    nothing = {
        name: math.nan
        for name, value in drift.to_dict().items()
        if isinstance(value, float) and name not in ("duration_ps", "temperature_K")
    }
    return EnergyDrift(**{**drift.to_dict(), **nothing, "verdict": NOT_APPLICABLE})


def _uncertainty(facts: dict[str, Any]) -> dict[str, Any] | None:
    """What an ensemble's run has met; None for a single potential."""
    found = facts.get("uncertainty")
    if found is None:
        return None
    numbers = {name: math.nan if value is None else value for name, value in found.items()}
    settings = facts["settings"]
    limit = settings.get("max_uncertainty_eV_A")
    on_uncertain = None if limit is None else settings["on_uncertain"]
    return {**numbers, "limit_eV_A": limit, "on_uncertain": on_uncertain}


def _constraints(
    given: Atoms, settings: dict[str, Any], positions: np.ndarray
) -> dict[str, Any] | None:
    """Which bonds were held, at which lengths, and how well at the frames; None where none were."""
    held = constrained(given, settings.get("constrain", "none"))
    if held is None:
        return None
    assert held.bondlengths is not None
    return {
        "kind": settings["constrain"],
        "n_bonds": len(held.pairs),
        "n_dof_removed": held.rank,
        "bonds": held.names(),
        "lengths_A": [float(length) for length in held.bondlengths],
        "max_violation_A": held.largest_violation(positions),
    }


def _extent(values: np.ndarray, unit: str) -> dict[str, Any] | None:
    """First and largest value of a conserved vector's length; None where it is not defined."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None
    return {"first": float(finite[0]), "largest": float(finite.max()), "unit": unit}
