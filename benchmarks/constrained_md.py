"""Which time step is stable with which bonds held: table and picture of the shipped potential.

    python benchmarks/constrained_md.py runs docs/images/md-constraints.png

Runs ``dcase md`` for 5 ps of NVE at 300 K (after 1000 Langevin steps at the same time step) with
every set of held bonds, time step and seed, into folders below ``runs``; those already there are
only read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dcase import plotting
from dcase.md_runs.settings import CONSTRAINTS

TIMESTEPS = ("0.5", "1", "1.5", "2", "2.5", "3", "4", "5", "6", "8")
SEEDS = (0, 1)
COLOURS = dict(zip(CONSTRAINTS, (plotting.RED, plotting.ORANGE, plotting.BLUE), strict=True))


def report_of(runs: Path, kind: str, timestep: str, seed: int) -> dict[str, Any]:
    """The report of one run, which is made if it is not there."""
    folder = runs / f"{kind}-{timestep}-{seed}"
    if not (folder / "report.json").exists():
        steps = str(round(5000.0 / float(timestep)))
        command = ["dcase", "md", "--constrain", kind, "--timestep", timestep, "--steps", steps]
        command += ["--seed", str(seed), "--force-timestep", "--threads", "1", "--quiet"]
        subprocess.run([*command, "--overwrite", "--out", str(folder)], stdout=subprocess.DEVNULL)
    return dict(json.loads((folder / "report.json").read_text()))


def main(runs: str, target: str) -> None:
    figure, (ax,) = plotting.new_figure(size=(6.4, 3.8))
    print("| held | time step, fs | slope, meV/atom/ps | RMS, meV/atom | RMS / std(K) | ended |")
    for kind in CONSTRAINTS:
        shown = []
        for timestep in TIMESTEPS:
            reports = [report_of(Path(runs), kind, timestep, seed) for seed in SEEDS]
            drifts = [r["energy_drift"] for r in reports]
            if all(r["finished"] for r in reports):
                ratio = float(np.mean([d["fluctuation_ratio"] for d in drifts]))
                shown.append((float(timestep), ratio))
                cells = [
                    ", ".join(f"{d[key]:.2g}" for d in drifts)
                    for key in ("slope_mev_per_atom_ps", "rms_mev_per_atom", "fluctuation_ratio")
                ]
                drift = max(d["drift_ratio"] for d in drifts)
                print("|", " | ".join([kind, timestep, *cells, f"drift ratio <= {drift:.2g}"]), "|")
            else:
                ends = "; ".join(f"{r['status']}" for r in reports)
                print("|", " | ".join([kind, timestep, "", "", "", ends]), "|")
        label = f"held: {kind} (both runs finish up to {shown[-1][0]:g} fs)"
        ax.loglog(*np.array(shown).T, "o-", color=COLOURS[kind], ms=4, lw=1.2, label=label)
    grid = np.array([0.5, 4.0])
    ax.loglog(grid, 0.0032 * (grid / 0.5) ** 2, "--", color=plotting.GREY, lw=0.8, label="dt²")
    ax.axhline(0.2, color=plotting.GREY, lw=0.6, ls=":", label="reported as not conserved above")
    ax.set_xlim(0.45, 5.0)
    ax.set_ylim(1e-3, 0.6)
    ax.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    ax.minorticks_off()
    ax.set_xlabel("time step (fs)")
    ax.set_ylabel("RMS of total energy / std of kinetic energy")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    plotting.save(figure, target)


if __name__ == "__main__":
    main(*sys.argv[1:3])
