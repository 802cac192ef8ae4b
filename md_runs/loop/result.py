"""What comes of a simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from dcase.md_runs.files.trajectory import read_series

FINISHED = "finished"
INTERRUPTED = "interrupted"
STOPPED = "stopped early"
FAILED = "failed"


@dataclass(frozen=True)
class MDResult:
    """What came of a run.

    Attributes:
        out: Folder of the run.
        status: ``"finished"``, ``"interrupted"`` (resumable) or ``"stopped early: <why>"``.
        steps: Production steps done.
        n_atoms: Number of atoms.
        n_dof: Degrees of freedom that moved.
        wall_time_s: Seconds of production, over all resumed parts.
        warnings: What the user should know.
        atoms: Last structure with momenta, without calculator.
    """

    out: Path
    status: str
    steps: int
    n_atoms: int
    n_dof: int
    wall_time_s: float
    warnings: tuple[str, ...]
    atoms: Atoms

    @property
    def finished(self) -> bool:
        """Whether all steps were done."""
        return self.status == FINISHED

    def series(self) -> dict[str, np.ndarray]:
        """The energy series (see ``trajectory.read_series``).

        Raises:
            SimulationError: If production never began.
        """
        return read_series(self.out)
