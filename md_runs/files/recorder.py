"""The rows of a run: the energy series and the frames, when they are due."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from dcase.errors import SimulationError
from dcase.md_runs.files.journal import Journal, read_sums
from dcase.md_runs.files.run_folder import RunFolder, frame_width, series_columns
from dcase.md_runs.files.trajectory import rows_of
from dcase.md_runs.loop.ensembles import Motion
from dcase.md_runs.loop.mechanics import momentum_norms
from dcase.md_runs.loop.mechanics import temperature as kinetic_temperature
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
            SimulationError: If a journal is shorter than that, or was changed.
        """
        if series_rows and self._tidied_away():
            self._rebuild()
        widths = self._widths()
        self._journals = (
            Journal(self.folder.series, widths[0], series_rows),
            Journal(self.folder.frames, widths[1], frame_rows),
        )

    def verify(self, series_rows: int, frame_rows: int) -> None:
        """See whether ``open`` would find those rows as they were written; writes nothing.

        Raises:
            SimulationError: If not.
        """
        if series_rows and self._tidied_away():
            found = rows_of(self.folder.trajectory)
            if len(found[0]) < frame_rows or len(found[1]) < series_rows:
                raise SimulationError(
                    f"{self.folder.series} is gone, and {self.folder.trajectory} is older than the "
                    "checkpoint: put the file back, or begin again with --overwrite"
                )
            return
        for path, width, rows in zip(
            (self.folder.series, self.folder.frames),
            self._widths(),
            (series_rows, frame_rows),
            strict=True,
        ):
            if rows:
                read_sums(path, width, rows)

    def _widths(self) -> tuple[int, int]:
        return len(series_columns(self.ensemble)), frame_width(self.n_atoms)

    def _tidied_away(self) -> bool:
        return not (self.folder.series.exists() and self.folder.frames.exists())

    def _rebuild(self) -> None:
        """Get the rows back from the trajectory, if someone has tidied the journals away."""
        frames, series = rows_of(self.folder.trajectory)
        for path, rows in ((self.folder.frames, frames), (self.folder.series, series)):
            journal = Journal(path, rows.shape[1])
            journal.append(rows)
            journal.flush()
            journal.close()

    def record(
        self,
        step: int,
        atoms: Atoms,
        energies: tuple[float, float],
        motion: Motion | None,
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
            motion: The integrator, for the conserved energy.
            n_dof: Degrees of freedom, for the temperature.
            uncertainty: Of an ensemble's forces, eV/A.
            always: Record it in any case (the last step of a run that blew up).
        """
        if not (always or step % self.log_every == 0 or step % self.traj_every == 0):
            return
        self.record_steps(
            np.array([step]),
            atoms,
            np.array([energies]),
            atoms.get_positions()[None],
            atoms.get_momenta()[None],
            motion,
            n_dof,
            uncertainties=np.array([uncertainty]),
            always=always,
        )

    def record_steps(
        self,
        steps: np.ndarray,
        atoms: Atoms,
        energies: np.ndarray,
        positions: np.ndarray,
        momenta: np.ndarray,
        motion: Motion | None,
        n_dof: int,
        *,
        uncertainties: np.ndarray | None = None,
        always: bool = False,
    ) -> None:
        """Add those of several steps that are due.

        Args:
            steps: Numbers of the steps, shape [k].
            atoms: For the masses and the boundaries.
            energies: Potential and kinetic energies, eV, shape [k, 2].
            positions: A, shape [k, n_atoms, 3].
            momenta: ASE's units, shape [k, n_atoms, 3].
            motion: The integrator, for the conserved energy.
            n_dof: Degrees of freedom, for the temperature.
            uncertainties: Of an ensemble's forces, eV/A, shape [k].
            always: Record all.
        """
        if self._journals is None or motion is None:
            return
        series, frames = self._journals
        masses = atoms.get_masses()
        due = always | (steps % self.log_every == 0)
        if due.any():
            e, k = energies[due], steps[due]
            total = e.sum(axis=1)
            linear, turn = momentum_norms(
                positions[due], momenta[due], masses, periodic=bool(atoms.pbc.any())
            )
            columns = [k, e[:, 0], e[:, 1], total]
            columns += [np.broadcast_to(motion.conserved(total), total.shape)]
            columns += [kinetic_temperature(e[:, 1], n_dof), linear, turn]
            if self.ensemble:
                assert uncertainties is not None
                columns.append(uncertainties[due])
            series.append(np.stack(columns, axis=1))
        due = always | (steps % self.traj_every == 0)
        if due.any():
            e, k = energies[due], steps[due]
            velocities = momenta[due] / masses[:, None] * FS
            head = np.stack([k, e[:, 0], e[:, 1], kinetic_temperature(e[:, 1], n_dof)], axis=1)
            rows = [head, positions[due].reshape(len(k), -1), velocities.reshape(len(k), -1)]
            frames.append(np.concatenate(rows, axis=1))

    def counts(self) -> tuple[int, int]:
        """Rows of the series and of the trajectory so far."""
        if self._journals is None:
            return 0, 0
        series, frames = self._journals
        return len(series), len(frames)

    def flush(self) -> None:
        """Write what is pending."""
        for journal in self._journals or ():
            journal.flush()

    def close(self) -> None:
        """Close both journals."""
        for journal in self._journals or ():
            journal.close()
