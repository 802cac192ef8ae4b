"""Training a network of modes, one short window of time after another.

Each window is one :class:`~dcase.training.trainer.Trainer`, as everywhere; its start is the end of
the window before. Windows that are done are kept together in one file from time to time, and a run
that was stopped goes on with the first that is not; as a window is a function of its start and the
seed, it then comes to the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError, OptionError
from dcase.objective import Objective, Term
from dcase.pinn.derivatives.names import trace
from dcase.pinn.equations import ModeHints, residual_names
from dcase.pinn.fits import Fit, SolveOutcome
from dcase.pinn.identity import digest
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings, Stage, parse_stages
from dcase.pinn.solution import Solution, Window
from dcase.pinn.spectral import SpectralNetwork
from dcase.pinn.windows import (
    Step,
    build_window,
    mode_kinds,
    parse_march,
    read_window,
    start_coefficients,
    with_count,
)
from dcase.training.budget import Seconds, now
from dcase.training.logs import MetricsLog
from dcase.training.progress import Progress
from dcase.training.settings import TrainSettings
from dcase.training.trainer import Trainer

__all__ = [
    "March",
    "ModeTask",
    "build_window",
    "march",
    "mode_kinds",
    "parse_march",
    "read_window",
    "start_coefficients",
    "with_count",
]

MARCH_VERSION = 1


class ModeTask:
    """The projected residuals of a window, as the core's ``Problem`` and samples.

    Args:
        problem: On the window.
        hints: Sizes of the residuals.
    """

    def __init__(self, problem: PDEProblem, hints: ModeHints):
        self.problem, self.equation = problem, problem.equation
        self.asked = trace(self.equation)
        self.hints = hints

    @property
    def display(self) -> dict[str, tuple[float, str]]:
        """Residuals are in the equation's own units."""
        return dict.fromkeys(self.names, (1.0, ""))

    @property
    def names(self) -> list[str]:
        """Names of the terms."""
        return residual_names(self.equation)

    term_names = names

    def terms(self, model: nn.Module, batch: Any, training: bool) -> dict[str, Tensor]:
        """Each residual on the modes, [times * modes]."""
        assert isinstance(model, SpectralNetwork)
        d = model.grid_derivatives(self.asked)
        return {name: model.project(r) for name, r in self.equation.residuals(d).items()}

    def objective_terms(self) -> dict[str, Term]:
        """Weights that put all residuals into units of their typical size."""
        sizes = self.hints.residuals
        return {name: Term(weight=1.0 / sizes.get(name, 1.0) ** 2) for name in self.names}

    def describe(self) -> str:
        """For messages."""
        return "modes on a grid"

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor | None = None) -> ModeTask:
        """The one sample there is; the network knows its collocation points."""
        return self


