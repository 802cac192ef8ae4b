"""The whole network in one autograd node: forward and backward by hand, block by block of points.

Between layers nothing is recorded, and a block's stack stays in the cache from the first layer to
the last. On one core a training step takes 0.4 times as long as with the same formulas as torch
operations (0.7 times for the adjoint of one field).

What autograd would do beyond one ordinary backward pass (a second one by ``create_graph=True``,
``torch.func``, forward mode, compilation) is done with the plain formulas instead, which these
functions are given as a fallback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcase.activations.autodiff import _composite_needed, _transforms_active
from dcase.activations.jets import closed_form
from dcase.pinn.derivatives.kernels import ClosedForm
from dcase.pinn.derivatives.workspace import (
    Lease,
    Stack,
    Workspace,
    blocks_of,
    carve,
    same_arrays,
    state_of,
)

# What `is_grads_batched=True` of torch.autograd.grad makes of a gradient.
_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", None)


@dataclass
class Network:
    """What a fused function knows of the network.

    Attributes:
        kernel: The activation, for the channels at hand.
        depth: Hidden layers.
        width: Their units.
        alpha: Scale of the residual blocks, or None.
        plain: The same function of (input, weights and biases) by torch operations.
        workspace: Memory to use.
    """

    kernel: ClosedForm
    depth: int
    width: int
    alpha: float | None
    plain: Callable[[Tensor, Sequence[Tensor]], Tensor]
    workspace: Workspace


def usable(activation: nn.Module) -> bool:
    """Whether the fused functions may be called here and now, with this activation."""
    return not (
        torch.compiler.is_compiling()
        or closed_form(activation) is None
        or _composite_needed()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
    )


def fused_jet(network: Network, stack: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Jet of the output.

    Args:
        network: Which network.
        stack: Jet of the features, [C, N, n_in].
        parameters: Weight, bias of the first layer, of the second, ..., of the read-out.

    Returns:
        [C, N, n_out]
    """
    if not torch.is_grad_enabled():
        lease = _lend(network, stack, keep=False)
        return _forward(network, stack, parameters, lease.item, keep=False)
    return _FusedJet.apply(network, stack, *parameters)


