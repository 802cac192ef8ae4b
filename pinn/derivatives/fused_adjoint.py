r"""Value and gradient of a network with one output in one autograd node, written by hand.

As :mod:`dcase.pinn.derivatives.fused`, for the adjoint engine. With :math:`h_l = s(z_l)`, the
reverse pass :math:`r_{l-1} = W_l^T (s'(z_l) r_l)` gives the gradient :math:`r_0`. Its own backward
pass runs *upward*, from :math:`\bar r_0`, the loss's gradient by the gradient:
:math:`\bar r_l = s'(z_l) W_l \bar r_{l-1}`, and leaves :math:`s''(z_l) r_l W_l \bar r_{l-1}` at
each :math:`z_l`; the ordinary backward pass of the value takes that along on its way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dcase.pinn.derivatives.fused import (
    Network,
    blocks_of,
    differentiated_again,
    plain_backward,
    thin,
)
from dcase.pinn.derivatives.workspace import Lease


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
        return _forward(network, features, parameters, None)
    return _FusedGradient.apply(network, features, *parameters)


class _FusedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: Network, features: Tensor, *parameters: Tensor) -> Tensor:
        slots = network.kernel.extra + 2
        numel = len(features) * slots * network.depth * network.width
        lease = network.workspace.lend(numel, features)
        out = _forward(network, features, parameters, lease)
        ctx.network, ctx.lease = network, lease
        ctx.save_for_backward(features, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        features, *parameters = ctx.saved_tensors
        needed, lease = ctx.needs_input_grad, ctx.lease
        if differentiated_again():
            found = plain_backward(ctx.network, [features, *parameters], grads, needed)
        else:
            found = _backward(ctx.network, features, parameters, lease, grads[0], needed[1])
        return (None, *found)


def _forward(
    network: Network, features: Tensor, parameters: Sequence[Tensor], lease: Lease | None
) -> Tensor:
    """Value, then the reverse pass.

    ``lease``, if there is one, keeps by block [slots, depth, points, width]: z (and the value of
    the activation) and, last, r where h leaves the layer.
    """
    kernel, width, depth, alpha = network.kernel, network.width, network.depth, network.alpha
    n, n_in = features.shape
    slots, factor = kernel.extra + 2, kernel.factor
    weights, biases = parameters[0::2], parameters[1::2]
    transposed, first = [w.T for w in weights], thin(weights[0])
    blocks = blocks_of(n, 2, features.device)
    largest = blocks[0][1] if blocks else 0
    out = features.new_empty(n, 1 + n_in)
    own = 0 if lease is not None else slots * depth
    work = network.workspace.lend((2 + own) * largest * width, features)
    scratch = work.array(2, largest, width)
    one_block = work.array(own * largest * width)
    for start, m in blocks:
        if lease is not None:
            block = lease.array(slots, depth, m, width)
        else:
            block = one_block[: own * m * width].view(slots, depth, m, width)
        zs, rs = block[:-1].unbind(1), block[-1].unbind(0)
        h = features[start : start + m]
        for i, z in enumerate(zs):
            torch.addmm(biases[i], h, transposed[i], beta=factor, alpha=factor, out=z[0])
            value = kernel.activate(z)
            if alpha is not None and i:
                value = torch.add(h, value, alpha=alpha, out=scratch[i % 2, :m])
            h = value
        here = out[start : start + m]
        here[:, :1] = torch.addmm(biases[-1], h, transposed[-1])
        rs[-1].copy_(weights[-1].expand(m, width))
        e = scratch[0, :m]
        for i in reversed(range(depth)):
            kernel.slope_times(zs[i], kernel.slopes(zs[i], 1), rs[i], e)
            if i == 0:
                here[:, 1:] = torch.mm(e, first)
            elif alpha is not None:
                torch.addmm(rs[i], e, weights[i], alpha=alpha, out=rs[i - 1])
            else:
                torch.mm(e, weights[i], out=rs[i - 1])
    return out


def _backward(
    network: Network,
    features: Tensor,
    parameters: Sequence[Tensor],
    lease: Lease,
    grad: Tensor,
    to_input: bool,
) -> list[Tensor | None]:
    """What does not depend on the layer below or above is done for all layers at once."""
    kernel, width, depth, alpha = network.kernel, network.width, network.depth, network.alpha
    slots, scale, residual = kernel.extra + 2, alpha or 1.0, alpha is not None
    weights = parameters[0::2]
    transposed, first = [w.T for w in weights], thin(weights[0])
    to_first = torch.zeros_like(first.T)
    to_inner = features.new_zeros(depth - 1, width, width)
    to_biases = features.new_zeros(depth, width)
    to_last = torch.zeros_like(weights[-1])
    to_features = torch.empty_like(features) if to_input else None
    to_values, to_gradients = grad[:, :1].contiguous(), grad[:, 1:].contiguous()
    blocks = blocks_of(len(features), 2, features.device)
    largest = blocks[0][1] if blocks else 0
    work = network.workspace.lend((4 * depth + 1) * largest * width, features)
    lease.rewind()
    for start, m in blocks:
        block = lease.array(slots, depth, m, width)
        z, r = block[:-1], block[-1]
        s = kernel.slopes(z, 2)
        zs, ss = z.unbind(1), list(zip(*s, strict=True)) if s else [()] * depth
        work.rewind()
        e, x, r_bar, d = (work.array(depth, m, width) for _ in range(4))
        dh = work.array(m, width)
        kernel.slope_times(z, s, r, e)
        # Upward: x = W r_bar
        below = to_gradients[start : start + m]
        for i, (x_i, r_i) in enumerate(zip(x.unbind(0), r_bar.unbind(0), strict=True)):
            torch.mm(below, transposed[i], out=x_i)
            if residual and i:
                x_i.mul_(scale)
            kernel.slope_times(zs[i], ss[i], x_i, r_i)
            if residual and i:
                r_i.add_(below)
            below = r_i
        to_first.addmm_(to_gradients[start : start + m].T, e[0])
        to_inner.baddbmm_(e[1:].mT, r_bar[:-1], alpha=scale)
        to_last.add_(r_bar[-1].sum(0))
        kernel.keep_bend(x, r, e, x)
        h = kernel.value(z)
        if residual:
            h = e.copy_(h)  # e is not needed any more
            for i in range(1, depth):
                torch.add(h[i - 1], h[i], alpha=scale, out=h[i])
        # Downward: d = dv/dz
        to_value = to_values[start : start + m]
        to_last.addmm_(to_value.T, h[-1])
        torch.mm(to_value, weights[-1], out=dh)
        ds, xs = d.unbind(0), x.unbind(0)
        for i in reversed(range(depth)):
            kernel.slope_times(zs[i], ss[i], dh, ds[i])
            if residual and i:
                ds[i].mul_(scale)
            kernel.add_bend(zs[i], ss[i], xs[i], ds[i])
            if residual and i:
                dh.addmm_(ds[i], weights[i])
            elif i:
                torch.mm(ds[i], weights[i], out=dh)
        to_first.addmm_(features[start : start + m].T, d[0])
        to_inner.baddbmm_(d[1:].mT, h[:-1])
        to_biases.add_(d.sum(1))
        if to_features is not None:
            torch.mm(d[0], first, out=to_features[start : start + m])
    to_weights = [to_first.T.contiguous(), *to_inner.unbind(0), to_last]
    last_bias = to_values.sum(0)
    pairs = zip(to_weights, [*to_biases.unbind(0), last_bias], strict=True)
    return [to_features, *(t for pair in pairs for t in pair)]
