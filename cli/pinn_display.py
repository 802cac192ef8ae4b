"""Progress of a PINN's fits: what begins, and a live line of how it goes."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from dcase.cli.progress import TrainingDisplay, duration, rate
from dcase.pinn.solver import Fit
from dcase.training.trainer import Progress

MANY = 5  # windows, above which they are shown as one piece of work


class StepDisplay(TrainingDisplay):
    """Steps rather than epochs: a PINN sees all its points in each."""

    label = "budget   "

    def line(self, p: Progress) -> str:
        """One line."""
        return (
            f"step {p.step}/{p.steps} | {rate(p.steps_per_second)} | "
            f"{duration(p.elapsed)} done, {duration(p.remaining)} to go | loss {p.loss:.3g}"
        )


class FitDisplay:
    """Shows the fits of a run, one after another.

    Args:
        console: Where.
        quiet: Show nothing.
        brief: Leave out the description of the problem.
    """

    def __init__(self, console: Console, *, quiet: bool = False, brief: bool = False):
        self.console, self.quiet, self.described = console, quiet, brief
        self.display: StepDisplay | None = None
        self.window = -1
        self.started = self.due = time.monotonic()
        self.loss = float("nan")

    def begin(self, fit: Fit, trainer: Any) -> None:
        """Say what begins."""
        self.end()
        if self.quiet:
            return
        if not self.described:
            self.described = True
            self._describe(trainer)
        if fit.windows > MANY:
            self._window(fit)
            return
        if fit.windows > 1 and fit.window != self.window:
            self.window = fit.window
            self.console.print(
                f"window   {fit.window + 1}/{fit.windows}, t = {fit.start:.4g} to {fit.end:.4g}",
                markup=False,
            )
        self.console.print(f"stage    {fit.stage.optimizer}", markup=False)
        self.display = StepDisplay(self.console, {}, quiet=self.quiet)
        self.display.__enter__()

    def _window(self, fit: Fit) -> None:
        """A line now and then; many short windows are one piece of work."""
        now = time.monotonic()
        if fit.window == 0:
            self.started, self.due = now, now + 5.0
        if now < self.due:
            return
        self.due = now + 10.0
        share = fit.window / fit.windows
        left = (now - self.started) * (1.0 - share) / max(share, 1e-9)
        self.console.print(
            f"window {fit.window + 1}/{fit.windows}, t = {fit.start:.4g} | "
            f"{duration(now - self.started)} done, {duration(left)} to go | loss {self.loss:.3g}",
            markup=False,
        )

    def _describe(self, trainer: Any) -> None:
        task = trainer.objective.problem
        hard = ", ".join(c.kind for c in task.problem.conditions if c.hard)
        weights = sum(p.numel() for p in trainer.parameters)
        self.console.print(
            f"problem  {task.problem.name}: {task.equation}\n"
            f"terms    {', '.join(task.term_names)}; exact by construction: {hard or 'none'}\n"
            f"network  {weights} weights, {trainer.parameters[0].dtype}; "
            f"{task.describe()}".replace("torch.", ""),
            markup=False,
        )

    def step(self, progress: Progress) -> None:
        """Show it."""
        self.loss = progress.loss
        if self.display:
            self.display(progress)

    def end(self) -> None:
        """Close the line."""
        if self.display:
            self.display.__exit__(None, None, None)
            self.display = None
