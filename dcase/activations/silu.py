"""SiLU with fewer passes over memory when it is differentiated twice.

Under ``create_graph=True`` torch writes SiLU's derivative out as five elementwise operations and
differentiates each of them. Training on forces spends more time there than in the matrix products
around it. Here the derivative is torch's one fused kernel also then, and so is half of the second.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcase.activations.autodiff import _composite_needed

_slope_times = torch.ops.aten.silu_backward  # (g, x) -> g silu'(x)


class _SiLU(torch.autograd.Function):
    """``x sigma(x)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _SiLUSlope.apply(grads[0], *ctx.saved_tensors)


class _SiLUSlope(torch.autograd.Function):
    """``g silu'(x)``, linear in g."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return _slope_times(g, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, x = ctx.saved_tensors
        (grad,) = grads
        to_g = _SiLUSlope.apply(grad, x) if ctx.needs_input_grad[0] else None
        to_x = None
        if ctx.needs_input_grad[1]:
            # silu'' = sigma (1 - sigma) (2 + x (1 - 2 sigma)); made of differentiable operations,
            # so that the orders above follow from autograd.
            sigma = torch.sigmoid(x)
            bend = torch.ops.aten.sigmoid_backward(grad * g, sigma)
            to_x = bend * torch.addcmul(x.new_full((), 2.0), x, torch.rsub(sigma, 1.0, alpha=2.0))
        return to_g, to_x


def silu(x: Tensor) -> Tensor:
    """``x sigma(x)``, any shape; the values are torch's."""
    return nn.functional.silu(x) if _composite_needed() else _SiLU.apply(x)


class SiLU(nn.SiLU):
    """Module form of :func:`silu`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map x, any shape."""
        return nn.functional.silu(input, True) if self.inplace else silu(input)