def march(
    problem: PDEProblem,
    settings: PinnSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    on_fit: Callable[[Fit, Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> SolveOutcome:
    """Train a network of modes on a problem; arguments as for :func:`dcase.pinn.solver.solve`."""
    run = March(problem, settings, folder, torch.device(device))
    return run.go(resume, on_fit, on_step)


class March:
    """The windows of a run, and how far they have come; arguments as for :func:`march`.

    Raises:
        OptionError: If the settings do not suit the problem.
    """

    def __init__(
        self, problem: PDEProblem, settings: PinnSettings, folder: str | Path, device: torch.device
    ):
        self.problem, self.settings, self.device = problem, settings, device
        self.folder = Path(folder) / "fits"
        self.kinds = mode_kinds(problem)
        if not settings.march:
            raise OptionError("a network of modes needs march: UNTIL:LENGTH:MODES,...")
        self.steps = parse_march(settings.march, problem.domain)
        stages = parse_stages(settings.optimizer)
        if len(stages) != 1 or stages[0].share is not None:
            raise OptionError(
                f"a network of modes takes one optimizer, such as lbfgs:40, not "
                f"{settings.optimizer!r}; a coordinate network (--network mlp) takes several"
            )
        self.stage: Stage = stages[0]
        self.solution = Solution(problem.domain.coordinates, problem.equation.fields, [])
        self.terms: dict[str, float] = {}
        self.count, self.status = 0, "finished"
        self.spent = Seconds()
        self.data = digest(problem)
        self.check: Callable[[], None] = _nothing

    def folders(self) -> list[tuple[str, Path]]:
        """The one label and folder of all windows."""
        return [(f"{len(self.steps)} windows, {self.stage.optimizer}", self.folder / "march")]

    def go(
        self,
        resume: bool,
        on_fit: Callable[[Fit, Trainer], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> SolveOutcome:
        """All windows; ``check`` is called before a file is written."""
        self.check = check or _nothing
        c = start_coefficients(self.problem, self.kinds, self.steps[0].modes)
        names = ["loss", *ModeTask(self.problem, ModeHints()).names]
        columns = ["epoch", "step", "elapsed_s", "lr", *(f"train_{n}" for n in names)]
        log = MetricsLog(self.folder / "march", columns)
        first = 0
        if resume and self._file.exists():
            c, first = self._read(c)
            log.cut_after(first)
        else:
            self._file.unlink(missing_ok=True)  # of another run
            log.start()
        self._saved = time.monotonic()
        self._started = now() - self.spent
        for number, step in enumerate(self.steps[first:], first):
            window = self.problem.starting_at(step.start, step.end, None)
            c = with_count(c, self.kinds, step.modes)
            model, hints = build_window(window, self.settings, c, self.kinds)
            model = model.to(self.device)
            task = ModeTask(window, hints)
            self.check()
            trainer = Trainer(
                model,
                Objective(task, task.objective_terms()),
                task,  # type: ignore[arg-type]
                None,
                self._train_settings(len(self.steps) - number),
                self.folder / "window",
                on_step=on_step,
            )
            if on_fit:
                on_fit(
                    Fit(number, number, 0, self.stage, step.start, step.end, len(self.steps)),
                    trainer,
                )
            result = trainer.fit()
            self.spent = now() - self._started
            if result.status == "time limit":
                self.status = "time limit"
            if result.status == "interrupted":
                self._save()  # without this window: it is made again, all of it
                return replace(self._outcome("interrupted"), steps=self.count + result.steps)
            self.count += result.steps
            self._account(task, model, step)
            log.write(
                {
                    "epoch": number + 1,
                    "step": self.count,
                    "elapsed_s": self.spent.wall,
                    "lr": 0.0,
                    **{f"train_{n}": v for n, v in trainer.losses.items()},
                }
            )
            self.solution.windows.append(Window(step.start, step.end, model))
            c = model.end().cpu().double()
            if time.monotonic() - self._saved > self.settings.checkpoint_every:
                self._save()
        self._save()
        return self._outcome(self.status)

    def _account(self, task: ModeTask, model: SpectralNetwork, step: Step) -> None:
        with torch.no_grad():
            residuals = task.terms(model, None, training=False)
        share = (step.end - step.start) / self.problem.domain.length("t")
        for name, r in residuals.items():
            square = float(r.double().square().mean())
            self.terms[name] = self.terms.get(name, 0.0) + share * square

    def _outcome(self, status: str) -> SolveOutcome:
        fits = self.folders()
        wall, cpu = self.spent.pair()
        return SolveOutcome(self.solution, status, self.count, wall, self.terms, fits, cpu=cpu)

    def _train_settings(self, windows_left: int) -> TrainSettings:
        """Of a window, which gets an equal share of the time that is left, if time is limited."""
        s = self.settings
        spent = (now() - self._started).pair()
        time_limit, cpu_limit = (
            None if limit is None else max((limit - seconds) / windows_left, 1e-6)
            for limit, seconds in zip((s.time_limit, s.cpu_limit), spent, strict=True)
        )
        return TrainSettings(
            epochs=self.stage.steps or 40,
            batch_size=1,
            optimizer=self.stage.optimizer,
            lr=s.lr,
            schedule="constant",
            history=min(s.history, 20),
            target_loss=s.target,
            time_limit=time_limit,
            cpu_limit=cpu_limit,
            validate_every=10**6,
            checkpoint_every=1e9,  # windows are short; they are kept when done
            seed=s.seed,
        )

    # ------------------------------------------------------------------ coming back

    @property
    def _file(self) -> Path:
        return self.folder / "march.pt"

    def _identity(self) -> dict[str, Any]:
        settings = self.settings.to_dict()
        for free in ("time_limit", "cpu_limit", "checkpoint_every"):
            settings.pop(free)
        return {
            "equation": repr(self.problem.equation),
            "data": self.data,
            "settings": settings,
        }

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.check()
        checkpoint.save(
            self._file,
            "pinn-march",
            MARCH_VERSION,
            {
                "identity": self._identity(),
                "windows": [w.model.essentials() for w in self.solution.windows],  # type: ignore[operator]
                "terms": self.terms,
                "count": self.count,
                "status": self.status,
                "elapsed": self.spent.wall,
                "cpu": self.spent.cpu,
            },
        )

    def _read(self, c: Tensor) -> tuple[Tensor, int]:
        saved = checkpoint.load(self._file, "pinn-march", MARCH_VERSION)
        if saved.get("identity") != self._identity():
            raise CheckpointError(
                f"{self._file}: cannot resume: it was trained with other settings or data; use the "
                "same, or --overwrite to start again"
            )
        try:
            for content, step in zip(saved["windows"], self.steps, strict=False):
                window = self.problem.starting_at(step.start, step.end, None)
                model = read_window(content, window, self.settings, self.kinds)
                self.solution.windows.append(Window(step.start, step.end, model.to(self.device)))
            self.terms = dict(saved["terms"])
            self.count = saved["count"]
            # An older dcase did not count CPU seconds.
            self.spent = Seconds(saved["elapsed"], saved.get("cpu", saved["elapsed"]))
            self.status = saved["status"]
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self._file}: damaged ({reason})") from error
        done = len(self.solution.windows)
        if done:
            last = self.solution.windows[-1].model
            assert isinstance(last, SpectralNetwork)
            c = last.end().cpu().double()
        return c, done


def _nothing() -> None:
    pass
