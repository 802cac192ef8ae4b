"""SchNet's convolution with tabulated filters as one compiled operation (``filter_convolution.c``).

In place of the filters of every pair, of which PyTorch has to write and read a dozen arrays of size
pairs x filters a layer, a training step on energies takes a third of the time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcase.potentials.kernels.build import load_library
from dcase.potentials.spline import Located

_REAL = {torch.float32: "float", torch.float64: "double"}


def usable(x: Tensor, distances: Tensor) -> bool:
    """Whether there is a compiled kernel for features ``x``, and the distances need no gradient."""
    return (
        not distances.requires_grad
        and x.device.type == "cpu"
        and x.dtype in _REAL
        and load_library("filter_convolution", _REAL[x.dtype]) is not None
    )


def filter_convolution(coefficients: Tensor, x: Tensor, pairs: Tensor, where: Located) -> Tensor:
    """``sum_j W_ij x_j`` over both directions of every pair, ``W`` from a table of splines.

    The same as ``pair_convolution(table(coefficients, where), x, pairs)``, differentiable once in
    ``coefficients`` and ``x``, and not in the distances.

    Args:
        coefficients: Of the splines, shape [n_intervals + 3, n].
        x: Features, shape [n_atoms, n].
        pairs: Half list, int64, shape [2, n_pairs].
        where: The pairs' distances in the grid.

    Returns:
        Shape [n_atoms, n].
    """
    return _FilterConvolution.apply(coefficients, x, pairs, where)


def _call(name: str, dtype: torch.dtype, sizes: tuple[int, int], *tensors: Tensor) -> None:
    library = load_library("filter_convolution", _REAL[dtype])
    assert library is not None
    function = getattr(library, name)
    function.restype = None
    function(
        *(ctypes.c_int64(size) for size in sizes), *(ctypes.c_void_p(t.data_ptr()) for t in tensors)
    )


class _FilterConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, x: Tensor, pairs: Tensor, where: Located) -> Tensor:
        coefficients, x, pairs = (t.contiguous() for t in (coefficients, x, pairs))
        weights = where.weights(0, x.dtype).contiguous()
        rows = where.rows[:, 0].contiguous()
        ctx.save_for_backward(coefficients, x, pairs, rows, weights)
        out = torch.zeros_like(x)
        sizes = (pairs.shape[1], x.shape[1])
        _call("filter_convolution", x.dtype, sizes, pairs, rows, weights, coefficients, x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        coefficients, x, pairs, rows, weights = ctx.saved_tensors
        grad = grad.contiguous()
        y, slope = torch.zeros_like(x), torch.zeros_like(coefficients)
        sizes = (pairs.shape[1], x.shape[1])
        _call(
            "filter_convolution_transpose", x.dtype, sizes,
            pairs, rows, weights, coefficients, x, grad, y, slope,
        )  # fmt: skip
        return slope, y, None, None
