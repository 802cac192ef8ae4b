"""Errors and violations of a prediction, beside those of predictors that need no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcase.dae.constraints import Constraint
from dcase.dae.systems import System
from dcase.dae.task import PairSource

Predictor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
CHUNK = 100  # samples at a time


def of_model(model: nn.Module) -> Predictor:
    """A constrained network as predictor."""

    def predict(r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        found = model(r, v)
        return found.r, found.v

    return predict


def identity(r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing moves."""
    return r, v


def constant_velocity(duration: float) -> Predictor:
    """Everything moves on as it does."""
    return lambda r, v: (r + duration * v, v)


@torch.no_grad()
def measure(
    predictor: Predictor, data: PairSource, constraint: Constraint, system: System
) -> dict[str, float]:
    """Errors on all samples.

    Returns:
        ``mae_cm`` or ``mae_pm``: mean over samples and nodes of the Euclidean norm of the position
        error (for water a node is an atom); ``mae_component_*``: mean of its absolute components;
        for water ``mae_molecule_pm``: mean norm of a molecule's nine; ``mean_violation`` and
        ``max_violation`` of the constraints, in m or A; ``velocity_error``: mean norm, m/s or A/fs.
    """
    norms, components, molecules, speeds, violations = [], [], [], [], []
    for part in torch.arange(len(data)).split(CHUNK):
        batch = data.batch(part)
        r, v = predictor(batch.r, batch.v)
        error = (r - batch.r_later).double()
        norms.append(error.norm(dim=-1).flatten())
        components.append(error.abs().flatten())
        speeds.append((v - batch.v_later).double().norm(dim=-1).flatten())
        violations.append(constraint.violation(r).double())
        if system.name == "water":
            molecules.append(error.reshape(-1, 9).norm(dim=-1))
    mean = {
        system.mae: system.factor * torch.cat(norms).mean(),
        f"mae_component_{system.error}": system.factor * torch.cat(components).mean(),
    }
    if molecules:
        mean[f"mae_molecule_{system.error}"] = system.factor * torch.cat(molecules).mean()
    violation = torch.cat(violations)
    mean |= {
        "mean_violation": violation.mean(),
        "max_violation": violation.max(),
        "velocity_error": torch.cat(speeds).mean(),
    }
    return {name: float(value) for name, value in mean.items()}


@dataclass(frozen=True)
class RollOut:
    """A network applied again and again.

    Attributes:
        time: Of each state [n].
        error: Mean over samples and nodes of the position error, in the system's length [n].
        worst: Largest violation over all samples [n].
        mean: Mean violation [n].
        energy: Mean over samples of |energy - its first value| [n], or None.
    """

    time: np.ndarray
    error: np.ndarray
    worst: np.ndarray
    mean: np.ndarray
    energy: np.ndarray | None = None


@torch.no_grad()
def roll_out(
    predictor: Predictor,
    positions: Tensor,
    velocities: Tensor,
    constraint: Constraint,
    interval: float,
    energy: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> RollOut:
    """Predict from the first of the states given, from the prediction, and so on.

    Args:
        predictor: Applied again and again.
        positions: True ones [n, B, N, d], ``interval`` apart.
        velocities: True ones, likewise.
        constraint: Whose violation is watched.
        interval: Time of a prediction.
        energy: Total energy [B] of positions and velocities, to watch it; or None.

    A roll-out that leaves the range of floating-point numbers goes on as NaN.
    """
    r, v = positions[0], velocities[0]
    first = energy(r, v) if energy else None
    rows = []
    for step, target in enumerate(positions):
        if step:
            r, v = predictor(r, v)
        violation = constraint.violation(r)
        row = [(r - target).norm(dim=-1).mean(), violation.max(), violation.mean()]
        if energy is not None and first is not None:
            row.append((energy(r, v) - first).abs().mean())
        rows.append([float(x) for x in row])
    columns: Any = np.array(rows).T
    time = interval * np.arange(len(positions))
    return RollOut(time, *columns)
