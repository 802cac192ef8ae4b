"""H5MD 1.1 trajectories: written whole from a run's rows, read back as ASE atoms.

    /h5md                             version, author, creator, modules/units
    /particles/atoms/position         step, time [fs], value [Angstrom]
    /particles/atoms/velocity         step, time [fs], value [Angstrom fs-1]
    /particles/atoms/species          atomic numbers
    /particles/atoms/mass             [u]
    /particles/atoms/box              dimension, boundary, edges (with periodic boundaries)
    /observables/<name>               one value per frame: energies [eV], temperature [K]
    /dcase/state                      what else the structure carries, as JSON (charge, constraints,
                                      info, tags, ...: dcase.data.state)
    /dcase/series/<name>              the dense energy series, its own steps and times; of an
                                      ensemble's run also its uncertainty [eV Angstrom-1]

Observables are sampled exactly at the frames, since MDAnalysis reads them by frame number; the
dense series therefore lives outside H5MD's own groups, as the standard allows. Forces are left out:
MDAnalysis refuses files whose force unit is eV/Angstrom, and they follow from positions.

Standard: https://www.nongnu.org/h5md/h5md.html (de Buyl, Colberg, Hoefling, Comput. Phys. Commun.
185, 1546 (2014)).
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dcase import hdf5
from dcase._version import __version__
from dcase.data.held import restraint_energies, restraints
from dcase.data.state import FrameState
from dcase.errors import SimulationError
from dcase.md_runs.files.journal import row_blocks
from dcase.md_runs.files.run_folder import FRAME, SERIES, UNCERTAINTY, series_columns
from dcase.units import FS

BLOCK = 1024
"""Frames copied at a time, so that a long trajectory never has to fit in memory."""

RESTRAINT = "restraint_energy"
"""The part of the potential energy that restraints add, where the structure has some."""

UNITS = {
    RESTRAINT: "eV",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "total_energy": "eV",
    "conserved_energy": "eV",
    "temperature": "K",
    "com_momentum": "u Angstrom fs-1",
    "angular_momentum": "u Angstrom2 fs-1",
    UNCERTAINTY: "eV Angstrom-1",
}
"""Unit strings in H5MD's notation."""


def write_trajectory(
    path: Path,
    template: Atoms,
    frames: np.ndarray,
    series: np.ndarray,
    timestep_fs: float,
    attributes: dict[str, Any] | None = None,
) -> None:
    """Write an H5MD file atomically.

    Args:
        path: File; replaced if it exists.
        template: Elements, masses, cell, periodicity and restraints.
        frames: ``(F, 4 + 6 N)`` rows: ``state.FRAME``, positions in A, velocities in A/fs.
        series: ``(S, 8)`` rows of ``state.SERIES``, ``(S, 9)`` with the uncertainty.
        timestep_fs: fs per step.
        attributes: Strings and numbers stored as attributes of ``/dcase``.

    Raises:
        DcaseError: If the file cannot be written.
    """
    n = len(template)
    head = len(FRAME)
    size = frames.nbytes + series.nbytes + 8 * len(frames) * (2 + 9 * bool(np.any(template.pbc)))
    with hdf5.created(path, size) as file:
        root = file.create_group("h5md")
        root.attrs["version"] = np.array([1, 1], dtype=np.int32)
        root.create_group("author").attrs["name"] = _user()
        creator = root.create_group("creator")
        creator.attrs["name"] = "dcase"
        creator.attrs["version"] = __version__
        root.create_group("modules/units").attrs["version"] = np.array([1, 0], dtype=np.int32)

        atoms = file.create_group("particles/atoms")
        position = atoms.create_group("position")
        stored = []
        for name, unit in (("position", "Angstrom"), ("velocity", "Angstrom fs-1")):
            value = atoms.require_group(name).create_dataset(
                "value", (len(frames), n, 3), dtype="<f8"
            )
            value.attrs["unit"] = unit
            stored.append(value)
        heads = np.empty((len(frames), head))
        restrained = np.zeros(len(frames)) if restraints(template) else None
        for first, block in row_blocks(frames, BLOCK):
            heads[first : first + len(block)] = block[:, :head]
            for k, value in enumerate(stored):
                part = block[:, head + 3 * n * k : head + 3 * n * (k + 1)]
                value[first : first + len(block)] = part.reshape(-1, n, 3)
            if restrained is not None:
                positions = block[:, head : head + 3 * n].reshape(-1, n, 3)
                restrained[first : first + len(block)] = restraint_energies(template, positions)
        steps = heads[:, 0].astype(np.int64)
        position["step"] = steps
        position["time"] = steps * timestep_fs
        position["time"].attrs["unit"] = "fs"
        _share_clock(atoms["velocity"], position)
        atoms["species"] = template.numbers.astype(np.int32)
        atoms["mass"] = template.get_masses()
        atoms["mass"].attrs["unit"] = "u"
        box = atoms.create_group("box")
        box.attrs["dimension"] = np.int32(3)
        # Strings are of variable length: h5py, and so MDAnalysis, reads others as bytes.
        box.attrs["boundary"] = np.array(
            ["periodic" if p else "none" for p in template.pbc], dtype=h5py.string_dtype()
        )
        if np.any(template.pbc):
            edges = box.create_group("edges")
            _share_clock(edges, position)
            edges["value"] = np.broadcast_to(np.array(template.cell), (len(frames), 3, 3))
            edges["value"].attrs["unit"] = "Angstrom"

        observables = file.create_group("observables")
        columns = {name: heads[:, k] for k, name in enumerate(FRAME) if name != "step"}
        columns["total_energy"] = columns["potential_energy"] + columns["kinetic_energy"]
        if restrained is not None:
            columns[RESTRAINT] = restrained
        for name, values in columns.items():
            group = observables.create_group(name)
            _share_clock(group, position)
            group["value"] = np.array(values)
            group["value"].attrs["unit"] = UNITS[name]

        ours = file.create_group("dcase")
        for name, value in (attributes or {}).items():
            ours.attrs[name] = value
        state = FrameState.of(template, without=("masses", "momenta"))
        if state:
            ours["state"] = state.to_text()
        dense = ours.create_group("series")
        _write_series(dense, series, timestep_fs)


