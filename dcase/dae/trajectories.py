"""Trajectories made once and kept: by name of the system and settings, from a file or the cache.

The parts live in :mod:`dcase.dae.trajectory_file` (what a trajectory is, and its file) and
:mod:`dcase.dae.pairs` (what is learned from it); their names can be imported from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcase.dae.pairs import Pairs, make_pairs, predictor_errors
from dcase.dae.trajectory_file import UNITS, Trajectory, read, write
from dcase.data.download import cache_folder
from dcase.errors import DataError, DcaseError, OptionError
from dcase.files import check_writable
from dcase.locks import only_writer

__all__ = [
    "UNITS",
    "Pairs",
    "Trajectory",
    "load_or_make",
    "make_file",
    "make_pairs",
    "predictor_errors",
    "read",
    "write",
]

NOT_IN_THE_NAME = ("steps", "version")
"""Settings that do not change what the frames of a trajectory are."""


def load_or_make(
    system: str,
    *,
    path: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Trajectory:
    """A trajectory from a file, from the cache, or made now and cached.

    Any trajectory is a prefix of a longer one with the same settings, so a longer one in the cache
    is cut. Of several processes that want the same one at once, one makes it and the others wait.

    Args:
        system: ``"pendulum"`` or ``"water"``.
        path: Read this file; None: the cache.
        steps: Simulation steps; None: 14 000 (pendulum, one frame each) or 100 000 (water, a
            frame each ``stride`` steps).
        seed: Of the start; None: the paper's start (pendulum) or seed 0 (water).
        cache_dir: Folder of the cache; see :func:`dcase.data.download.cache_folder`.
        progress: Called with (steps done, steps in all) while a trajectory is made.
        options: Of :func:`~dcase.dae.pendulum.simulate_pendulum` or
            :func:`~dcase.dae.water.simulate_water`.

    Raises:
        DataError: If the file cannot be used, holds another system, or has too few steps.
        OptionError: For an impossible option.
        DcaseError: If the cache cannot be written.
    """
    if path is not None:
        trajectory = read(path)
        if trajectory.system != system:
            raise DataError(f"{path} is a trajectory of {trajectory.system}, not of {system}")
        if steps is None:
            return trajectory
        frames = steps // trajectory.stride
        if frames > len(trajectory):
            raise DataError(
                f"{path} has {len(trajectory) * trajectory.stride} steps, {steps} are needed"
            )
        return trajectory.prefix(frames)
    made = make_file(
        system, steps=steps, seed=seed, cache_dir=cache_dir, progress=progress, **options
    )
    wanted = _settings(system, steps, seed, options)
    trajectory = read(made)
    if trajectory.system != system or _what_counts(trajectory.settings) != _what_counts(wanted):
        raise DataError(f"{made} holds another trajectory than its name says; delete it")
    return trajectory.prefix(_frames(wanted))


def make_file(
    system: str,
    path: str | os.PathLike[str] | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Path:
    """The file of a trajectory: made now, unless the cache has it.

    Args:
        system: As for :func:`load_or_make`, like all that is not named here.
        path: Where to write; None: the cache.
        steps: Simulation steps.
        seed: Of the start.
        cache_dir: Folder of the cache.
        overwrite: Make it also if it is there, and replace it.
        progress: Called with (steps done, steps in all).
        options: Of the simulator.

    Raises:
        OptionError: For an impossible option, or if ``path`` is there and not to be replaced.
        RunError: If another process is making ``path``; for the cache it is waited for.
        DcaseError: If the file cannot be written.
    """
    wanted = _settings(system, steps, seed, options)
    folder = cache_folder(cache_dir) if path is None else Path(path).parent
    name = f"{_stem(system, wanted)}{_frames(wanted)}.h5" if path is None else Path(path).name

    def there() -> Path | None:
        """The file, if it need not be made."""
        if path is None:
            return None if overwrite else _cached(folder, system, wanted)
        if Path(path).exists() and not overwrite:
            raise OptionError(f"{path} exists; choose another name, or replace it (--overwrite)")
        return None

    found = there()
    if found is not None:
        return found
    _check_writable(folder, cache=path is None)  # before a long simulation, not after
    check_writable(folder / name)
    _, simulate = _simulator(system)
    made = {k: v for k, v in wanted.items() if k not in ("revision", "version") and v is not None}
    with only_writer(folder / name, wait=path is None):
        return there() or write(folder / name, simulate(**made, progress=progress))


def _settings(
    system: str, steps: int | None, seed: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    complete, _ = _simulator(system)
    given = {"steps": steps, "seed": seed}
    return complete(**options, **{k: v for k, v in given.items() if v is not None})


def _frames(settings: dict[str, Any]) -> int:
    return int(settings["steps"]) // int(settings.get("stride", 1))


def _simulator(system: str) -> tuple[Callable[..., dict[str, Any]], Callable[..., Trajectory]]:
    # Imported here: who only reads a file needs no simulator.
    if system == "pendulum":
        from dcase.dae.pendulum import pendulum_settings, simulate_pendulum

        return pendulum_settings, simulate_pendulum
    if system == "water":
        from dcase.dae.water import simulate_water, water_settings

        return water_settings, simulate_water
    raise OptionError(f"no such system: {system!r}; there are {', '.join(UNITS)}")


def _stem(system: str, settings: dict[str, Any]) -> str:
    """Start of the file name, all but the number of frames."""
    kept = json.dumps(_what_counts(settings), sort_keys=True)
    return f"{system}_{hashlib.sha256(kept.encode()).hexdigest()[:16]}_"


def _what_counts(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in NOT_IN_THE_NAME}


def _cached(folder: Path, system: str, settings: dict[str, Any]) -> Path | None:
    """The shortest file that is long enough."""
    pattern = re.compile(re.escape(_stem(system, settings)) + r"(\d+)\.h5")
    try:
        matches = [(pattern.fullmatch(p.name), p) for p in folder.iterdir()]
    except OSError:
        return None
    lengths = {p: int(match[1]) for match, p in matches if match}
    enough = [p for p, length in lengths.items() if length >= _frames(settings)]
    return min(enough, key=lengths.__getitem__, default=None)


def _check_writable(folder: Path, cache: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        what = "the cache " if cache else ""
        instead = "set DCASE_DATA_DIR to another folder" if cache else "choose another folder"
        raise DcaseError(f"cannot write to {what}{folder}: {reason}; {instead}")
