"""Learning rate as a function of progress."""

from __future__ import annotations

import math

from dcase.training.settings import TrainSettings

LONGEST_WARMUP = 0.1
"""Share of a run after which a warm-up is over, however many steps it asks for."""


class Schedule:
    """The learning rate of each step.

    Args:
        settings: Names the schedule.
    """

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.factor = 1.0
        self.best = math.inf
        self.waited = 0

    def lr(self, step: int, progress: float) -> float:
        """Learning rate of step ``step`` (from 0).

        Args:
            step: Steps done, for the warm-up.
            progress: Share of the run that is done, in [0, 1].
        """
        s = self.settings
        progress = min(max(progress, 0.0), 1.0)
        if s.schedule == "cosine":
            factor = s.final_lr + (1 - s.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        elif s.schedule == "exponential":
            factor = s.final_lr**progress
        else:
            factor = self.factor
        if step < s.warmup_steps:
            # A run that is over before the warm-up is would learn nothing.
            factor *= min(1.0, max((step + 1) / s.warmup_steps, progress / LONGEST_WARMUP))
        return s.lr * factor

    def validated(self, loss: float) -> None:
        """Tell the schedule a validation loss."""
        if self.settings.schedule != "plateau":
            return
        if loss < self.best:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.settings.patience:
            self.waited = 0
            self.factor = max(self.factor * self.settings.decay, self.settings.final_lr)

    def state(self) -> dict[str, float]:
        """For a training state."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state`."""
        self.factor, self.best = float(state["factor"]), float(state["best"])
        self.waited = int(state["waited"])
