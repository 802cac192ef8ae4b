"""Activations acting on stacks of channels, forward and backward, with as few passes as possible.

Arrays fit into the cache here, so that what counts is the number of passes over them and of
transcendental functions. The stack of a layer, ``z`` [S, n, width], has the channels of
:class:`dcase.pinn.derivatives.jets.Plan` and, for most activations, a last slot for the value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcase.activations.jets import activation_jet, closed_form
from dcase.pinn.derivatives.jets import Plan

_slope_times = torch.ops.aten.tanh_backward  # (g, t) -> g (1 - t^2)

_MINUS_ONE = torch.tensor(-1.0)  # without dimensions: takes part in any dtype, on any device

# (channel, channel of i, channel of j); None stands for the Laplacian.
_Pair = tuple[int, int, int] | None


class Channels:
    """Positions of a plan's channels, and the products of first derivatives in the chain rule.

    Attributes:
        count: Number of channels.
        order: Highest order of differentiation.
        first: Number k of first derivatives: channels 1 to k.
        seconds: (channel, pair) of all of second order; pair is None for the Laplacian.
    """

    def __init__(self, plan: Plan) -> None:
        self.count, self.order, self.first = plan.channels, plan.order, len(plan.first)
        self.seconds: list[tuple[int, _Pair]] = []
        for i, j in plan.second:
            c = plan.channel(i, j)
            self.seconds.append((c, (c, plan.channel(i), plan.channel(j))))
        if plan.laplacian:
            self.seconds.append((plan.channel("laplacian"), None))
        self._summed = [plan.channel(i) for i in plan.laplacian]

    def product(self, z: Tensor, pair: _Pair, out: Tensor) -> Tensor:
        """``z_i z_j`` of a pair, ``sum_i z_i^2`` of the Laplacian."""
        if pair is not None:
            return torch.mul(z[pair[1]], z[pair[2]], out=out)
        torch.mul(z[self._summed[0]], z[self._summed[0]], out=out)
        for c in self._summed[1:]:
            out.addcmul_(z[c], z[c])
        return out

    def contract(self, z: Tensor, grad: Tensor, out: Tensor) -> None:
        """``sum_c grad_c z_c`` over all channels but the value."""
        torch.mul(grad[1], z[1], out=out)
        for c in range(2, self.count):
            out.addcmul_(grad[c], z[c])

    def contract_products(self, z: Tensor, grad: Tensor, out: Tensor, scratch: Tensor) -> None:
        """``sum_c grad_c`` times the product of c, over the channels of second order."""
        for index, (c, pair) in enumerate(self.seconds):
            self.product(z, pair, scratch)
            if index == 0:
                torch.mul(scratch, grad[c], out=out)
            else:
                out.addcmul_(scratch, grad[c])

    def spread(self, bend: Tensor, z: Tensor, pair: _Pair, out: Tensor, factor: float) -> None:
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
    """Any activation with known derivatives; its value is kept in a slot of its own.

    Args:
        channels: Of the stacks.
        activation: One that :func:`dcase.activations.jets.closed_form` knows.

    Attributes:
        extra: Slots of ``z`` beside the channels.
        factor: What pre-activations (channel 0) are to be multiplied by for :meth:`activate`.
    """

    extra = 1
    factor = 1.0

    def __init__(self, channels: Channels, activation: nn.Module) -> None:
        self.channels, self.activation = channels, activation

    def activate(self, z: Tensor) -> Tensor:
        """Add what the other methods need to pre-activations, in place; return the value."""
        return z[-1].copy_(activation_jet(self.activation, z[0], 0)[0])

    def value(self, z: Tensor) -> Tensor:
        """The value, where :meth:`activate` put it."""
        return z[-1]

    def slopes(self, z: Tensor, order: int) -> tuple[Tensor, ...]:
        """What the other methods share: value and derivatives of the activation."""
        return activation_jet(self.activation, z[0], order, z[-1])

    def output(self, z: Tensor, s: tuple[Tensor, ...], out: Tensor) -> None:
        """Write the channels of the activated stack, all but the value.

        Args:
            z: As :meth:`activate` left it.
            s: From :meth:`slopes`, of the order of the channels at least.
            out: [C - 1, n, width].
        """
        ch = self.channels
        torch.mul(z[1 : ch.count], s[1], out=out)
        if ch.order > 1:
            product = torch.empty_like(z[0])
            for c, pair in ch.seconds:
                out[c - 1].addcmul_(ch.product(z, pair, product), s[2])

    def pull_back(
        self, z: Tensor, s: tuple[Tensor, ...], grad: Tensor, out: Tensor, scratch: Tensor
    ) -> None:
        """Turn the gradient by the activated stack into that by the pre-activations.

        Args:
            z: As :meth:`activate` left it.
            s: From :meth:`slopes`, one order above the channels'.
            grad: [C, n, width]; left as it is.
            out: [C, n, width].
            scratch: [2, n, width], overwritten.
        """
        ch = self.channels
        torch.mul(grad, s[1], out=out)
        if ch.count == 1:
            return
        total, product = scratch[0], scratch[1]
        ch.contract(z, grad, total)
        out[0].addcmul_(total, s[2])
        if ch.order == 1:
            return
        ch.contract_products(z, grad, total, product)
        out[0].addcmul_(total, s[3])
        for c, pair in ch.seconds:
            ch.spread(torch.mul(grad[c], s[2], out=product), z, pair, out, 1.0)

    def slope_times(self, z: Tensor, s: tuple[Tensor, ...], x: Tensor, out: Tensor) -> Tensor:
        """``act'(z) x``."""
        return torch.mul(x, s[1], out=out)

    def keep_bend(self, x: Tensor, r: Tensor, e: Tensor, out: Tensor) -> None:
        """Keep for :meth:`add_bend` what it needs of x and r, where ``e = act'(z) r``."""
        torch.mul(x, r, out=out)

    def add_bend(self, z: Tensor, s: tuple[Tensor, ...], kept: Tensor, out: Tensor) -> None:
        """Add ``act''(z) r x`` to ``out``."""
        out.addcmul_(kept, s[2])


