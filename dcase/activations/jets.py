"""Closed forms of the derivatives of activations, for networks that carry derivatives forward.

For the integrated family they cost next to nothing: ``Phi' = phi``, ``Phi'' = phi'``,
``Phi''' = phi''``. Everything returned is made of differentiable operations. Where a derivative
jumps (ReLU's at 0), the value is autograd's, and the Dirac of the next order is left out, as
autograd does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcase.activations import modules as m
from dcase.activations.series import INV_SQRT2, INV_SQRT_2PI, SELU_ALPHA, SELU_SCALE
from dcase.activations.silu import SiLU, silu
from dcase.errors import OptionError

#: Highest order of derivative that the closed forms know.
MAX_ORDER = 3

# (module, z, order, value) -> (value, first, ..., order-th), or more than asked for.
_Rule = Callable[[Any, Tensor, int, Tensor | None], Sequence[Tensor]]


def activation_jet(
    activation: nn.Module, z: Tensor, order: int, value: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Value and derivatives of an elementwise activation.

    Args:
        activation: Any module of :data:`dcase.activations.ACTIVATIONS`, by a closed form; another
            elementwise module by nested autograd (slower).
        z: Any shape, floating dtype.
        order: Highest derivative, 0 to 3 (any with nested autograd).
        value: The value, if it is known already: saves computing it again.

    Returns:
        ``order + 1`` tensors of the shape of z: value, first derivative, ...

    Raises:
        OptionError: Negative order, or above 3 for a closed form.
    """
    if order < 0:
        raise OptionError(f"the order of a derivative must not be negative, got {order}")
    rule = closed_form(activation)
    if rule is None:
        return _by_autograd(activation, z, order)
    if order > MAX_ORDER:
        raise OptionError(f"derivatives of activations are known to order {MAX_ORDER}, not {order}")
    return tuple(rule(activation, z, order, value)[: order + 1])


def closed_form(activation: nn.Module) -> _Rule | None:
    """The rule ``(activation, z, order, value) -> (value, first, ...)`` of a module, or None.

    Only exact types count: a subclass may do something else.
    """
    if isinstance(activation, nn.GELU) and activation.approximate != "none":
        return None
    return _RULES.get(type(activation))


def _by_autograd(activation: nn.Module, z: Tensor, order: int) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        x = z if z.requires_grad else z.detach().requires_grad_()
        # A view of its own: the derivative is by this use of z alone.
        x = x.view_as(x)
        out = [activation(x)]
        for _ in range(order):
            last = out[-1]
            derivative = None
            if last.requires_grad:
                (derivative,) = torch.autograd.grad(
                    last.sum(), x, create_graph=True, allow_unused=True
                )
            out.append(torch.zeros_like(z) if derivative is None else derivative)
    parametric = any(p.requires_grad for p in activation.parameters())
    if not torch.is_grad_enabled() or not (z.requires_grad or parametric):
        return tuple(d.detach() for d in out)
    return tuple(out)


