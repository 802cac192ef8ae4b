"""Turn the rows of a run into its trajectory file and final structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write

from dcase.data.state import for_extxyz, with_results
from dcase.files import atomic_path
from dcase.md_runs.files.journal import read_rows, row_blocks
from dcase.md_runs.files.provenance import describe_calculator
from dcase.md_runs.files.run_folder import (
    SUMMED,
    Checkpoint,
    RunFolder,
    frame_width,
    series_columns,
)
from dcase.md_runs.files.trajectory import write_trajectory
from dcase.md_runs.loop.uncertainty import WARNING, UncertaintyWatch
from dcase.md_runs.settings import MDSettings
from dcase.runs import Identity, claim, read_record

KILLED = "killed"


def publish(
    folder: RunFolder,
    template: Atoms,
    facts: dict[str, Any],
    killed: Checkpoint | None = None,
) -> bool:
    """Write ``trajectory.h5`` from the journals.

    Args:
        folder: Of the run.
        template: Elements, masses, cell and periodicity.
        facts: Of ``run.json``.
        killed: The last checkpoint of a run that was killed: what does not fit after it is no
            damage.

    Returns:
        Whether there was a frame to write (there is none before production).

    Raises:
        DcaseError: If a journal is missing or the file cannot be written.
        SimulationError: If a journal is damaged.
    """
    frames = read_rows(
        folder.frames,
        frame_width(len(template)),
        None if killed is None else killed.frame_rows,
        checked=_have_sums(facts),
    )
    if len(frames) == 0:
        return False
    series = _series(folder, facts, killed)
    settings = facts["settings"]
    attributes = {
        "ensemble": settings["ensemble"],
        "temperature_K": float(settings["temperature_K"]),
        "timestep_fs": float(settings["timestep_fs"]),
        "seed": int(settings["seed"]),
        "constrain": str(settings.get("constrain", "none")),
        "model": str(facts.get("model", "")),
        "level_of_theory": str(facts.get("level_of_theory") or ""),
    }
    write_trajectory(
        folder.trajectory, template, frames, series, settings["timestep_fs"], attributes
    )
    return True


def write_final(folder: RunFolder, atoms: Atoms, step: int, timestep_fs: float) -> None:
    """Write ``final.extxyz`` atomically: positions, momenta, all state of the start.

    With a calculator also its energy and forces, which constraints do not change; labels that the
    start had are gone.
    """
    model = "" if atoms.calc is None else str(describe_calculator(atoms.calc)["model"])
    final = with_results(atoms, atoms.calc, model)
    final.info.update(step=step, time_fs=step * timestep_fs)
    with atomic_path(folder.final) as temporary:
        write(temporary, for_extxyz(final), format="extxyz")


def recover(out: str | Path) -> dict[str, Any]:
    """Make a killed run readable: write its trajectory from what reached the disk.

    The run stays resumable. A run that ended by itself is left as it is, and so is one at work.

    Args:
        out: Folder of the run.

    Returns:
        The facts of ``run.json``; a killed run's status becomes "killed".

    Raises:
        SimulationError: If there is no run, it was killed before its first checkpoint, is damaged,
            or another process is at work on it.
    """
    folder = RunFolder(Path(out))
    facts = folder.read_run()
    if facts["status"] not in ("running", KILLED):
        return facts
    if not folder.place.record.exists():  # of a dcase that wrote no record
        return _recover(folder, facts)
    identity = Identity(**read_record(folder.root)["identity"])
    with claim(folder.place, identity, resume=True) as run:
        facts = _recover(folder, folder.read_run())
        run.finish(KILLED)
    return facts


def _recover(folder: RunFolder, facts: dict[str, Any]) -> dict[str, Any]:
    saved = Checkpoint.load(folder.checkpoint)
    series = _series(folder, facts, saved)
    done = max((int(np.max(rows[:, 0])) for _, rows in row_blocks(series)), default=0)
    facts.update(
        status=KILLED,
        steps=done,
        wall_time_s=saved.wall_time_s,
        equilibration_wall_time_s=saved.equilibration_s,
    )
    if saved.uncertainty:
        watch = UncertaintyWatch(saved.start, MDSettings.from_dict(facts["settings"]))
        watch.restore(saved.uncertainty)
        conclude_uncertainty(folder, watch, facts)
    publish(folder, saved.start, facts, saved)
    folder.write_run(facts)
    return facts


def conclude_uncertainty(folder: RunFolder, watch: UncertaintyWatch, facts: dict[str, Any]) -> None:
    """Put what an ensemble's run has met into ``facts``, and write the frames worth labelling."""
    facts["uncertainty"] = watch.facts()
    warnings = [text for text in facts["warnings"] if not text.startswith(WARNING)]
    facts["warnings"] = warnings + ([watch.warning()] if watch.warning() else [])
    watch.write(folder.selected, facts["settings"]["timestep_fs"])


def _series(folder: RunFolder, facts: dict[str, Any], killed: Checkpoint | None) -> np.ndarray:
    """Rows of the series so far."""
    return read_rows(
        folder.series,
        len(series_columns("uncertainty" in facts)),
        None if killed is None else killed.series_rows,
        checked=_have_sums(facts),
    )


def _have_sums(facts: dict[str, Any]) -> bool:
    return int(facts["format"]) >= SUMMED