def _write_series(dense: h5py.Group, series: np.ndarray, timestep_fs: float) -> None:
    """The columns of the dense series, and its times."""
    names = series_columns(series.shape[1] > len(SERIES))
    columns = {
        name: dense.create_dataset(name, (len(series),), "<i8" if name == "step" else "<f8")
        for name in ("time", *names)
    }
    for name, unit in {"time": "fs", **UNITS}.items():
        if name in columns:
            columns[name].attrs["unit"] = unit
    for first, block in row_blocks(series):
        here = slice(first, first + len(block))
        columns["time"][here] = block[:, 0] * timestep_fs
        for k, name in enumerate(names):
            columns[name][here] = block[:, k]


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rows a trajectory was written from, to the last bit: ``(frames, series)``.

    Raises:
        SimulationError: If the file is not a trajectory of dcase.
    """
    with _open(path) as file:
        atoms = file["particles/atoms"]
        count = len(atoms["position/step"])
        columns = [np.asarray(atoms["position/step"], dtype=np.float64)[:, None]]
        columns += [np.asarray(file[f"observables/{n}/value"])[:, None] for n in FRAME[1:]]
        columns += [
            np.asarray(atoms[f"{name}/value"]).reshape(count, -1)
            for name in ("position", "velocity")
        ]
        dense = file["dcase/series"]
        names = series_columns(UNCERTAINTY in dense)
        series = np.stack([np.asarray(dense[name], dtype=np.float64) for name in names], axis=1)
    return np.concatenate(columns, axis=1), series


def read_trajectory(path: str | Path, index: slice | None = None) -> list[Atoms]:
    """Frames of a trajectory as ASE atoms with velocities, energies, and the state of the start.

    That is its charge and spin, isotopes, tags, constraints, arrays and ``info``
    (:class:`dcase.data.state.FrameState`).

    Args:
        path: ``trajectory.h5``, or the folder of a run.
        index: Which frames; all by default.

    Returns:
        Atoms with ``info["step"]``, ``info["time_fs"]``, ``info["temperature_K"]`` and the
        energy of the potential (eV), without that of restraints, in a ``SinglePointCalculator``.

    Raises:
        SimulationError: If the file is missing or is not H5MD.
    """
    where = index if index is not None else slice(None)
    with _open(_file_of(path)) as file:
        group = file["particles/atoms"]
        numbers, masses = np.asarray(group["species"]), np.asarray(group["mass"])
        boundary = [str(b) == "periodic" for b in group["box"].attrs["boundary"]]
        cell = np.asarray(group["box/edges/value"][0]) if "edges" in group["box"] else None
        steps = np.asarray(group["position/step"])[where]
        times = np.asarray(group["position/time"])[where]
        positions = np.asarray(group["position/value"][where])
        velocities = np.asarray(group["velocity/value"][where])
        energies = np.asarray(file["observables/potential_energy/value"])[where]
        if RESTRAINT in file["observables"]:
            energies = energies - np.asarray(file[f"observables/{RESTRAINT}/value"])[where]
        temperatures = np.asarray(file["observables/temperature/value"])[where]
        text = file["dcase/state"][()].decode() if "dcase/state" in file else ""
        state = FrameState.from_text(text) if text else FrameState()
    images = []
    for k in range(len(steps)):
        atoms = Atoms(numbers, positions[k], masses=masses, cell=cell, pbc=boundary)
        atoms.set_velocities(velocities[k] / FS)
        state.put_on(atoms)  # after the velocities, which constraints would change
        atoms.info.update(
            step=int(steps[k]), time_fs=float(times[k]), temperature_K=float(temperatures[k])
        )
        atoms.calc = SinglePointCalculator(atoms, energy=float(energies[k]))
        images.append(atoms)
    return images


def read_positions(path: str | Path) -> tuple[np.ndarray, np.ndarray, Atoms]:
    """Times and positions as arrays: ``(F,)`` fs, ``(F, N, 3)`` A, and the first frame.

    Raises:
        SimulationError: If the file is missing or is not H5MD.
    """
    first = read_trajectory(path, slice(0, 1))
    with _open(_file_of(path)) as file:
        group = file["particles/atoms/position"]
        return np.asarray(group["time"]), np.asarray(group["value"]), first[0]


@contextmanager
def stored_positions(path: str | Path, n_atoms: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Times (fs, [F]) and positions of a run, whose slices are read when they are asked for.

    Args:
        path: Of the run or its trajectory.
        n_atoms: Of a run that has no frame yet, and so no trajectory.

    Raises:
        SimulationError: If the file is not H5MD.
    """
    if not _file_of(path).exists():
        yield np.zeros(0), np.zeros((0, n_atoms, 3))
        return
    with _open(_file_of(path)) as file:
        group = file["particles/atoms/position"]
        yield np.asarray(group["time"]), group["value"]


