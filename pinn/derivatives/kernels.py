"""Activations acting on stacks of channels, forward and backward, with as few passes as possible.

Arrays fit into the cache here, so that what counts is the number of passes over them and of
transcendental functions. The stack of a layer, ``z``, has the channels of
:class:`dcase.pinn.derivatives.jets.Plan`, pre-activations at first. :meth:`ClosedForm.activate`
replaces channel 0 by the value; the derivatives of the activation go to further slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcase.activations.jets import activation_jet, closed_form
from dcase.pinn.derivatives.jets import Plan
from dcase.pinn.derivatives.workspace import Arrays, Stack

_slope_times = torch.ops.aten.tanh_backward  # (g, t) -> g (1 - t^2)

_MINUS_ONE = torch.tensor(-1.0)  # without dimensions: takes part in any dtype, on any device

# (channel, channel of i, channel of j); None stands for the Laplacian.
_Pair = tuple[int, int, int] | None


class Channels:
    """Positions of a plan's channels, and the products of first derivatives in the chain rule.

    Attributes:
        plan: Which ones.
        count: Number of channels.
        order: Highest order of differentiation.
        first: Number k of first derivatives: channels 1 to k.
        seconds: (channel, pair) of all of second order; pair is None for the Laplacian.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.count, self.order, self.first = plan.channels, plan.order, len(plan.first)
        self.seconds: list[tuple[int, _Pair]] = []
        for i, j in plan.second:
            c = plan.channel(i, j)
            self.seconds.append((c, (c, plan.channel(i), plan.channel(j))))
        if plan.laplacian:
            self.seconds.append((plan.channel("laplacian"), None))
        self._summed = [plan.channel(i) for i in plan.laplacian]

    def product(self, z: Arrays, pair: _Pair, out: Tensor) -> Tensor:
        """``z_i z_j`` of a pair, ``sum_i z_i^2`` of the Laplacian."""
        if pair is not None:
            return torch.mul(z[pair[1]], z[pair[2]], out=out)
        torch.mul(z[self._summed[0]], z[self._summed[0]], out=out)
        for c in self._summed[1:]:
            out.addcmul_(z[c], z[c])
        return out

    def contract(self, z: Arrays, grad: Arrays, out: Tensor) -> None:
        """``sum_c grad_c z_c`` over all channels but the value."""
        torch.mul(grad[1], z[1], out=out)
        for c in range(2, self.count):
            out.addcmul_(grad[c], z[c])

    def contract_products(self, z: Arrays, grad: Arrays, out: Tensor, scratch: Tensor) -> None:
        """``sum_c grad_c`` times the product of c, over the channels of second order."""
        for index, (c, pair) in enumerate(self.seconds):
            self.product(z, pair, scratch)
            if index == 0:
                torch.mul(scratch, grad[c], out=out)
            else:
                out.addcmul_(scratch, grad[c])

    def spread(self, bend: Tensor, z: Arrays, pair: _Pair, out: Arrays, factor: float) -> None:
        """Add ``factor bend d(product)/d z_i`` to ``out[i]``."""
        if pair is None:
            for i in self._summed:
                out[i].addcmul_(bend, z[i], value=2.0 * factor)
        else:
            out[pair[1]].addcmul_(bend, z[pair[2]], value=factor)
            out[pair[2]].addcmul_(bend, z[pair[1]], value=factor)


def kernel_for(activation: nn.Module, plan: Plan) -> ClosedForm | None:
    """The kernel of an activation, or None where no closed form is known."""
    if type(activation) is nn.Tanh:
        return Tanh(Channels(plan))
    return ClosedForm(Channels(plan), activation) if closed_form(activation) is not None else None


