"""Activations that begin with a square, made fit for deep stacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcase.activations import get_activation


class LinearGrowth(nn.Module):
    """``y = s r (act(x / r + 1) - act(1))``: slope 1/2 at 0 and linear growth, as SiLU has.

    IReLU squares. In a stack of n layers a deviation from the fixed point is raised to the power
    2^n: DimeNet++ has nine in series in each interaction block, and with IReLU in all of them a
    pre-activation of 2 in the fourth block becomes 20, 4e3, 1e8, 4e17 and NaN, with the published
    initial weights (see docs/methods.md). Two changes take both reasons away:

    * ``r^2 = 1 + mean x^2`` over the features of one edge: what is large goes through the
      activation at unit size and gets its size back. The layer grows linearly with its input,
      whatever the activation does. Small features (r = 1) meet the activation as it is.
    * Around 1, where its pre-activations now lie, an integrated activation has a linear term:
      ``IReLU(x + 1) - 1/2 = x + x^2 / 2`` above -1, which is twice SiLU to second order. ``s`` is
      ``1 / (2 act'(1))``, so that initial weights made for SiLU suit it.

    Args:
        activation: Name of an activation that is positive and rising at 1.
    """

    def __init__(self, activation: str):
        super().__init__()
        self.act = get_activation(activation)
        value, slope = _value_and_slope(self.act, 1.0)
        self.at_one, self.scale = value, 0.5 / slope

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape [..., features], to the same shape."""
        r = (1.0 + x.square().mean(-1, keepdim=True)).sqrt()
        return (self.act(x / r + 1.0) - self.at_one) * (self.scale * r)


def begins_with_a_square(activation: str) -> bool:
    """Whether the activation has no slope at 0, as all that integrate an odd or one-sided one."""
    return abs(_value_and_slope(get_activation(activation), 0.0)[1]) < 1e-6


def _value_and_slope(act: nn.Module, at: float) -> tuple[float, float]:
    with torch.enable_grad():
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        y = act(x)
        (slope,) = torch.autograd.grad(y, x)
    return float(y.detach()), float(slope)