def _step(z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


# One rule per activation; those of the integrals are made of these.


def _tanh(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    if value is not None:
        t = value
    elif torch.is_grad_enabled():
        t = torch.tanh(z)
    else:  # four times as fast on a CPU, to 3 ulp of 1
        t = torch.sigmoid(2.0 * z).mul_(2.0).sub_(1.0)
    if order == 0:
        return (t,)
    slope = 1.0 - t * t
    if order == 1:
        return t, slope
    bend = -2.0 * t * slope
    return (t, slope, bend) if order == 2 else (t, slope, bend, slope * (6.0 * t * t - 2.0))


def _sigmoid(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    s = torch.sigmoid(z) if value is None else value
    if order == 0:
        return (s,)
    slope = s * (1.0 - s)
    if order == 1:
        return s, slope
    bend = slope * (1.0 - 2.0 * s)
    return (s, slope, bend) if order == 2 else (s, slope, bend, slope * (1.0 - 6.0 * slope))


def _silu(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    if order == 0:
        return (silu(z) if value is None else value,)
    s, *rest = _sigmoid(None, z, order, None)
    out = [z * s if value is None else value, s + z * rest[0]]
    # (z s)^(n) = z s^(n) + n s^(n-1)
    return out + [z * rest[n - 1] + n * rest[n - 2] for n in range(2, order + 1)]


def _gelu(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    if order == 0:
        return (F.gelu(z) if value is None else value,)
    cdf = 0.5 * torch.erfc(z * -INV_SQRT2)
    square = z * z
    pdf = INV_SQRT_2PI * torch.exp(-0.5 * square)
    out = [z * cdf if value is None else value, cdf + z * pdf]
    out += [pdf * (2.0 - square)] if order > 1 else []
    return [*out, pdf * z * (square - 4.0)] if order > 2 else out


def _erf(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    value = torch.erf(z) if value is None else value
    if order == 0:
        return (value,)
    square = z * z
    slope = 2.0 / math.sqrt(math.pi) * torch.exp(-square)
    out = [value, slope]
    out += [-2.0 * z * slope] if order > 1 else []
    return [*out, (4.0 * square - 2.0) * slope] if order > 2 else out


def _relu(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    return _piecewise(torch.relu(z) if value is None else value, _step(z), order)


def _leaky_relu(module: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    slope = module.negative_slope
    value = F.leaky_relu(z, slope) if value is None else value
    return _piecewise(value, slope + (1.0 - slope) * _step(z), order)


def _clipped_relu(module: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    inside = ((z >= 0) & (z <= module.tau)).to(z.dtype)
    return _piecewise(torch.clamp(z, 0.0, module.tau) if value is None else value, inside, order)


def _piecewise(value: Tensor, slope: Tensor, order: int) -> Sequence[Tensor]:
    """Of straight pieces: no second derivative."""
    zeros = [torch.zeros_like(slope)] * (order - 1)
    return [value, slope, *zeros]


def _elu(module: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    return _elu_rule(z, module.alpha, 1.0, order, value)


def _selu(_: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
    return _elu_rule(z, SELU_ALPHA, SELU_SCALE, order, value)


def _elu_rule(
    z: Tensor, alpha: float, scale: float, order: int, value: Tensor | None
) -> Sequence[Tensor]:
    negative = -torch.relu(-z)
    if value is None:
        value = scale * (torch.relu(z) + alpha * torch.expm1(negative))
    step = _step(z)
    bend = (1.0 - step) * (scale * alpha * torch.exp(negative))
    return [value, scale * step + bend] + [bend] * (order - 1)


def _integral(base: _Rule, module: nn.Module | None = None) -> _Rule:
    """Rule of Phi with Phi' = phi from that of phi; ``module``: Phi, where it is itself a base."""

    def rule(this: Any, z: Tensor, order: int, value: Tensor | None) -> Sequence[Tensor]:
        value = (module or this)(z) if value is None else value
        return (value, *(base(this, z, order - 1, None) if order else ()))

    return rule


_softplus = _integral(_sigmoid, m.Softplus())
_ssp = _integral(_sigmoid, m.SSP())

_RULES: dict[type[nn.Module], _Rule] = {
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.SiLU: _silu,
    SiLU: _silu,
    nn.GELU: _gelu,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.SELU: _selu,
    m.Erf: _erf,
    m.ClippedReLU: _clipped_relu,
    m.Softplus: _softplus,
    m.SSP: _ssp,
    m.IReLU: _integral(_relu),
    m.ILeakyReLU: _integral(_leaky_relu),
    m.IELU: _integral(_elu),
    m.ISELU: _integral(_selu),
    m.ISiLU: _integral(_silu),
    m.IGELU: _integral(_gelu),
    m.ISoftplus: _integral(_softplus),
    m.ISSP: _integral(_ssp),
    m.LogCosh: _integral(_tanh),
    m.IClippedReLU: _integral(_clipped_relu),
    m.IErf: _integral(_erf),
}
