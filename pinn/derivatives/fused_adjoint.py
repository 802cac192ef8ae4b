r"""Value and gradient of a network with one output in one autograd node, written by hand.

As :mod:`dcase.pinn.derivatives.fused`, for the adjoint engine. With :math:`h_l = s(z_l)`, the
reverse pass :math:`r_{l-1} = W_l^T (s'(z_l) r_l)` gives the gradient :math:`r_0`. Its own backward
pass runs *upward*, from :math:`\bar r_0`, the loss's gradient by the gradient:
:math:`\bar r_l = s'(z_l) W_l \bar r_{l-1}`, and leaves :math:`s''(z_l) r_l W_l \bar r_{l-1}` at
each :math:`z_l`; the ordinary backward pass of the value takes that along on its way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcase.pinn.derivatives.fused import (
    Network,
    ParameterSums,
    differentiated_again,
    plain_backward,
    scaled,
    thin,
)
from dcase.pinn.derivatives.workspace import (
    Arrays,
    Lease,
    Stack,
    blocks_of,
    carve,
    same_arrays,
    state_of,
)


def fused_gradient(network: Network, features: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Value and gradient of a single output, side by side.

    Args:
        network: Which network; its kernel is for values only.
        features: [N, n_in].
        parameters: As for :func:`dcase.pinn.derivatives.fused.fused_jet`.

    Returns:
        [N, 1 + n_in]
    """
    if not torch.is_grad_enabled():
        lease = _lend(network, features, keep=False)
        return _forward(network, features, parameters, lease.item)
    return _FusedGradient.apply(network, features, *parameters)


class _FusedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: Network, features: Tensor, *parameters: Tensor) -> Tensor:
        ctx.network, ctx.lease = network, _lend(network, features, keep=True)
        ctx.save_for_backward(features, *parameters)
        return _forward(network, features, parameters, ctx.lease.item)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, *parameters = ctx.saved_tensors
        needed, blocks = ctx.needs_input_grad, ctx.lease.item
        if differentiated_again(grads[0]):
            found = plain_backward(ctx.network, [features, *parameters], grads, needed)
        else:
            found = _backward(ctx.network, features, parameters, blocks, grads[0], needed[1])
        return (None, *found)


@dataclass
class _Block:
    """Arrays for some points.

    Attributes:
        where: Which points.
        z: Pre-activations of each layer, with the kernel's slots.
        e: Derivative of the output by what enters each activation.
        columns: The same transposed.
        bends: What reaches z through the slope, for each layer; see the kernel.
        sums: What leaves each residual block; none without them.
        work: Four arrays [n, width].
        work_columns: The last of them transposed.
    """

    where: slice
    z: list[Stack]
    e: Arrays
    columns: Arrays
    bends: Arrays
    sums: Arrays
    work: Arrays
    work_columns: Tensor


def _lend(network: Network, features: Tensor, *, keep: bool) -> Lease[list[_Block]]:
    """Arrays for a pass; with ``keep``, for a pass forward and then backward."""
    slots = network.kernel.slots(2) + 1
    key = ("adjoint", slots, keep, *state_of(features))
    return network.workspace.lend(key, lambda: _make_blocks(network, features, slots, keep))


def _make_blocks(network: Network, features: Tensor, slots: int, keep: bool) -> list[_Block]:
    depth, width, n = network.depth, network.width, len(features)
    wheres = blocks_of(n, 2, features.device)
    largest = wheres[0][1] if wheres else 0
    residual = depth if network.alpha is not None else 0
    shared = features.new_empty((depth + residual + 4) * largest * width)
    kept = features.new_empty(slots * depth * (n if keep else largest) * width)

    def make(where: slice, m: int) -> _Block:
        own = kept[slots * depth * where.start * width :] if keep else kept
        (array,) = carve(own, (slots, depth, m, width))
        bends, sums, work = carve(shared, (depth, m, width), (residual, m, width), (4, m, width))
        return _Block(
            where=where,
            z=[Stack(layer, 1, 0) for layer in array[:-1].unbind(1)],
            e=array[-1].unbind(0),
            columns=array[-1].mT.unbind(0),
            bends=bends.unbind(0),
            sums=sums.unbind(0),
            work=work.unbind(0),
            work_columns=work[3].T,
        )

    return same_arrays(make, wheres, keep)


