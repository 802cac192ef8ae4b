"""The whole network in one autograd node: forward and backward by hand, block by block of points.

Between layers nothing is recorded, and a block's stack stays in the cache from the first layer to
the last. On one core this is 2 to 4 times as fast as the same formulas as torch operations.

What autograd would do beyond one ordinary backward pass (a second one by ``create_graph=True``,
``torch.func``, forward mode, compilation) is done with the plain formulas instead, which these
functions are given as a fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcase.activations.autodiff import _composite_needed, _transforms_active
from dcase.activations.jets import closed_form
from dcase.pinn.derivatives.kernels import ClosedForm
from dcase.pinn.derivatives.workspace import Lease, Workspace

#: Rows of a stack (points times channels) in one block: 2/3 MB at width 40 in float32.
BLOCK_ROWS = 4096


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
    return (
        closed_form(activation) is not None
        and not _composite_needed()
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
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
        return _jet_forward(network, stack, parameters, None)
    return _FusedJet.apply(network, stack, *parameters)


class _FusedJet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: Network, stack: Tensor, *parameters: Tensor) -> Tensor:
        c, n, _ = stack.shape
        slots = c + network.kernel.extra
        lease = network.workspace.lend(n * slots * network.depth * network.width, stack)
        out = _jet_forward(network, stack, parameters, lease)
        ctx.network, ctx.lease = network, lease
        ctx.save_for_backward(stack, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        stack, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if differentiated_again():
            found = plain_backward(ctx.network, [stack, *parameters], grads, needed)
        else:
            found = _jet_backward(ctx.network, stack, parameters, ctx.lease, grads[0], needed[1])
        return (None, *found)


def differentiated_again() -> bool:
    """Whether a backward pass is itself to be differentiated, or runs inside ``torch.func``."""
    return torch.is_grad_enabled() or _transforms_active is None or _transforms_active()


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


def blocks_of(n: int, channels: int, device: torch.device) -> list[tuple[int, int]]:
    """First point and number of points of each block; the first is the largest."""
    limit = n
    if device.type == "cpu":  # elsewhere no cache to fit into, but launches to pay for
        limit = max(1, BLOCK_ROWS * torch.get_num_threads() // channels)
    count = -(-n // limit) if n else 0
    size = -(-n // count) if count else 0
    return [(start, min(size, n - start)) for start in range(0, n, size)] if n else []


def thin(weight: Tensor) -> Tensor:
    """The same matrix, laid out so that products with few columns are fast."""
    return weight.T.contiguous().T


def _jet_forward(
    network: Network, stack: Tensor, parameters: Sequence[Tensor], lease: Lease | None
) -> Tensor:
    """Forward pass; the stacks of all layers stay in ``lease``, if there is one.

    They are, by block: [depth, slots, points, width].
    """
    kernel, width, depth, alpha = network.kernel, network.width, network.depth, network.alpha
    c, n, n_in = stack.shape
    slots, factor, order = c + kernel.extra, kernel.factor, kernel.channels.order
    transposed, biases = [w.T for w in parameters[0::2]], parameters[1::2]
    blocks = blocks_of(n, c, stack.device)
    largest = blocks[0][1] if blocks else 0
    out = stack.new_empty(c, n, len(biases[-1]))
    # In turns, because the next layer's stack is made from the last one's value.
    turns = 0 if lease is not None else min(2, depth)
    work = network.workspace.lend((turns * slots + 2 * c) * largest * width, stack)
    outputs = work.array(2, c * largest, width)
    own = work.array(turns * slots * largest * width)
    for start, m in blocks:
        if lease is not None:
            layers = lease.array(depth, slots, m, width).unbind(0)
        else:
            some = own[: turns * slots * m * width].view(turns, slots, m, width).unbind(0)
            layers = tuple(some[i % turns] for i in range(depth))
        features = stack[:, start : start + m]
        value, rest = features[0], features[1:].reshape((c - 1) * m, n_in)
        for i, z in enumerate(layers):
            torch.addmm(biases[i], value, transposed[i], beta=factor, alpha=factor, out=z[0])
            if c > 1:
                torch.mm(rest, transposed[i], out=z[1:c].view(-1, width))
            residual = alpha is not None and i > 0
            new = kernel.activate(z)
            below, value = value, new
            if residual:
                value = torch.add(below, new, alpha=alpha, out=outputs[i % 2, :m])
            if c > 1:
                slopes = outputs[i % 2, m : c * m]
                kernel.output(z, kernel.slopes(z, order), slopes.view(c - 1, m, width))
                rest = torch.add(rest, slopes, alpha=alpha, out=slopes) if residual else slopes
        torch.addmm(biases[-1], value, transposed[-1], out=out[0, start : start + m])
        if c > 1:
            out[1:, start : start + m] = torch.mm(rest, transposed[-1]).view(c - 1, m, -1)
    return out


class _Gradients:
    """Sums of the gradients by the parameters over blocks."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.weights = [torch.zeros_like(w) for w in parameters[0::2]]
        self.biases = [torch.zeros_like(b) for b in parameters[1::2]]
        # Transposed: a product with few columns is slow, one with few rows is not.
        self.first = torch.zeros_like(self.weights[0].T, memory_format=torch.contiguous_format)

    def add(self, i: int, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """Add ``scale left^T right`` to the weight of layer i."""
        if i == 0 and len(self.weights) > 1:
            self.first.addmm_(right.T, left, alpha=scale)
        else:
            self.weights[i].addmm_(left.T, right, alpha=scale)

    def all(self, to_input: Tensor | None) -> list[Tensor | None]:
        """In the order of the arguments."""
        self.weights[0].add_(self.first.T)
        pairs = zip(self.weights, self.biases, strict=True)
        return [to_input, *(x for pair in pairs for x in pair)]


def _jet_backward(
    network: Network,
    stack: Tensor,
    parameters: Sequence[Tensor],
    lease: Lease,
    grad: Tensor,
    to_input: bool,
) -> list[Tensor | None]:
    kernel, width, depth, alpha = network.kernel, network.width, network.depth, network.alpha
    c, n, n_in = stack.shape
    slots, order, scale = c + kernel.extra, kernel.channels.order + 1, alpha or 1.0
    weights = parameters[0::2]
    sums = _Gradients(parameters)
    to_stack, first = (torch.empty_like(stack), thin(weights[0])) if to_input else (None, None)
    blocks = blocks_of(n, c, stack.device)
    largest = blocks[0][1] if blocks else 0
    # Residual sums can only be built from below, so that all of them are kept; else one at a time.
    keep = 1 if alpha is None else depth
    work = network.workspace.lend(((keep + 2) * c + 2) * largest * width, stack)
    outputs = work.array(keep, c * largest, width)
    gradients = work.array(2, c * largest, width)
    two = work.array(2 * largest * width)
    lease.rewind()
    for start, m in blocks:
        layers = lease.array(depth, slots, m, width).unbind(0)
        features = stack[:, start : start + m]
        bottom = features[0], features[1:].reshape((c - 1) * m, n_in)
        dh, dz = (g[: c * m] for g in gradients)
        dh_stack, dz_stack = dh.view(c, m, width), dz.view(c, m, width)
        scratch = two[: 2 * m * width].view(2, m, width)
        slopes = [kernel.slopes(z, order) for z in layers] if alpha is not None else []
        above: list[tuple[Tensor, Tensor]] = []
        for i in range(depth if alpha is not None else 0):
            above.append(
                _output(kernel, layers[i], slopes[i], outputs[i, : c * m], above[-1:], scale)
            )
        g = grad[:, start : start + m].reshape(c * m, -1)
        sums.biases[-1].add_(g[:m].sum(0))
        torch.mm(g, weights[-1], out=dh)
        upper = g
        for i in reversed(range(depth)):
            if alpha is not None:
                s, h = slopes[i], above[i]
            else:
                s = kernel.slopes(layers[i], order)
                h = _output(kernel, layers[i], s, outputs[0, : c * m], [], scale)
            # Weights above this activation
            sums.add(i + 1, upper[:m], h[0])
            if c > 1:
                sums.add(i + 1, upper[m:], h[1])
            kernel.pull_back(layers[i], s, dh_stack, dz_stack, scratch)
            if alpha is not None and i:
                dz.mul_(alpha)
            sums.biases[i].add_(dz_stack[0].sum(0))
            upper = dz
            if i and alpha is not None:
                dh.addmm_(dz, weights[i])
            elif i:
                torch.mm(dz, weights[i], out=dh)
        sums.add(0, dz[:m], bottom[0])
        if c > 1:
            sums.add(0, dz[m:], bottom[1])
        if to_stack is not None and first is not None:
            to_stack[:, start : start + m] = torch.mm(dz, first).view(c, m, n_in)
    return sums.all(to_stack)


def _output(
    kernel: ClosedForm,
    z: Tensor,
    s: tuple[Tensor, ...],
    out: Tensor,
    below: list[tuple[Tensor, Tensor]],
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Value and other channels [(C - 1) n, width] that leave an activation, or a residual block."""
    m = z.shape[1]
    value, rest = kernel.value(z), out[m:]
    if len(rest):
        kernel.output(z, s, rest.view(-1, m, out.shape[1]))
    for value_below, rest_below in below:
        value = torch.add(value_below, value, alpha=alpha, out=out[:m])
        torch.add(rest_below, rest, alpha=alpha, out=rest)
    return value, rest
