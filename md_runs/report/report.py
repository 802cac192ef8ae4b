"""From the folder of a run to its report: numbers, pictures, one page.

The keys of ``report.json`` are documented in ``docs/report-keys.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.files import atomic_path, write_json, write_text
from dcase.md_runs.analysis.correlated import Part, blocks, extremes, mean_and_error
from dcase.md_runs.analysis.drift import EnergyDrift, analyse
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
from dcase.md_runs.files.trajectory import stored_positions, stored_series
from dcase.md_runs.loop.constrain import constrained
from dcase.md_runs.loop.ensembles import MDEnsemble, ensemble_named
from dcase.md_runs.loop.result import STOPPED
from dcase.md_runs.loop.uncertainty import EXCEEDED
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
    facts = recover(folder.root)
    with _series(folder) as series:
        report, pictures = _build(folder, facts, series, dt_scan, reference_positions)
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
    folder: RunFolder,
    facts: dict[str, Any],
    series: dict[str, Any],
    scan: DtScan | None,
    reference: np.ndarray | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = facts["settings"]
    sound = _until_the_watch(series, facts)
    n_atoms, n_dof = int(facts["n_atoms"]), int(facts["n_dof"])
    ensemble = ensemble_named(settings["ensemble"])
    drift = _drift(sound, ensemble, n_atoms, n_dof)
    temperature, error = mean_and_error(sound["temperature"])
    spread = _uncertainty(facts)
    pictures = _pictures(series, sound, drift, facts, ensemble)
    if scan is not None:
        pictures["dt_scan"] = figures.dt_scan_figure(scan.entries)
    # The bonds of the structure given, not of a frame in which one may be stretched.
    given = Checkpoint.load(folder.checkpoint).start
    stability, h_of_r, picture, constraints = _geometry(folder, given, settings, reference)
    if picture is not None:
        pictures["h_of_r"] = picture
    report = {
        "status": facts["status"],
        "finished": facts["status"] == "finished",
        "model": facts["model"],
        "level_of_theory": facts["level_of_theory"],
        "dtype": facts["dtype"],
        "device": facts["device"],
        "form": facts.get("form"),
        "formula": facts["formula"],
        "n_atoms": n_atoms,
        "n_dof": n_dof,
        "constraints": constraints,
        "ensemble": ensemble.name,
        "temperature_K": settings["temperature_K"],
        "timestep_fs": settings["timestep_fs"],
        "steps_requested": settings["steps"],
        "equilibration_steps": settings["equilibrate"],
        "seed": settings["seed"],
        "mean_temperature_K": temperature,
        "mean_temperature_stderr_K": error,
        "energy_drift": drift.to_dict(),
        "uncertainty": spread,
        "dt_scan": None if scan is None else scan.to_list(),
        "dt_scan_verdict": None if scan is None else scan.interpretation,
        "dt_scan_passed": None if scan is None else scan.passed,
        "com_momentum": _extent(sound["com_momentum"], "amu A/fs"),
        "angular_momentum": _extent(sound["angular_momentum"], "amu A^2/fs"),
        "shortest_period_fs": facts["shortest_period_fs"],
        "stability": stability,
        "h_of_r": h_of_r,
        **_speed(facts),
        "warnings": list(facts["warnings"]),
        "settings": settings,
        "versions": facts["versions"],
        "figures": [f"{name}.png" for name in FIGURES if name in pictures],
    }
    return report, pictures


def _speed(facts: dict[str, Any]) -> dict[str, Any]:
    steps, wall = int(facts["steps"]), float(facts["wall_time_s"])
    span_fs = steps * facts["settings"]["timestep_fs"]
    return {
        "steps": steps,
        "duration_ps": span_fs * 1e-3,
        "wall_time_s": wall,
        "equilibration_wall_time_s": facts["equilibration_wall_time_s"],
        "ms_per_step": 1e3 * wall / steps if steps else math.nan,
        "ns_per_day": span_fs * 1e-6 / (wall / 86400.0) if wall > 0.0 else math.nan,
    }


def _until_the_watch(series: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The series without the step at which the watch stopped the run: that is no physics.

    A step that only was too uncertain is; one without a finite energy stays, and ends the analysis
    by itself.
    """
    status = str(facts["status"])
    if not status.startswith(STOPPED) or EXCEEDED in status or not len(series["step"]):
        return series
    last = int(facts["steps"])
    kept = sum(int(np.count_nonzero(steps < last)) for (steps,) in blocks(series["step"]))
    if not np.isfinite(series["total_energy"][kept:]).all():
        return series
    return {name: Part(values, kept) for name, values in series.items()}