def _forward(
    network: Network, features: Tensor, parameters: Sequence[Tensor], blocks: list[_Block]
) -> Tensor:
    """Value, then the reverse pass."""
    kernel, depth, alpha = network.kernel, network.depth, network.alpha
    n, n_in = features.shape
    weights = parameters[0::2]
    transposed = scaled([w.T for w in weights], kernel)
    biases = scaled(parameters[1::2], kernel)
    first, last = thin(weights[0]), weights[-1].T
    out = features.new_empty(n, 1 + n_in)
    for block in blocks:
        h = features[block.where]
        for i, z in enumerate(block.z):
            torch.addmm(biases[i], h, transposed[i], out=z.parts[0])
            value = kernel.activate(z, 2)
            if alpha is not None and i:
                value = torch.add(h, value, alpha=alpha, out=block.sums[i])
            h = value
        here = out[block.where]
        here[:, :1] = torch.addmm(parameters[-1], h, last)
        r = weights[-1].expand_as(h)
        for i in reversed(range(depth)):
            z, e = block.z[i], block.e[i]
            kernel.slope_times(z, r, e)
            kernel.keep_bend(z, r)
            if i and alpha is not None:
                r = torch.addmm(r, e, weights[i], alpha=alpha, out=block.work[i % 2])
            elif i:
                r = torch.mm(e, weights[i], out=block.work[0])
        here[:, 1:] = torch.mm(block.e[0], first)
    return out


def _backward(
    network: Network,
    features: Tensor,
    parameters: Sequence[Tensor],
    blocks: list[_Block],
    grad: Tensor,
    to_input: bool,
) -> list[Tensor | None]:
    kernel, depth, alpha = network.kernel, network.depth, network.alpha
    scale, residual = alpha or 1.0, alpha is not None
    weights = parameters[0::2]
    transposed, first = [w.T for w in weights], thin(weights[0])
    sums = ParameterSums(parameters)
    to_inner, to_biases = sums.inner.unbind(0), sums.biases.unbind(0)
    to_features = torch.empty_like(features) if to_input else None
    to_values, to_gradients = grad[:, :1].contiguous(), grad[:, 1:].contiguous()
    sums.last_bias.add_(to_values.sum(0))
    for block in reversed(blocks):  # the last one may still be in the cache
        zs = block.z
        # Upward: x = W r_bar
        below = to_gradient = to_gradients[block.where]
        for i, x in enumerate(block.bends):
            r_bar = block.work[i % 2]
            torch.mm(below, transposed[i], out=x)
            if i:
                to_inner[i - 1].addmm_(block.columns[i], below, alpha=scale)
                if residual:
                    x.mul_(scale)
            kernel.slope_times(zs[i], x, r_bar)
            if i and residual:
                r_bar.add_(below)
            kernel.bend_times(zs[i], block.e[i], x)
            below = r_bar
        sums.first.addmm_(to_gradient.T, block.e[0])
        sums.last.add_(below.sum(0))
        # Downward: d = dv/dz
        hs = [z.parts[0] for z in zs]
        for i in range(1, depth if residual else 0):
            hs[i] = torch.add(hs[i - 1], hs[i], alpha=scale, out=block.sums[i])
        to_value, dh, d = to_values[block.where], block.work[2], block.work[3]
        sums.last.addmm_(to_value.T, hs[-1])
        torch.mm(to_value, weights[-1], out=dh)
        for i in reversed(range(depth)):
            kernel.slope_times(zs[i], dh, d)
            if i and residual:
                d.mul_(scale)
            kernel.add_bend(zs[i], block.bends[i], d)
            to_biases[i].add_(d.sum(0))
            if i:
                to_inner[i - 1].addmm_(block.work_columns, hs[i - 1])
                if residual:
                    dh.addmm_(d, weights[i])
                else:
                    torch.mm(d, weights[i], out=dh)
        sums.first.addmm_(features[block.where].T, d)
        if to_features is not None:
            torch.mm(d, first, out=to_features[block.where])
    return sums.all(to_features)