class ClosedForm:
    """Any activation with known derivatives, which take a slot each.

    Args:
        channels: Of the stacks.
        activation: One that :func:`dcase.activations.jets.closed_form` knows.

    Attributes:
        factor: What pre-activations (channel 0) are to be multiplied by for :meth:`activate`.
    """

    factor = 1.0

    def __init__(self, channels: Channels, activation: nn.Module) -> None:
        self.channels, self.activation = channels, activation

    def slots(self, order: int) -> int:
        """Slots of a stack whose activation is to be differentiated so often."""
        return self.channels.count + order

    def activate(self, z: Stack, order: int) -> Tensor:
        """Put the value into channel 0, and derivatives into the slots after the channels.

        Args:
            z: Pre-activations.
            order: How many derivatives: those that the chain rule needs, and one more for
                :meth:`pull_back`.

        Returns:
            The value.
        """
        value, *slopes = activation_jet(self.activation, z.parts[0], order)
        for k, slope in enumerate(slopes, start=self.channels.count):
            z.parts[k].copy_(slope)
        return z.parts[0].copy_(value)

    def output(self, z: Stack, out: Stack) -> None:
        """Write the channels of the activated stack, all but the value."""
        ch, s = self.channels, z.parts[self.channels.count :]
        torch.mul(z.rest, s[0], out=out.rest)
        if ch.order > 1:
            product = torch.empty_like(s[0])
            for c, pair in ch.seconds:
                out.parts[c].addcmul_(ch.product(z.parts, pair, product), s[1])

    def pull_back(self, z: Stack, grad: Stack, out: Stack, scratch: Arrays) -> None:
        """Turn the gradient by the activated stack into that by the pre-activations.

        Args:
            z: As :meth:`activate` left it.
            grad: Left as it is.
            out: Where to.
            scratch: Two arrays of the shape of a channel, overwritten.
        """
        ch, g, o = self.channels, grad.parts, out.parts
        s = z.parts[ch.count :]
        torch.mul(g[0], s[0], out=o[0])
        if ch.count == 1:
            return
        torch.mul(grad.rest, s[0], out=out.rest)
        total, product = scratch
        ch.contract(z.parts, g, total)
        o[0].addcmul_(total, s[1])
        if ch.order == 1:
            return
        ch.contract_products(z.parts, g, total, product)
        o[0].addcmul_(total, s[2])
        for c, pair in ch.seconds:
            ch.spread(torch.mul(g[c], s[1], out=product), z.parts, pair, o, 1.0)

    # For the adjoint, whose only channel is the value; derivatives to order 2.

    def slope_times(self, z: Stack, x: Tensor, out: Tensor) -> None:
        """``act'(z) x``."""
        torch.mul(x, z.parts[1], out=out)

    def keep_bend(self, z: Stack, r: Tensor) -> None:
        """Keep of r what :meth:`bend_times` needs; once for each :meth:`activate`."""
        z.parts[2].mul_(r)

    def bend_times(self, z: Stack, e: Tensor, x: Tensor) -> None:
        """``act''(z) r x``, or part of it, in place of x; ``e = act'(z) r``."""
        x.mul_(z.parts[2])

    def add_bend(self, z: Stack, bend: Tensor, out: Tensor) -> None:
        """Add ``act''(z) r x`` to ``out``; ``bend`` is from :meth:`bend_times`."""
        out.add_(bend)


class Tanh(ClosedForm):
    """The baseline's activation: derivatives are polynomials of the value, and take no slots."""

    factor = 2.0

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels, nn.Tanh())

    def slots(self, order: int) -> int:
        """See :class:`ClosedForm`."""
        return self.channels.count

    def activate(self, z: Stack, order: int) -> Tensor:
        """``2 sigmoid(2 z) - 1``: a quarter of the time of torch's tanh (CPU), to 3 ulp of 1."""
        t = z.parts[0].sigmoid_()
        return torch.add(_MINUS_ONE, t, alpha=2.0, out=t)

    def output(self, z: Stack, out: Stack) -> None:
        """See :class:`ClosedForm`."""
        ch, t = self.channels, z.parts[0]
        _slope_times.grad_input(z.firsts, t, grad_input=out.firsts)
        for c, pair in ch.seconds:
            this = out.parts[c]
            ch.product(z.parts, pair, this).mul_(t)
            torch.sub(z.parts[c], this, alpha=2.0, out=this)  # z_ij - 2 t z_i z_j
            _slope_times.grad_input(this, t, grad_input=this)

    def pull_back(self, z: Stack, grad: Stack, out: Stack, scratch: Arrays) -> None:
        """See :class:`ClosedForm`."""
        ch, t, g, o = self.channels, z.parts[0], grad.parts, out.parts
        if ch.count == 1:
            _slope_times.grad_input(g[0], t, grad_input=o[0])
            return
        total, product = scratch
        ch.contract(z.parts, g, total)
        torch.addcmul(g[0], total, t, value=-2.0, out=o[0])
        if ch.order > 1:
            # The third derivative is slope (6 t^2 - 2); the slope follows.
            ch.contract_products(z.parts, g, total, product)
            o[0].sub_(total, alpha=2.0)
            o[0].addcmul_(total.mul_(t), t, value=6.0)
        _slope_times.grad_input(o[0], t, grad_input=o[0])
        _slope_times.grad_input(grad.rest, t, grad_input=out.rest)
        for c, pair in ch.seconds:
            ch.spread(torch.mul(o[c], t, out=product), z.parts, pair, o, -2.0)

    def slope_times(self, z: Stack, x: Tensor, out: Tensor) -> None:
        """See :class:`ClosedForm`."""
        _slope_times.grad_input(x, z.parts[0], grad_input=out)

    def keep_bend(self, z: Stack, r: Tensor) -> None:
        """Nothing: ``act'' r = -2 t e``."""

    def bend_times(self, z: Stack, e: Tensor, x: Tensor) -> None:
        """See :class:`ClosedForm`."""
        x.mul_(e)

    def add_bend(self, z: Stack, bend: Tensor, out: Tensor) -> None:
        """See :class:`ClosedForm`."""
        out.addcmul_(bend, z.parts[0], value=-2.0)
