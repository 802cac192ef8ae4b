"""Reads one sample of a PDEBench file, as a slice: the files are gigabytes, a sample is one MB."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

from dcase.errors import DataError
from dcase.pinn.pdebench.diffusion_reaction import Constants
from dcase.pinn.pdebench.flow import GAMMA
from dcase.pinn.pdebench.layout import (
    FLOW_KEYS,
    GROUP,
    Summary,
    axis_of,
    config_numbers,
    dataset,
    edges,
    find_task,
    number_attribute,
    numbers_text,
    opened,
)
from dcase.pinn.pdebench.speed import check_speed
from dcase.pinn.sample import Sample


def read_sample(path: str | os.PathLike[str], sample: int | str, task: str | None = None) -> Sample:
    """One sample of a PDEBench file.

    Args:
        path: The HDF5 file, published or made by ``dcase pinn data``; its task is recognised.
        sample: Position in the file, negative from the end (-1 is the last). In a file of
            diffusion-reaction a number that is not negative names the group ("3" is "0003").
        task: Task that the file must have; None: any.

    Returns:
        The sample in float64. Of an advection file the speed is measured: files published before
        August 2023 move at twice the speed that they state (PDEBench issue 46). Where it differs
        from the stated one, ``parameters["beta"]`` is what was measured,
        ``parameters["beta_attribute"]`` what is stated, and ``warnings`` says so.

    Raises:
        DataError: If the file is missing, damaged or of another kind, has no such sample, is in
            half precision, or the sample has NaN.
    """
    try:
        number = int(sample)
    except ValueError as error:
        raise DataError(f"a sample is a number such as 0 or -1, not {sample!r}") from error
    with opened(path) as file:
        found = find_task(file, task)
        if found == "advection":
            return _advection(file, number)
        if found == "cfd":
            return _flow(file, number)
        return _diffusion_reaction(file, number)


def describe_file(path: str | os.PathLike[str]) -> Summary:
    """What a PDEBench file holds; the data are not read.

    Raises:
        DataError: As :func:`read_sample`.
    """
    with opened(path) as file:
        task = find_task(file, None)
        notes = {
            name: _text(file.attrs[name]) for name in ("scheme", "made_by") if name in file.attrs
        }
        if task == "diffusion-reaction":
            names = _groups(file)
            data = dataset(file[names[0]], "data", 4)
            shape = {"x": data.shape[2], "y": data.shape[1], "t": data.shape[0]}
            samples = len(names)
            indices: tuple[int, ...] = tuple(int(name) for name in names)
            parameters, _ = _constants(file[names[0]])
        else:
            data = dataset(file, "tensor" if task == "advection" else "density", 3)
            samples, shape = data.shape[0], {"x": data.shape[2], "t": data.shape[1]}
            indices = _indices(file, samples)
            if task == "advection":
                parameters = {"beta": number_attribute(file, "beta")}
            else:
                parameters = _flow_parameters(file)
        origin = _text(file.attrs.get("initial_states", ""))
        return Summary(task, samples, shape, parameters, indices, origin, notes)


def _advection(file: h5py.File, sample: int) -> Sample:
    data = dataset(file, "tensor", 3)
    position, source = _position(file, data.shape[0], sample)
    x = axis_of(file, "x-coordinate", data.shape[2])
    t = axis_of(file, "t-coordinate", data.shape[1], extra=True)
    read = Sample(
        task="advection",
        axes={"x": x, "t": t},
        fields={"u": data[position].T},
        domain={"x": edges(x), "t": (float(t[0]), float(t[-1]))},
        parameters={"beta": number_attribute(file, "beta")},
        periodic=("x",),
        source=source,
    )
    return check_speed(read)


def _flow(file: h5py.File, sample: int) -> Sample:
    data = {name: dataset(file, key, 3) for name, key in FLOW_KEYS.items()}
    shapes = {d.shape for d in data.values()}
    if len(shapes) > 1:
        raise DataError(f"density, Vx and pressure of {file.filename} differ in shape: {shapes}")
    samples, times, cells = shapes.pop()
    position, source = _position(file, samples, sample)
    x = axis_of(file, "x-coordinate", cells)
    t = axis_of(file, "t-coordinate", times, extra=True)
    fields = {name: d[position].T for name, d in data.items()}
    for name, key in (("rho", "density"), ("p", "pressure")):
        if (fields[name] <= 0).any():
            raise DataError(f"{source}: the {key} is not positive everywhere")
    return Sample(
        task="cfd",
        axes={"x": x, "t": t},
        fields=fields,
        domain={"x": edges(x), "t": (float(t[0]), float(t[-1]))},
        parameters=_flow_parameters(file),
        periodic=("x",),
        source=source,
    )


def _diffusion_reaction(file: h5py.File, sample: int) -> Sample:
    names = _groups(file)
    if sample < 0:
        if -sample > len(names):
            raise DataError(_range_text(file.filename, sample, len(names)))
        name = names[sample]
    else:
        name = f"{sample:04d}"
        if name not in names:
            raise DataError(
                f"{file.filename} has no group {name!r} for sample {sample}; it has "
                f"{len(names)} groups: {numbers_text(tuple(int(n) for n in names))}"
            )
    group, source = file[name], f"{file.filename} sample {name}"
    data = dataset(group, "data", 4)
    times, ny, nx, channels = data.shape
    if channels != 2:
        raise DataError(f"{source}: data has {channels} channels; u and v are expected")
    grid = group.get("grid")
    if not isinstance(grid, h5py.Group):
        raise DataError(f"{source} lacks the group 'grid'")
    axes = {"x": axis_of(grid, "x", nx), "y": axis_of(grid, "y", ny)}
    axes["t"] = axis_of(grid, "t", times, extra=True)
    values = data[...]  # this group's only: stored (t, y, x, channel)
    parameters, warnings = _constants(group)
    return Sample(
        task="diffusion-reaction",
        axes=axes,
        fields={field: values[..., i].transpose(2, 1, 0) for i, field in enumerate(("u", "v"))},
        domain={
            "x": edges(axes["x"]),
            "y": edges(axes["y"]),
            "t": (float(axes["t"][0]), float(axes["t"][-1])),
        },
        parameters=parameters,
        periodic=(),
        source=source,
        warnings=warnings,
    )


def _position(file: h5py.File, samples: int, sample: int) -> tuple[int, str]:
    """Where a sample is in the file, and how reports call it."""
    if not -samples <= sample < samples:
        raise DataError(_range_text(file.filename, sample, samples, _indices(file, samples)))
    position = sample % samples
    source = f"{file.filename} sample {sample}"
    if "sample_indices" in file.attrs:
        index, origin = (
            _indices(file, samples)[position],
            _text(file.attrs.get("initial_states", "number")),
        )
        source += f" ({index}, {origin})"
    return position, source


def _range_text(name: str, sample: int, samples: int, indices: tuple[int, ...] = ()) -> str:
    text = f"{name} has no sample {sample}: it has {samples}, 0 to {samples - 1} (or -{samples} "
    text += "to -1)"
    if indices and indices != tuple(range(samples)):
        text += f", which are numbers {numbers_text(indices)} of the whole set"
    return text


def _indices(file: h5py.File, samples: int) -> tuple[int, ...]:
    stored = np.asarray(file.attrs.get("sample_indices", ())).reshape(-1)
    if len(stored) != samples:
        return tuple(range(samples))
    return tuple(int(n) for n in stored)


def _groups(file: h5py.File) -> list[str]:
    return sorted((key for key in file if GROUP.fullmatch(key)), key=int)


def _flow_parameters(file: h5py.File) -> dict[str, float]:
    return {
        "eta": number_attribute(file, "eta", 1e-8),
        "zeta": number_attribute(file, "zeta", 1e-8),
        "gamma": number_attribute(file, "gamma", GAMMA),
    }


def _constants(group: h5py.Group) -> tuple[dict[str, float], tuple[str, ...]]:
    stored = config_numbers(_text(group.attrs.get("config", "")), "sim")
    standard = Constants()
    constants = {name: getattr(standard, name) for name in ("Du", "Dv", "k")}
    missing = [name for name in constants if name not in stored]
    constants |= {name: stored[name] for name in constants if name in stored}
    if not missing:
        return constants, ()
    warning = (
        f"group {group.name.strip('/')} does not state {', '.join(missing)}; "
        "PDEBench's values are taken"
    )
    return constants, (warning,)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
