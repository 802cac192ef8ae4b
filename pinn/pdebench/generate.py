"""Makes files in PDEBench's layouts, offline: initial states, solution, HDF5."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from dcase._version import __version__
from dcase.errors import DataError, OptionError
from dcase.files import atomic_path
from dcase.locks import only_writer
from dcase.pinn.pdebench.advection import exact_shift, solve_advection
from dcase.pinn.pdebench.diffusion_reaction import Constants, solve_diffusion_reaction
from dcase.pinn.pdebench.flow import GAMMA, solve_flow
from dcase.pinn.pdebench.layout import FLOW_KEYS
from dcase.pinn.pdebench.limiter import Progress
from dcase.pinn.pdebench.random_fields import (
    CELLS,
    PUBLISHED,
    advection_field,
    cell_centres,
    flow_fields,
    noise,
    published_index,
)

BATCH = 16
"""Samples solved at a time: enough to make NumPy's calls worth while, and still in the cache."""


def sample_numbers(text: str, task: str, *, published: bool = True) -> list[int]:
    """The samples that ``"9"``, ``"0:20"``, ``"-9:0"`` or ``"-1"`` name.

    Args:
        text: A count (the first so many), a negative number (that one, from the end), or a range
            like Python's, in which a stop of 0 after a negative start is the end: ``-9:0`` are the
            last nine.
        task: Whose samples.
        published: Whether they are the published ones; else only the numbers from 0 on exist.

    Raises:
        OptionError: If the text names no samples.
    """
    total = PUBLISHED[task]
    hint = f"{text!r} names no samples; give a count (9), or a range such as 0:20 or -9:0"
    matched = re.fullmatch(r"\s*(-?\d*)\s*(:?)\s*(-?\d*)\s*", text)
    if not matched or "-" in (matched[1], matched[3]) or not (matched[1] or matched[2]):
        raise OptionError(hint)
    if matched[2]:
        start = int(matched[1] or 0)
        if not matched[3] and not published:
            raise OptionError(f"{text!r} has no end; with a seed give one, such as 0:20")
        stop = int(matched[3]) if matched[3] else total
        if start < 0 and stop == 0:
            stop = total
    else:
        start, stop = 0, int(matched[1])
        if stop < 0:
            start, stop = stop, stop + 1 or total
    if not published:
        if start < 0 or stop < 0:
            raise OptionError(
                f"{text!r} counts from the end of the published samples; with a seed there is no "
                "end: give 0:20"
            )
        numbers = list(range(start, stop))
    else:
        if max(abs(start), abs(stop)) > total:
            raise OptionError(f"{text!r} leaves the {total} published samples of {task}")
        numbers = list(range(total))[slice(start, stop)]
    if not numbers:
        raise OptionError(hint)
    return numbers