class Tanh(ClosedForm):
    """The baseline's activation: derivatives are polynomials of the value, which replaces z."""

    extra = 0
    factor = 2.0

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels, nn.Tanh())

    def activate(self, z: Tensor) -> Tensor:
        """``2 sigmoid(2 z) - 1``: a quarter of the time of torch's tanh (CPU), to 3 ulp of 1."""
        t = z[0].sigmoid_()
        return torch.add(_MINUS_ONE, t, alpha=2.0, out=t)

    def value(self, z: Tensor) -> Tensor:
        """See :class:`ClosedForm`."""
        return z[0]

    def slopes(self, z: Tensor, order: int) -> tuple[Tensor, ...]:
        """None: all is in ``z``."""
        return ()

    def output(self, z: Tensor, s: tuple[Tensor, ...], out: Tensor) -> None:
        """See :class:`ClosedForm`."""
        ch, t, k = self.channels, z[0], self.channels.first
        _slope_times.grad_input(z[1 : k + 1], t, grad_input=out[:k])
        for c, pair in ch.seconds:
            this = out[c - 1]
            ch.product(z, pair, this).mul_(t)
            torch.sub(z[c], this, alpha=2.0, out=this)  # z_ij - 2 t z_i z_j
            _slope_times.grad_input(this, t, grad_input=this)

    def pull_back(
        self, z: Tensor, s: tuple[Tensor, ...], grad: Tensor, out: Tensor, scratch: Tensor
    ) -> None:
        """See :class:`ClosedForm`."""
        ch, t = self.channels, z[0]
        if ch.count == 1:
            _slope_times.grad_input(grad[0], t, grad_input=out[0])
            return
        total, product = scratch[0], scratch[1]
        ch.contract(z, grad, total)
        torch.addcmul(grad[0], total, t, value=-2.0, out=out[0])
        if ch.order > 1:
            # The third derivative is slope (6 t^2 - 2); the slope follows.
            ch.contract_products(z, grad, total, product)
            out[0].sub_(total, alpha=2.0)
            out[0].addcmul_(total.mul_(t), t, value=6.0)
        _slope_times.grad_input(out[0], t, grad_input=out[0])
        _slope_times.grad_input(grad[1:], t, grad_input=out[1:])
        for c, pair in ch.seconds:
            ch.spread(torch.mul(out[c], t, out=product), z, pair, out, -2.0)

    def slope_times(self, z: Tensor, s: tuple[Tensor, ...], x: Tensor, out: Tensor) -> Tensor:
        """See :class:`ClosedForm`."""
        _slope_times.grad_input(x, z[0], grad_input=out)
        return out

    def keep_bend(self, x: Tensor, r: Tensor, e: Tensor, out: Tensor) -> None:
        """See :class:`ClosedForm`."""
        torch.mul(x, e, out=out)

    def add_bend(self, z: Tensor, s: tuple[Tensor, ...], kept: Tensor, out: Tensor) -> None:
        """See :class:`ClosedForm`."""
        out.addcmul_(kept, z[0], value=-2.0)
