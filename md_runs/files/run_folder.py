"""The folder of a run: what is in it, and the checkpoint from which it goes on exactly.

report.json, report.html, *.png   written by ``report.write_report``
trajectory.h5                     H5MD, whole or absent
final.extxyz, log.txt
selected.extxyz                   frames above the largest uncertainty, if one was given
run.json                          whose folder this is (see ``dcase.runs``)
state/simulation.json             settings, model, versions, status
state/checkpoint.npz              positions, momenta, random numbers, thermostat
state/series.f64, frames.f64      rows so far, and their checksums (see ``journal``)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from dcase.archives import check_archive
from dcase.data.state import FrameState
from dcase.errors import SimulationError
from dcase.files import atomic_path, write_json
from dcase.md_runs.files.journal import sums_of
from dcase.runs import Place

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
        return self.state / "simulation.json"

    @property
    def old_run(self) -> Path:
        """The same of a dcase before 0.2."""
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

    @property
    def place(self) -> Place:
        """What a run keeps here, for :func:`dcase.runs.claim`."""
        ours = [self.run, self.old_run, self.checkpoint, self.series, self.frames]
        ours += [sums_of(path) for path in (self.series, self.frames)]
        ours += [self.trajectory, self.final, self.selected, self.log, self.report]
        ours += [self.root / name for name in ("report.html", *(f"{n}.png" for n in FIGURES))]
        return Place(self.root, files=tuple(str(path.relative_to(self.root)) for path in ours))

    def read_run(self) -> dict[str, Any]:
        """Settings, model and status of the run.

        Raises:
            SimulationError: If there is none, or it cannot be read.
        """
        old = self.old_run.exists() and not self.run.exists()
        path = self.old_run if old else self.run
        return read_facts(path, FACTS, f"{self.root} holds no run of dcase md")

    def write_run(self, run: dict[str, Any]) -> None:
        """Store settings, model and status atomically."""
        write_json(self.run, run)


def read_facts(path: Path, needed: dict[str, Any], nothing: str) -> dict[str, Any]:
    """A run's JSON of settings and status.

    Args:
        path: Of the file.
        needed: Types of the entries that it must have.
        nothing: What to say where there is no such file.

    Raises:
        SimulationError: If there is none, or it is damaged.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SimulationError(nothing) from error
    except OSError as error:
        raise SimulationError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SimulationError(
            f"{path} is damaged ({str(error).splitlines()[0]}): restore it from a copy, or begin "
            "again with --overwrite"
        ) from error
    if not isinstance(facts, dict):
        facts = {}
    wrong = [name for name, kind in needed.items() if not isinstance(facts.get(name), kind)]
    if wrong:
        raise SimulationError(
            f"{path} is damaged ({wrong[0]} is missing or no longer what it was): restore it from "
            "a copy, or begin again with --overwrite"
        )
    return facts


FACTS: dict[str, Any] = {
    "format": int,
    "status": str,
    "settings": dict,
    "formula": str,
    "n_atoms": int,
    "n_dof": int,
    "warnings": list,
    "versions": dict,
}
"""What ``simulation.json`` holds at least, and of which type."""

SUMMED = 2
"""Format from which the journals have checksums."""

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
        dynamics: Of the random numbers and the integrator.
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
                **structure_arrays(self.start),
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; nothing in it is executed.

        Raises:
            SimulationError: If it is not one, or is damaged.
        """
        try:
            check_archive(path)
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                start = structure_from(stored)
                positions, momenta = stored["positions"], stored["momenta"]
                for values in (positions, momenta):
                    if values.shape != (len(start), 3) or values.dtype != np.float64:
                        raise ValueError("positions or momenta do not fit the structure")
                return cls(
                    positions=positions,
                    momenta=momenta,
                    start=start,
                    dynamics=_part(stored, "dynamics"),
                    uncertainty=_part(stored, "uncertainty"),
                    **json.loads(str(stored["head"])),
                )
        except Exception as error:  # whatever a damaged archive makes zipfile, zlib and NumPy raise
            raise damaged_checkpoint(path, error) from error


def structure_arrays(atoms: Atoms) -> dict[str, np.ndarray]:
    """What of a starting structure a checkpoint keeps."""
    return {
        "start_numbers": atoms.numbers,
        "start_positions": atoms.get_positions(),
        "start_masses": atoms.get_masses(),
        "start_cell": np.array(atoms.cell),
        "start_pbc": atoms.pbc,
        "start_state": np.array(FrameState.of(atoms, without=("momenta",)).to_text()),
    }


def structure_from(stored: Any) -> Atoms:
    """Inverse of :func:`structure_arrays`."""
    atoms = Atoms(
        numbers=stored["start_numbers"],
        positions=stored["start_positions"],
        masses=stored["start_masses"],
        cell=stored["start_cell"],
        pbc=stored["start_pbc"],
    )
    if "start_state" in stored:  # an older dcase kept no more
        FrameState.from_text(str(stored["start_state"])).put_on(atoms)
    return atoms


def damaged_checkpoint(path: Path, error: Exception) -> SimulationError:
    """The error for a checkpoint that cannot be read, in one line."""
    if isinstance(error, SimulationError):
        return error
    if isinstance(error, OSError) and error.strerror:
        return SimulationError(f"cannot read the checkpoint {path}: {error.strerror}")
    reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
    return SimulationError(
        f"cannot read the checkpoint {path}: it is damaged ({reason}); restore it from a copy, or "
        "begin again with --overwrite"
    )
