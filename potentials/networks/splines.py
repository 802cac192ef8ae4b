"""Functions of one distance as cubic splines, many at a time and differentiable.

A SchNet layer multiplies features by filters ``W_l(d)`` that depend on a distance alone. Evaluating
the filter networks for every pair is most of the arithmetic of a training step; evaluating them on
a grid of knots and interpolating is a small fraction of it. The spline is C2 and the force is its
exact derivative, so an energy from the spline is conserved as well as any other.

The B-spline form is used: ``W(d) = sum_k B_k(d) c_k`` with four non-zero ``B_k`` at each ``d``, so
an evaluation is a weighted sum of four rows. Coefficients follow from the values at the knots by a
fixed linear map, through which training gradients pass. End conditions: no curvature at 0, and no
slope at the cutoff, as for everything multiplied by a smooth cutoff; beyond it all is exactly zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcase.potentials.networks.float64_buffers import ExactBuffers


def _weights(t: Tensor, order: int, spacing: float) -> Tensor:
    """The four cubic B-spline weights at ``t`` in [0, 1], or their derivatives w.r.t. distance.

    Returns shape [n, 4].
    """
    if order == 0:
        s = 1.0 - t
        stacked = [s**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * s**3 - 6 * s**2 + 4) / 6, t**3 / 6]
    elif order == 1:
        s = 1.0 - t
        stacked = [-(s**2) / 2, (3 * t**2 - 4 * t) / 2, (4 * s - 3 * s**2) / 2, t**2 / 2]
    elif order == 2:
        stacked = [1 - t, 3 * t - 2, 1 - 3 * t, t]
    elif order == 3:
        one = torch.ones_like(t)
        stacked = [-one, 3 * one, -3 * one, one]
    else:
        stacked = [torch.zeros_like(t)] * 4
    return torch.stack(stacked, dim=-1) / spacing**order


class Located:
    """Where distances lie in the grid, with the weights there, computed once for all splines.

    Attributes:
        distances: A, shape [n].
        rows: The four coefficients of each distance, int64, shape [n, 4].
        t: Place inside the interval, in [0, 1], shape [n].
        inside: Which are not beyond the grid, bool, shape [n].
        spacing: Of the knots, A.
    """

    def __init__(self, distances: Tensor, row: Tensor, t: Tensor, inside: Tensor, spacing: float):
        self.distances, self.t, self.inside, self.spacing = distances, t, inside, spacing
        self.rows = row.unsqueeze(-1) + torch.arange(4, device=row.device)
        self._weights: dict[tuple[int, torch.dtype], Tensor] = {}

    def weights(self, order: int, dtype: torch.dtype) -> Tensor:
        """The weights' derivatives of ``order``, shape [n, 4]."""
        key = (order, dtype)
        if key not in self._weights:
            # End conditions hold up to rounding, but pairs beyond the cutoff must do nothing at all
            weights = _weights(self.t, order, self.spacing) * self.inside.unsqueeze(-1)
            self._weights[key] = weights.to(dtype)
        return self._weights[key]


class _Evaluate(torch.autograd.Function):
    """``out[p, f] = sum_a w[p, a] c[row[p] + a, f]``, ``w`` the weights or their derivatives at d.

    Differentiable any number of times in the coefficients and in the distances.
    """

    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, distances: Tensor, where: Located, order: int
    ) -> Tensor:
        ctx.save_for_backward(coefficients, distances)
        ctx.where, ctx.order = where, order
        weights = where.weights(order, coefficients.dtype)
        return nn.functional.embedding_bag(
            where.rows, coefficients, per_sample_weights=weights, mode="sum"
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        coefficients, distances = ctx.saved_tensors
        grad_c = grad_d = None
        if ctx.needs_input_grad[0]:
            grad_c = _Scatter.apply(grad, distances, ctx.where, ctx.order, coefficients.shape[0])
        if ctx.needs_input_grad[1]:
            slope = _Evaluate.apply(coefficients, distances, ctx.where, ctx.order + 1)
            grad_d = (grad * slope).sum(-1).to(distances.dtype)
        return grad_c, grad_d, None, None


class _Scatter(torch.autograd.Function):
    """The transpose of :class:`_Evaluate` in its first argument."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, distances: Tensor, where: Located, order: int, n_rows: int
    ) -> Tensor:
        ctx.save_for_backward(values, distances)
        ctx.where, ctx.order = where, order
        weights = where.weights(order, values.dtype)
        out = values.new_zeros(n_rows, values.shape[1])
        for a in range(4):
            out.index_add_(0, where.rows[:, a], values * weights[:, a : a + 1])
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        values, distances = ctx.saved_tensors
        grad_values = grad_d = None
        if ctx.needs_input_grad[0]:
            grad_values = _Evaluate.apply(grad, distances, ctx.where, ctx.order)
        if ctx.needs_input_grad[1]:
            slope = _Evaluate.apply(grad, distances, ctx.where, ctx.order + 1)
            grad_d = (values * slope).sum(-1).to(distances.dtype)
        return grad_values, grad_d, None, None, None


class UniformSpline(ExactBuffers):
    """Cubic splines on an even grid over ``[0, cutoff]``.

    Args:
        cutoff: Right end, A.
        n_intervals: Number of grid intervals; the interpolation error falls with the fourth power.
    """

    knots: Tensor
    to_coefficients: Tensor

    def __init__(self, cutoff: float, n_intervals: int):
        super().__init__()
        self.n_intervals, self.cutoff = n_intervals, cutoff
        self.spacing = cutoff / n_intervals
        n = n_intervals + 1
        # Interpolation at the knots, (c[k-1] + 4 c[k] + c[k+1]) / 6 = y[k], between the two end
        # conditions.
        system = torch.zeros(n + 2, n + 2, dtype=torch.float64)
        index = torch.arange(n)
        system[index + 1, index], system[index + 1, index + 1] = 1 / 6, 4 / 6
        system[index + 1, index + 2] = 1 / 6
        system[0, :3] = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
        system[-1, -3:] = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        inverse = torch.linalg.inv(system)[:, 1:-1]  # the end conditions are homogeneous
        knots = torch.linspace(0.0, cutoff, n, dtype=torch.float64)
        self.register_buffer("knots", knots, persistent=False)
        self.register_buffer("to_coefficients", inverse, persistent=False)

    def coefficients(self, values: Tensor) -> Tensor:
        """B-spline coefficients [n_intervals + 3, n] of ``values`` at the knots [n_knots, n]."""
        return self.to_coefficients.to(values.dtype) @ values

    def locate(self, distances: Tensor) -> Located:
        """Where in the grid ``distances`` [n_pairs] lie; shared by all splines on it."""
        with torch.no_grad():
            scaled = (distances / self.spacing).clamp(0, self.n_intervals)
            row = scaled.floor().clamp(max=self.n_intervals - 1)
            inside = distances <= self.cutoff
            return Located(distances, row.to(torch.int64), scaled - row, inside, self.spacing)

    def forward(self, coefficients: Tensor, where: Located) -> Tensor:
        """Evaluate splines (coefficients [n_intervals + 3, n]) at located points: [n_pairs, n]."""
        return _Evaluate.apply(coefficients, where.distances, where, 0)
