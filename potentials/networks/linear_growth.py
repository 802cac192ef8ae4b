"""Activations that begin with a square, made fit for deep stacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcase.activations import get_activation
from dcase.initialization import gain


class LinearGrowth(nn.Module):
    """``y = s r (act(x / r + 1) - act(1))``: a linear term at 0 and linear growth, as SiLU has.

    IReLU squares. In a stack of n layers a deviation from the fixed point is raised to the power
    2^n: DimeNet++ has ten in series in each interaction block, and with IReLU in all of them a
    pre-activation of 2 in the fourth block becomes 20, 4e3, 1e8, 4e17 and NaN, with the published
    initial weights (see docs/methods.md). Two changes take both reasons away:

    * ``r^2 = 1 + mean x^2`` over the features of one edge: what is large goes through the
      activation at unit size and gets its size back. The layer grows linearly with its input,
      whatever the activation does. Small features (r = 1) meet the activation as it is.
    * Around 1, where its pre-activations now lie, an integrated activation has a linear term:
      ``IReLU(x + 1) - 1/2 = x + x^2 / 2`` above -1, which is twice SiLU to second order.

    ``s`` gives unit variance SiLU's second moment (0.507 for IReLU), so that initial weights made
    for SiLU suit it.

    Args:
        activation: Name of an activation that rises at 1.
    """

    def __init__(self, activation: str):
        super().__init__()
        self.act = get_activation(activation)
        with torch.no_grad():
            self.at_one = float(self.act(torch.ones((), dtype=torch.float64)))
        self.scale = gain(_AtUnitVariance(self.act, self.at_one)) / gain("silu")

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape [..., features], to the same shape."""
        r = (1.0 + x.square().mean(-1, keepdim=True)).sqrt()  # [..., 1]
        return at_unit_size(self.act, self.at_one, x, r, self.scale)


def at_unit_size(act: nn.Module, at_one: float, x: Tensor, r: Tensor, scale: float) -> Tensor:
    """``scale r (act(x / r + 1) - at_one)`` for x [..., features] and its size r [..., 1]."""
    y = act(torch.addcmul(x.new_ones(()), x, 1.0 / r))
    size = scale * r
    return torch.addcmul(size * -at_one, y, size)


class _AtUnitVariance(nn.Module):
    """The layer with s = 1 on features of mean square 1, elementwise."""

    def __init__(self, act: nn.Module, at_one: float):
        super().__init__()
        self.act, self.at_one = act, at_one

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(2.0) * (self.act(x / math.sqrt(2.0) + 1.0) - self.at_one)


def begins_with_a_square(act: str | nn.Module) -> bool:
    """Whether the activation has no slope at 0, as all that integrate an odd or one-sided one."""
    # Across 0 rather than at it: autograd takes ReLU's slope there to be 0, and it is no square.
    step = torch.tensor([-1e-6, 1e-6], dtype=torch.float64)
    with torch.no_grad():
        low, high = get_activation(act)(step).tolist()
    return abs(high - low) / 2e-6 < 1e-4
