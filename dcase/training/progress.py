"""What a trainer tells about a run, while it goes on and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from dcase.training.budget import Forecast, Seconds
from dcase.training.settings import TrainSettings
from dcase.training.state import TrainState


@dataclass
class Progress:
    """What a progress display needs; passed after every step.

    ``forecast`` is there once a sitting, where there is a limit of time: what it buys.
    """

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
    cpu: float = 0.0
    forecast: Forecast | None = None


class Pace:
    """How fast a sitting goes.

    Args:
        state: Where it begins.
    """

    def __init__(self, state: TrainState):
        self._since, self._at = Seconds(state.elapsed, state.cpu), state.step

    def progress(
        self,
        state: TrainState,
        settings: TrainSettings,
        steps_per_epoch: int,
        lr: float,
        forecast: Forecast | None = None,
    ) -> Progress:
        """For a display, after a step."""
        spent = Seconds(state.elapsed, state.cpu) - self._since
        rate = (state.step - self._at) / max(spent.wall, 1e-9)
        steps = settings.epochs * steps_per_epoch
        remaining = (steps - state.step) / max(rate, 1e-9)
        if settings.time_limit:
            remaining = min(remaining, max(settings.time_limit - state.elapsed, 0.0))
        if settings.cpu_limit:
            left = max(settings.cpu_limit - state.cpu, 0.0)
            remaining = min(remaining, left * spent.wall / max(spent.cpu, 1e-9))
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
            cpu=state.cpu,
            forecast=forecast,
        )


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        status: ``"finished"``, ``"time limit"`` (on the wall or of the CPU), ``"early stopping"``,
            ``"converged"`` (the loss is below its target, or a quasi-Newton method finds no lower
            one) or ``"interrupted"``.
        epochs: Epochs completed.
        steps: Optimiser steps done.
        elapsed: Seconds spent training, over all sittings.
        best: Validation metrics of the weights that the model now has, and their epoch (with a
            fraction if a limit came within an epoch).
        losses: Training loss of the last batch and, by name, of its terms: before the last step, or
            after it with a quasi-Newton method.
        cpu: CPU seconds spent likewise, of all threads and processes.
        validation_frames: That each validation took, if not all; else 0.
        warnings: What speaks against the result: a limit too short to learn from, or passed.
    """

    status: str
    epochs: int
    steps: int
    elapsed: float
    best: dict[str, float]
    losses: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    validation_frames: int = 0
    warnings: tuple[str, ...] = ()
