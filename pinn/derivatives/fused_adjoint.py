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
from dcase.pinn.derivatives.workspace import Lease, Stack, blocks_of, carve


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
        if differentiated_again():
            found = plain_backward(ctx.network, [features, *parameters], grads, needed)
        else:
            found = _backward(ctx.network, features, parameters, blocks, grads[0], needed[1])
        return (None, *found)


class _Layers:
    """An array [depth, n, width] with its views: by layer, without the last, without the first."""

    __slots__ = ("all", "columns_above", "each", "lower")

    def __init__(self, array: Tensor) -> None:
        self.all, self.each = array, array.unbind(0)
        self.lower, self.columns_above = array[:-1], array[1:].mT


@dataclass
class _Block:
    """Arrays for some points.

    Attributes:
        where: Which points.
        z: Pre-activations (with the kernel's slots), all layers together.
        zs: The same by layer.
        e: Derivative of the output by what enters an activation.
        r: And by what leaves it; only kept if the kernel asks for it.
        x: Work, as the next two.
        d: First the gradient by r, later that by z.
        h: [n, width].
    """

    where: slice
    z: Stack
    zs: list[Stack]
    e: _Layers
    r: _Layers | None
    x: _Layers
    d: _Layers
    h: Tensor


def _lend(network: Network, features: Tensor, *, keep: bool) -> Lease[list[_Block]]:
    """Arrays for a pass; with ``keep``, for a pass forward and then backward."""
    key = (
        "adjoint",
        len(features),
        features.dtype,
        features.device,
        keep,
        torch.get_num_threads(),
    )
    return network.workspace.lend(key, lambda: _make_blocks(network, features, keep))


def _make_blocks(network: Network, features: Tensor, keep: bool) -> list[_Block]:
    kernel, depth, width = network.kernel, network.depth, network.width
    n, own = len(features), kernel.extra + 1
    slots = own + 1 + kernel.bends_r
    wheres = blocks_of(n, 2, features.device)
    largest = wheres[0][1] if wheres else 0
    shared = features.new_empty((2 * depth + 1) * largest * width)
    kept = features.new_empty(slots * depth * (n if keep else largest) * width)
    blocks = []
    for start, m in wheres:
        offset = slots * depth * start * width if keep else 0
        (array,) = carve(kept[offset:], (slots, depth, m, width))
        x, d, h = carve(shared, (depth, m, width), (depth, m, width), (m, width))
        blocks.append(
            _Block(
                where=slice(start, start + m),
                z=Stack(array[:own], 1, 0),
                zs=[Stack(layer, 1, 0) for layer in array[:own].unbind(1)],
                e=_Layers(array[own]),
                r=_Layers(array[own + 1]) if kernel.bends_r else None,
                x=_Layers(x),
                d=_Layers(d),
                h=h,
            )
        )
    return blocks


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
        for i, z in enumerate(block.zs):
            torch.addmm(biases[i], h, transposed[i], out=z.parts[0])
            value = kernel.activate(z)
            if alpha is not None and i:
                value = torch.add(h, value, alpha=alpha, out=block.x.each[i])
            h = value
        here = out[block.where]
        here[:, :1] = torch.addmm(parameters[-1], h, last)
        r = weights[-1].expand_as(block.h)
        for i in reversed(range(depth)):
            z, e = block.zs[i], block.e.each[i]
            if block.r is not None:
                r = block.r.each[i].copy_(r)
            kernel.slope_times(z, kernel.slopes(z, 1), r, e)
            if i and alpha is not None:
                r = torch.addmm(r, e, weights[i], alpha=alpha, out=block.x.each[i % 2])
            elif i:
                r = torch.mm(e, weights[i], out=block.h)
        here[:, 1:] = torch.mm(block.e.each[0], first)
    return out


def _backward(
    network: Network,
    features: Tensor,
    parameters: Sequence[Tensor],
    blocks: list[_Block],
    grad: Tensor,
    to_input: bool,
) -> list[Tensor | None]:
    """What does not depend on the layer below or above is done for all layers at once."""
    kernel, depth, alpha = network.kernel, network.depth, network.alpha
    scale, residual = alpha or 1.0, alpha is not None
    weights = parameters[0::2]
    transposed, first = [w.T for w in weights], thin(weights[0])
    sums = ParameterSums(parameters)
    to_features = torch.empty_like(features) if to_input else None
    to_values, to_gradients = grad[:, :1].contiguous(), grad[:, 1:].contiguous()
    sums.last_bias.add_(to_values.sum(0))
    for block in reversed(blocks):  # the last one may still be in the cache
        z, e, x, r_bar, d, dh = block.z, block.e, block.x, block.d, block.d, block.h
        s = kernel.slopes(z, 2)
        ss: list[tuple[Tensor, ...]] = [()] * depth
        if s:
            ss = list(zip(*(t.unbind(0) for t in s), strict=True))
        # Upward: x = W r_bar
        below = to_gradient = to_gradients[block.where]
        for i in range(depth):
            torch.mm(below, transposed[i], out=x.each[i])
            if residual and i:
                x.each[i].mul_(scale)
            kernel.slope_times(block.zs[i], ss[i], x.each[i], r_bar.each[i])
            if residual and i:
                r_bar.each[i].add_(below)
            below = r_bar.each[i]
        sums.first.addmm_(to_gradient.T, e.each[0])
        sums.inner.baddbmm_(e.columns_above, r_bar.lower, alpha=scale)
        sums.last.add_(below.sum(0))
        x.all.mul_(e.all if block.r is None else block.r.all)
        # Downward: d = dv/dz
        values, to_value = kernel.value(z), to_values[block.where]
        if residual:
            values = values.clone()
            values[1:].mul_(scale)
            values = values.cumsum(0)
        sums.last.addmm_(to_value.T, values[-1])
        torch.mm(to_value, weights[-1], out=dh)
        for i in reversed(range(depth)):
            kernel.slope_times(block.zs[i], ss[i], dh, d.each[i])
            if residual and i:
                d.each[i].mul_(scale)
            kernel.add_bend(block.zs[i], ss[i], x.each[i], d.each[i])
            if residual and i:
                dh.addmm_(d.each[i], weights[i])
            elif i:
                torch.mm(d.each[i], weights[i], out=dh)
        sums.first.addmm_(features[block.where].T, d.each[0])
        sums.inner.baddbmm_(d.columns_above, values[:-1])
        sums.biases.add_(d.all.sum(1))
        if to_features is not None:
            torch.mm(d.each[0], first, out=to_features[block.where])
    return sums.all(to_features)
