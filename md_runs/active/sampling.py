"""Trajectories of an ensemble from labelled frames, and the frames among them to be labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError

from dcase.data.held import free_axes
from dcase.data.selection import SEPARATION_A, Fingerprint, fingerprint, select_frames
from dcase.errors import RunError, SimulationError
from dcase.md_runs.active.settings import ActiveSettings
from dcase.md_runs.files.run_folder import UNCERTAINTY, RunFolder
from dcase.md_runs.files.trajectory import read_series, read_trajectory
from dcase.md_runs.loop.uncertainty import EXCEEDED, uncertainty_of
from dcase.md_runs.settings import MDSettings
from dcase.md_runs.simulate import run_md

LIMIT_SHARE = 0.5
"""The limit by default: where the members disagree by half of the median force on an atom."""

START_FACTOR = 1.5
"""The limit over the uncertainty of the starts, where the ensemble is sure of none of them."""

CLOSEST_A = 1e-3
"""Frames nearer to each other than this are never both labelled, A."""

# What a seed is for, so that no two purposes share one.
STARTS, WALKER, MEMBER, CHOICE, FIRST = range(5)


@dataclass(frozen=True)
class Sample:
    """A frame of a trajectory.

    Attributes:
        atoms: Positions, cell; no calculator.
        uncertainty: eV/A.
        walker: Which trajectory it is of.
        step: And which step.
    """

    atoms: Atoms
    uncertainty: float
    walker: int
    step: int


def choose_starts(
    labelled: Sequence[Atoms],
    forces: np.ndarray,
    calculator: Any,
    settings: ActiveSettings,
    round_number: int,
) -> tuple[list[Atoms], float]:
    """Labelled frames to start from, and the uncertainty at which walkers stop.

    Starts are drawn at random among the frames whose own uncertainty is within the limit (labels of
    extreme frames do not always make the ensemble sure of them); each is taken again only once all
    are. Where there is no such frame, the least uncertain ones are taken.

    Args:
        labelled: All labelled frames.
        forces: Of these, eV/A, (N, 3).
        calculator: Of the ensemble.
        settings: Number of walkers, and the limit if it is given.
        round_number: For the random draw.

    Returns:
        As many frames as walkers, and the limit in eV/A: the one given, or :data:`LIMIT_SHARE` of
        the median force, or more (:data:`START_FACTOR`) where no start is within that.
    """
    rng = np.random.default_rng(settings.seed_of(STARTS, round_number))
    limit = settings.max_uncertainty_eV_A
    if limit is None:
        limit = LIMIT_SHARE * float(np.median(np.linalg.norm(forces, axis=1)))
    spread: list[tuple[float, int]] = []
    trusted: list[int] = []
    for index in rng.permutation(len(labelled)).tolist():
        if len(trusted) == settings.walkers:
            break
        value = _uncertainty_at(labelled[index], calculator)
        spread.append((value, index))
        if value <= limit:
            trusted.append(index)
    if not trusted:
        least = sorted(spread)[: settings.walkers]
        trusted = [index for _, index in least]
        if settings.max_uncertainty_eV_A is None and np.isfinite(least[-1][0]):
            limit = START_FACTOR * least[-1][0]
    return [labelled[trusted[k % len(trusted)]] for k in range(settings.walkers)], limit


def _uncertainty_at(frame: Atoms, calculator: Any) -> float:
    """eV/A; infinite where the potential refuses the frame, or is not finite there."""
    atoms = frame.copy()
    atoms.calc = calculator
    try:
        atoms.get_potential_energy()
    except CalculatorError:
        return float("inf")
    value = uncertainty_of(calculator, free_axes(frame))
    return value if np.isfinite(value) else float("inf")


def sample(
    starts: Sequence[Atoms],
    calculator: Any,
    settings: ActiveSettings,
    round_number: int,
    limit: float,
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Sample], dict[str, Any]]:
    """Walk from every start, until done, stopped by the uncertainty, or blown up.

    Every walker is a run of its own folder (see ``simulate``), and is finished or gone on with if
    it is there already.

    Args:
        starts: One for each walker.
        calculator: Of the ensemble.
        settings: Of the dynamics.
        round_number: For the seeds.
        limit: Largest uncertainty, eV/A.
        folder: For the runs.
        progress: Called with steps done and steps in all, over all walkers.

    Returns:
        Frames to choose from (the starts, which have labels, are not among them), and the facts:
        ``sampled_ps``, ``frames``, ``walkers_uncertain`` (stopped by their uncertainty),
        ``walkers_broken`` (stopped by anything else), ``notes``.

    Raises:
        KeyboardInterrupt: On Ctrl-C; the walker at work is saved.
    """
    samples: list[Sample] = []
    done, broken, notes, steps = Counter[str](), 0, [], 0
    for number, start in enumerate(starts):
        out = folder / f"walker-{number:02d}"

        def report(now: int, _: int, before: int = number * settings.steps) -> None:
            if progress is not None:
                progress(before + now, len(starts) * settings.steps)

        try:
            status = _walk(start, calculator, settings, round_number, number, limit, out, report)
        except RunError:  # it holds something else, or went away: that is no start's fault
            raise
        except (SimulationError, CalculatorError) as error:  # the potential refuses the start
            notes.append(f"walker {number} did not start: {error}")
            broken += 1
            continue
        if status == "interrupted":
            raise KeyboardInterrupt
        uncertain = EXCEEDED in status
        done["uncertain" if uncertain else "finished" if status == "finished" else "broken"] += 1
        found = _frames(out, number)
        if status != "finished" and not uncertain:
            notes.append(f"walker {number} {status}")
            found = found[:-1]  # the frame that it broke in
        steps += int(RunFolder(out).read_run()["steps"])
        samples += found
    if progress is not None:
        progress(len(starts) * settings.steps, len(starts) * settings.steps)
    return samples, {
        "sampled_ps": steps * settings.timestep_fs * 1e-3,
        "frames": len(samples),
        "walkers_uncertain": done["uncertain"],
        "walkers_broken": broken + done["broken"],
        "notes": notes,
    }


def _walk(
    start: Atoms,
    calculator: Any,
    settings: ActiveSettings,
    round_number: int,
    number: int,
    limit: float,
    out: Path,
    progress: Callable[[int, int], None],
) -> str:
    """Run one walker, or what is left of it; returns its status."""
    folder = RunFolder(out)
    if folder.run.exists():
        status = str(folder.read_run()["status"])
        if status == "finished" or status.startswith("stopped early"):
            return status
    atoms = start.copy()
    atoms.calc = calculator
    temperatures = settings.temperatures_K
    dynamics = MDSettings(
        ensemble="langevin",
        temperature_K=temperatures[number % len(temperatures)],
        timestep_fs=settings.timestep_fs,
        steps=settings.steps,
        equilibrate=0,  # the start is a frame of such dynamics itself, or nearly
        friction_per_fs=settings.friction_per_fs,
        seed=settings.seed_of(WALKER, round_number, number),
        log_every=settings.frame_every,
        traj_every=settings.frame_every,
        checkpoint_every=max(200, settings.frame_every),
        max_uncertainty_eV_A=limit,
        on_uncertain="stop",
        force_timestep=True,  # a poor potential vibrates as it likes
    )
    begun = folder.place.resumable()
    return run_md(atoms, dynamics, out, resume=begun, progress=progress).status


def _frames(out: Path, walker: int) -> list[Sample]:
    """Frames of a walker that have a finite uncertainty, without its start."""
    series = read_series(out)
    spread = dict(zip(series["step"].tolist(), series[UNCERTAINTY].tolist(), strict=True))
    samples = []
    for atoms in read_trajectory(out):
        step = int(atoms.info["step"])
        if step == 0 or not np.isfinite(spread[step]):
            continue
        atoms.calc = None
        atoms.arrays.pop("momenta", None)
        for name in ("time_fs", "temperature_K"):
            del atoms.info[name]
        atoms.info.update(walker=walker, step=step, uncertainty_eV_A=spread[step])
        samples.append(Sample(atoms, spread[step], walker, step))
    return samples


def choose(
    samples: Sequence[Sample],
    known: Sequence[Fingerprint],
    settings: ActiveSettings,
    round_number: int,
) -> list[Sample]:
    """The frames to label, in order, and half as many more to take the place of failures.

    By uncertainty: the most uncertain first, none like another or like a labelled one
    (``selection.SEPARATION_A``); where there are not enough of those, the separation is halved.

    Args:
        samples: To choose from.
        known: Of the labelled frames.
        settings: Strategy and number.
        round_number: For the random draw.
    """
    wanted = settings.per_round
    count = wanted + -(-wanted // 2)
    if settings.strategy == "random":
        rng = np.random.default_rng(settings.seed_of(CHOICE, round_number))
        return [samples[int(index)] for index in rng.permutation(len(samples))[:count]]
    marks = [fingerprint(one.atoms) for one in samples]
    scores = [one.uncertainty for one in samples]
    separation = SEPARATION_A
    chosen = select_frames(scores, marks, count, separation, known=known)
    while len(chosen) < min(wanted, len(samples)) and separation > CLOSEST_A:
        separation /= 2
        chosen = select_frames(scores, marks, count, separation, known=known)
    return [samples[index] for index in chosen]
