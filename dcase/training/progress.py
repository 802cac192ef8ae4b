"""What a trainer tells about a run, while it goes on and when it has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from dcase.training.settings import TrainSettings
from dcase.training.state import TrainState


@dataclass
class Progress:
    """What a progress display needs; passed after every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    elapsed: float
    steps_per_second: float
    remaining: float
    lr: float
    loss: float
    validation: dict[str, float] = field(default_factory=dict)


class Pace:
    """How fast a sitting goes.

    Args:
        step: Steps done before it.
    """

    def __init__(self, step: int):
        self._since, self._at = time.monotonic(), step

    def progress(
        self, state: TrainState, settings: TrainSettings, steps_per_epoch: int, lr: float
    ) -> Progress:
        """For a display, after a step."""
        rate = (state.step - self._at) / max(time.monotonic() - self._since, 1e-9)
        steps = settings.epochs * steps_per_epoch
        remaining = (steps - state.step) / max(rate, 1e-9)
        if settings.time_limit:
            remaining = min(remaining, max(settings.time_limit - state.elapsed, 0.0))
        return Progress(
            epoch=state.epoch + 1,
            epochs=settings.epochs,
            step=state.step,
            steps=steps,
            elapsed=state.elapsed,
            steps_per_second=rate,
            remaining=remaining,
            lr=lr,
            loss=state.losses["loss"],
            validation=state.last_validation,
        )


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: ``"finished"``, ``"time limit"``, ``"early stopping"``, ``"converged"`` (the
            loss is below its target, or a quasi-Newton method finds no lower one) or
            ``"interrupted"``.
        epochs: Epochs completed.
        steps: Optimiser steps done.
        elapsed: Seconds spent training, over all sittings.
        best: Validation metrics of the weights that the model now has, and their epoch (with a
            fraction if a limit came within an epoch).
        losses: Training loss of the last batch and, by name, of its terms: before the last step, or
            after it with a quasi-Newton method.
    """

    status: str
    epochs: int
    steps: int
    elapsed: float
    best: dict[str, float]
    losses: dict[str, float] = field(default_factory=dict)