class _FusedJet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: Network, stack: Tensor, *parameters: Tensor) -> Tensor:
        ctx.network, ctx.lease = network, _lend(network, stack, keep=True)
        ctx.save_for_backward(stack, *parameters)
        return _forward(network, stack, parameters, ctx.lease.item, keep=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stack, *parameters = ctx.saved_tensors
        needed, blocks = ctx.needs_input_grad, ctx.lease.item
        if differentiated_again(grads[0]):
            found = plain_backward(ctx.network, [stack, *parameters], grads, needed)
        else:
            found = _backward(ctx.network, stack, parameters, blocks, grads[0], needed[1])
        return (None, *found)


def differentiated_again(grad: Tensor) -> bool:
    """Whether a backward pass is to be differentiated itself, or is one of many done at once."""
    return (
        torch.is_grad_enabled()
        or _transforms_active is None
        or _transforms_active()
        or _batched is None
        or _batched(grad)
    )


def plain_backward(
    network: Network, inputs: list[Tensor], grads: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The same by the plain formulas, so that it can be differentiated again."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        wanted = [x for x, need in zip(inputs, needed[1:], strict=True) if need]
        out = network.plain(inputs[0], inputs[1:])
        found = iter(
            torch.autograd.grad(out, wanted, grads, create_graph=create, allow_unused=True)
        )
    return [next(found) if need else None for need in needed[1:]]


def thin(weight: Tensor) -> Tensor:
    """The same matrix, laid out so that products with few columns are fast."""
    return weight.T.contiguous().T


class ParameterSums:
    """Gradients by the parameters, summed over blocks.

    Attributes:
        first: By the first weight, transposed: a product with few columns is slow, one with few
            rows is not.
        inner: By the weights between hidden layers, [depth - 1, width, width].
        last: By the read-out's weight.
        biases: By the biases of the hidden layers, [depth, width].
        last_bias: By the read-out's bias.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        first, last = parameters[0], parameters[-2]
        width, n_in = first.shape
        depth = len(parameters) // 2 - 1
        self.first = first.new_zeros(n_in, width)
        self.inner = first.new_zeros(depth - 1, width, width)
        self.biases = first.new_zeros(depth, width)
        self.last, self.last_bias = torch.zeros_like(last), torch.zeros_like(parameters[-1])

    def all(self, to_input: Tensor | None) -> list[Tensor | None]:
        """In the order of the arguments of the fused functions."""
        weights = [self.first.T.contiguous(), *self.inner.unbind(0), self.last]
        pairs = zip(weights, [*self.biases.unbind(0), self.last_bias], strict=True)
        return [to_input, *(x for pair in pairs for x in pair)]


@dataclass
class _Block:
    """Arrays for some points.

    Attributes:
        where: Which points.
        n: How many.
        layers: Pre-activations of each layer, with the kernel's slots.
        outputs: Activated stacks, of two layers in turns, or (residual blocks) of all.
        to_outputs: Gradients by an activated stack.
        to_layers: And by pre-activations.
        scratch: Two arrays [n, width].
    """

    where: slice
    n: int
    layers: list[Stack]
    outputs: list[Stack]
    to_outputs: Stack
    to_layers: Stack
    scratch: list[Tensor]


def _lend(network: Network, stack: Tensor, *, keep: bool) -> Lease[list[_Block]]:
    """Arrays for a pass; with ``keep``, for a pass forward and then backward."""
    channels = network.kernel.channels
    slots = network.kernel.slots(channels.order + keep)
    key = ("jet", channels.plan, slots, keep, *state_of(stack))
    return network.workspace.lend(key, lambda: _make_blocks(network, stack, slots, keep))


def _make_blocks(network: Network, stack: Tensor, slots: int, keep: bool) -> list[_Block]:
    depth, width, k = network.depth, network.width, network.kernel.channels.first
    c, n, _ = stack.shape
    wheres = blocks_of(n, c, stack.device)
    outs = depth if keep and network.alpha is not None else min(depth, 2)
    # Without a backward pass the layers take turns, too.
    layers = depth if keep else min(depth, 2)

    def shapes(m: int) -> list[tuple[int, ...]]:
        own: list[tuple[int, ...]] = [(c, m, width)] * (outs + 2)
        own += [(m, width)] * 2
        return own if keep else [*own, (layers, slots, m, width)]

    largest = wheres[0][1] if wheres else 0
    shared = stack.new_empty(sum(math.prod(shape) for shape in shapes(largest)))
    kept = stack.new_empty(n * depth * slots * width if keep else 0)

    def make(where: slice, m: int) -> _Block:
        arrays = carve(shared, *shapes(m))
        if keep:
            (z,) = carve(kept[where.start * depth * slots * width :], (depth, slots, m, width))
        else:
            z = arrays.pop()
        zs = [Stack(array, c, k) for array in z.unbind(0)]
        *stacks, first, second = arrays
        some = [Stack(array, c, k) for array in stacks]
        return _Block(
            where=where,
            n=m,
            layers=[zs[i % layers] for i in range(depth)],
            outputs=[some[i % outs] for i in range(depth)],
            to_outputs=some[-2],
            to_layers=some[-1],
            scratch=[first, second],
        )

    return same_arrays(make, wheres, keep)


def _forward(
    network: Network,
    stack: Tensor,
    parameters: Sequence[Tensor],
    blocks: list[_Block],
    *,
    keep: bool,
) -> Tensor:
    kernel, alpha = network.kernel, network.alpha
    c, n, n_in = stack.shape
    order = kernel.channels.order + keep
    weights = [w.T for w in parameters[0::2]]
    value_weights, biases = scaled(weights, kernel), scaled(parameters[1::2], kernel)
    out = stack.new_empty(c, n, len(parameters[-1]))
    for block in blocks:
        features = stack[:, block.where]
        value, rest = features[0], features[1:].reshape((c - 1) * block.n, n_in)
        for i, z in enumerate(block.layers):
            torch.addmm(biases[i], value, value_weights[i], out=z.parts[0])
            if c > 1:
                torch.mm(rest, weights[i], out=z.rest_rows)
            below, value = value, kernel.activate(z, order)
            new, residual = block.outputs[i], alpha is not None and i > 0
            if residual:
                value = torch.add(below, value, alpha=alpha, out=new.parts[0])
            if c > 1:
                kernel.output(z, new)
                if residual:
                    torch.add(rest, new.rest_rows, alpha=alpha, out=new.rest_rows)
                rest = new.rest_rows
        torch.addmm(parameters[-1], value, weights[-1], out=out[0, block.where])
        if c > 1:
            out[1:, block.where] = torch.mm(rest, weights[-1]).view(c - 1, block.n, -1)
    return out


def scaled(tensors: Sequence[Tensor], kernel: ClosedForm) -> list[Tensor]:
    """Times the factor that the kernel wants pre-activations to have."""
    if kernel.factor == 1.0:
        return list(tensors)
    return list(torch._foreach_mul(list(tensors), kernel.factor))


def _backward(
    network: Network,
    stack: Tensor,
    parameters: Sequence[Tensor],
    blocks: list[_Block],
    grad: Tensor,
    to_input: bool,
) -> list[Tensor | None]:
    kernel, depth, alpha = network.kernel, network.depth, network.alpha
    c, _, n_in = stack.shape
    residual, scale = alpha is not None, alpha or 1.0
    weights = parameters[0::2]
    sums = ParameterSums(parameters)
    to_weights, to_biases = sums.inner.unbind(0), sums.biases.unbind(0)
    to_stack, first = (torch.empty_like(stack), thin(weights[0])) if to_input else (None, None)
    for block in reversed(blocks):  # the last one may still be in the cache
        dh, dz = block.to_outputs, block.to_layers
        # Residual sums can only be built from below.
        sofar: list[tuple[Tensor, Tensor]] = []
        for i in range(depth if residual else 0):
            value, rest = _output(kernel, block.layers[i], block.outputs[i])
            if i:
                out = block.outputs[i]
                value = torch.add(sofar[-1][0], value, alpha=alpha, out=out.parts[0])
                torch.add(sofar[-1][1], rest, alpha=alpha, out=rest)
            sofar.append((value, rest))
        g = grad[:, block.where].reshape(c * block.n, -1)
        sums.last_bias.add_(g[: block.n].sum(0))
        torch.mm(g, weights[-1], out=dh.rows)
        for i in reversed(range(depth)):
            z = block.layers[i]
            value, rest = sofar[i] if residual else _output(kernel, z, block.outputs[0])
            # What left this activation is multiplied by the weight above, whose gradient by its
            # product still lies in dz.
            if i == depth - 1:
                sums.last.addmm_(g[: block.n].T, value)
                sums.last.addmm_(g[block.n :].T, rest)
            else:
                to_weights[i].addmm_(dz.value_columns, value)
                if c > 1:
                    to_weights[i].addmm_(dz.rest_columns, rest)
            kernel.pull_back(z, dh, dz, block.scratch)
            if residual and i:
                dz.rows.mul_(scale)
            to_biases[i].add_(dz.parts[0].sum(0))
            if residual and i:
                dh.rows.addmm_(dz.rows, weights[i])
            elif i:
                torch.mm(dz.rows, weights[i], out=dh.rows)
        features = stack[:, block.where].reshape(c * block.n, n_in)
        sums.first.addmm_(features.T, dz.rows)
        if to_stack is not None and first is not None:
            to_stack[:, block.where] = torch.mm(dz.rows, first).view(c, block.n, n_in)
    return sums.all(to_stack)


def _output(kernel: ClosedForm, z: Stack, out: Stack) -> tuple[Tensor, Tensor]:
    """What an activation gives: value and, as rows, the other channels."""
    if kernel.channels.count > 1:
        kernel.output(z, out)
    return z.parts[0], out.rest_rows
