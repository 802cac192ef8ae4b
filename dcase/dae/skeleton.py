"""The form that every network here has: open, a residual flow in a larger space, close.

    z_0 = K_o x,    dz/dtau = sigma(z, theta(tau)),    y = K_c z(1)        (the paper's eq. 2)

with K_c = K_o^T and orthonormal rows, so that K_c K_c^T = I. Then moving the positions by dr is
moving the latent state by K_c^T dr, and a projection in the large space is one in the small space.
What a method adds to a network (:mod:`dcase.dae.methods`) needs no more than that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from dcase.errors import OptionError


class StepSizes(nn.Module):
    """A learnable step of pseudo-time for each layer: ``clip(h^2, low, high)``.

    Args:
        layers: Number of steps.
        start: First value of every step.
        low: Smallest step.
        high: Largest step.
    """

    def __init__(self, layers: int, start: float = 1e-4, low: float = 1e-4, high: float = 0.1):
        super().__init__()
        if not 0 < low <= start <= high:
            raise OptionError(f"steps need 0 < low <= start <= high, got {low}, {start}, {high}")
        self.low, self.high = low, high
        self.root = nn.Parameter(torch.full((layers,), start**0.5))

    def forward(self) -> Tensor:
        """All steps [layers]."""
        return self.root.square().clamp(self.low, self.high)


class ResidualNetwork(nn.Module, ABC):
    """A network in the form above, seen by the methods that constrain it.

    The latent state may have any shape; its first axis is the batch. Positions and velocities are
    [B, N, d] in physical units.

    Attributes:
        n_layers: Steps of pseudo-time.
    """

    n_layers: int

    @abstractmethod
    def open(self, r: Tensor, v: Tensor) -> tuple[Tensor, Any]:
        """K_o: latent state of positions and velocities, and what else the layers need."""

    @abstractmethod
    def close(self, z: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """K_c: positions and velocities of a latent state; undoes :meth:`open` exactly."""

    @abstractmethod
    def lower(self, dz: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """The linear part of :meth:`close`: changes of positions and velocities."""

    @abstractmethod
    def lift(self, dr: Tensor, dv: Tensor | None, context: Any) -> Tensor:
        """K_c^T: the smallest change of the latent state that changes positions and velocities so.

        ``lower(lift(dr, dv)) == (dr, dv)``; ``dv`` None is zero.
        """

    def begin_layer(self, layer: int, z: Tensor, context: Any) -> Any:
        """What the stages of a layer share (edges, their weights); default: the context itself."""
        return context

    @abstractmethod
    def rate(self, layer: int, z: Tensor, context: Any) -> Tensor:
        """sigma: dz/dtau within a layer."""

    @abstractmethod
    def steps(self) -> Tensor:
        """Steps of pseudo-time [n_layers]."""


def runge_kutta_4(rate: Any, z: Tensor, step: Tensor) -> Tensor:
    """One classical Runge-Kutta step of ``dz/dtau = rate(z)``."""
    k1 = rate(z)
    k2 = rate(torch.addcmul(z, k1, 0.5 * step))
    k3 = rate(torch.addcmul(z, k2, 0.5 * step))
    k4 = rate(torch.addcmul(z, k3, step))
    return z + step / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
