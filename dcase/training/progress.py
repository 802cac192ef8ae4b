"""What a trainer tells about a run, while it goes on and when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field


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
