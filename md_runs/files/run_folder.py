"""The folder of a run: what is in it, and the checkpoint from which it goes on exactly.

report.json, report.html, *.png   written by ``report.write_report``
trajectory.h5                     H5MD, whole or absent
final.extxyz, log.txt
selected.extxyz                   frames above the largest uncertainty, if one was given
state/run.json                    settings, model, versions, status
state/checkpoint.npz              positions, momenta, random numbers, thermostat
state/series.f64, frames.f64      rows so far (see ``journal``)
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.errors import SimulationError
from dcase.files import atomic_path, write_json

SERIES = (
    "step",
    "potential_energy",
    "kinetic_energy",
    "total_energy",
    "conserved_energy",
    "temperature",
    "com_momentum",
    "angular_momentum",
)
"""Columns of the energy series (eV, K, amu A/fs, amu A^2/fs)."""

UNCERTAINTY = "uncertainty"
"""The last column of the series of an ensemble's run (eV/A)."""

FRAME = ("step", "potential_energy", "kinetic_energy", "temperature")
"""Numbers at the head of a frame's row; positions (A) and velocities (A/fs) follow."""


def series_columns(ensemble: bool) -> tuple[str, ...]:
    """Columns of the series of a run, with an ensemble or a single potential."""
    return (*SERIES, UNCERTAINTY) if ensemble else SERIES


def frame_width(n_atoms: int) -> int:
    """Numbers in a frame's row."""
    return len(FRAME) + 6 * n_atoms


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def state(self) -> Path:
        """Folder of what a resumed run needs."""
        return self.root / "state"

    @property
    def checkpoint(self) -> Path:
        """The state to go on from."""
        return self.state / "checkpoint.npz"

    @property
    def run(self) -> Path:
        """Settings and status."""
        return self.state / "run.json"

    @property
    def series(self) -> Path:
        """Journal of the energy series."""
        return self.state / "series.f64"

    @property
    def frames(self) -> Path:
        """Journal of the trajectory."""
        return self.state / "frames.f64"

    @property
    def trajectory(self) -> Path:
        """The H5MD file."""
        return self.root / "trajectory.h5"

    @property
    def final(self) -> Path:
        """The last structure."""
        return self.root / "final.extxyz"

    @property
    def selected(self) -> Path:
        """Frames worth labelling."""
        return self.root / "selected.extxyz"

    @property
    def log(self) -> Path:
        """The log."""
        return self.root / "log.txt"

    @property
    def report(self) -> Path:
        """The numbers."""
        return self.root / "report.json"

    def exists(self) -> bool:
        """Whether a run has left anything here."""
        return any(p.exists() for p in (self.run, self.checkpoint, self.trajectory, self.report))

    def clear(self) -> None:
        """Remove the files of a run, and nothing else."""
        ours = [self.trajectory, self.final, self.log, self.report, self.root / "report.html"]
        ours += [self.checkpoint, self.run, self.series, self.frames, self.selected]
        ours += [self.root / f"{name}.png" for name in FIGURES]
        for path in ours:
            path.unlink(missing_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Remove temporary files that a kill in the middle of an atomic write has left."""
        ours = (".trajectory.h5.*", ".final.extxyz.*", ".selected.extxyz.*", ".report.*")
        for pattern in (*ours, ".*.png.*"):
            for path in self.root.glob(pattern):
                path.unlink(missing_ok=True)
        for pattern in (".checkpoint.npz.*", ".run.json.*"):
            for path in self.state.glob(pattern):
                path.unlink(missing_ok=True)

    def read_run(self) -> dict[str, Any]:
        """Settings, model and status of the run.

        Raises:
            SimulationError: If there is none, or it cannot be read.
        """
        try:
            return dict(json.loads(self.run.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise SimulationError(f"{self.root} holds no run of dcase md") from error
        except (OSError, ValueError) as error:
            raise SimulationError(f"cannot read {self.run}: {error}") from error

    def write_run(self, run: dict[str, Any]) -> None:
        """Store settings, model and status atomically."""
        write_json(self.run, run)


FIGURES = ("energies", "drift", "uncertainty", "dt_scan", "h_of_r")
"""Names of the pictures of a run."""


_PARTS = ("dynamics", "uncertainty")


def _part(stored: Any, part: str) -> dict[str, np.ndarray]:
    """The arrays of one dictionary of a checkpoint."""
    prefix = f"{part}_"
    return {n.removeprefix(prefix): stored[n] for n in stored.files if n.startswith(prefix)}


@dataclass
class Checkpoint:
    """All that the next step depends on.

    Attributes:
        step: Steps done; negative during equilibration.
        production: Whether equilibration is over (it is not yet at step 0 of a resumed one).
        positions: ``(N, 3)`` A.
        momenta: ``(N, 3)`` ASE units.
        start: The structure the run was given.
        potential_energy: eV, to notice that another potential is used.
        series_rows: Rows of the series that belong to this state.
        frame_rows: Frames that belong to this state.
        wall_time_s: Seconds of production so far.
        equilibration_s: Seconds of equilibration so far.
        dynamics: From ``integrators.get_state``.
        uncertainty: From ``UncertaintyWatch.state``; empty for a single potential.
    """

    step: int
    production: bool
    positions: np.ndarray
    momenta: np.ndarray
    start: Atoms
    potential_energy: float
    series_rows: int
    frame_rows: int
    wall_time_s: float
    equilibration_s: float
    dynamics: dict[str, np.ndarray] = field(default_factory=dict)
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write atomically.

        Raises:
            DcaseError: If the disk is full or gone.
        """
        head = {
            name: getattr(self, name)
            for name in (
                "step",
                "production",
                "potential_energy",
                "series_rows",
                "frame_rows",
                "wall_time_s",
                "equilibration_s",
            )
        }
        arrays = {
            f"{part}_{name}": value
            for part in _PARTS
            for name, value in getattr(self, part).items()
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                head=np.array(json.dumps(head)),
                positions=self.positions,
                momenta=self.momenta,
                start_numbers=self.start.numbers,
                start_positions=self.start.get_positions(),
                start_masses=self.start.get_masses(),
                start_cell=np.array(self.start.cell),
                start_pbc=self.start.pbc,
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        Raises:
            SimulationError: If it is not one.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                start = Atoms(
                    numbers=stored["start_numbers"],
                    positions=stored["start_positions"],
                    masses=stored["start_masses"],
                    cell=stored["start_cell"],
                    pbc=stored["start_pbc"],
                )
                return cls(
                    positions=stored["positions"],
                    momenta=stored["momenta"],
                    start=start,
                    dynamics=_part(stored, "dynamics"),
                    uncertainty=_part(stored, "uncertainty"),
                    **json.loads(str(stored["head"])),
                )
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise SimulationError(f"cannot read the checkpoint {path}: {error}") from error

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse to go on with another structure than the run was started with.

        Raises:
            SimulationError: Saying what differs.
        """
        for what, mine, theirs in (
            ("elements", self.start.numbers, atoms.numbers),
            ("positions", self.start.get_positions(), atoms.get_positions()),
            ("masses", self.start.get_masses(), atoms.get_masses()),
            ("cell", np.array(self.start.cell), np.array(atoms.cell)),
            ("periodic boundaries", self.start.pbc, atoms.pbc),
        ):
            if not np.array_equal(mine, theirs):
                raise SimulationError(
                    f"cannot resume: the structure's {what} differ from those the run was started "
                    "with; give the same starting structure (the state comes from the checkpoint)"
                )
