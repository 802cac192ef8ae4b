"""Predictions as the core's trainer sees them: batches of pairs of states, and residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dcase.dae.methods import MethodSettings
from dcase.dae.systems import System
from dcase.dae.trajectories import Trajectory
from dcase.objective import Term


@dataclass(frozen=True)
class PairBatch:
    """States now and later, all [B, N, d]."""

    r: Tensor
    v: Tensor
    r_later: Tensor
    v_later: Tensor
    frames: Tensor

    def describe(self) -> str:
        """For messages."""
        return f"pairs that start at frames {', '.join(map(str, self.frames[:3].tolist()))} ..."


class PairSource:
    """Pairs of frames as the trainer's samples.

    Args:
        trajectory: Has the frames.
        starts: Frames that pairs start from.
        ahead: Frames from start to target.
        dtype: Of the tensors.
        device: Of the tensors.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        starts: np.ndarray,
        ahead: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self.starts = torch.as_tensor(starts, dtype=torch.long)

        def take(values: np.ndarray, shift: int) -> Tensor:
            return torch.as_tensor(values[starts + shift]).to(device, dtype)

        self.r, self.v = take(trajectory.positions, 0), take(trajectory.velocities, 0)
        self.r_later = take(trajectory.positions, ahead)
        self.v_later = take(trajectory.velocities, ahead)

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> PairBatch:
        """The pairs ``indices``."""
        at = indices.to(self.r.device)
        return PairBatch(
            self.r[at], self.v[at], self.r_later[at], self.v_later[at], self.starts[indices.cpu()]
        )


class DaeTask:
    """The residuals (the core's ``Problem``).

    ``positions`` and ``velocities`` are divided by the root mean square of the change from input to
    target in the batch: their mean square is the paper's loss, sum |pred - out|^2 over
    sum |in - out|^2, which is 1 for a network that predicts its input. ``constraint`` is c before
    any projection.

    Args:
        system: For units.
        method: Has eta.
        velocity_weight: Of the velocities.
    """

    def __init__(self, system: System, method: MethodSettings, velocity_weight: float = 0.0):
        self.system, self.method, self.velocity_weight = system, method, velocity_weight

    @property
    def display(self) -> Mapping[str, tuple[float, str]]:
        """The relative errors have no unit."""
        return dict.fromkeys(("positions", "velocities", "constraint"), (1.0, ""))

    def objective_terms(self) -> dict[str, Term]:
        """Positions, then velocities and constraint if they have a weight."""
        terms = {"positions": Term()}
        if self.velocity_weight > 0:
            terms["velocities"] = Term(weight=self.velocity_weight)
        if self.method.has_auxiliary:
            terms["constraint"] = Term(weight=self.method.eta)
        return terms

    def terms(self, model: nn.Module, batch: PairBatch, training: bool) -> dict[str, Tensor]:
        """Residuals by name."""
        with torch.set_grad_enabled(training):
            found = model(batch.r, batch.v)
            return {
                "positions": _relative(found.r, batch.r_later, batch.r),
                "velocities": _relative(found.v, batch.v_later, batch.v),
                "constraint": found.violated,
            }


def _relative(found: Tensor, target: Tensor, start: Tensor) -> Tensor:
    least = torch.finfo(found.dtype).tiny ** 0.5
    return (found - target) / (start - target).square().mean().clamp_min(least).sqrt()
