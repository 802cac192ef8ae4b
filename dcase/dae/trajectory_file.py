"""Trajectories of constrained systems, and their HDF5 files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dcase import hdf5
from dcase.errors import DataError
from dcase.units import FS

UNITS: dict[str, dict[str, str]] = {
    "pendulum": {"length": "m", "time": "s", "mass": "kg", "energy": "J"},
    "water": {"length": "A", "time": "fs", "mass": "amu", "energy": "eV"},
}
"""Units of a trajectory, by system."""

FORMAT = "dcase trajectory"
FORMAT_VERSION = 1
ARRAYS = ("positions", "velocities", "masses", "numbers", "energy")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Positions and velocities of ``N`` nodes at ``T`` equally spaced times.

    Attributes:
        system: ``"pendulum"`` (m, s, kg, J) or ``"water"`` (A, fs, amu, eV).
        positions: ``[T, N, d]``.
        velocities: ``[T, N, d]``, in units of length per unit of time.
        masses: ``[N]``.
        numbers: ``[N]`` atomic numbers; 0 where a node is no atom.
        interval: Time between two frames.
        energy: ``[T]`` total energy.
        settings: What it was made with; plain numbers, strings and None.

    Raises:
        DataError: If the shapes do not fit each other, or a number is not finite.
    """

    system: str
    positions: np.ndarray
    velocities: np.ndarray
    masses: np.ndarray
    numbers: np.ndarray
    interval: float
    energy: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.system not in UNITS:
            raise DataError(f"no such system: {self.system!r}; there are {', '.join(UNITS)}")
        if self.positions.ndim != 3 or 0 in self.positions.shape:
            raise DataError(
                f"positions must have shape [frames, nodes, 2 or 3], got {self.positions.shape}"
            )
        frames, nodes, _ = self.positions.shape
        shapes = {
            "velocities": self.positions.shape,
            "masses": (nodes,),
            "numbers": (nodes,),
            "energy": (frames,),
        }
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise DataError(f"{name} must have shape {shape} like the positions, got {found}")
        for name in ("positions", "velocities", "masses", "energy"):
            values = getattr(self, name)
            if values.dtype.kind != "f" or not np.isfinite(values).all():
                raise DataError(f"{name} have values that are not finite numbers")
        if not (self.masses > 0).all():
            raise DataError("masses must be positive")
        if not (math.isfinite(self.interval) and self.interval > 0):
            raise DataError(f"the interval between frames must be positive, got {self.interval!r}")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def units(self) -> dict[str, str]:
        """Unit of ``length``, ``time``, ``mass`` and ``energy``."""
        return UNITS[self.system]

    @property
    def stride(self) -> int:
        """Simulation steps from one frame to the next (1 for the pendulum)."""
        return int(self.settings.get("stride", 1))

    def kinetic_energy(self) -> np.ndarray:
        """Kinetic energy ``[T]`` in the unit of ``energy``."""
        squares = np.einsum("tnd,tnd->tn", self.velocities, self.velocities, dtype=np.float64)
        # Velocities in A/fs, masses in amu, energies in eV: FS is a femtosecond in A sqrt(amu/eV).
        unit = FS**2 if self.system == "water" else 1.0
        return 0.5 * (squares @ self.masses) / unit

    def prefix(self, frames: int) -> Trajectory:
        """The first ``frames`` frames (views of the same arrays).

        Raises:
            DataError: If there are fewer.
        """
        if not 1 <= frames <= len(self):
            raise DataError(f"the trajectory has {len(self)} frames, not {frames}")
        if frames == len(self):
            return self
        settings = {**self.settings}
        if "steps" in settings:
            settings["steps"] = frames * self.stride
        return replace(
            self,
            positions=self.positions[:frames],
            velocities=self.velocities[:frames],
            energy=self.energy[:frames],
            settings=settings,
        )

    def fingerprint(self) -> str:
        """SHA-256 over system, interval and arrays: equal where the data are equal to the bit."""
        digest = hashlib.sha256(f"{self.system} {self.interval!r}".encode())
        for name in ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f" {name} {little.dtype.str} {little.shape} ".encode())
            digest.update(little.data)
        return digest.hexdigest()


def write(path: str | os.PathLike[str], trajectory: Trajectory) -> Path:
    """Write an HDF5 file, whole or not at all.

    Layout: the arrays of :class:`Trajectory` as datasets of the same names (``unit`` as an
    attribute), and the attributes ``format``, ``format_version``, ``system``, ``interval``,
    ``settings`` (JSON) and ``fingerprint``.

    Raises:
        DcaseError: If the file cannot be written.
    """
    units = trajectory.units
    unit = {
        "positions": units["length"],
        "velocities": f"{units['length']}/{units['time']}",
        "masses": units["mass"],
        "numbers": "1",
        "energy": units["energy"],
    }
    with hdf5.created(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["system"] = trajectory.system
        file.attrs["interval"] = trajectory.interval
        file.attrs["interval_unit"] = units["time"]
        file.attrs["settings"] = json.dumps(trajectory.settings, sort_keys=True)
        file.attrs["fingerprint"] = trajectory.fingerprint()
        for name in ARRAYS:
            file.create_dataset(name, data=getattr(trajectory, name)).attrs["unit"] = unit[name]
    return Path(path)


def read(path: str | os.PathLike[str]) -> Trajectory:
    """Read what :func:`write` wrote.

    Raises:
        DataError: If the file is missing, not HDF5, cut off, of another kind, damaged, or its
            arrays do not fit each other or hold NaN.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file: {path}; make it with dcase dae data")
    with hdf5.opened(path, DataError, "delete it and make it again (dcase dae data)") as file:
        trajectory, recorded = _parse(file, path)
    if recorded != trajectory.fingerprint():
        raise DataError(f"{path} has changed since it was written; delete it and make it again")
    return trajectory


def _parse(file: h5py.File, path: Path) -> tuple[Trajectory, str]:
    attributes = file.attrs
    if attributes.get("format") != FORMAT:
        raise DataError(f"{path} is not a trajectory of dcase; make one with dcase dae data")
    if attributes.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {attributes.get('format_version')}, this dcase reads "
            f"{FORMAT_VERSION}; use the dcase that made it, or make it again"
        )
    try:
        arrays = {name: np.asarray(file[name]) for name in ARRAYS}
        settings = json.loads(attributes["settings"])
        system, interval = str(attributes["system"]), float(attributes["interval"])
        recorded = str(attributes["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} lacks a part of a trajectory ({error})") from error
    try:
        return Trajectory(system=system, interval=interval, settings=settings, **arrays), recorded
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