def write_advection(
    path: str | os.PathLike[str],
    samples: Sequence[int],
    *,
    seed: int | None = None,
    beta: float = 0.1,
    scheme: str = "muscl",
    cells: int = CELLS,
    times: int = 201,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Advection on [0, 1], t from 0 to 2, as ``1D_Advection_Sols_beta*.hdf5``.

    Args:
        path: The file to write.
        samples: Published numbers, or numbers within ``seed``.
        seed: New initial states of the published distribution; None: the published ones.
        beta: Speed.
        scheme: ``"muscl"``, as published, or ``"exact"``.
        cells: Cells of the grid.
        times: Stored times.
        overwrite: Replace a file that is there.
        progress: Called with (steps done, steps in all).

    Raises:
        OptionError: If an option is impossible.
        DataError: If a sample does not exist, or the file does and is not to be replaced.
        RunError: If another process is making the file.
    """
    if scheme not in ("muscl", "exact"):
        raise OptionError(f"unknown scheme {scheme!r}; schemes: muscl, exact")
    numbers = _numbers("advection", samples, seed)
    t = _times(2.0, times)
    x = cell_centres(0.0, 1.0, _at_least(cells, 8, "cells"))
    field = advection_field(numbers, seed)

    def solve(batch: slice, show: Progress) -> dict[str, np.ndarray]:
        profiles = field[np.arange(len(field))[batch]]
        if scheme == "exact":
            return {"tensor": exact_shift(profiles, x, t, beta)}
        initial = profiles(x.astype(np.float32))
        return {"tensor": solve_advection(initial, t, beta, progress=show)}

    attributes: dict[str, float | str] = {"beta": beta, "scheme": scheme}
    return _write_lines(path, numbers, seed, x, t, attributes, solve, overwrite, progress)


def write_flow(
    path: str | os.PathLike[str],
    samples: Sequence[int],
    *,
    seed: int | None = None,
    cells: int = CELLS,
    times: int = 101,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Compressible flow on [-1, 1], t from 0 to 1, as ``1D_CFD_Rand_Eta1.e-8_*_Train.hdf5``.

    Arguments and errors are those of :func:`write_advection`.
    """
    numbers = _numbers("cfd", samples, seed)
    t = _times(1.0, times)
    x = cell_centres(-1.0, 1.0, _at_least(cells, 8, "cells"))
    fields = flow_fields(numbers, seed)

    def solve(batch: slice, show: Progress) -> dict[str, np.ndarray]:
        chosen = np.arange(len(numbers))[batch]
        initial = {name: field[chosen](x.astype(np.float32)) for name, field in fields.items()}
        solution = solve_flow(initial, t, progress=show)
        return {FLOW_KEYS[name]: values for name, values in solution.items()}

    attributes: dict[str, float | str] = {"eta": 1e-8, "zeta": 1e-8, "gamma": GAMMA}
    attributes["scheme"] = "muscl-hllc"
    return _write_lines(path, numbers, seed, x, t, attributes, solve, overwrite, progress)


def write_diffusion_reaction(
    path: str | os.PathLike[str],
    samples: Sequence[int],
    *,
    seed: int | None = None,
    cells: int = 128,
    times: int = 101,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Diffusion and reaction on [-1, 1] squared, t from 0 to 5, as ``2D_diff-react_NA_NA.h5``.

    Arguments and errors are those of :func:`write_advection`; ``cells`` is along each axis, and
    the initial noise has one number per cell: another resolution is another initial state.
    """
    numbers = _numbers("diffusion-reaction", samples, seed)
    t = _times(5.0, times)
    x = cell_centres(-1.0, 1.0, _at_least(cells, 4, "cells"))
    constants = Constants()
    with _file(path, numbers, seed, overwrite) as file:
        file.attrs["scheme"] = "finite volumes, RK45"
        for i, number in enumerate(numbers):
            show = _part(progress, i, len(numbers))
            solution = solve_diffusion_reaction(
                noise(number, cells, seed), t, constants=constants, progress=show
            )
            group = file.create_group(f"{number:04d}")
            values = np.stack((solution["u"], solution["v"]), axis=-1).astype(np.float32)
            group.create_dataset("data", data=values, compression="lzf", fletcher32=True)
            for name, axis in (("x", x), ("y", x), ("t", t)):
                group.create_dataset(f"grid/{name}", data=axis.astype(np.float32))
            group.attrs["config"] = _config(constants, number, cells, times)
    return Path(path)


def _config(constants: Constants, number: int, cells: int, times: int) -> str:
    """The publisher's settings as the YAML text that goes with each group."""
    settings = {
        "Du": constants.Du,
        "Dv": constants.Dv,
        "k": constants.k,
        "t": 5,
        "tdim": times,
        "x_left": -1.0,
        "x_right": 1.0,
        "xdim": cells,
        "y_bottom": -1.0,
        "y_top": 1.0,
        "ydim": cells,
        "n": 1,
        "seed": number,
    }
    lines = ["name: 2d_diff-react", "sim:"]
    lines += [f"  {name}: {value}" for name, value in settings.items()]
    lines += ["plot:", "  t_idx: 1.0", "  dim: 2", "  channel_idx: 0"]
    return "\n".join(lines) + "\n"


Solve = Callable[[slice, Progress], dict[str, np.ndarray]]


def _write_lines(
    path: str | os.PathLike[str],
    numbers: list[int],
    seed: int | None,
    x: np.ndarray,
    t: np.ndarray,
    attributes: dict[str, float | str],
    solve: Solve,
    overwrite: bool,
    progress: Progress | None,
) -> Path:
    """A one-dimensional file, solved and written batch by batch."""
    with _file(path, numbers, seed, overwrite) as file:
        file.attrs.update(attributes)
        file.create_dataset("x-coordinate", data=x.astype(np.float32), fletcher32=True)
        # The published files have one more time than the data.
        file.create_dataset(
            "t-coordinate", data=np.append(t, 2 * t[-1] - t[-2]).astype(np.float32), fletcher32=True
        )
        starts = range(0, len(numbers), BATCH)
        for part, start in enumerate(starts):
            batch = slice(start, min(start + BATCH, len(numbers)))
            for name, values in solve(batch, _part(progress, part, len(starts))).items():
                shape = (len(numbers), len(t), len(x))
                file.require_dataset(name, shape, np.float32, fletcher32=True)[batch] = (
                    values.astype(np.float32)
                )
    return Path(path)


@contextmanager
def _file(
    path: str | os.PathLike[str], numbers: list[int], seed: int | None, overwrite: bool
) -> Iterator[h5py.File]:
    """A new file that says which samples it has; it appears when it is complete."""
    with only_writer(path):
        if Path(path).exists() and not overwrite:
            raise DataError(f"{path} exists; choose another name, or --overwrite")
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["sample_indices"] = np.array(numbers, dtype=np.int64)
            file.attrs["initial_states"] = "published" if seed is None else f"seed {seed}"
            file.attrs["made_by"] = f"dcase {__version__}"
            yield file


def _numbers(task: str, samples: Sequence[int], seed: int | None) -> list[int]:
    if not len(samples):
        raise OptionError("no samples are asked for")
    if seed is None:
        numbers = [published_index(task, sample) for sample in samples]
    elif seed < 0 or min(samples) < 0:
        raise OptionError("the seed and the numbers of its samples are 0 or more")
    else:
        numbers = [int(sample) for sample in samples]
    if len(set(numbers)) < len(numbers):
        raise OptionError("a sample is asked for twice")
    return numbers


def _times(end: float, number: int) -> np.ndarray:
    return np.linspace(0.0, end, _at_least(number, 2, "stored times"))


def _at_least(value: int, least: int, what: str) -> int:
    if value < least:
        raise OptionError(f"at least {least} {what} are needed, not {value}")
    return value


def _part(progress: Progress | None, part: int, parts: int) -> Progress:
    """Progress of one part of equal size in the whole."""

    def show(done: int, total: int) -> None:
        if progress:
            progress(part * total + done, parts * total)

    return show
