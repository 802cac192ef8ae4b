"""The rows of a run: the energy series and the frames, when they are due."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from dcase.md_runs.integrators import conserved_energy
from dcase.md_runs.journal import Journal
from dcase.md_runs.mechanics import momentum_norms
from dcase.md_runs.mechanics import temperature as kinetic_temperature
from dcase.md_runs.state import RunFolder, frame_width, series_columns
from dcase.md_runs.trajectory import rows_of
from dcase.units import FS


class Recorder:
    """Both journals of a run.

    Args:
        folder: Of the run.
        n_atoms: Number of atoms.
        log_every: Steps between rows of the series.
        traj_every: Steps between frames.
        ensemble: Whether the series has a column for the uncertainty.
    """

    def __init__(
        self,
        folder: RunFolder,
        n_atoms: int,
        log_every: int,
        traj_every: int,
        *,
        ensemble: bool = False,
    ) -> None:
        self.folder = folder
        self.n_atoms = n_atoms
        self.log_every, self.traj_every = log_every, traj_every
        self.ensemble = ensemble
        self._journals: tuple[Journal, Journal] | None = None

    def open(self, series_rows: int, frame_rows: int) -> None:
        """Open both journals, keeping the given numbers of rows.

        Raises:
            SimulationError: If a journal is shorter than that.
        """
        missing = not (self.folder.series.exists() and self.folder.frames.exists())
        if missing and series_rows:
            self._rebuild()
        self._journals = (
            Journal(self.folder.series, len(series_columns(self.ensemble)), series_rows),
            Journal(self.folder.frames, frame_width(self.n_atoms), frame_rows),
        )

    def _rebuild(self) -> None:
        """Get the rows back from the trajectory, if someone has tidied the journals away."""
        frames, series = rows_of(self.folder.trajectory)
        for path, rows in ((self.folder.frames, frames), (self.folder.series, series)):
            journal = Journal(path, rows.shape[1])
            for row in rows:
                journal.append(row)
            journal.flush()
            journal.close()

    def record(
        self,
        step: int,
        atoms: Atoms,
        energies: tuple[float, float],
        dynamics: Any,
        n_dof: int,
        *,
        uncertainty: float = float("nan"),
        always: bool = False,
    ) -> None:
        """Add a step to the series and the trajectory, if it is due.

        Args:
            step: Number of the step.
            atoms: Positions and momenta.
            energies: Potential and kinetic energy, eV.
            dynamics: The integrator, for the conserved energy.
            n_dof: Degrees of freedom, for the temperature.
            uncertainty: Of an ensemble's forces, eV/A.
            always: Record it in any case (the last step of a run that blew up).
        """
        due_series = always or step % self.log_every == 0
        due_frame = always or step % self.traj_every == 0
        if not (due_series or due_frame) or self._journals is None:
            return
        series, frames = self._journals
        potential, kinetic = energies
        heat = kinetic_temperature(kinetic, n_dof)
        if due_series:
            total = potential + kinetic
            conserved = conserved_energy(dynamics, total)
            linear, turn = momentum_norms(atoms)
            row = (step, potential, kinetic, total, conserved, heat, linear, turn)
            series.append(np.array((*row, uncertainty) if self.ensemble else row))
        if due_frame:
            frames.append(
                np.concatenate(
                    [
                        (step, potential, kinetic, heat),
                        atoms.get_positions().ravel(),
                        (atoms.get_velocities() * FS).ravel(),
                    ]
                )
            )

    def flush(self) -> tuple[int, int]:
        """Write what is pending; returns the rows of the series and of the trajectory."""
        if self._journals is None:
            return 0, 0
        series, frames = self._journals
        return series.flush(), frames.flush()

    def close(self) -> None:
        """Close both journals."""
        for journal in self._journals or ():
            journal.close()
