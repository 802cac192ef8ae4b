"""A run as a folder: settings, trained solution, metrics and pictures.

==================  ================================================================================
file                what
==================  ================================================================================
``run.json``        task, file and sample, and all settings
``model.pt``        the trained solution (see :mod:`dcase.pinn.solution`)
``metrics.json``    errors by field, those of trivial predictors, last values of the loss terms
``*.png``           pictures
``fits/``           logs of every fit, and what a resume needs
==================  ================================================================================
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dcase.errors import DataError, OptionError
from dcase.files import write_json
from dcase.pinn import plots
from dcase.pinn.initial import GridState, InitialState
from dcase.pinn.march import march, mode_kinds, read_window
from dcase.pinn.metrics import evaluate
from dcase.pinn.paper import paper_problem, paper_settings
from dcase.pinn.problem import PDEProblem, problem_of
from dcase.pinn.recipes import default_settings
from dcase.pinn.sample import Sample
from dcase.pinn.settings import PinnSettings, from_dict
from dcase.pinn.solution import Solution, read_solution, save_solution
from dcase.pinn.solver import Fit, Outcome, build_network, plan_fits, solve
from dcase.pinn.zoo import PROBLEMS
from dcase.training.logs import read_metrics
from dcase.training.progress import Progress
from dcase.training.trainer import Trainer

PDEBENCH = ("advection", "cfd", "diffusion-reaction")


@dataclass(frozen=True)
class Source:
    """Where a problem comes from.

    Attributes:
        task: One of PDEBench's, a ready problem, or a Python file with ``problem``.
        file: HDF5 file of a PDEBench task.
        sample: Of the file; negative counts from the end.
        paper: The problem as PDEBench's baseline has it.
    """

    task: str
    file: str | None = None
    sample: int = 0
    paper: bool = False

    def problem(self) -> PDEProblem:
        """Read or build it.

        Raises:
            OptionError: For an unknown task, a missing file, or a Python file without ``problem``.
            DataError: If the file cannot be read.
        """
        if self.task in PDEBENCH:
            if not self.file:
                raise OptionError(
                    f"{self.task} needs --file: PDEBench's HDF5 file, or one made by "
                    f"`dcase pinn data {self.task} --samples 1 --out FILE`"
                )
            from dcase.pinn.pdebench.reading import read_sample

            sample = read_sample(self.file, self.sample, self.task)
            return paper_problem(sample) if self.paper else problem_of(sample)
        if self.paper:
            raise OptionError(f"--paper is for PDEBench's tasks ({', '.join(PDEBENCH)})")
        if self.file:
            raise OptionError(f"--file is for PDEBench's tasks ({', '.join(PDEBENCH)})")
        if self.task in PROBLEMS:
            return PROBLEMS[self.task]()
        if self.task.endswith(".py"):
            return problem_from_file(Path(self.task))
        raise OptionError(
            f"unknown equation {self.task!r}; choose from {', '.join([*PDEBENCH, *PROBLEMS])}, "
            "or give a Python file that defines `problem`"
        )

    def settings(self, problem: PDEProblem, network: str | None = None) -> PinnSettings:
        """Where nothing else is asked for; ``network`` if it matters."""
        return paper_settings(self.task) if self.paper else default_settings(problem, network)


def problem_from_file(path: Path) -> PDEProblem:
    """The ``problem`` (or ``problem()``) that a user's Python file defines.

    Raises:
        OptionError: If there is no such file, it fails, or defines none.
    """
    if not path.is_file():
        raise OptionError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("dcase_user_problem", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        problem = getattr(module, "problem", None)
        if callable(problem):
            problem = problem()
    except (DataError, OptionError):
        raise
    except Exception as error:
        raise OptionError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(problem, PDEProblem):
        raise OptionError(f"{path} must define `problem`, a dcase.pinn.PDEProblem or a function")
    return problem


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
) -> tuple[dict[str, Any], Outcome]:
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
        The content of ``metrics.json`` (empty if interrupted), and how training ended.

    Raises:
        OptionError: If the folder holds a run and neither ``resume`` nor ``overwrite`` is given, or
            there is nothing to resume.
    """
    folder = Path(out)
    if problem is None:
        problem = source.problem()
    problem = prepared(problem, settings)
    _prepare(folder, source, settings, resume, overwrite)
    options: dict[str, Any] = {
        "resume": resume,
        "device": device,
        "on_fit": on_fit,
        "on_step": on_step,
    }
    if settings.network == "modes":
        outcome = march(problem, settings, folder, **options)
    else:
        outcome = solve(problem, settings, folder, joint=source.paper, **options)
    if outcome.status == "interrupted":
        return {}, outcome
    description = {"settings": settings.to_dict(), "source": vars(source)}
    save_solution(folder / "model.pt", outcome.solution, description)
    metrics = _measure(problem, outcome.solution, paper=source.paper)
    metrics = {
        **metrics,
        "terms": outcome.terms,
        "status": outcome.status,
        "steps": outcome.steps,
        "elapsed_s": outcome.elapsed,
        "parameters": sum(p.numel() for p in outcome.solution.windows[0].model.parameters()),
        "settings": settings.to_dict(),
    }
    write_json(folder / "metrics.json", metrics)
    if pictures:
        draw(folder, problem, outcome.solution, outcome.fits)
    return metrics, outcome


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


def _prepare(
    folder: Path, source: Source, settings: PinnSettings, resume: bool, overwrite: bool
) -> None:
    record = folder / "run.json"
    if resume:
        if not record.exists():
            raise OptionError(f"nothing to resume: there is no run in {folder}")
        then = json.loads(record.read_text(encoding="utf-8"))["source"]
        now = vars(source)
        for key in now:
            if key != "file" and then.get(key) != now[key]:
                raise OptionError(
                    f"cannot resume: {key} was {then.get(key)!r}, now {now[key]!r}; use the same, "
                    "or --overwrite to start again"
                )
    elif folder.exists() and any(folder.iterdir()) and not overwrite:
        raise OptionError(f"{folder} is not empty; give --overwrite, --resume or another --out")
    if overwrite and folder.exists():
        for name in ("model.pt", "metrics.json"):  # an old result must not outlive its run
            (folder / name).unlink(missing_ok=True)
    write_json(record, {"source": vars(source), "settings": settings.to_dict()})


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


def read_record(folder: str | Path) -> tuple[Source, PinnSettings]:
    """Origin and settings of a run.

    Raises:
        DataError: If the folder holds no run.
    """
    record = Path(folder) / "run.json"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Source(**content["source"]), from_dict(content["settings"])
    except FileNotFoundError:
        raise DataError(f"{folder}: no run of `dcase pinn train` (there is no run.json)") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{record}: damaged, or not of `dcase pinn train` ({error})") from error


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
    return SavedRun(folder, source, settings, problem, solution)


def reference_of(saved: SavedRun) -> Sample:
    """The reference solution of a run's problem.

    Raises:
        DataError: If there is none.
    """
    sample = saved.problem.sample()
    if sample is None:
        raise DataError(f"{saved.problem.name} has no reference solution to compare with")
    return sample
