"""Where a stored run stands, and whatever is against going on from there; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dcase.errors import SimulationError
from dcase.md_runs.files.recorder import Recorder
from dcase.md_runs.files.run_folder import Checkpoint, RunFolder, damaged_checkpoint
from dcase.md_runs.loop.integrators import restore_rng
from dcase.md_runs.loop.moving_atoms import MovingAtoms
from dcase.md_runs.loop.result import STOPPED
from dcase.md_runs.loop.uncertainty import EXCEEDED


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that can be gone on from.

    Attributes:
        facts: Of ``state/simulation.json``.
        saved: The checkpoint.
        rng: The run's random numbers as they were.
    """

    facts: dict[str, Any]
    saved: Checkpoint
    rng: np.random.Generator

    @classmethod
    def find(cls, folder: RunFolder, moving: MovingAtoms, rows: Recorder) -> ResumePoint | None:
        """The last checkpoint; None if the run was killed before its first.

        Args:
            folder: Of the run.
            moving: The atoms that are to go on, with the potential to go on with.
            rows: Of the run; of an ensemble it gets its column.

        Raises:
            SimulationError: If it cannot be gone on from: a file is damaged, the run has more steps
                than asked for, would only repeat how it stopped, or had another potential.
        """
        if not folder.checkpoint.exists():
            return None
        facts = folder.read_run()
        saved = Checkpoint.load(folder.checkpoint)
        if str(facts["status"]).startswith(STOPPED):
            raise SimulationError(
                f"this run {facts['status']}; resuming would only repeat it: {_instead(facts)}"
            )
        steps = moving.settings.steps
        done = max(saved.step, int(facts.get("steps", 0)))
        if steps < done:
            raise SimulationError(f"the run already has {done} steps and cannot be cut to {steps}")
        try:
            if len(saved.start) != len(moving.given):
                raise ValueError("another number of atoms")
            rng = restore_rng(str(saved.dynamics["rng"]))
            if saved.uncertainty:
                moving.watch_uncertainty()
                assert moving.uncertainty is not None
                moving.uncertainty.restore(saved.uncertainty)
        except Exception as error:  # whatever else is damaged
            raise damaged_checkpoint(folder.checkpoint, error) from error
        rows.ensemble = moving.uncertainty is not None
        rows.verify(saved.series_rows, saved.frame_rows)
        moving.atoms.set_positions(saved.positions, apply_constraint=False)
        moving.atoms.set_momenta(saved.momenta, apply_constraint=False)
        _check_potential(moving, saved.potential_energy)
        return cls(facts, saved, rng)


def _instead(facts: dict[str, Any]) -> str:
    if EXCEEDED in str(facts["status"]):
        return (
            "label the frames of selected.extxyz and train again, or start a new run with a higher "
            "limit"
        )
    return "start a new one with a smaller time step or another potential"


def _check_potential(moving: MovingAtoms, stored: float) -> None:
    """Refuse another potential: its energy at the checkpoint would differ.

    The second line of defence, after the fingerprint, which does not see everything of calculators
    that are not dcase's. The tolerance leaves room for single precision and for another machine's
    sums.
    """
    moving.reset_calculator()
    energy = moving.potential_energy()
    if not abs(energy - stored) <= energy_tolerance(len(moving.atoms), stored):
        raise SimulationError(
            f"cannot resume: this potential gives {energy:.6f} eV at the checkpoint, where the run "
            f"had {stored:.6f} eV; use the potential the run was started with"
        )


def energy_tolerance(n_atoms: int, energy: float) -> float:
    """How far the energy of one structure may differ between machines, eV."""
    return 1e-3 + 1e-5 * n_atoms + 1e-7 * abs(energy)