def _pictures(
    series: dict[str, Any],
    sound: dict[str, Any],
    drift: EnergyDrift,
    facts: dict[str, Any],
    ensemble: MDEnsemble,
) -> dict[str, Any]:
    """What can be seen of energies and uncertainty; nothing where production never began."""
    found: dict[str, Any] = {}
    if not len(series["time"]):
        return found
    n_atoms, settings = int(facts["n_atoms"]), facts["settings"]
    found["energies"] = figures.energies_figure(
        series, n_atoms=n_atoms, temperature_K=settings["temperature_K"]
    )
    if ensemble.conserved is not None:
        found["drift"] = figures.drift_figure(
            sound["time"],
            sound["conserved_energy"],
            drift,
            n_atoms=n_atoms,
            name=ensemble.conserved_name,
        )
    spread = _uncertainty(facts)
    if spread is not None:
        found["uncertainty"] = figures.uncertainty_figure(
            series["time"], series[UNCERTAINTY], spread["limit_eV_A"]
        )
    return found


def _geometry(
    folder: RunFolder, given: Atoms, settings: dict[str, Any], reference: np.ndarray | None
) -> tuple[dict[str, Any], dict[str, Any] | None, Any, dict[str, Any] | None]:
    """What the frames say: stability, h(r) and its picture, held bonds."""
    with stored_positions(folder.root, len(given)) as (times, positions):
        stability = bond_stability(times, positions, given, reference_positions=reference)
        h_of_r, picture = None, None
        if reference is not None and len(times) and len(given) > 1 and not np.any(given.pbc):
            kept = int(np.count_nonzero(times - times[0] <= stability.stable_ps * 1e3))
            r, density = distance_distribution(positions, frames=kept)
            _, expected = distance_distribution(np.asarray(reference))
            mae = distribution_error(density, expected)
            h_of_r = {"mae_times_10": mae, "frames": kept, "reference_frames": len(reference)}
            picture = figures.distances_figure(r, density, expected, error=mae)
        constraints = _constraints(given, settings, positions)
    return stability.to_dict(), h_of_r, picture, constraints


@contextmanager
def _series(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The energy series, read as it is used; empty where production never began."""
    if folder.trajectory.exists():
        with stored_series(folder.root) as series:
            yield series
    else:
        yield {name: np.zeros(0) for name in ("time", *series_columns(True))}


def _drift(series: dict[str, Any], ensemble: MDEnsemble, n_atoms: int, n_dof: int) -> EnergyDrift:
    drift = analyse(
        series["time"],
        series["total_energy" if ensemble.conserved is None else "conserved_energy"],
        series["kinetic_energy"],
        n_atoms=n_atoms,
        n_dof=n_dof,
    )
    if ensemble.conserved is not None or drift.verdict.startswith("failed"):
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


def _constraints(given: Atoms, settings: dict[str, Any], positions: Any) -> dict[str, Any] | None:
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


def _extent(values: Any, unit: str) -> dict[str, Any] | None:
    """First and largest value of a conserved vector's length; None where it is not defined."""
    first, _, largest = extremes(values)
    return None if math.isnan(first) else {"first": first, "largest": largest, "unit": unit}