def read_series(path: str | Path) -> dict[str, np.ndarray]:
    """The dense energy series: ``step``, ``time`` (fs) and ``state.series_columns`` of the run.

    Raises:
        SimulationError: If the file is missing or has no series.
    """
    with stored_series(path) as series:
        return {name: np.asarray(values) for name, values in series.items()}


@contextmanager
def stored_series(path: str | Path) -> Iterator[dict[str, Any]]:
    """What ``read_series`` reads, as long as the file is open: slices are read when asked for.

    Raises:
        SimulationError: If the file is missing or has no series.
    """
    with _open(_file_of(path)) as file:
        if "dcase/series" not in file:
            raise SimulationError(f"{path} was not written by dcase md: it has no energy series")
        yield dict(file["dcase/series"].items())


def read_observables(path: str | Path) -> dict[str, np.ndarray]:
    """Observables at the frames: ``step``, ``time`` (fs), energies (eV), temperature (K).

    Raises:
        SimulationError: If the file is missing or is not H5MD.
    """
    with _open(_file_of(path)) as file:
        found = {name: np.asarray(group["value"]) for name, group in file["observables"].items()}
        clock = file["particles/atoms/position"]
        return {"step": np.asarray(clock["step"]), "time": np.asarray(clock["time"]), **found}


def _share_clock(group: h5py.Group, owner: h5py.Group) -> None:
    """Hard links to one step and time, as H5MD recommends for data sampled together."""
    if group != owner:
        group["step"], group["time"] = owner["step"], owner["time"]


def _file_of(path: str | Path) -> Path:
    path = Path(path)
    return path / "trajectory.h5" if path.is_dir() else path


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not path.exists():
        raise SimulationError(f"there is no trajectory {path}")
    with hdf5.opened(path, SimulationError) as file:
        if "particles/atoms/position" not in file:
            raise SimulationError(f"{path} is not an H5MD trajectory of dcase")
        yield file


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
