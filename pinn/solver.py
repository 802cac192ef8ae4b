"""Training a network on a problem: window after window, stage after stage, each by the one trainer.

A run is a sequence of *fits*: for every window of time, for every round of refinement, for every
stage of optimisation. A fit is one :class:`~dcase.training.trainer.Trainer` in a folder of its own.
When it has ended its weights are kept there, so that a run that was stopped goes on in the fit that
it was in, and there exactly where it was.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase import checkpoint
from dcase.errors import CheckpointError
from dcase.objective import Objective
from dcase.pinn.fits import Fit, SolveOutcome, build_network, plan_fits
from dcase.pinn.identity import digest
from dcase.pinn.initial import GridState, InitialState
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings
from dcase.pinn.solution import Solution, Window
from dcase.pinn.task import PinnTask, term_names_of
from dcase.runs import fingerprint
from dcase.training.budget import Seconds
from dcase.training.progress import Progress
from dcase.training.settings import QUASI_NEWTON, TrainSettings
from dcase.training.trainer import Trainer

__all__ = ["Fit", "Fits", "SolveOutcome", "build_network", "plan_fits", "residual_size", "solve"]

Limits = tuple[float | None, float | None]  # wall and CPU seconds

FIT_VERSION = 2
STATE_POINTS = {1: 1024, 2: 128}  # of the grid that a window's end is kept on, by dimension


def solve(
    problem: PDEProblem,
    settings: PinnSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    joint: bool = False,
    on_fit: Callable[[Fit, Trainer], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> SolveOutcome:
    """Train a network on a problem.

    Args:
        problem: What to solve; its ``hard`` conditions as they are.
        settings: How.
        folder: Gets a folder ``fits``.
        resume: Go on with what is there; otherwise it is deleted.
        device: To train on.
        joint: See :class:`~dcase.pinn.task.PinnTask`.
        on_fit: Called as each fit begins.
        on_step: Called after every step.

    Raises:
        OptionError: If the settings do not suit the problem.
        DivergedError: If the loss becomes NaN or infinite.
        CheckpointError: If what is there to resume belongs to another run.
    """
    fits = Fits(problem, settings, folder, torch.device(device), joint=joint)
    return fits.go(resume, on_fit, on_step)


class Fits:
    """The fits of a run, and how far they have come; arguments as for :func:`solve`.

    Raises:
        OptionError: If the settings do not suit the problem.
    """

    def __init__(
        self,
        problem: PDEProblem,
        settings: PinnSettings,
        folder: str | Path,
        device: torch.device,
        *,
        joint: bool = False,
    ):
        settings.points.check_weights(term_names_of(problem))
        self.problem, self.settings, self.device = problem, settings, device
        self.joint = joint or settings.batch_norm
        self.folder = Path(folder) / "fits"
        self.fits = plan_fits(problem, settings)
        self.solution = Solution(problem.domain.coordinates, problem.equation.fields, [])
        self.elapsed, self.cpu, self.steps = 0.0, 0.0, 0
        self.terms: dict[str, float] = {}
        self.done: list[tuple[str, Path]] = []
        self.balanced: dict[str, float] | None = None  # weights that an earlier stage came to
        self.data = digest(problem)
        self.before = ""  # fingerprint of what the fit before ended with
        self.on_fit: Callable[[Fit, Trainer], None] | None = None
        self.on_step: Callable[[Progress], None] | None = None
        self.check: Callable[[], None] = _nothing

    def folders(self) -> list[tuple[str, Path]]:
        """Label and folder of every fit."""
        return [(fit.label, self.folder / fit.name) for fit in self.fits]

    def go(
        self,
        resume: bool,
        on_fit: Callable[[Fit, Trainer], None] | None = None,
        on_step: Callable[[Progress], None] | None = None,
        check: Callable[[], None] | None = None,
    ) -> SolveOutcome:
        """All fits; ``check`` is called before a file is written."""
        self.on_fit, self.on_step, self.check = on_fit, on_step, check or _nothing
        if not resume and self.folder.exists():
            shutil.rmtree(self.folder)
        status = "finished"
        state: InitialState | None = None
        for window, fits in self._by_window():
            problem = self.problem.starting_at(fits[0].start, fits[0].end, state)
            model = build_network(problem, self.settings, window).to(self.device)
            started = Seconds(self.elapsed, self.cpu)
            extra, refinement, self.balanced = None, 0, None
            for fit in fits:
                if fit.refinement != refinement:
                    refinement = fit.refinement
                    extra = self._worst_points(problem, model, extra, fit)
                task = self._task(problem, extra, fit)
                if fit is fits[0] and self.settings.init == "lsuv":
                    _scale_weights(model, task)
                status = self._one(fit, task, model, resume, self._limits_for(fit, started))
                if status == "interrupted":
                    return self._outcome(status)
            self._add_terms(task, model, (fits[0].end - fits[0].start) or 1.0)
            kept = state if isinstance(state, GridState) else None
            if kept is None and isinstance(problem.initial, GridState):
                kept = problem.initial
            self.solution.windows.append(Window(fits[0].start, fits[0].end, model, kept))
            if window + 1 < self.settings.windows:
                state = self.solution.state_at(fits[0].end, self._grid(), problem)
        return self._outcome(status)

    def _outcome(self, status: str) -> SolveOutcome:
        return SolveOutcome(
            self.solution, status, self.steps, self.elapsed, self.terms, self.done, cpu=self.cpu
        )

    def _by_window(self) -> Iterator[tuple[int, list[Fit]]]:
        for window in range(self.settings.windows):
            yield window, [fit for fit in self.fits if fit.window == window]

    def _task(self, problem: PDEProblem, extra: Tensor | None, fit: Fit) -> PinnTask:
        s = self.settings
        return PinnTask(
            problem,
            s.points,
            dtype=getattr(torch, s.dtype),
            device=self.device,
            seed=s.seed + 104_729 * fit.window,
            engine=s.engine,
            compile=s.compile,
            # A line search needs a loss that does not change under its feet.
            causal=0.0 if fit.stage.optimizer in QUASI_NEWTON else s.causal,
            joint=self.joint,
            extra=extra,
            weights=self.balanced,
        )

    def _limits_for(self, fit: Fit, started: Seconds) -> Limits:
        """Wall and CPU seconds that a fit may take: its share of what its window has left."""
        s = self.settings
        return (
            self._limit_for(fit, s.time_limit, started.wall, self.elapsed),
            self._limit_for(fit, s.cpu_limit, started.cpu, self.cpu),
        )

    def _limit_for(
        self, fit: Fit, limit: float | None, started: float, elapsed: float
    ) -> float | None:
        s = self.settings
        if limit is None:
            return None
        window_ends = started + (limit - started) / (s.windows - fit.window)
        left = max(window_ends - elapsed, 1e-3)
        if fit.stage.share is not None:
            return max(min(left, fit.stage.share * (window_ends - started)), 1e-3)
        if s.refine and fit.stage.steps is None:
            return left / (s.refine + 1 - fit.refinement)
        return left

    def _one(self, fit: Fit, task: PinnTask, model: nn.Module, resume: bool, limits: Limits) -> str:
        folder = self.folder / fit.name
        self.done.append((fit.label, folder))
        identity = self._identity(fit)
        trainer = None
        saved = self._saved(folder, identity) if resume else None
        if saved is None:
            steps = fit.stage.steps or self.settings.max_steps
            if fit.stage.share is not None and limits == (None, None):
                steps = max(1, round(fit.stage.share * self.settings.max_steps))
            self.check()
            trainer = Trainer(
                model,
                Objective(task, task.objective_terms()),
                task.batches(self._steps_per_epoch(fit)),
                None,
                self._train_settings(fit, steps, limits),
                folder,
                identity=identity,
                on_step=self.on_step,
            )
            if self.on_fit:
                self.on_fit(fit, trainer)
            result = trainer.fit(resume=resume)
            if result.status == "interrupted":
                self.elapsed += result.elapsed
                self.cpu += result.cpu
                self.steps += result.steps
                return result.status
            if trainer.balance:
                self.balanced = dict(trainer.term_weights)
            saved = {
                "identity": identity,
                "weights": {k: v.cpu() for k, v in model.state_dict().items()},
                "elapsed": result.elapsed,
                "cpu": result.cpu,
                "steps": result.steps,
                "status": result.status,
                "balanced": self.balanced,
            }
            self.check()
            checkpoint.save(folder / "done.pt", "pinn-fit", FIT_VERSION, saved)
        self._adopt(saved, folder, model)
        # The points of the last step, which a fit that was not made now has not seen.
        task.redraw(max(saved["steps"] - 1, 0) // self._steps_per_epoch(fit))
        return str(saved["status"])

    def _saved(self, folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
        """What a fit has ended with, if it has."""
        done = folder / "done.pt"
        if not done.exists():
            return None
        saved = checkpoint.load(done, "pinn-fit", FIT_VERSION)
        then = saved.get("identity") or {}
        for name, value in identity.items():
            if then.get(name) != value:
                what = f"{name} was {then.get(name)!r}, now {value!r}"
                if name in ("data", "start"):
                    what = f"it had another {'problem' if name == 'data' else 'start'}"
                raise CheckpointError(
                    f"{done}: cannot resume: {what}; use the same, or --overwrite to start again"
                )
        return saved

    def _adopt(self, saved: dict[str, Any], folder: Path, model: nn.Module) -> None:
        """Take the end of a fit, made now or before, for the start of the next."""
        try:
            model.load_state_dict(saved["weights"])
            self.balanced = saved["balanced"]
            self.elapsed += saved["elapsed"]
            self.cpu += saved.get("cpu", saved["elapsed"])  # an older dcase did not count them
            self.steps += saved["steps"]
            self.before = fingerprint(saved["weights"], self.balanced)
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{folder / 'done.pt'}: cannot resume: it does not fit this network ({reason})"
            ) from error
        (folder / "state.pt").unlink(missing_ok=True)  # a dense inverse Hessian is large

    def _steps_per_epoch(self, fit: Fit) -> int:
        """One where the optimiser builds on the step before, which it can within an epoch only."""
        newton = fit.stage.optimizer in QUASI_NEWTON
        return 1 if newton else self.settings.points.steps_per_epoch

    def _train_settings(self, fit: Fit, steps: int, limits: Limits) -> TrainSettings:
        s = self.settings
        newton, soap = fit.stage.optimizer in QUASI_NEWTON, fit.stage.optimizer == "soap"
        return TrainSettings(
            epochs=max(1, math.ceil(steps / self._steps_per_epoch(fit))),
            batch_size=1,
            optimizer=fit.stage.optimizer,
            lr=s.lr,
            # SOAP with Adam's own averages ended 40 times worse (docs/methods.md).
            beta1=0.95 if soap else 0.9,
            beta2=0.95 if soap else 0.999,
            schedule="constant" if newton else s.schedule,
            final_lr=s.final_lr,
            history=s.history,
            balance="none" if newton else s.balance,
            balance_every=s.balance_every,
            time_limit=limits[0],
            cpu_limit=limits[1],
            checkpoint_every=s.checkpoint_every,
            seed=s.seed,
        )

    def _identity(self, fit: Fit) -> dict[str, Any]:
        settings = self.settings.to_dict()
        for free in ("time_limit", "cpu_limit", "checkpoint_every"):
            settings.pop(free)
        return {
            "problem": self.problem.name,
            "equation": repr(self.problem.equation),
            "fit": fit.name,
            **{f"setting {name}": value for name, value in settings.items()},
            # The state that a window starts from, refined points and balanced weights follow from
            # the problem and from what the fit before ended with.
            "data": self.data,
            "start": self.before,
        }

    def _worst_points(
        self, problem: PDEProblem, model: nn.Module, extra: Tensor | None, fit: Fit
    ) -> Tensor:
        """Add the points with the largest residuals of ten times as many (RAR, 1907.04502)."""
        s = self.settings
        n = s.points.interior
        seed = s.seed + 15_485_863 * (fit.refinement + 1) + fit.window
        candidates = problem.domain.sample(10 * n, "sobol", seed)
        size = residual_size(problem, model, candidates, s)
        worst = candidates[torch.topk(size, max(1, n // 4)).indices.cpu()]
        return worst if extra is None else torch.cat([extra, worst])

    def _grid(self) -> dict[str, np.ndarray]:
        """The spatial grid on which the end of a window is kept."""
        initial, domain = self.problem.initial, self.problem.domain
        if isinstance(initial, GridState):
            return dict(initial.axes)
        n = STATE_POINTS.get(len(domain.space), 32)
        return {
            name: domain.low(name) + domain.length(name) * (np.arange(n) + 0.5) / n
            for name in domain.space
        }

    def _add_terms(self, task: PinnTask, model: nn.Module, length: float) -> None:
        """Mean squares of the residuals at the end of a window, without causal weights."""
        task.causal = 0.0
        with torch.no_grad():
            residuals = task.terms(model, task.batch(), training=False)
        total = length / (self.problem.domain.length("t") if self.settings.windows > 1 else length)
        for name, r in residuals.items():
            square = float(r.double().square().mean())
            self.terms[name] = self.terms.get(name, 0.0) + total * square


def _nothing() -> None:
    pass


def _scale_weights(model: nn.Module, task: PinnTask) -> None:
    """Give every layer unit pre-activations at the collocation points."""
    points = task.batch().interior
    model.body.scale_on(lambda: model(points))  # type: ignore[union-attr, operator]


def residual_size(
    problem: PDEProblem, model: nn.Module, points: Tensor, settings: PinnSettings
) -> Tensor:
    """Root of the weighted sum of squared residuals of the equation at points [n, d]: [n]."""
    task = PinnTask(problem, settings.points, engine=settings.engine)
    weights = task.term_weights()
    like = next(model.parameters())
    parts = []
    with torch.no_grad():
        for chunk in points.split(8192):
            found = task.residuals_at(model, chunk.to(like))
            parts.append(sum(weights[n] * r * r for n, r in found.items()))
    return torch.cat(parts).sqrt()  # type: ignore[arg-type]
