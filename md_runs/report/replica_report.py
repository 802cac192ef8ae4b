"""The report of a run of replicas: for each of them, and for all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from matplotlib.figure import Figure
from rich.console import Console

from dcase import hdf5
from dcase.data.state import for_extxyz
from dcase.errors import SimulationError
from dcase.files import atomic_path, write_json
from dcase.md_runs.analysis.drift import analyse, plus_minus
from dcase.md_runs.files.journal import read_rows
from dcase.md_runs.files.replica_folder import ReplicaCheckpoint, ReplicaFolder
from dcase.md_runs.files.run_folder import SUMMED
from dcase.md_runs.loop.result import FINISHED
from dcase.plotting import BLUE, GREY, RED, new_figure, save
from dcase.units import KB

MOST_LINES = 40
"""Replicas drawn one by one; of more, the range is shown."""


def write_replica_report(out: str | Path, status: str) -> dict[str, Any]:
    """Write ``report.json``, ``drift.png``, ``final.extxyz`` and ``replicas.h5``.

    ``replicas.h5`` holds ``time`` (fs), ``potential_energy`` and ``kinetic_energy`` (eV, [T, R]),
    ``frame_time`` (fs) and ``positions`` (A, float32, [frames, R, n, 3]).

    Args:
        out: Folder of a run of replicas.
        status: How it ended.

    Returns:
        What ``report.json`` holds: ``replicas`` (one entry each) and, for all of them,
        ``slope_mev_per_atom_ps`` with the standard error over replicas.

    Raises:
        SimulationError: If the folder holds no run of replicas.
    """
    folder = ReplicaFolder(Path(out))
    facts = folder.read_run()
    if not folder.checkpoint.exists():
        raise SimulationError(f"{out} holds no run of replicas with a checkpoint")
    saved = folder.latest()
    count, n_atoms = int(facts["replicas"]), len(facts["numbers"])
    if saved.x.shape[:2] != (count, n_atoms):
        raise SimulationError(f"{folder.run} and {folder.checkpoint} are not of one run")
    checked = int(facts["format"]) >= SUMMED
    rows = read_rows(folder.series, 1 + 2 * count, saved.series, checked=checked)[: saved.series]
    frames = read_rows(folder.frames, 1 + saved.x.size, saved.frames, checked=checked)
    frames = frames[: saved.frames]
    dt = float(facts["settings"]["timestep_fs"])
    times = np.asarray(rows[:, 0]) * dt
    potential, kinetic = np.array(rows[:, 1 : 1 + count]), np.array(rows[:, 1 + count :])
    trouble = saved.trouble
    entries = []
    for r in range(count):
        kept = np.isfinite(potential[:, r])
        drift = analyse(
            times[kept], (potential + kinetic)[kept, r], kinetic[kept, r],
            n_atoms=n_atoms, n_dof=int(facts["n_dof"]),
        )  # fmt: skip
        entries.append(
            {
                "replica": r + 1,
                "status": f"stopped: {trouble[r]}" if r in trouble else status,
                **drift.to_dict(),
            }
        )
    report = {
        **{k: v for k, v in facts.items() if k not in ("numbers", "start", "stopped", "status")},
        "status": status,
        "steps": max(saved.step, 0),
        "n_atoms": n_atoms,
        "n_stopped": len(trouble),
        **_together(entries, kinetic, int(facts["n_dof"])),
        **_speed(rows, saved.wall, dt, facts, saved.step),
        "replicas_each": entries,
    }
    write_json(folder.root / "report.json", report)
    save(_figure(times, potential + kinetic, n_atoms, report), folder.root / "drift.png")
    _write_data(folder, times, potential, kinetic, frames, dt, (count, n_atoms))
    with atomic_path(folder.root / "final.extxyz") as path:
        write(path, [for_extxyz(one) for one in _final(saved, facts)], format="extxyz")
    return report


def _final(saved: ReplicaCheckpoint, facts: dict[str, Any]) -> list[Atoms]:
    """The last structure of every replica: all of the structure given, with its momenta."""
    given = saved.start
    if given is None:  # a checkpoint of before 0.2
        given = Atoms(numbers=facts["numbers"], positions=saved.x[0])
    images = []
    for r, (positions, momenta) in enumerate(zip(saved.x, saved.p, strict=True)):
        image = given.copy()
        image.set_positions(positions, apply_constraint=False)
        image.set_momenta(momenta, apply_constraint=False)
        image.info["replica"] = r + 1
        if r in saved.trouble:
            image.info["stopped"] = saved.trouble[r]
        images.append(image)
    return images


def _together(entries: list[dict[str, Any]], kinetic: np.ndarray, n_dof: int) -> dict[str, Any]:
    """Means over the replicas that went through, with standard errors of independent samples."""
    whole = [e for e in entries if not e["status"].startswith("stopped")]
    slopes = np.array([e["slope_mev_per_atom_ps"] for e in whole])
    ratios = np.array([e["drift_ratio"] for e in whole])
    error = float(slopes.std(ddof=1) / np.sqrt(len(slopes))) if len(slopes) > 1 else np.nan
    # Of those that were stopped there is nothing to average but the way to the explosion.
    sound = kinetic[:, [e["replica"] - 1 for e in whole]]
    temperatures = 2.0 * sound.mean(axis=0) / (n_dof * KB) if sound.size else np.array([np.nan])
    return {
        "slope_mev_per_atom_ps": float(slopes.mean()) if len(slopes) else np.nan,
        "slope_stderr_mev_per_atom_ps": error,
        "drift_ratio": float(np.median(ratios)) if len(ratios) else np.nan,
        "rms_mev_per_atom": float(np.mean([e["rms_mev_per_atom"] for e in whole]))
        if whole
        else np.nan,
        "temperature_K": float(np.mean(temperatures)),
        "temperature_std_K": float(np.std(temperatures)),
    }


def _speed(
    rows: np.ndarray, wall: float, dt: float, facts: dict[str, Any], step: int
) -> dict[str, Any]:
    done = max(step, 0) * int(facts["replicas"])
    rate = done / wall if wall > 0 else np.nan
    return {
        "wall_time_s": wall,
        "replica_steps_per_s": rate,
        "ns_per_day": rate * dt * 1e-6 * 86400.0,
    }


def _figure(times: np.ndarray, energy: np.ndarray, n_atoms: int, report: dict[str, Any]) -> Figure:
    figure, (left, right) = new_figure(1, 2, (9.0, 3.6), width_ratios=(2, 1))
    ps = times * 1e-3
    deviation = (energy - energy[:1]) * 1e3 / n_atoms if len(energy) else energy
    count = energy.shape[1]
    if count <= MOST_LINES:
        for r in range(count):
            label = "replicas" if r == 0 else None
            left.plot(ps, deviation[:, r], color=BLUE, linewidth=0.5, alpha=0.4, label=label)
    elif len(ps):
        low, high = np.nanpercentile(deviation, [5, 95], axis=1)
        left.fill_between(ps, low, high, color=BLUE, alpha=0.3, label="90 % of the replicas")
    if len(ps):
        left.plot(ps, np.nanmean(deviation, axis=1), color="black", linewidth=1.0, label="mean")
    left.set_xlabel("time (ps)")
    left.set_ylabel("total energy, deviation\nfrom start (meV/atom)")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    slopes = np.array([e["slope_mev_per_atom_ps"] for e in report["replicas_each"]])
    slopes = slopes[np.isfinite(slopes)]
    if len(slopes):
        right.hist(slopes, bins=min(30, max(5, len(slopes) // 4)), color=GREY)
        right.axvline(report["slope_mev_per_atom_ps"], color=RED, label="mean")
        right.legend(frameon=False, fontsize=8)
    right.set_xlabel("slope (meV/atom/ps)")
    right.set_ylabel("replicas")
    return figure


def _write_data(
    folder: ReplicaFolder,
    times: np.ndarray,
    potential: np.ndarray,
    kinetic: np.ndarray,
    frames: np.ndarray,
    dt: float,
    shape: tuple[int, int],
) -> None:
    count, n_atoms = shape
    size = times.nbytes + potential.nbytes + kinetic.nbytes + 8 * len(frames)
    size += 4 * len(frames) * count * n_atoms * 3
    with hdf5.created(folder.root / "replicas.h5", size) as file:
        for name, values, unit in (
            ("time", times, "fs"),
            ("potential_energy", potential, "eV"),
            ("kinetic_energy", kinetic, "eV"),
            ("frame_time", np.asarray(frames[:, 0]) * dt, "fs"),
        ):
            file.create_dataset(name, data=values).attrs["unit"] = unit
        target = file.create_dataset(
            "positions", shape=(len(frames), count, n_atoms, 3), dtype="float32"
        )
        target.attrs["unit"] = "Angstrom"
        for k, row in enumerate(frames):  # not all of them in memory at once
            target[k] = np.asarray(row[1:]).reshape(count, n_atoms, 3)


def print_replica_summary(report: dict[str, Any], console: Console) -> None:
    """The main figures, a line each."""
    count, stopped = report["replicas"], report["n_stopped"]
    settings = report["settings"]
    picoseconds = report["steps"] * settings["timestep_fs"] * 1e-3
    fate = f", {stopped} stopped early (report.json says why)" if stopped else ""
    lines = {
        "status": f"{report['status']} ({report['steps']} of {settings['steps']} steps){fate}",
        "system": f"{count} replicas of {report['formula']}, {report['n_atoms']} atoms, "
        f"{report['n_dof']} degrees of freedom each",
        "simulated": f"{picoseconds:.4g} ps NVE each, time step {settings['timestep_fs']:g} fs",
        "temperature": f"{report['temperature_K']:.0f} K on average, "
        f"{report['temperature_std_K']:.0f} K between replicas",
        "energy drift": plus_minus(
            report["slope_mev_per_atom_ps"], report["slope_stderr_mev_per_atom_ps"]
        )
        + " meV/atom/ps (mean and standard error over replicas)",
        "fluctuation": f"{report['rms_mev_per_atom']:.3g} meV/atom RMS about each line",
        "speed": f"{report['replica_steps_per_s']:.0f} replica-steps/s, "
        f"{report['ns_per_day']:.1f} ns/day in all",
    }
    if report["status"] != FINISHED:
        lines.pop("fluctuation")
    for name, text in lines.items():
        console.print(f"[bold]{name:<13}[/bold] {text}", soft_wrap=True)
