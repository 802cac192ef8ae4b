"""What PDEBench's HDF5 files look like, and what of it can go wrong when one is opened."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from dcase import hdf5
from dcase.errors import DataError

TASKS = ("advection", "cfd", "diffusion-reaction")
FLOW_KEYS = {"rho": "density", "v": "Vx", "p": "pressure"}
GROUP = re.compile(r"\d{4,}")


def opened(path: str | os.PathLike[str]) -> AbstractContextManager[h5py.File]:
    """An HDF5 file open for reading; damage found while it is open is reported in one line.

    Raises:
        DataError: If it is missing, not HDF5, cut short or damaged.
    """
    if not Path(path).exists():
        raise DataError(f"{path} does not exist; `dcase pinn data` makes or downloads such a file")
    return hdf5.opened(path, DataError, "fetch or make it again")


@dataclass(frozen=True)
class Summary:
    """What a PDEBench file holds.

    Attributes:
        task: ``"advection"``, ``"cfd"`` or ``"diffusion-reaction"``.
        samples: Number of samples.
        shape: Grid values of each coordinate, ``{"x": 1024, "t": 201}``.
        parameters: Constants of the equation, as stored.
        indices: The published number of each sample, or its number within the seed; where a file
            does not say, it is taken to be complete.
        origin: Where the initial states are from (``"published"``, ``"seed 3"``), ``""`` if the
            file does not say.
        notes: The file's own remarks (the scheme), name to text.
    """

    task: str
    samples: int
    shape: dict[str, int]
    parameters: dict[str, float]
    indices: tuple[int, ...]
    origin: str
    notes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = ", ".join(f"{n} values of {name}" for name, n in self.shape.items())
        constants = ", ".join(f"{name}={value:.6g}" for name, value in self.parameters.items())
        span = numbers_text(self.indices)
        origin = f" ({span}, {self.origin})" if self.origin else ""
        return f"{self.task}: {self.samples} samples{origin}, {sizes}, {constants}"


def numbers_text(numbers: tuple[int, ...]) -> str:
    """``9991..9999`` for a run of numbers, else the list, shortened."""
    if len(numbers) > 2 and all(b == a + 1 for a, b in pairwise(numbers)):
        return f"{numbers[0]}..{numbers[-1]}"
    shown = ", ".join(str(n) for n in numbers[:8])
    return shown + (", ..." if len(numbers) > 8 else "")


def find_task(file: h5py.File, task: str | None) -> str:
    """The task whose layout the file has.

    Raises:
        DataError: If it has none, or another than ``task``; the missing key is named.
    """
    where = file.filename
    if task is not None and task not in TASKS:
        raise DataError(f"unknown task {task!r}; files of {', '.join(TASKS)} can be read")
    keys = set(file)
    flow = set(FLOW_KEYS.values())
    if flow & keys:
        found = "cfd"
        if {"Vy"} & keys:
            raise DataError(f"{where} is a flow in more than one dimension; dcase reads 1D_CFD")
        needed = [*FLOW_KEYS.values(), "x-coordinate", "t-coordinate"]
    elif "tensor" in keys:
        found = "advection"
        if "beta" not in file.attrs:
            other = ", ".join(sorted(file.attrs)) or "none"
            raise DataError(
                f"{where} has no attribute 'beta', so it is not an advection file "
                f"(attributes: {other})"
            )
        needed = ["tensor", "x-coordinate", "t-coordinate"]
    elif any(GROUP.fullmatch(key) for key in keys):
        found, needed = "diffusion-reaction", []
    else:
        shown = ", ".join(sorted(keys)[:6]) or "nothing"
        raise DataError(
            f"{where} is not a PDEBench file of {', '.join(TASKS)}: it has no 'tensor', "
            f"'density' or group '0000', but {shown}"
        )
    if task is not None and task != found:
        raise DataError(f"{where} is a file of {found}, not of {task}")
    for key in needed:
        if key not in keys:
            raise DataError(f"{where} lacks the dataset {key!r}, which a file of {found} has")
    return found


def dataset(parent: h5py.Group, key: str, rank: int) -> h5py.Dataset:
    """A dataset with ``rank`` axes of float32 or float64.

    Raises:
        DataError: If it is missing, or has another rank or type.
    """
    where = f"{key!r}" if parent.name == "/" else f"{parent.name.strip('/')}/{key}"
    where = f"{where} of {parent.file.filename}"
    found = parent.get(key)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"the dataset {where} is missing")
    if found.dtype not in (np.dtype("f4"), np.dtype("f8"), np.dtype(">f4"), np.dtype(">f8")):
        reason = "; half precision is too coarse" if found.dtype == np.float16 else ""
        raise DataError(f"{where} is stored as {found.dtype}, not float32 or float64{reason}")
    if found.ndim != rank or 0 in found.shape:
        raise DataError(f"{where} has the shape {found.shape}; {rank} axes are expected")
    return found


def axis_of(parent: h5py.Group, key: str, length: int, *, extra: bool = False) -> np.ndarray:
    """Grid values ``[length]``, float64.

    Args:
        parent: Where the axis is stored.
        key: Its name.
        length: Values that the data has along it.
        extra: Whether further values at the end are allowed and cut off: PDEBench's files have
            one more time than the data.

    Raises:
        DataError: If the axis is missing or has a wrong length.
    """
    stored = dataset(parent, key, 1)
    if len(stored) != length and not (extra and len(stored) > length):
        raise DataError(
            f"{key!r} of {parent.file.filename} has {len(stored)} values, the data {length}"
        )
    return stored[:length].astype(np.float64)


def number_attribute(file: h5py.File, name: str, default: float | None = None) -> float:
    """A number among the file's attributes.

    Raises:
        DataError: If it is missing and there is no default, or is not a number.
    """
    if name not in file.attrs and default is not None:
        return default
    try:
        return float(np.asarray(file.attrs[name]).reshape(-1)[0])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{file.filename} has no number as its attribute {name!r}") from error


def edges(centres: np.ndarray) -> tuple[float, float]:
    """Ends of the row of equal cells with these centres, cleared of float32's rounding."""
    span = float(centres[-1] - centres[0])
    half = span / (2 * max(len(centres) - 1, 1))
    return _cleared(centres[0] - half, span), _cleared(centres[-1] + half, span)


def _cleared(value: float, span: float) -> float:
    unit = 10.0 ** np.floor(np.log10(span)) * 1e-6 if span > 0 else 1.0
    return float(np.round(value / unit) * unit)


def config_numbers(text: str, section: str) -> dict[str, float]:
    """The numbers of one section of a simple YAML text (``section:``, then ``  key: value``)."""
    numbers: dict[str, float] = {}
    inside = False
    for line in text.splitlines():
        if line[:1] not in ("", " ", "#"):
            inside = line.partition(":")[0].strip() == section
            continue
        name, colon, value = line.partition(":")
        if inside and colon:
            try:
                numbers[name.strip()] = float(value.partition(" #")[0].strip().strip("'\""))
            except ValueError:
                continue  # '???', a nested section
    return numbers
