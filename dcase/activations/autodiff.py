"""How an integrated activation meets autodiff: a fast Function, or a composite of operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", None)


def _composite_needed() -> bool:
    """Whether to leave the ``autograd.Function`` and use its composite of torch operations.

    Forward mode nested in forward mode gives *zeros* through a Function, without a word (torch
    2.13), and Neural-PINN code takes second derivatives exactly so.  Hence the fast road only for
    plain reverse mode; if a future torch does not say what is active, the slow one always.
    """
    return (
        _transforms_active is None
        or _transforms_active()
        or getattr(forward_ad, "_current_level", 0) >= 0
        or torch.compiler.is_compiling()
    )


class _Antiderivative(torch.autograd.Function):
    """Elementwise function with a known derivative: ``y = value(x)``, ``dy = derivative(x) dx``.

    ``derivative`` is made of differentiable operations, so that every higher order follows from
    it by autograd; ``value`` is never differentiated and may use in-place operations and branches.
    Written in the one-method style: with ``setup_context``, torch binds the signature by
    ``inspect`` in every call, 20 us, which is as long as the activation of a small layer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Callable, derivative: Callable, params: tuple
    ) -> Tensor:
        ctx.derivative, ctx.params = derivative, params
        ctx.save_for_backward(x)
        return value(x, *params)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * ctx.derivative(x, *ctx.params), None, None, None


def wide(value: Callable) -> Callable:
    """Evaluate ``value`` in float32 for half-precision input: the closed forms need the digits."""

    @functools.wraps(value)
    def wrapped(x: Tensor, *params: float) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return value(x.float(), *params).to(x.dtype)
        return value(x, *params)

    return wrapped


def integrate(
    x: Tensor, value: Callable, derivative: Callable, composite: Callable, *params: float
) -> Tensor:
    """Apply Phi = ``value``, with Phi' = ``derivative``; ``composite`` is Phi for any autodiff."""
    if _composite_needed():
        return composite(x, *params)
    return _Antiderivative.apply(x, value, derivative, params)
