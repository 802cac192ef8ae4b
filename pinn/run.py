"""A run as a folder: settings, trained solution, metrics and pictures.

==================  ================================================================================
file                what
==================  ================================================================================
``run.json``        the record (:mod:`dcase.runs`): task, file, sample, settings, state of the run
``model.pt``        the trained solution (see :mod:`dcase.pinn.solution`)
``metrics.json``    errors by field, those of trivial predictors, last values of the loss terms
``*.png``           pictures
``fits/``           logs of every fit, and what a resume needs
==================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcase.errors import (
    CheckpointError,
    DataError,
    DcaseError,
    DivergedError,
    OptionError,
    RunError,
)
from dcase.files import write_json
from dcase.pinn import plots
from dcase.pinn.fits import Fit, SolveOutcome, build_network, plan_fits
from dcase.pinn.initial import GridState, InitialState
from dcase.pinn.march import March
from dcase.pinn.metrics import evaluate
from dcase.pinn.problem import PDEProblem
from dcase.pinn.sample import Sample
from dcase.pinn.settings import PinnSettings
from dcase.pinn.solution import Solution, read_solution, save_solution
from dcase.pinn.solver import Fits
from dcase.pinn.source import (
    PDEBENCH,
    Source,
    finished_metrics,
    identity_of,
    place_of,
    problem_from_file,
    read_record,
)
from dcase.pinn.windows import mode_kinds, read_window
from dcase.runs import INTERRUPTED, Run, claim
from dcase.training.logs import read_metrics
from dcase.training.progress import Progress
from dcase.training.trainer import Trainer

__all__ = [
    "PDEBENCH",
    "SavedRun",
    "Source",
    "draw",
    "prepared",
    "problem_from_file",
    "read_record",
    "read_run",
    "reference_of",
    "train",
]

# ------------------------------------------------------------------------------------------------
# Training


def train(
    source: Source,
    settings: PinnSettings,
    out: str | Path,
    *,
    problem: PDEProblem | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    pictures: bool = True,
    on_fit: Callable[[Fit, Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, Any], SolveOutcome]:
    """Train, evaluate and draw; the result is in the folder.

    Args:
        source: The problem's origin, for the record.
        settings: See :class:`~dcase.pinn.settings.PinnSettings`.
        out: The run's folder.
        problem: The problem, if it is at hand already.
        resume: Go on with a run that was stopped.
        overwrite: Replace a run that is there.
        device: To train on.
        pictures: Draw.
        on_fit: Called as each fit begins.
        on_step: Called after every step.

    Returns:
        The content of ``metrics.json`` (empty if interrupted), and how training ended. A run that
        was finished before is left as it is, and gives what it gave.

    Raises:
        RunError: See :func:`dcase.runs.claim`; the folder then is as it was.
        OptionError: If the settings do not suit the problem.
        DivergedError: If the loss becomes NaN or infinite.
    """
    if problem is None:
        problem = source.problem()
    identity = identity_of(source, problem, settings)
    problem = prepared(problem, settings)
    place = place_of(out)
    where = torch.device(device)
    fits: March | Fits  # made first: what the settings cannot do is said before anything is written
    if settings.network == "modes":
        fits = March(problem, settings, place.folder, where)
    else:
        fits = Fits(problem, settings, place.folder, where, joint=source.paper)

    before: dict[str, Any] = {}

    def longer(record: dict[str, Any]) -> None:
        """What is finished has given its state away and cannot go on."""
        before.update(record)
        for name in ("time_limit", "cpu_limit"):
            then = record["identity"]["settings"].get(name)
            if finished_metrics(place.folder, record) and then != getattr(settings, name):
                raise RunError(
                    f"cannot resume {place.folder}: it is finished ({name} was {then}); "
                    "--overwrite starts again"
                )

    with claim(place, identity, resume=resume, overwrite=overwrite, check=longer) as run:
        kept = _kept(place.folder, before, problem, settings, fits)
        if kept is not None:
            run.finish()
            return kept
        try:
            outcome = fits.go(resume, on_fit, _watched(run, on_step), lambda: run.check(now=True))
        except DivergedError as error:
            run.note(diverged=str(error))
            raise
        except DcaseError:
            run.check(now=True)  # a folder that went away says more than a file that is missing
            raise
        if outcome.status == "interrupted":
            run.finish(INTERRUPTED)
            return {}, outcome
        metrics = _write(run, source, settings, problem, outcome)
        if pictures:
            run.check(now=True)
            draw(place.folder, problem, outcome.solution, outcome.fits)
    return metrics, outcome


def _watched(run: Run, on_step: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    """Stop in the step in which the folder went away, before the trainer would make it anew."""

    def step(progress: Progress) -> None:
        run.check(now=True)
        if on_step:
            on_step(progress)

    return step


def _kept(
    folder: Path,
    record: dict[str, Any],
    problem: PDEProblem,
    settings: PinnSettings,
    fits: March | Fits,
) -> tuple[dict[str, Any], SolveOutcome] | None:
    """What a finished run gave; None where there is more to do."""
    metrics = finished_metrics(folder, record)
    if metrics is None:
        return None
    try:
        solution = _read_solution(folder, problem, settings)
        outcome = SolveOutcome(
            solution, metrics["status"], metrics["steps"], metrics["elapsed_s"], metrics["terms"],
            fits.folders(), was_finished=True, cpu=metrics.get("cpu_s", 0.0),
        )  # fmt: skip
    except (CheckpointError, KeyError):  # lost or damaged: made again of the fits
        return None
    return metrics, outcome


def _write(
    run: Run, source: Source, settings: PinnSettings, problem: PDEProblem, outcome: SolveOutcome
) -> dict[str, Any]:
    """``model.pt`` and ``metrics.json``."""
    description = {"settings": settings.to_dict(), "source": vars(source)}
    run.check(now=True)
    save_solution(run.folder / "model.pt", outcome.solution, description)
    metrics = {
        **_measure(problem, outcome.solution, paper=source.paper),
        "terms": outcome.terms,
        "status": outcome.status,
        "steps": outcome.steps,
        "elapsed_s": outcome.elapsed,
        "cpu_s": outcome.cpu,
        "parameters": sum(p.numel() for p in outcome.solution.windows[0].model.parameters()),
        "settings": settings.to_dict(),
    }
    run.check(now=True)
    write_json(run.folder / "metrics.json", metrics)
    return metrics


def prepared(problem: PDEProblem, settings: PinnSettings) -> PDEProblem:
    """The problem as the settings want it: conditions hard, initial state smooth, viscosity.

    Raises:
        OptionError: If viscosity is asked for and the equation takes none.
    """
    problem = problem.hardened(settings.hard_kinds())
    if settings.smooth:
        problem = problem.smoothed(settings.smooth)
    if settings.viscosity:
        if not hasattr(problem.equation, "viscosity"):
            raise OptionError(f"{problem.name} takes no artificial viscosity")
        equation = replace(problem.equation, viscosity=settings.viscosity)
        problem = replace(problem, equation=equation)
    return problem


def _measure(problem: PDEProblem, solution: Solution, *, paper: bool = False) -> dict[str, Any]:
    """Errors against the reference, if there is one."""
    what = {"task": problem.name, "equation": repr(problem.equation)}
    sample = problem.sample()
    if sample is None:
        note = "the problem has no reference solution"
        return {**what, "fields": {}, "baselines": {}, "note": note}
    prediction = solution.on_grid(sample.axes)
    return {
        **what,
        "sample": sample.source,
        "warnings": list(sample.warnings),
        **evaluate(prediction, sample, paper=paper),
    }


def draw(
    folder: Path, problem: PDEProblem, solution: Solution, fits: list[tuple[str, Path]]
) -> list[str]:
    """Write the pictures of a run; returns their names."""
    histories = [(label, read_metrics(path / "metrics.csv")) for label, path in fits]
    sample = problem.sample()
    prediction = None if sample is None else solution.on_grid(sample.axes)
    return plots.write_all(folder, sample=sample, prediction=prediction, histories=histories)


# ------------------------------------------------------------------------------------------------
# Coming back to a run


@dataclass(frozen=True)
class SavedRun:
    """A finished run, read from its folder.

    Attributes:
        folder: Where it is.
        source: Where its problem came from.
        settings: How it was trained.
        problem: The problem.
        solution: The trained networks.
    """

    folder: Path
    source: Source
    settings: PinnSettings
    problem: PDEProblem
    solution: Solution

    def metrics(self) -> dict[str, Any]:
        """Errors against the reference, worked out anew."""
        return _measure(self.problem, self.solution, paper=self.source.paper)

    def pictures(self) -> list[str]:
        """Draw anew; returns the names of the files."""
        if self.settings.network == "modes":
            fits = [(f"{len(self.solution.windows)} windows", self.folder / "fits" / "march")]
        else:
            folder = self.folder / "fits"
            fits = [
                (fit.label, folder / fit.name) for fit in plan_fits(self.problem, self.settings)
            ]
        return draw(self.folder, self.problem, self.solution, fits)


def read_run(folder: str | Path, *, file: str | None = None, sample: int | None = None) -> SavedRun:
    """Read a run.

    Args:
        folder: Of the run.
        file: Where the data file is now, if it has moved.
        sample: Another sample to compare with (rarely sensible: the initial state is trained in).

    Raises:
        DataError: If the folder holds no run.
        CheckpointError: If the networks are missing or damaged.
    """
    folder = Path(folder)
    source, settings = read_record(folder)
    if file is not None:
        source = replace(source, file=file)
    if sample is not None:
        source = replace(source, sample=sample)
    problem = prepared(source.problem(), settings)

    solution = _read_solution(folder, problem, settings)
    return SavedRun(folder, source, settings, problem, solution)


def _read_solution(folder: Path, problem: PDEProblem, settings: PinnSettings) -> Solution:
    """``model.pt``."""
    kinds = mode_kinds(problem) if settings.network == "modes" else []

    def build(
        weights: dict[str, Any], start: float, end: float, state: GridState | None
    ) -> torch.nn.Module:
        begun: InitialState | None = state
        window = problem.starting_at(start, end, begun)
        if kinds:
            return read_window(weights, window, settings, kinds)
        model = build_network(window, settings)
        model.load_state_dict(weights)
        return model

    solution, _ = read_solution(folder / "model.pt", build)
    return solution


def reference_of(saved: SavedRun) -> Sample:
    """The reference solution of a run's problem.

    Raises:
        DataError: If there is none.
    """
    sample = saved.problem.sample()
    if sample is None:
        raise DataError(f"{saved.problem.name} has no reference solution to compare with")
    return sample
