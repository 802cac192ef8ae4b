"""The table of a SchNet's filters with a compiled gradient by its weights (``filter_table.c``).

The filter networks run on the knots of the table only, so there is little to compute, but autograd
takes some sixty operations for it, which cost more than the rest of a training step of a small
molecule.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcase.potentials.kernels.atom_kernel import ACTIVATIONS, REAL, integer_result, pointers
from dcase.potentials.kernels.build import load_library
from dcase.potentials.kernels.schnet import network_shape
from dcase.potentials.networks.schnet import SchNet

_INTEGERS = ("knots", "gaussians", "filters", "layers", "kind")
_POINTERS = (
    "basis", "cut", "to_coefficients", "weights", "a", "bent", "values", "scratch", "table",
    "gradients",
)  # fmt: skip


class _Table(ctypes.Structure):
    """The C file's ``filter_table``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    )


class FilterTable:
    """What is the same in every step: the basis at the knots, and the compiled functions.

    Args:
        network: With ``filter_knots``, on the CPU, float32 or float64.
        activation: Its activation, one of :data:`~dcase.potentials.kernels.schnet.ACTIVATIONS`.

    Raises:
        RuntimeError: If there is no compiled kernel here.
    """

    def __init__(self, network: SchNet, activation: str):
        assert network.table is not None
        self.network, dtype = network, network.embedding.weight.dtype
        library = load_library("filter_table", REAL[dtype])
        if library is None:
            raise RuntimeError("there is no compiled kernel here")
        assert int(integer_result(library.size_of_table)()) == ctypes.sizeof(_Table)
        self.forward, self.backward = library.forward, library.backward
        self.forward.restype = self.backward.restype = None
        knots = network.table.knots
        self.basis = network.basis(knots, dtype).contiguous()
        self.cut = network.envelope(knots).to(dtype).contiguous()
        self.to_coefficients = network.table.to_coefficients.to(dtype).contiguous()
        _, filters, layers, _ = network_shape(network)
        self.shape = {
            "knots": len(knots),
            "gaussians": self.basis.shape[1],
            "filters": filters,
            "layers": layers,
            "kind": ACTIVATIONS.index(activation),
        }

    def __call__(self) -> Tensor:
        """As :meth:`~dcase.potentials.networks.schnet.SchNet.filter_table`, differentiable once."""
        weights: list[Tensor] = []
        for block in self.network.interactions:
            first, last = block.filter_in, block.filter_out  # type: ignore[union-attr]
            weights += [first.weight, first.bias, last.weight, last.bias]  # type: ignore[union-attr, list-item]
        return _Evaluate.apply(self, *weights)


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: FilterTable, *weights: Tensor) -> Tensor:
        n, f, layers = (table.shape[name] for name in ("knots", "filters", "layers"))
        packed: list[Tensor] = []
        for layer in range(layers):
            w1, b1, w2, b2 = (w.detach() for w in weights[4 * layer : 4 * layer + 4])
            packed += [w1.T.contiguous(), b1.contiguous(), w2.T.contiguous(), b2.contiguous()]
            packed.append(w2.contiguous())
        result = table.basis.new_empty(n + 2, layers * f)
        room = table.basis.new_empty((3 * layers + 2) * n * f)
        kept = room[: layers * n * f], room[layers * n * f :], room[2 * layers * n * f :]
        weights_at = pointers(packed)
        call = _Table(
            basis=table.basis.data_ptr(),
            cut=table.cut.data_ptr(),
            to_coefficients=table.to_coefficients.data_ptr(),
            weights=ctypes.cast(weights_at, ctypes.c_void_p),
            a=kept[0].data_ptr(),
            bent=kept[1].data_ptr(),
            values=kept[2].data_ptr(),
            scratch=room[3 * layers * n * f :].data_ptr(),
            table=result.data_ptr(),
            **table.shape,
        )
        table.forward(ctypes.byref(call))
        ctx.table, ctx.call, ctx.packed = table, call, packed
        ctx.kept = weights_at, room  # what the call points to
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        call = ctx.call
        by_table = grads[0].contiguous()
        found = [torch.zeros_like(w) for q, w in enumerate(ctx.packed) if q % 5 < 4]
        gradients = pointers(found)
        call.gradients = ctypes.cast(gradients, ctypes.c_void_p)
        call.table = by_table.data_ptr()
        ctx.table.backward(ctypes.byref(call))
        return (None, *(g.T if g.ndim == 2 else g for g in found))
