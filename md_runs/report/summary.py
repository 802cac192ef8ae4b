"""A report in lines of name and value, for the console and the page alike."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcase.md_runs.analysis.drift import plus_minus
from dcase.md_runs.loop.ensembles import ensemble_named


def summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report in lines of name and value."""
    drift = report["energy_drift"]
    rows = [
        (
            "status",
            f"{report['status']} ({report['steps']:,} of {report['steps_requested']:,} steps)",
        ),
        (
            "system",
            f"{report['formula']}, {report['n_atoms']} atoms, {report['n_dof']} degrees of freedom",
        ),
        ("potential", _model(report)),
        (
            "simulated",
            f"{report['duration_ps']:g} ps {ensemble_name(report['ensemble'])}, time step "
            f"{report['timestep_fs']:g} fs, seed {report['seed']}",
        ),
    ]
    if math.isfinite(_number(report["mean_temperature_K"])):
        mean = plus_minus(
            _number(report["mean_temperature_K"]), _number(report["mean_temperature_stderr_K"])
        )
        asked = f"asked for {report['temperature_K']:g} K{_spread(report)}"
        rows.append(("temperature", f"{mean} K ({asked})"))
    if math.isfinite(_number(drift["slope_mev_per_atom_ps"])):
        slope = plus_minus(
            _number(drift["slope_mev_per_atom_ps"]), _number(drift["slope_stderr_mev_per_atom_ps"])
        )
        rows += [
            ("energy drift", f"{slope} meV/atom/ps = {drift['slope_kt_per_ns_dof']:.2g} kT/ns/dof"),
            ("energy fluctuation", f"{drift['rms_mev_per_atom']:.3g} meV/atom RMS about the line"),
        ]
    rows.append(("verdict", drift["verdict"]))
    if report.get("uncertainty"):
        rows.append(("uncertainty", _spread_of_forces(report["uncertainty"])))
    if report["dt_scan"]:
        rows.append(("time-step scan", str(report["dt_scan_verdict"])))
    stability = report["stability"]
    if stability["n_bonds"]:
        held = f"all {stability['n_bonds']} bonds held for {stability['stable_ps']:g} ps"
        broke = f"{stability['bond']} broke after {stability['stable_ps']:g} ps"
        rows.append(("bonds", broke if stability["collapsed"] else held))
    frozen = report.get("constraints")
    if frozen:
        which = "bonds to hydrogen" if frozen["kind"] == "bonds-to-hydrogen" else "covalent bonds"
        off = _number(frozen["max_violation_A"])
        kept = f" to {off:.1g} A" if math.isfinite(off) else ""
        rows.append(
            (
                "held bonds",
                f"all {frozen['n_bonds']} {which}{kept}: "
                f"{frozen['n_dof_removed']} degrees of freedom fewer",
            )
        )
    if report["h_of_r"]:
        rows.append(("h(r) error", f"{report['h_of_r']['mae_times_10']:.3g} (10 x MAE)"))
    if report["steps"]:
        where = f"on {report['device']} in {report['dtype']}"
        speed = f"{_number(report['ms_per_step']):.3g} ms/step"
        speed += f", {_number(report['ns_per_day']):.3g} ns/day"
        rows.append(("speed", f"{speed}, {report['wall_time_s']:.1f} s {where}"))
    return rows


def print_summary(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report as a table.

    Args:
        report: From ``write_report``, or read from ``report.json``.
        console: Of rich; a new one on standard output by default.
    """
    console = console or Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(report):
        table.add_row(name, Text(value))  # not markup: names of models may hold brackets
    console.print(table)
    for text in report["warnings"]:
        console.print(f"warning: {text}", markup=False, highlight=False)


def ensemble_name(ensemble: str) -> str:
    """As people write it: ``NVE``, ``NVT (bussi)``."""
    return ensemble_named(ensemble).title


def _model(report: dict[str, Any]) -> str:
    level = report["level_of_theory"]
    return f"{report['model']} ({level})" if level else str(report["model"])


def _spread(report: dict[str, Any]) -> str:
    """How far one NVE run's temperature may lie from what was asked, by the energy it was given.

    A canonical start has a total energy with relative spread sqrt(2 / 2n) for n harmonic degrees of
    freedom, half of it kinetic.
    """
    if ensemble_named(report["ensemble"]).thermostat or report["n_dof"] < 1:
        return ""
    return f"; single NVE runs scatter by {100.0 / math.sqrt(report['n_dof']):.0f} %"


def _spread_of_forces(found: dict[str, Any]) -> str:
    """How far the members of the ensemble disagreed."""
    text = (
        f"forces to {_number(found['mean_eV_A']):.2g} eV/A on average, "
        f"{_number(found['max_eV_A']):.2g} eV/A at worst (standard deviation over the ensemble)"
    )
    if found["limit_eV_A"] is None:
        return text
    share = 100.0 * _number(found["share_above"])
    kept = f", {found['selected']} frames in selected.extxyz" if found["selected"] else ""
    return f"{text}; {share:.3g} % of the steps above {found['limit_eV_A']:g} eV/A{kept}"


def _number(value: Any) -> float:
    """Numbers read back from JSON are None where they were NaN."""
    return math.nan if value is None else float(value)
