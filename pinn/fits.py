"""The fits that a run is made of, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dcase.errors import OptionError
from dcase.pinn.ansatz import build_model
from dcase.pinn.networks import MLP
from dcase.pinn.problem import PDEProblem
from dcase.pinn.settings import PinnSettings, Stage, parse_stages
from dcase.pinn.solution import Solution


@dataclass(frozen=True)
class Fit:
    """One training of a run.

    Attributes:
        number: Counts from 0.
        window: Its window.
        refinement: Its round of refinement.
        stage: Its optimiser.
        start: Of the window.
        end: Of the window.
        windows: How many there are.
    """

    number: int
    window: int
    refinement: int
    stage: Stage
    start: float
    end: float
    windows: int = 1

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:03d}-w{self.window}-{self.stage.optimizer}"

    @property
    def label(self) -> str:
        """For pictures."""
        name = self.stage.optimizer
        return name if self.windows == 1 else f"window {self.window + 1}, {name}"


@dataclass
class SolveOutcome:
    """How a run ended.

    Attributes:
        solution: What was trained (on an interruption: as far as whole windows go).
        status: Of the last fit; see :class:`~dcase.training.progress.TrainResult`.
        steps: Optimiser steps.
        elapsed: Seconds of training, over all sittings.
        cpu: CPU seconds likewise.
        terms: Mean square of every term's residuals at the end, in the equation's units; over
            windows the mean weighted by their length.
        fits: ``(label, folder)`` of every fit, in order.
        was_finished: Whether there was nothing to do.
    """

    solution: Solution
    status: str
    steps: int
    elapsed: float
    terms: dict[str, float]
    fits: list[tuple[str, Path]]
    was_finished: bool = False
    cpu: float = 0.0


def build_network(problem: PDEProblem, settings: PinnSettings, window: int = 0) -> nn.Module:
    """The network of a window, with hard conditions as the problem says.

    Args:
        problem: On the window.
        settings: Sizes and start; the seed of the weights differs from window to window.
        window: Number of the window.
    """
    dtype = getattr(torch, settings.dtype)
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003 * window)

    def body(n_in: int, n_out: int) -> nn.Module:
        return MLP(
            n_in,
            n_out,
            width=settings.width,
            depth=settings.depth,
            activation=settings.activation,
            batch_norm=settings.batch_norm,
            residual=settings.residual,
            init=settings.init,
            generator=generator,
            dtype=dtype,
        )

    return build_model(
        problem,
        body,
        modes=settings.modes,
        scale_inputs=settings.scale_inputs,
        scale_outputs=settings.scale_outputs,
    )


def plan_fits(problem: PDEProblem, settings: PinnSettings) -> list[Fit]:
    """All fits of a run, in order.

    Raises:
        OptionError: If windows are asked for without a hard or soft initial condition, or time.
    """
    domain = problem.domain
    if settings.windows > 1 and (problem.initial is None or "t" not in domain.intervals):
        raise OptionError("windows of time need time and an initial condition")
    start, length = (domain.low("t"), domain.length("t")) if "t" in domain.intervals else (0.0, 0.0)
    edges = [start + length * k / settings.windows for k in range(settings.windows + 1)]
    fits: list[Fit] = []
    for window in range(settings.windows):
        for refinement in range(settings.refine + 1):
            for stage in parse_stages(settings.optimizer):
                span = edges[window], edges[window + 1]
                fits.append(Fit(len(fits), window, refinement, stage, *span, settings.windows))
    return fits
